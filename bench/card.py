"""The stages of `scripts/gpu.sh`: what is right and how fast on a card, by `alip-run` and the peers.

    scripts/gpu.sh check       every kernel against the interpreter, goldens, losses against the cpu, compute-sanitizer
    scripts/gpu.sh bench       training steps by batch and length of texts, kernels with their rooflines; wgpu
    scripts/gpu.sh peers       PyTorch on the same card: eager, compiled, with activations computed again
    scripts/gpu.sh autotune    PyTorch with max-autotune, which takes minutes to compile: in a call of its own, last

Needs release binaries, Python and this folder, but neither a network nor Rust; what else is missing (compute-sanitizer, PyTorch,
a Vulkan driver) is said in the table, and the rest is done. After every part, all that is known so far is written to
`bench/results/`, so that a call that is cut off leaves what it had. No part begins after --seconds, and those that run then are cut
off.
"""

import argparse
import contextlib
import datetime
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PEER = ROOT / "bench/peers/alip_torch.py"

# How far losses on a card may be from those on the cpu: so many times what rounding to 16 bits moves them there, as
# `alip_plan::bounds::golden` has it for trajectories, and so much where that is nothing.
SENSITIVITY_FACTOR, LATER_STEP = 4.0, 1e-6


# Of graphs against launches one by one: the first step makes none, the next three record one for each slot of inputs, and then each
# is replayed twice.
REPLAYED_STEPS = 10

# Seconds for a program that was begun as the time of a stage ran out.
GRACE = 10


class Absent(Exception):
    """A part cannot be done here, and why."""


class Failed(Exception):
    """A part went wrong, and what was said."""


class Stage:
    """The parts of a stage, within its time, and the file in which they stand."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.start, self.largest = args, time.monotonic(), None
        now = datetime.datetime.now(datetime.timezone.utc)
        args.out.mkdir(parents=True, exist_ok=True)
        self.path = args.out / f"{now:%Y-%m-%dT%H%M%SZ}-{args.stage}.json"
        self.facts = {"stage": args.stage, "date": f"{now:%Y-%m-%dT%H:%M:%SZ}", "commit": commit(), "graph": args.graph,
                      "card": None, "driver": None, "parts": []}  # fmt: skip

    def left(self) -> float:
        return self.args.seconds - (time.monotonic() - self.start)

    def part(self, name: str, work) -> dict | None:
        """Does a part and writes down what came of it: its figures, unless there are none."""
        begin, part = time.monotonic(), {"part": name}
        print(f"== {name}", file=sys.stderr, flush=True)
        try:
            # The first part says which card it is.
            if self.facts["parts"] and self.left() <= 0:
                raise Absent(f"the {self.args.seconds:g} s of the stage were over")
            part |= {"status": "done", "figures": work()}
        except Absent as why:
            part |= {"status": "not done", "why": str(why)}
        except Failed as why:
            part |= {"status": "FAILED", "why": str(why)}
        except Exception:  # Whatever a part trips over, the others and the table are to come.
            part |= {"status": "FAILED", "why": traceback.format_exc()}
        part["seconds"] = round(time.monotonic() - begin, 3)
        self.facts["parts"].append(part)
        self.write()
        return part.get("figures")

    def write(self) -> None:
        """The file as a whole or as it was."""
        half = self.path.with_suffix(".part")
        half.write_text(json.dumps(self.facts, indent=1) + "\n")
        half.replace(self.path)

    def said(self, command: list, *, env: dict | None = None) -> str:
        """What a program says on stdout."""
        command = [str(word) for word in command]
        # In a session of its own, so that what it started ends with it and leaves the card to the next.
        with subprocess.Popen(command, cwd=self.args.specs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              env=os.environ | (env or {}), start_new_session=True) as program:  # fmt: skip
            try:
                out, err = program.communicate(timeout=max(self.left(), GRACE))
            except subprocess.TimeoutExpired:
                raise Failed(f"cut off at the end of the stage: {' '.join(command)}") from None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(program.pid, signal.SIGKILL)
        if program.returncode != 0:
            raise Failed(f"{' '.join(command)}: exit status {program.returncode}\n{(out + err)[-4000:]}")
        return out

    def alip(self, *words, env: dict | None = None) -> str:
        return self.said([self.args.alip_run, *words], env=env)

    def bench(self, graph: str, *words, env: dict | None = None) -> dict:
        return json.loads(self.alip("bench", graph, "--json", *words, env=env))


def commit() -> str | None:
    """Of the sources; ALIP_COMMIT where only binaries are here."""
    if os.environ.get("ALIP_COMMIT"):
        return os.environ["ALIP_COMMIT"]
    asked = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"],
                           capture_output=True, text=True, check=False) if shutil.which("git") else None  # fmt: skip
    return asked.stdout.strip() or None if asked and asked.returncode == 0 else None


def card(stage: Stage) -> dict:
    """The card as the driver and as `alip-run` names it."""
    facts = {"devices": stage.alip("devices").splitlines()}
    own = [line for line in facts["devices"] if line.startswith(stage.args.device.split(":")[0])]
    stage.facts["card"] = own[0] if own else None
    if shutil.which("nvidia-smi"):
        query = "name,driver_version,memory.total,clocks.sm,power.limit"
        facts["nvidia-smi"] = stage.said(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]).strip()
        stage.facts["driver"] = facts["nvidia-smi"].split(", ")[1] if ", " in facts["nvidia-smi"] else None
    return facts


def torch_version(stage: Stage) -> str:
    try:
        return stage.said([sys.executable, "-c", "import torch; print(torch.__version__)"]).strip()
    except Failed:
        raise Absent(f"{sys.executable} has no PyTorch") from None


# check


def laws(stage: Stage, graph: str, *words) -> dict:
    """Every kernel of a step within its bound of the interpreter, and the step within its own of the one that was written."""
    # Compared with what has as few kernels to compile.
    said = stage.alip("bisect", graph, "--against", "no-egraph", "--device", stage.args.device, *words)
    return {"says": said.strip().splitlines()}


def golden(stage: Stage) -> dict:
    folder = stage.args.golden
    if not (folder / "inputs.safetensors").exists():
        raise Absent(f"no golden data in {folder}")
    files = ["--weights", folder / "weights_initial.safetensors", "--batches", folder / "inputs.safetensors"]
    return laws(stage, stage.args.golden_graph or folder.name, *files)


def losses(stage: Stage) -> dict:
    """Losses of the first steps on the card beside those of the cpu, rounded to 16 bits and not."""
    args = stage.args
    same = ["--batch", args.check_batch, "--warmup", 0, "--steps", args.check_steps]
    on_card = stage.bench(args.graph, *same, "--device", args.device)["losses"]
    mixed = stage.bench(args.graph, *same, "--device", "cpu", "--target", "cpu_mixed")["losses"]
    plain = stage.bench(args.graph, *same, "--device", "cpu")["losses"]
    finite(on_card, mixed, plain)
    sensitivity, rows = 0.0, []
    for here, there, wide in zip(on_card, mixed, plain, strict=True):
        sensitivity = max(sensitivity, abs(there - wide) / abs(there))
        bound = (SENSITIVITY_FACTOR * sensitivity + LATER_STEP) * abs(there)
        rows.append({"card": here, "cpu": there, "cpu_f32": wide, "of_bound": abs(here - there) / bound})
    worst = max(row["of_bound"] for row in rows)
    figures = {"batch": int(args.check_batch), "steps": rows, "of_bound": worst}
    if not worst <= 1:
        raise Failed(f"losses are off by {worst:.2f} of what rounding explains: {json.dumps(figures)}")
    return figures


def finite(*losses: list) -> None:
    """NaN and infinities are none of JSON's numbers, and no comparison finds them."""
    if not all(loss and all(isinstance(x, (int, float)) and math.isfinite(x) for x in loss) for loss in losses):
        raise Failed(f"losses that are no numbers, on the card, on the cpu and there in f32: {json.dumps(losses)}")


def graphs(stage: Stage, graph: str) -> dict:
    """Steps as graphs of the driver, each slot of inputs replayed several times, beside the same launched one by one."""
    same = ["--warmup", 0, "--steps", REPLAYED_STEPS, "--device", stage.args.device]
    replayed = stage.bench(graph, *same)["losses"]
    launched = stage.bench(graph, *same, "--launch-by-launch")["losses"]
    finite(replayed, launched)
    if replayed != launched:
        raise Failed(f"graphs and launches yield different losses: {json.dumps([replayed, launched])}")
    return {"steps": len(replayed), "losses": replayed}


def sanitizer(stage: Stage, tool: str) -> dict:
    program = shutil.which(stage.args.sanitizer)
    if not program:
        raise Absent(f"no {stage.args.sanitizer} on the path")
    step = [stage.args.alip_run, "bench", stage.args.small, "--device", stage.args.device, "--warmup", 0, "--steps", 1]
    try:
        said = stage.said([program, "--tool", tool, "--error-exitcode", 9, *step])
    except Failed as why:
        if "Device not supported" in str(why):
            raise Absent(f"{stage.args.sanitizer} does not know this card, or may not see it") from None
        raise
    says = [line for line in said.splitlines() if line.startswith("=====")]
    if not any("SUMMARY" in line for line in says):
        raise Failed(f"{stage.args.sanitizer} ended without a summary: {says}")
    return {"says": says}


def check(stage: Stage) -> None:
    small = stage.args.small
    stage.part(f"laws: kernels of {small}", lambda: laws(stage, small))
    stage.part(f"laws: kernels of {small} in bf16", lambda: laws(stage, small, "--set", "train.precision=Bf16"))
    stage.part(f"golden data of {stage.args.golden.name}", lambda: golden(stage))
    stage.part(f"graphs and launches of {small}", lambda: graphs(stage, small))
    stage.part(f"losses of {stage.args.graph} against the cpu", lambda: losses(stage))
    for tool in ("memcheck", "racecheck"):
        stage.part(f"compute-sanitizer {tool}", lambda: sanitizer(stage, tool))


# bench


def peaks(stage: Stage) -> dict:
    """What the card reaches in a large product of bf16, and between its memory and itself."""
    torch_version(stage)
    return json.loads(stage.said([sys.executable, PEER.with_name("peak.py"), "--device", stage.args.peer_device]))


def steps(stage: Stage, batch: str, full: bool, cache: Path, peak: dict | None) -> dict:
    args = stage.args
    # It is looked for once: a plan's memory is that of its longest texts.
    batch = str(stage.largest) if batch == "largest" and stage.largest else batch
    size = ["--largest"] if batch == "largest" else ["--batch", batch]
    words = [*size, *(["--full-texts"] if full else []), "--warmup", args.warmup, "--steps", args.steps, "--profile"]
    found = stage.bench(args.graph, *words, "--device", args.device, env={"XDG_CACHE_HOME": str(cache)})
    if batch == "largest":
        stage.largest = found["batch"]
    products = (peak or {}).get("bf16_flops_per_s") or found["target_flops_per_s"]
    bandwidth = (peak or {}).get("bytes_per_s") or found["target_bytes_per_s"]
    found["peaks"] = "measured" if peak else "as the target states them"
    found["of_bf16_peak"] = found["gflop_per_s"] * 1e9 / products
    for kernel in found["kernels"]:
        least = max(kernel["flops"] / products, kernel["bytes"] / bandwidth)
        kernel["of_roofline"] = least / kernel["seconds"] if kernel["seconds"] else None
    found["launch_gaps_s"] = found["step_s"] - sum(kernel["seconds"] for kernel in found["kernels"])
    return found


def first_step(stage: Stage, cache: Path) -> dict:
    """The first step with no kernel compiled before, and once more with all of them found on disk."""
    args = stage.args
    words = ["--batch", args.batches[0], "--warmup", 0, "--steps", 1, "--device", args.device]
    cold, warm = (stage.bench(args.graph, *words, env={"XDG_CACHE_HOME": str(cache)}) for _ in range(2))
    return {"batch": cold["batch"], "cold_s": cold["first_step_s"], "warm_s": warm["first_step_s"],
            "compile_s": cold["compile_s"], "load_s": cold["load_s"]}  # fmt: skip


def on_wgpu(stage: Stage) -> dict:
    args = stage.args
    adapters = [line for line in stage.alip("devices").splitlines() if line.startswith("wgpu:")]
    if not any(args.software or "software adapter" not in line for line in adapters):
        raise Absent("no adapter for wgpu: no Vulkan driver of the card")
    return stage.bench(args.graph, "--batch", args.batches[0], "--warmup", 1, "--steps", args.steps, "--device", "wgpu")


def bench(stage: Stage) -> None:
    graph = stage.args.graph
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        peak = stage.part("peaks of the card", lambda: peaks(stage))
        stage.part(f"first step of {graph}", lambda: first_step(stage, cache))
        for batch in stage.args.batches:
            for full in (False, True):
                texts = "texts of full length" if full else "texts as captions"
                name = f"{graph}, batch {batch}, {texts}"
                figures = stage.part(name, lambda: steps(stage, batch, full, cache, peak))
                kernels(figures)
    stage.part(f"{graph} on wgpu", lambda: on_wgpu(stage))


def kernels(figures: dict | None, rows: int = 12) -> None:
    """The kernels that take longest, by what they could take at least."""
    for kernel in (figures or {}).get("kernels", [])[:rows]:
        share = kernel["of_roofline"]
        roofline = f"{share:6.1%}" if share is not None else "     -"
        print(f"{kernel['seconds'] * 1e3:9.3f} ms (predicted {kernel['predicted_seconds'] * 1e3:.3f}) {kernel['launches']:>4} x  {roofline} of its roofline  {kernel['kind']} {kernel['what']}")


# peers


def torch_step(stage: Stage, *words) -> dict:
    torch_version(stage)
    args = stage.args
    same = ["--model", args.peer_model, "--batch", args.batches[0], "--warmup", args.warmup, "--steps", args.steps]
    return json.loads(stage.said([sys.executable, PEER, *same, "--device", args.peer_device, "--bf16", *words]))


def peers(stage: Stage) -> None:
    # The lengths of texts are those of `alip-run bench`; a step of PyTorch takes as long whatever they are.
    stage.part("PyTorch, eager", lambda: torch_step(stage))
    stage.part("PyTorch, torch.compile", lambda: torch_step(stage, "--compile"))
    stage.part("PyTorch, as published: activations again", lambda: torch_step(stage, "--checkpoint"))


def autotune(stage: Stage) -> None:
    stage.part("PyTorch, torch.compile with max-autotune", lambda: torch_step(stage, "--compile", "max-autotune"))


STAGES = {"check": check, "bench": bench, "peers": peers, "autotune": autotune}


def row(part: dict) -> str:
    """A line of the table."""
    figures = part.get("figures") or {}
    shown = []
    for key, text in (
        ("torch", "torch {}"),
        ("samples_per_s", "{:.1f} samples/s"),
        ("of_bf16_peak", "{:.1%} of the bf16 peak"),
        ("launch_gaps_s", "gaps {:.6f} s"),
        ("peak_device_mib", "{:.0f} MiB"),
        ("device_bytes", "{:,} bytes"),
        ("cold_s", "cold {:.2f} s"),
        ("warm_s", "warm {:.2f} s"),
        ("of_bound", "{:.3f} of the bound"),
        ("bf16_flops_per_s", "{:.3e} FLOP/s"),
        ("bytes_per_s", "{:.3e} bytes/s"),
    ):
        if isinstance(figures.get(key), (int, float, str)):
            shown.append(text.format(figures[key]))
    shown = shown or figures.get("says", [])[-1:]
    why = part.get("why", "").splitlines()
    return f"{part['part']:52} {part['status']:9} {part['seconds']:7.1f} s  {', '.join(shown) or (why[0] if why else '')}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="gpu.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--alip-run", default=os.environ.get("ALIP_RUN", str(ROOT / "target/release/alip-run")))
    parser.add_argument("--device", default="cuda", help="as `alip-run --device` takes it (default: cuda)")
    parser.add_argument("--graph", default="alip_b32", help="the graph that is measured (default: alip_b32)")
    parser.add_argument("--small", default="alip_tiny", help="the graph whose kernels are checked one by one (default: alip_tiny)")
    parser.add_argument("--golden", type=Path, default=ROOT / "tests/goldens/alip_tiny", help="a folder of golden data")
    parser.add_argument("--golden-graph", help="the graph that they are of (default: named as the folder)")
    parser.add_argument("--specs", type=Path, default=ROOT, help="the folder in which graphs are looked for (default: the project's)")
    parser.add_argument("--batches", default="512,1024,largest", type=lambda text: text.split(","), help="(default: 512,1024,largest)")
    parser.add_argument("--warmup", default="3", help="steps before the first measured one (default: 3)")
    parser.add_argument("--steps", default="10", help="measured steps (default: 10)")
    parser.add_argument("--check-batch", default="16", help="batch of the losses that are compared with the cpu's (default: 16)")
    parser.add_argument("--check-steps", default="4", help="steps of the same (default: 4)")
    parser.add_argument("--sanitizer", default="compute-sanitizer", help="the program (default: compute-sanitizer)")
    parser.add_argument("--peer-device", default="cuda", help="as PyTorch names it (default: cuda)")
    parser.add_argument("--peer-model", default="b32", help="as alip_torch.py names it (default: b32)")
    parser.add_argument("--software", action="store_true", help="take a software adapter for wgpu, to try this where there is no card")
    parser.add_argument("--seconds", type=float, default=225, help="within which the stage ends (default: 225)")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results", help="where results go (default: bench/results)")
    args = parser.parse_args()
    # Programs run in another folder.
    args.golden, args.out = args.golden.resolve(), args.out.resolve()
    if not Path(args.alip_run).is_file():
        parser.error(f"there is no program {args.alip_run}; build it with `cargo build --release`, or name one with --alip-run")
    stage = Stage(args)
    stage.part("the card", lambda: card(stage))
    STAGES[args.stage](stage)
    print(f"\n{args.stage} of {args.graph} on {stage.facts['card'] or 'no card'}, commit {stage.facts['commit']}")
    for part in stage.facts["parts"]:
        print(row(part))
    print(f"all of it: {stage.path}")
    return 1 if any(part["status"] == "FAILED" for part in stage.facts["parts"]) else 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""What each theme of the e-graph's rules is worth: predicted cost of the programs of a graph with everything on, with each
theme left out, and without the e-graph; measured steps too, if asked for.

    cargo build --release
    python bench/themes.py alip_b32 alip_rn50 examples/variants/quick_gelu.ron --batch 16
    python bench/themes.py alip_b32 --batch 16 --measure --rounds 3       # on an idle machine: rounds alternate

A step whose launches, operations and predicted time are those of everything on is not measured again.

One table per graph. `train` is the training step: launches, predicted time, and what leaving a theme out adds to it. The
last column names the programs whose launches, operations or predicted time change at all.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
THEMES = ["algebra", "layout", "scale", "reduce", "concat", "conv"]


def run(command: list[str]) -> dict:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def table(spec: str, args: argparse.Namespace) -> None:
    batch = ["--batch", str(args.batch)] if args.batch else []
    off = {"everything on": [], **{f"no {theme}": ["--no-rule", theme] for theme in THEMES}, "no e-graph": ["--no-egraph"]}
    programs = {name: run([args.alipc, "compile", spec, "--json", *batch, *flags])["programs"] for name, flags in off.items()}
    same = [name for name in list(off)[1:] if programs[name]["train"] == programs["everything on"]["train"]]
    measured: dict[str, list[float]] = {name: [] for name in off if name not in same}
    for number in range(args.rounds if args.measure else 0):
        print(f"round {number + 1} (load {os.getloadavg()[0]:.1f})", file=sys.stderr, flush=True)
        common = ["--json", "--device", "cpu", "--warmup", "1", "--steps", str(args.steps), *batch]
        for name, flags in ((name, off[name]) for name in measured):
            measured[name].append(run([args.alip_run, "bench", spec, *common, *flags])["samples_per_s"])
    on = programs["everything on"]
    print(f"\n{spec}, batch {args.batch or 'of the spec'}\n")
    print("| | launches | predicted | more than with everything on | measured samples/s | programs that change |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, here in programs.items():
        step, full = here["train"], on["train"]
        more = step["predicted_seconds"] / full["predicted_seconds"] - 1
        changed = ", ".join(program for program in here if here[program] != on[program])
        rate = "the same step" if name in same else ", ".join(f"{rate:.3f}" for rate in sorted(measured[name]))
        seconds = step["predicted_seconds"] * 1e3
        print(f"| {name} | {step['launches']:,} | {seconds:,.3f} ms | {more:+.4%} | {rate} | {changed} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", nargs="+")
    parser.add_argument("--batch", type=int, help="in place of the spec's")
    parser.add_argument("--measure", action="store_true", help="also run training steps on the cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="measured steps of each round, after one to warm up")
    parser.add_argument("--alipc", default=str(ROOT / "target/release/alipc"))
    parser.add_argument("--alip-run", default=str(ROOT / "target/release/alip-run"))
    args = parser.parse_args()
    for spec in args.spec:
        table(spec, args)


if __name__ == "__main__":
    main()

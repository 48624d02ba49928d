#!/usr/bin/env python3
"""Training steps of alip-run and of PyTorch in turn on one machine, and the ratio of their rates.

    cargo build --release
    python bench/compare.py --model b32 --batch 16 --rounds 2      # the python that runs this must have torch

The rounds alternate, so that a machine that slows down slows both. One line per round, then the ratio of the medians. A
busy machine gives no figure that counts: the load average at the start of each round is printed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def measured(command: list[str]) -> dict:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="b32", choices=["b32", "b16", "rn50"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3, help="measured steps of each round, after one to warm up")
    parser.add_argument("--device", default="cpu", choices=["cpu"])
    parser.add_argument("--alip-run", default=str(ROOT / "target/release/alip-run"))
    args = parser.parse_args()
    common = ["--batch", str(args.batch), "--warmup", "1", "--steps", str(args.steps), "--device", args.device]
    ours = [args.alip_run, "bench", f"alip_{args.model}", "--json", *common]
    theirs = [sys.executable, str(ROOT / "bench/peers/alip_torch.py"), "--model", args.model, *common]

    rates: dict[str, list[float]] = {"alip": [], "pytorch": []}
    memory: dict[str, float] = {}
    for number in range(1, args.rounds + 1):
        load = os.getloadavg()[0]
        mine = measured(ours)
        other = measured(theirs)
        rates["alip"].append(mine["samples_per_s"])
        rates["pytorch"].append(other["samples_per_s"])
        memory = {
            "alip": max(memory.get("alip", 0), mine["peak_resident_bytes"] / 2**20),
            "planned": mine["planned_peak_bytes"] / 2**20,
            "pytorch": max(memory.get("pytorch", 0), other["peak_resident_mib"]),
        }
        shown = f"alip {rates['alip'][-1]:.3f} samples/s, pytorch {rates['pytorch'][-1]:.3f} samples/s"
        print(f"round {number} (load {load:.1f}): {shown}", flush=True)
    ratio = statistics.median(rates["alip"]) / statistics.median(rates["pytorch"])
    print(f"alip is at {ratio:.2f} times PyTorch")
    print(f"peak resident: alip {memory['alip']:.0f} MiB ({memory['planned']:.0f} planned), pytorch {memory['pytorch']:.0f} MiB")


if __name__ == "__main__":
    main()

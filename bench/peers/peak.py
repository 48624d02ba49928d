#!/usr/bin/env python3
"""What a device reaches by PyTorch in a large product of bf16, and in copying: the peaks against which steps are measured.

    python peak.py --device cuda        # prints one JSON object
"""

import argparse
import json
import statistics
import time

import torch


def seconds(device: torch.device, work, rounds: int) -> float:
    """Of the median round, after one to warm up."""
    times = []
    for _ in range(rounds + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    device = torch.device(args.device)
    # On a cpu only the script is tried.
    size, length = (8192, 1 << 30) if device.type == "cuda" else (256, 1 << 20)
    # Random, since zeros draw less power and so run faster.
    a, b = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    product = seconds(device, lambda: a @ b, args.rounds)
    source = torch.zeros(length, dtype=torch.uint8, device=device)
    to = torch.empty_like(source)
    copy = seconds(device, lambda: to.copy_(source), args.rounds)
    figures = {"bf16_flops_per_s": 2 * size**3 / product, "bytes_per_s": 2 * length / copy, "size": size}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(json.dumps(figures | {"torch": torch.__version__, "device": name}))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Linear probes of `alip-run eval --suite` beside scikit-learn's logistic regression on the same features.

    .venv/bin/pip install scikit-learn safetensors
    alip-run eval RUN --suite SUITE --data ROOT --features features --json > results.json
    OMP_NUM_THREADS=1 .venv/bin/python bench/peers/linear_probe.py results.json features

For each probe scikit-learn is fitted with the `c` that alip-run chose, and with the one that is best on the same held-out fifth among all
that alip-run tried. The objective is the same, a strictly convex one, so that accuracies may differ only as far as neither is
solved exactly: more than 0.3 % is an error.
"""

import argparse
import json
import pathlib
import sys

import numpy as np
from safetensors import safe_open
from sklearn.linear_model import LogisticRegression


def read(path):
    with safe_open(path, "np") as file:
        return file.get_tensor("images").astype(np.float64), file.get_tensor("labels")


class Fitted:
    """Embeddings lie close to each other: seen from their mean and in units of their spread, with `c` in these units, the objective is
    the same, since biases are not penalised, and the solver ends in this life."""

    def __init__(self, images, labels, c):
        self.mean = images.mean(axis=0)
        self.spread = np.sqrt(((images - self.mean) ** 2).mean())
        model = LogisticRegression(C=c * self.spread**2, solver="lbfgs", tol=1e-6, max_iter=3000)
        self.model = model.fit((images - self.mean) / self.spread, labels)

    def score(self, images, labels):
        return self.model.score((images - self.mean) / self.spread, labels)


def fitted(images, labels, c):
    return Fitted(images, labels, c)


def held_out(labels):
    """Of every class every fifth image, or the last of fewer, but never its only one."""
    seen, chosen = {}, np.zeros(len(labels), dtype=bool)
    counts = dict(zip(*np.unique(labels, return_counts=True)))
    for at, label in enumerate(labels):
        seen[label] = seen.get(label, 0) + 1
        few = counts[label] < 5
        chosen[at] = (counts[label] > 1 and seen[label] == counts[label]) if few else seen[label] % 5 == 0
    return chosen


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=pathlib.Path)
    parser.add_argument("features", type=pathlib.Path)
    args = parser.parse_args()
    worst = 0.0
    for found in json.loads(args.results.read_text())["sets"]:
        if found["metric"] != "LinearProbe" or "Measured" not in found["found"]:
            continue
        probe = found["found"]["Measured"]["figures"]["Probe"]["probe"]
        train = read(args.features / f"{found['name']}-train.safetensors")
        test = read(args.features / f"{found['name']}.safetensors")
        own = probe["accuracy"]["top1"]
        theirs = fitted(*train, probe["c"]).score(*test)
        worst = max(worst, abs(own - theirs))
        print(f"{found['name']}: alip-run {own:.4f} with c {probe['c']:.4f}; scikit-learn with the same {theirs:.4f}")
        chosen = held_out(train[1])
        fit, validate = [part[~chosen] for part in train], [part[chosen] for part in train]
        shares = [(fitted(*fit, c).score(*validate), -c) for c, _ in probe["sweep"]]
        best = -max(shares)[1]
        swept = fitted(*train, best).score(*test)
        worst = max(worst, abs(own - swept))
        gap = max(abs(share - ours) for (share, _), (_, ours) in zip(shares, probe["sweep"]))
        print(f"  its own sweep takes {best:.4f} and has {swept:.4f}; held-out accuracies differ by at most {gap:.4f}")
    sys.exit(f"accuracies differ by {worst:.4f}" if worst > 0.003 else None)


if __name__ == "__main__":
    main()

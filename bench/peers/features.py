#!/usr/bin/env python3
"""Figures of `alip-run eval --suite` evaluated again from its stored features by NumPy alone, in f64.

    alip-run eval RUN --suite SUITE --data ROOT --features features --json > results.json
    .venv/bin/python bench/peers/features.py results.json features

Every figure must be the same to the last digit: they are shares of whole numbers. Items are sorted where alip-run counts; ties are settled
as it says it does (against the model in retrieval, by the lowest class in classification). docs/evaluation.md holds an output.
"""

import argparse
import json
import pathlib
import sys

import numpy as np
from safetensors import safe_open


def read(path):
    with safe_open(path, "np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}
        texts = file.metadata()
    arrays["images"], arrays["texts"] = arrays["images"].astype(np.float64), arrays["texts"].astype(np.float64)
    return arrays, {name: json.loads(texts[name]) for name in ("names", "texts", "classes")}


def recall(scores, right, k):
    """Share of rows of `scores` with an item of `right` among the first k, right ones last of equals."""
    found = 0
    for row, own in zip(scores, right):
        order = np.lexsort((own, -row))
        found += bool(own[order[:k]].any())
    return found / len(scores)


def retrieval(arrays):
    # einsum without BLAS: equal rows have equal products wherever they stand.
    scores = np.einsum("id,td->it", arrays["images"], arrays["texts"])
    right = arrays["owner"][None, :] == np.arange(len(scores))[:, None]
    for k in (1, 5, 10):
        yield f"image to text R@{k}", recall(scores, right, k)
        yield f"text to image R@{k}", recall(scores.T, right.T, k)


def classification(arrays, classes):
    unit = lambda rows: rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    prompts = unit(arrays["texts"])
    means = unit(np.stack([prompts[arrays["owner"] == at].mean(axis=0) for at in range(len(classes))]))
    order = np.argsort(-100.0 * np.einsum("id,cd->ic", arrays["images"], means), axis=1, kind="stable")
    labels = arrays["labels"]
    right = order == labels[:, None]
    yield "top-1", np.count_nonzero(right[:, 0]) / len(labels)
    yield "top-5", np.count_nonzero(right[:, :5].any(axis=1)) / len(labels)
    shares = [np.count_nonzero(right[labels == at, 0]) / np.count_nonzero(labels == at) for at in np.unique(labels)]
    # Summed in order, as fractions are: a mean of NumPy sums pairwise.
    yield "mean per class", sum(shares) / len(shares)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=pathlib.Path)
    parser.add_argument("features", type=pathlib.Path)
    args = parser.parse_args()
    results, different = json.loads(args.results.read_text()), 0
    for found in results["sets"]:
        path = args.features / f"{found['name']}.safetensors"
        if "Measured" not in found["found"] or found["metric"] == "LinearProbe":
            continue
        arrays, texts = read(path)
        figures = retrieval(arrays) if found["metric"] == "Retrieval" else classification(arrays, texts["classes"])
        for name, value in figures:
            own = results["figures"][f"{found['name']} {name}"]
            different += own != value
            print(f"{found['name']:14} {name:20} {float(value)!r:22} {'the same' if own == value else f'alip-run: {own!r}'}")
    sys.exit(f"{different} figures differ" if different else None)


if __name__ == "__main__":
    main()

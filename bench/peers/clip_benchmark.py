#!/usr/bin/env python3
"""CLIP_benchmark's exporter as a writer of data sets, and its metrics on features that alip-run stored.

    .venv/bin/pip install torch torchvision scikit-learn webdataset tqdm requests pandas safetensors 'numpy<2.4'
    .venv/bin/pip install --no-deps clip-benchmark==1.6.1
    .venv/bin/python bench/peers/clip_benchmark.py write --flickr8k FOLDER --caltech101 FOLDER --names classnames.json --out wds
    alip-run eval RUN --suite bench/peers/clip_benchmark.ron --data wds --features features --json > results.json
    .venv/bin/python bench/peers/clip_benchmark.py compare results.json features

`write` gives images and captions of Flickr8k's test split (a folder with `captions.jsonl`) and the last 15 images of each folder of
caltech101 to `clip_benchmark.webdataset_builder`. `compare` calls `recall_at_k`, `accuracy` and `balanced_accuracy_score` as its
`evaluate` functions do, in f64; `accuracy` makes a number of an array, which NumPy 2.4 no longer does. torch.topk leaves the order of
equal scores open, where alip-run settles it against the model: the number of queries that have such ties around rank k is printed.
"""

import argparse
import json
import pathlib
import sys

# The package has this file's name, and is meant.
sys.path = [place for place in sys.path if pathlib.Path(place or ".").resolve() != pathlib.Path(__file__).resolve().parent]

import torch
import torch.nn.functional as F
from safetensors import safe_open


class Listed(list):
    """A data set as the exporter takes it: pairs, class names, templates."""

    classes = None
    templates = None


def write(args):
    from clip_benchmark.webdataset_builder import convert_dataset, convert_retrieval_dataset, path_to_bytes

    lines = [json.loads(line) for line in open(args.flickr8k / "captions.jsonl", encoding="utf-8")]
    pairs = Listed((str(args.flickr8k / line["image"]), line["captions"]) for line in lines if line["split"] == "test")
    convert_retrieval_dataset(pairs, "test", str(args.out / "flickr8k"), transform=path_to_bytes, max_count=400)
    names = json.loads(args.names.read_text())["caltech101_128"]
    pairs = Listed()
    folders = sorted(path for path in args.caltech101.iterdir() if path.is_dir())
    for label, folder in enumerate(folders):
        pairs += [(str(image), label) for image in sorted(folder.iterdir())[15:]]
    pairs.classes = [names[folder.name] for folder in folders]
    pairs.templates = ["a photo of a {c}.", "a painting of a {c}.", "a bad photo of the {c}."]
    convert_dataset(pairs, "test", str(args.out / "caltech101"), transform=path_to_bytes, max_count=1000)


def read(path):
    with safe_open(path, "pt") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}
        classes = json.loads(file.metadata()["classes"])
    return {name: array.double() if array.is_floating_point() else array.long() for name, array in arrays.items()}, classes


def retrieval(arrays):
    from clip_benchmark.metrics.zeroshot_retrieval import batchify, recall_at_k

    scores = arrays["texts"] @ arrays["images"].t()
    positive = torch.zeros_like(scores, dtype=bool)
    positive[torch.arange(len(scores)), arrays["owner"]] = True
    for name, scores, positive in (("text to image", scores, positive), ("image to text", scores.t(), positive.t())):
        for k in (1, 5, 10):
            # The reference makes a tensor [batch, k, items]: a small batch.
            found = batchify(recall_at_k, scores, positive, 16, "cpu", k=k) > 0
            best = scores.masked_fill(~positive, -torch.inf).max(dim=1).values[:, None]
            ahead = ((scores > best) & ~positive).sum(dim=1)
            level = ((scores == best) & ~positive).sum(dim=1)
            open_ = ((ahead < k) & (ahead + level >= k)).sum().item()
            yield f"{name} R@{k}", found.double().mean().item(), open_


def classification(arrays, classes):
    from clip_benchmark.metrics.zeroshot_classification import accuracy
    from sklearn.metrics import balanced_accuracy_score

    weights = []
    for at in range(len(classes)):
        embedding = F.normalize(arrays["texts"][arrays["owner"] == at], dim=-1).mean(dim=0)
        weights.append(embedding / embedding.norm())
    logits = 100.0 * F.normalize(arrays["images"], dim=-1) @ torch.stack(weights, dim=1)
    first, five = accuracy(logits, arrays["labels"], topk=(1, 5))
    yield "top-1", first, 0
    yield "top-5", five, 0
    yield "mean per class", balanced_accuracy_score(arrays["labels"], logits.argmax(dim=1)), 0


def compare(args):
    results, different = json.loads(args.results.read_text()), 0
    for found in results["sets"]:
        if "Measured" not in found["found"] or found["metric"] == "LinearProbe":
            continue
        arrays, classes = read(args.features / f"{found['name']}.safetensors")
        figures = retrieval(arrays) if found["metric"] == "Retrieval" else classification(arrays, classes)
        for name, value, ties in figures:
            own = results["figures"][f"{found['name']} {name}"]
            # Shares of whole numbers: the mean of the reference may round in the last digit.
            same = abs(own - value) < 1e-12
            different += not same
            note = f", {ties} queries whose ties decide" if ties else ""
            print(f"{found['name']:12} {name:20} {value:.15f} {'the same' if same else f'alip-run: {own:.15f}'}{note}")
    sys.exit(f"{different} figures differ" if different else None)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    writes = commands.add_parser("write")
    for name in ("--flickr8k", "--caltech101", "--names", "--out"):
        writes.add_argument(name, type=pathlib.Path, required=True)
    writes.set_defaults(run=write)
    compares = commands.add_parser("compare")
    for name in ("results", "features"):
        compares.add_argument(name, type=pathlib.Path)
    compares.set_defaults(run=compare)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()

"""Means against imbalance, each alone and together, on a long tail at equal seconds: tempered label prior, labels that begin to count
slowly (coarse to fine), noise on the embeddings of rare classes.

    python benchmarks/long_tail.py --mnist FOLDER --seconds 150 --out tail.jsonl
    python benchmarks/long_tail.py --cifar FOLDER --seconds 600 --out tail.jsonl

MNIST from 4,000 images in the first class to 40 in the last, CIFAR-10 from 5,000 to 50: imbalance 100, falling geometrically. Judged as
in `families.py`, by networks that learnt the whole train split. Rows that the file holds are not measured again.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000000")

import numpy as np
import torch
from families import SAMPLES, Data, Measure, cifar10, mnist
from machine import machine
from rows import RowFile
from torch import Tensor
from two_workers import train_with_two_workers

from gan.augment import Augmentation
from gan.classifier import embed
from gan.errors import GanError
from gan.metrics.frechet import Gaussian, frechet_distance
from gan.metrics.manifold import manifold
from gan.presets import Budget, choose
from gan.sampling import generate

TAIL = 3                     # rarest classes
MEANS: dict[str, dict[str, float]] = {
    "labels as they are": {"label_prior_tau": 1.0},
    "tempered, tau 0.5": {"label_prior_tau": 0.5},
    "even, tau 0": {"label_prior_tau": 0.0},
    "coarse to fine": {"label_prior_tau": 1.0, "label_ramp": 0.3},
    "class noise": {"label_prior_tau": 1.0, "class_noise": 0.5},
    "tempered, coarse to fine": {"label_prior_tau": 0.5, "label_ramp": 0.3},
    "tempered, class noise": {"label_prior_tau": 0.5, "class_noise": 0.5},
    "all three": {"label_prior_tau": 0.5, "label_ramp": 0.3, "class_noise": 0.5},
}


def long_tail(data: Data, head: int, ratio: float) -> Data:
    """The same data with head, …, head / ratio training images a class, in the order of the classes."""
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(3))
    counts = [round(head * ratio ** (-c / (data.classes - 1))) for c in range(data.classes)]
    rows = torch.cat([order[data.labels[order] == c][:n] for c, n in enumerate(counts)])
    return replace(data, train=data.train[rows], labels=data.labels[rows])


def figures(measure: Measure, images: Tensor, y: Tensor, classes: int) -> dict[str, float]:
    """Of all classes and of the rarest."""
    features, said = embed(measure.extractor, images)[0], embed(measure.judge, images)[1].argmax(1)
    coverage = [manifold(measure.features[measure.labels == c], features[y == c], 5, with_recall=False).coverage for c in range(classes)]
    right = (said == y).double()
    return {"agreement": float(right.mean()), "tail_agreement": float(right[y >= classes - TAIL].mean()),
            "fd": frechet_distance(Gaussian(measure.features), Gaussian(features)), "floor": measure.floor,
            "coverage": sum(coverage) / classes, "tail_coverage": sum(coverage[-TAIL:]) / TAIL}


def main() -> None:
    """Measures what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--model", default="auto")
    parser.add_argument("--means", help="comma-separated parts of names; default: all")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows = RowFile(args.out)
    print(machine())
    for folder, read, head in ((args.mnist, mnist, 4000), (args.cifar, cifar10, 5000)):
        if folder is None:
            continue
        whole = read(folder)
        data, measure = long_tail(whole, head, 100), Measure.of(whole, args.out.parent)
        for seed in range(args.seeds):
            for name, options in MEANS.items():
                row: dict[str, Any] = {"data": data.name, "seconds": args.seconds, "means": name, "model": args.model, "seed": seed}
                if rows.has(row) or (args.means and not any(part in name for part in args.means.split(","))):
                    continue
                spec, recipe, _ = choose(args.model, data.train.shape[2], data.train.shape[1], torch.bincount(data.labels).tolist(),
                                         Budget(seconds=args.seconds), augment=Augmentation(flip=data.flip), options=options)
                try:
                    made = train_with_two_workers(data.train, data.labels, spec, recipe, seed)
                    y = torch.arange(data.classes).repeat_interleave(SAMPLES // data.classes)
                    found: dict[str, Any] = {"kimg": made.meta["kimg"], "restarts": len(made.meta["restarts"]), **figures(
                        measure, generate(made.net, y, np.arange(10**6, 10**6 + len(y))), y, data.classes)}
                except GanError as e:
                    found = {"error": str(e)}
                rows.add(row | found)
    print(table(rows.read()))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, means over the seeds."""
    names = ("kimg", "agreement", "tail_agreement", "fd", "coverage", "tail_coverage")
    lines = []
    for data, seconds in sorted({(row["data"], row["seconds"]) for row in rows}):
        lines += [f"\n{data}, imbalance 100, {seconds:g} s; tail: the {TAIL} rarest classes\n",
                  "| means | kimg | agreement | agreement, tail | FD-domain | coverage | coverage, tail | seeds |", "|---|" + "---:|" * 7]
        mine = [row for row in rows if (row["data"], row["seconds"]) == (data, seconds) and "error" not in row]
        for means in dict.fromkeys(row["means"] for row in mine):
            runs = [row for row in mine if row["means"] == means]
            lines.append(f"| {means} | " + " | ".join(f"{sum(r[n] for r in runs) / len(runs):.{0 if n == 'kimg' else 3}f}" for n in names)
                         + f" | {len(runs)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""Generators kept along a run, sampled together, against the last alone: all of MNIST, one run.

The run keeps its averaged generator at twenty even points; which of them are sampled is chosen afterwards, so all rows are of the same
training; four of the later part are `train.options: {snapshots: 4, snapshots_from: 0.4}`. Judged as in
`mnist_equal_seconds.py`, the mean of three sets of samples.

    python benchmarks/snapshots.py --data FOLDER_OF_IDX_FILES [--kimg 244 | --seconds 150] [--seeds 3] [--first-seed 0]
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "10000000")       # as ganmill sets it; before torch is loaded

import torch
from machine import machine
from mnist_equal_seconds import figures, judge, mnist
from torch import Tensor, nn
from two_workers import train_with_two_workers

from gan.allocator import keep_freed_memory
from gan.classifier import Classifier, embed
from gan.presets import Budget, choose
from gan.sampling import Mixture, generate

POINTS = 20
WAYS = {"the last alone": [20], "of the whole run, 5": [4, 8, 12, 16, 20], "of its later part, 4": [11, 14, 17, 20]}


def judged(net: Classifier, generator: nn.Module, real: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Every figure, the mean of three sets of samples."""
    rows = [figures(net, lambda y, k=k: generate(generator, y, torch.arange(k * 10**6, k * 10**6 + len(y)).numpy()), real)
            for k in (1, 2, 3)]
    return _mean(rows)


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def _cells(row: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in row.items())


def main() -> None:
    """Prints a row a way and seed, and the mean over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--kimg", type=float, help="the budget, 244 unless --seconds is given")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--judge", type=Path, help="cache of the judge")
    arguments = parser.parse_args()
    keep_freed_memory()
    print(machine())
    (train, train_y), (test, test_y) = (mnist(arguments.data, part) for part in ("train", "t10k"))
    net = judge(train, train_y, arguments.judge)
    real = (embed(net, test)[0], test_y)
    budget = Budget(seconds=arguments.seconds) if arguments.seconds else Budget(kimg=arguments.kimg or 244.0)
    spec, recipe, _ = choose("auto", 28, 1, torch.bincount(train_y, minlength=10).tolist(), budget,
                             options={"snapshots": POINTS, "snapshots_from": 0.0})
    means: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        made = train_with_two_workers(train, train_y, spec, recipe, seed)
        members = list(made.net.members)             # oldest first; a run that ends by the clock may lack one
        print(f"seed {seed}: {made.meta['kimg']:.0f} kimg, {len(members)} generators, load {os.getloadavg()[0]:.1f}")
        for way, points in WAYS.items():
            chosen = [members[point - POINTS - 1] for point in points if POINTS - point < len(members)]      # counted from the end
            means[way].append(judged(net, Mixture(chosen) if len(chosen) > 1 else chosen[0], real))
            print(f"  {way:<24}{_cells(means[way][-1])}", flush=True)
    for way, rows in means.items():
        print(f"mean: {way:<20}{_cells(_mean(rows))}")


if __name__ == "__main__":
    main()

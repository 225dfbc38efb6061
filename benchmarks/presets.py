"""Is `auto` right without tuning? A row for each kind of data that its presets tell apart.

    python benchmarks/presets.py --mnist FOLDER_OF_IDX_FILES --cifar FOLDER_OF_PARQUET --kimg 120 --out presets.jsonl [--enlarged]

8×8 grey digits (scikit-learn's), MNIST at 28 px and CIFAR-10 at 32 px in colour (`--enlarged`: the generators at 64 px, on images twice
as large, judged after halving them again, so that the figures compare), with 50, 500 and 5,000 training images in the first
class, in the others as many or falling geometrically to a hundredth of it (to a tenth from 50). Every generator sees the same number of
images and is judged as in `families.py` by networks that know the whole train split, which the generator does not: agreement of 5,000
samples with even labels, Fréchet distance, coverage and spread, all against the test images. Real training images are a row as well.
Rows that the file holds are not measured again.
"""

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000000")

import numpy as np
import torch
from families import SAMPLES, Data, Measure, cifar10, mnist
from long_tail import long_tail
from machine import machine
from rows import Row, RowFile
from torch import Tensor
from torch.nn import functional as F
from two_workers import train_with_two_workers

from gan.augment import Augmentation
from gan.errors import GanError
from gan.presets import Budget, choose
from gan.recipe import parse_settings
from gan.sampling import generate

HEADS = (50, 500, 5000)
FIGURES = ("agreement", "fd", "coverage", "lowest_coverage", "diversity", "least_diverse")


def digits() -> Data:
    """scikit-learn's 1,797 digits at their own 8×8 pixels, a third of them as the test."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy((found.images * (255 / 16)).round().astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(found.target.astype(np.int64))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(11))
    test, train = order[:600], order[600:]
    return Data("digits", images[train], labels[train], images[test], labels[test], flip=False)


def settings(data: Data) -> list[tuple[str, Data]]:
    """(name, part of the training images) of each row."""
    most = int(torch.bincount(data.labels).min())
    found = []
    for head in HEADS:
        if head <= most:
            ratio = 10 if head < 100 else 100
            found += [(f"{head} each", long_tail(data, head, 1)), (f"{head} … {head // ratio}", long_tail(data, head, ratio))]
    return found


def doubled(images: Tensor) -> Tensor:
    """uint8 (n, C, H, W) → uint8 (n, C, 2H, 2W): bilinear, and what the means of 2×2 pixels then lack, so that halving gives them back."""
    return torch.cat([_doubled(rows.float()) for rows in images.split(2000)])


def _doubled(rows: Tensor) -> Tensor:
    smooth = F.interpolate(rows, scale_factor=2, mode="bilinear")
    lacking = rows - F.avg_pool2d(smooth, 2)
    return (smooth + F.interpolate(lacking, scale_factor=2, mode="nearest")).round().clamp(0, 255).to(torch.uint8)


def halved(images: Tensor) -> Tensor:
    """uint8 (n, C, 2H, 2W) → uint8 (n, C, H, W): means of 2×2 pixels."""
    return F.avg_pool2d(images.float(), 2).round().to(torch.uint8)


def measured(data: Data, part: Data, measure: Measure, kimg: float, seed: int, options: dict[str, Any], enlarged: bool = False) -> Row:
    """The figures of `auto` on this part, with `options` changed."""
    if enlarged:
        part = dataclasses.replace(part, train=doubled(part.train))
    spec, recipe, _ = choose("auto", part.train.shape[2], part.train.shape[1], torch.bincount(part.labels).tolist(),
                             Budget(kimg=kimg), augment=Augmentation(flip=data.flip), options=options)
    try:
        made = train_with_two_workers(part.train, part.labels, spec, recipe, seed)
    except GanError as e:
        return {"error": str(e)}
    def draw(y: Tensor) -> Tensor:
        images = generate(made.net, y, np.arange(10**6, 10**6 + len(y)))
        return halved(images) if enlarged else images

    return {"preset": f"{spec.family} {dict(spec.options)}, batch {recipe.batch_size}, p {recipe.augment_p:g}, "
                      f"tau {recipe.label_prior_tau:g}",
            "restarts": len(made.meta["restarts"]),
            **measure.figures(draw, data.classes)}


def real(data: Data, measure: Measure, enlarged: bool = False) -> Row:
    """The figures of training images, 500 a class."""
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(1))

    def draw(y: Tensor) -> Tensor:
        images = torch.cat([data.train[order][data.labels[order] == c][:n] for c, n in enumerate(torch.bincount(y).tolist())])
        return halved(doubled(images)) if enlarged else images

    return measure.figures(draw, data.classes)


def table(rows: list[Row]) -> str:
    """Markdown, means over the seeds."""
    lines = ["| data | images a class | " + " | ".join(FIGURES) + " | seeds |", "|---|---|" + "---:|" * (len(FIGURES) + 1)]
    for data, name in dict.fromkeys((row["data"], row["name"]) for row in rows):
        runs = [row for row in rows if (row["data"], row["name"]) == (data, name)]
        good = [row for row in runs if "error" not in row]
        cells = [f"{sum(row[f] for row in good) / len(good):.3f}" for f in FIGURES] if good else [runs[0]["error"]]
        lines.append(f"| {data} | {name} | " + " | ".join(cells) + f" | {len(good)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, help="folder of the four IDX files (.gz)")
    parser.add_argument("--cifar", type=Path, help="folder of the two Parquet files")
    parser.add_argument("--kimg", type=float, default=120)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", help="of the settings' names, comma-separated")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="changes of the generators by name")
    parser.add_argument("--enlarged", action="store_true", help="CIFAR-10 at 64 px, and nothing else")
    parser.add_argument("--out", type=Path, required=True, help=".jsonl of rows, added to; the judges lie beside it")
    args = parser.parse_args()
    rows = RowFile(args.out)
    print(machine())
    readers = [] if args.enlarged else [digits, *([] if args.mnist is None else [lambda: mnist(args.mnist)])]
    readers += [] if args.cifar is None else [lambda: cifar10(args.cifar)]
    for read in readers:
        data = read()
        measure = Measure.of(data, args.out.parent)
        row = {"data": data.name, "name": "real training images"}
        if not rows.has(row) and int(torch.bincount(data.labels).min()) * data.classes >= SAMPLES:
            rows.add(row | real(data, measure, args.enlarged))
        for seed in range(args.seeds):
            for name, part in settings(data):
                shown = data.name + " at 64 px" * args.enlarged
                row = {"data": shown, "name": " ".join([name, *args.set]), "kimg": args.kimg, "seed": seed}
                if not rows.has(row) and (args.only is None or name in args.only.split(",")):
                    rows.add(row | measured(data, part, measure, args.kimg, seed, parse_settings(args.set), args.enlarged))
    print(table(rows.read()))


if __name__ == "__main__":
    main()

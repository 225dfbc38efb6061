"""Every family at equal seconds on the same data: agreement, Fréchet distance with its floor, coverage, diversity.

    python benchmarks/families.py --mnist FOLDER_OF_IDX_FILES --seconds 150 --out rows.jsonl
    python benchmarks/families.py --cifar FOLDER_OF_PARQUET --seconds 600 --families auto,r3 --out rows.jsonl

All train on the whole train split (MNIST 60,000 at 28 px, CIFAR-10 5,000 a class at 32 px, mirrored images allowed) and are judged
on 5,000 samples with even labels against the 10,000 test images: by a judge, for agreement, and by the features of another
classifier of another architecture and seed, for all else. `textbook` is the plain conditional DCGAN of `textbook_cdcgan.py`, for
MNIST alone. A row that the file holds is not measured again, so that the table can be made piece by piece; the judges lie beside it.
"""

import argparse
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000000")       # as ganmill sets it; before torch is loaded

import numpy as np
import torch
from machine import machine
from rows import RowFile
from textbook_cdcgan import read_idx, train_textbook
from torch import Tensor
from two_workers import train_with_two_workers

import gan.loop
from gan.augment import Augmentation
from gan.classical import ClassicalAugment
from gan.classifier import Architecture, Classifier, embed, load_classifier, save_classifier, train_classifier
from gan.errors import GanError
from gan.metrics.diversity import diversity
from gan.metrics.frechet import Gaussian, frechet_distance
from gan.metrics.manifold import manifold
from gan.presets import Budget, choose
from gan.recipe import parse_settings
from gan.sampling import generate

SAMPLES = 5000
FAMILIES = "textbook,auto,mlp,dcgan,sngan,wgan,wgan-gp,r3,vae"
Draw = Callable[[Tensor], Tensor]                    # labels (n,) → uint8 (n, C, H, H)


@dataclass(frozen=True)
class Data:
    """A labelled image set; uint8 (N, C, H, H) and int64 (N,)."""

    name: str
    train: Tensor
    labels: Tensor
    test: Tensor
    test_labels: Tensor
    flip: bool

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.labels.max()) + 1


def mnist(folder: Path) -> Data:
    """MNIST from its four IDX files."""
    parts = []
    for part in ("train", "t10k"):
        parts += [read_idx(folder / f"{part}-images-idx3-ubyte.gz").unsqueeze(1), read_idx(folder / f"{part}-labels-idx1-ubyte.gz").long()]
    return Data("mnist", *parts, flip=False)


def cifar10(folder: Path) -> Data:
    """CIFAR-10 from image Parquet."""
    import pyarrow.parquet as pq
    from PIL import Image

    parts = []
    for part in ("train", "test"):
        table = pq.read_table(sorted(folder.glob(f"{part}-*.parquet"))[0])
        images = [np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGB")) for cell in table.column("image").to_pylist()]
        parts += [torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.tensor(table.column("label").to_pylist())]
    return Data("cifar10", *parts, flip=True)


def network(data: Data, role: str, cache: Path, device: str = "cpu") -> Classifier:
    """The judge or the feature extractor: other architecture, other seed; kept in the folder `cache`."""
    file = cache / f"{data.name}-{role}.safetensors"
    if file.exists():
        return load_classifier(file.read_bytes())[0].to(device)
    architecture: Architecture = "residual" if (role == "judge") == data.flip else "conv"
    net = train_classifier(data.train.to(device), data.labels.to(device), data.classes, steps=3000 if data.flip else 1500, width=24,
                           seed=99 if role == "judge" else 7, architecture=architecture,
                           augment=ClassicalAugment.allowed(flip=data.flip, color=False))
    file.write_bytes(save_classifier(net))
    return net


@dataclass(frozen=True)
class Measure:
    """Both networks, and the test images as the extractor sees them."""

    judge: Classifier
    extractor: Classifier
    features: Tensor
    labels: Tensor
    floor: float
    accuracy: float

    @classmethod
    def of(cls, data: Data, cache: Path, device: str = "cpu") -> "Measure":
        """Trains or loads the networks; the floor is the distance of 5,000 training images."""
        judge, extractor = network(data, "judge", cache, device), network(data, "extractor", cache, device)
        features = embed(extractor, data.test)[0]
        some = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[:SAMPLES]
        floor = frechet_distance(Gaussian(features), Gaussian(embed(extractor, data.train[some])[0]))
        said = embed(judge, data.test)[1].argmax(1)
        return cls(judge, extractor, features, data.test_labels, floor, float((said == data.test_labels).double().mean()))

    def figures(self, draw: Draw, classes: int) -> dict[str, float]:
        """Every figure of `SAMPLES` samples with even labels."""
        y = torch.arange(classes).repeat_interleave(SAMPLES // classes)
        images = draw(y)
        features = embed(self.extractor, images)[0]
        real = [self.features[self.labels == c] for c in range(classes)]
        per_class = [manifold(rows, features[y == c][: len(rows)], 5, with_recall=False) for c, rows in enumerate(real)]
        spread = diversity(self.features, self.labels, features, y).values()
        agreement = float((embed(self.judge, images)[1].argmax(1) == y).double().mean())
        coverage = sum(m.coverage for m in per_class) / classes
        return {
            "agreement": agreement, "fd": frechet_distance(Gaussian(self.features), Gaussian(features)), "floor": self.floor,
            "density": sum(m.density for m in per_class) / classes, "coverage": coverage,
            "lowest_coverage": min(m.coverage for m in per_class), "diversity": sum(spread) / classes, "least_diverse": min(spread),
            "agreement_x_coverage": agreement * coverage,
        }


def trained(family: str, data: Data, seconds: float, seed: int, device: str = "cpu", options: dict[str, Any] | None = None
            ) -> tuple[Draw, float]:
    """(sampler, thousands of images seen) after so many seconds, of two processes on CPUs or of one on a GPU.

    Args:
        options: changes of the recipe or the network by name.

    Raises:
        GanError: the family can't serve, or its training broke.
    """
    if family == "textbook":
        sampler, seen = train_textbook(data.train, data.labels, data.classes, seconds, seed)
        return lambda y: ((sampler(y) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8), seen / 1000
    counts = torch.bincount(data.labels).tolist()
    spec, recipe, _ = choose(family, data.train.shape[2], data.train.shape[1], counts, Budget(seconds=seconds), device,
                             augment=Augmentation(flip=data.flip), options=options)
    if device != "cpu":
        state = gan.loop.train(data.train, data.labels, spec, recipe, seed=seed, device=device)
        return lambda y: generate(state.ema, y, np.arange(10**6, 10**6 + len(y))), state.kimg
    made = train_with_two_workers(data.train, data.labels, spec, recipe, seed)
    return lambda y: generate(made.net, y, np.arange(10**6, 10**6 + len(y))), made.meta["kimg"]


def measure(data: Data, families: list[str], seconds: float, args: argparse.Namespace, out: RowFile) -> None:
    """Adds the rows that are missing."""
    seeds, more = args.seeds, {"set": " ".join(args.set)} if args.set else {}
    asked = [{"data": data.name, "seconds": seconds, "family": family, "seed": seed, **more} for seed in range(seeds) for family in families
             if not (family == "textbook" and data.flip)]
    if not (missing := [row for row in asked if not out.has(row)]):
        return
    measuring = Measure.of(data, out.path.parent, args.device)
    for row in missing:
        try:
            draw, kimg = trained(row["family"], data, seconds, row["seed"], args.device, parse_settings(args.set))
            found = {"kimg": kimg, "judge": measuring.accuracy, **measuring.figures(draw, data.classes)}
        except GanError as e:
            found = {"error": str(e)}
        out.add(row | found)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, a table for each data set and budget, means over the seeds."""
    lines = []
    for data, seconds in sorted({(row["data"], row["seconds"]) for row in rows}):
        mine = [row for row in rows if (row["data"], row["seconds"]) == (data, seconds)]
        floor = next((f", floor {row['floor']:.2f}, the judge knows {row['judge']:.2%} of the test images"
                      for row in mine if "floor" in row), "")
        lines += [f"\n{data}, {seconds:g} s{floor}\n", "| family | kimg | agreement | FD-domain | coverage | lowest class | diversity | "
                  "agreement × coverage |", "|---|---:|---:|---:|---:|---:|---:|---:|"]
        for name in dict.fromkeys(_name(row) for row in mine):
            runs = [row for row in mine if _name(row) == name]
            good = [row for row in runs if "error" not in row]
            if not good:
                lines.append(f"| {name} | {runs[0]['error']} |")
                continue
            mean = {key: sum(row[key] for row in good) / len(good) for key in good[0] if isinstance(good[0][key], float)}
            lines.append(f"| {name} | {mean['kimg']:.0f} | {mean['agreement']:.3f} | {mean['fd']:.2f} | {mean['coverage']:.3f} | "
                         f"{mean['lowest_coverage']:.3f} | {mean['diversity']:.3f} | {mean['agreement_x_coverage']:.3f} |")
    return "\n".join(lines)


def _name(row: dict[str, Any]) -> str:
    return f"{row['family']} {row.get('set', '')}".strip()


def main() -> None:
    """Measures what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, help="folder of the four IDX files (.gz)")
    parser.add_argument("--cifar", type=Path, help="folder of the two Parquet files")
    parser.add_argument("--seconds", default="150", help="comma-separated")
    parser.add_argument("--families", default=FAMILIES)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cuda: training and measuring on a GPU; needs no Ray")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="changes of every recipe, which name the rows")
    parser.add_argument("--out", type=Path, required=True, help=".jsonl of rows, added to")
    args = parser.parse_args()
    rows = RowFile(args.out)
    print(machine())
    for folder, read in ((args.mnist, mnist), (args.cifar, cifar10)):
        if folder is not None:
            data = read(folder)
            for seconds in args.seconds.split(","):
                measure(data, args.families.split(","), float(seconds), args, rows)
    print(table(rows.read()))


if __name__ == "__main__":
    main()

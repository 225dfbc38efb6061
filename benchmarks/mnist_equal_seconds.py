"""ganmill's default against the textbook conditional DCGAN: MNIST, the same seconds in the same run.

Both train on all 60,000 training images: the textbook with all threads, ganmill with two workers of half of them, as is its
default. Both are judged by a classifier that learnt the same images, on samples with even labels against the 10,000 test images, at
28×28. ganmill trains at that size too (`prepare.resolution: 28`); with `--resolution 32`, its config's default, on MNIST padded by
its border, which is cut off again.

    python benchmarks/mnist_equal_seconds.py --data FOLDER_OF_IDX_FILES [--seconds 150] [--seeds 1] [--picture out.png]
"""

import argparse
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000000")       # for both; as ganmill sets it; before torch is loaded

import torch
from machine import machine
from textbook_cdcgan import read_idx, train_textbook
from torch import Tensor
from torch.nn import functional as F
from two_workers import train_with_two_workers

from gan.allocator import keep_freed_memory
from gan.classical import ClassicalAugment
from gan.classifier import Classifier, embed, load_classifier, save_classifier, train_classifier
from gan.metrics.diversity import diversity
from gan.metrics.frechet import Gaussian, frechet_distance
from gan.metrics.manifold import manifold
from gan.presets import Budget, choose
from gan.recipe import parse_settings
from gan.sampling import generate
from pipeline.grids import tile_grid

CLASSES, SAMPLES = 10, 5000
Sampler = Callable[[Tensor], Tensor]                 # labels (n,) → uint8 (n, 1, 28, 28)


def mnist(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images uint8 (N, 1, 28, 28) and labels int64 (N,)."""
    images = read_idx(folder / f"{part}-images-idx3-ubyte.gz").unsqueeze(1)
    return images, read_idx(folder / f"{part}-labels-idx1-ubyte.gz").long()


def judge(images: Tensor, labels: Tensor, cache: Path | None) -> Classifier:
    """A convolutional classifier with classical augmentation, about 99.5 % on the test images."""
    if cache is not None and cache.exists():
        return load_classifier(cache.read_bytes())[0]
    net = train_classifier(images, labels, CLASSES, steps=2000, seed=99, batch_size=128, width=32, architecture="conv",
                           augment=ClassicalAugment.allowed(flip=False, color=False))
    if cache is not None:
        cache.write_bytes(save_classifier(net))
    return net


def ours(model: str, images: Tensor, labels: Tensor, seconds: float, seed: int, side: int,
         options: dict[str, Any]) -> tuple[Callable[..., Tensor], float, str]:
    """(sampler that takes labels and a truncation, thousands of images seen, description) of ganmill's preset for these data and seconds.

    Args:
        model: a family or `auto`, `@N` behind it for another batch size than the preset's.
        side: px that it trains at, 28 or 32.
        options: changes of recipe or networks by name.
    """
    border = (side - 28) // 2
    padded = F.pad(images, (border,) * 4)
    counts = torch.bincount(labels, minlength=CLASSES).tolist()
    family, _, batch = model.partition("@")
    spec, recipe, _ = choose(family, side, 1, counts, Budget(seconds=seconds), batch_size=int(batch) if batch else None,
                             options=options)
    made = train_with_two_workers(padded, labels, spec, recipe, seed)

    def sampler(y: Tensor, psi: float = 1.0) -> Tensor:
        images = generate(made.net, y, torch.arange(10**6, 10**6 + len(y)).numpy(), truncation=psi)
        return images[..., border:side - border, border:side - border]

    return sampler, made.meta["kimg"], f"ganmill {model} ({spec.family}, {side} px, batch {recipe.batch_size})"


def textbook(images: Tensor, labels: Tensor, seconds: float, seed: int) -> tuple[Sampler, float, str]:
    """The same of the textbook peer."""
    generator, seen = train_textbook(images, labels, CLASSES, seconds, seed)

    def sampler(y: Tensor) -> Tensor:
        return ((generator(y) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    return sampler, seen / 1000, "textbook cDCGAN"


def training_rows(images: Tensor, labels: Tensor) -> Sampler:
    """Real training images in the samples' place: about what a perfect generator would reach."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    of_class = {c: images[order[labels[order] == c]] for c in range(CLASSES)}
    return lambda y: torch.cat([of_class[c][: int((y == c).sum())] for c in y.unique().tolist()])


def figures(net: Classifier, sampler: Sampler, real: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Every figure of `SAMPLES` samples with even labels; `real`: features and labels of the test images."""
    y = torch.arange(CLASSES).repeat_interleave(SAMPLES // CLASSES)
    features, logits = embed(net, sampler(y))
    test, test_y = real
    per_class = [manifold(test[test_y == c], features[y == c], 5, with_recall=False).coverage for c in range(CLASSES)]
    spread = diversity(test, test_y, features, y).values()
    return {
        "agreement": (logits.argmax(1) == y).float().mean().item(),
        "FD": frechet_distance(Gaussian(test), Gaussian(features)),
        "precision": manifold(test, features, 5, with_recall=False).precision,
        "coverage": sum(per_class) / CLASSES, "lowest class": min(per_class), "diversity": sum(spread) / CLASSES,
        "least diverse": min(spread),
    }


def show(name: str, kimg: float, seconds: float, row: dict[str, float]) -> None:
    """One line of the table."""
    cells = "  ".join(f"{key} {value:.3f}" for key, value in row.items())
    print(f"{name:<44} {kimg:6.0f} kimg  {1000 * kimg / seconds:5.0f}/s  {cells}  load {os.getloadavg()[0]:.1f}", flush=True)


def main() -> None:
    """Prints a row a run, and the ratio of the Fréchet distances."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--models", default="auto", help="comma-separated families of ganmill")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="of ganmill's recipe, e.g. features=0")
    parser.add_argument("--truncation", type=float, nargs="*", default=[], metavar="PSI", help="also, of the same generator")
    parser.add_argument("--resolution", type=int, default=28, choices=(28, 32))
    parser.add_argument("--judge", type=Path, help="cache of the judge")
    parser.add_argument("--picture", type=Path, help="PNG with the default's samples, one row a class")
    arguments = parser.parse_args()
    keep_freed_memory()                              # for both; as ganmill's workers do
    print(machine())
    (train, train_y), (test, test_y) = (mnist(arguments.data, part) for part in ("train", "t10k"))
    began = time.perf_counter()
    net = judge(train, train_y, arguments.judge)
    real = (embed(net, test)[0], test_y)
    accuracy = (embed(net, test)[1].argmax(1) == test_y).float().mean().item()
    some = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:SAMPLES]
    floor = frechet_distance(Gaussian(real[0]), Gaussian(embed(net, train[some])[0]))
    print(f"judge: {100 * accuracy:.2f} % on the test images ({time.perf_counter() - began:.0f} s); "
          f"floor: FD {floor:.3f} of {SAMPLES} training images")
    show("real training images", SAMPLES / 1000, 1, figures(net, training_rows(train, train_y), real))
    for seed in range(arguments.seeds):
        sampler, kimg, name = textbook(train, train_y, arguments.seconds, seed)
        peer = figures(net, sampler, real)
        show(name, kimg, arguments.seconds, peer)
        for model in arguments.models.split(","):
            drawer, kimg, name = ours(model, train, train_y, arguments.seconds, seed, arguments.resolution,
                                      parse_settings(arguments.set))
            row = figures(net, drawer, real)
            show(name, kimg, arguments.seconds, row)
            for psi in arguments.truncation:
                show(f"  truncated by {psi:g}", kimg, arguments.seconds, figures(net, functools.partial(drawer, psi=psi), real))
            print(f"  FD against the textbook's at equal seconds: {row['FD'] / peer['FD']:.2f}", flush=True)
            if arguments.picture is not None:
                y = torch.arange(CLASSES).repeat_interleave(20)
                arguments.picture.write_bytes(tile_grid(drawer(y).numpy(), 20))


if __name__ == "__main__":
    main()

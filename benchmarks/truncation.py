"""What truncation and rejection do to a trained generator: density (how typical) against coverage (how varied).

    python benchmarks/truncation.py --mnist FOLDER_OF_IDX_FILES [--seconds 150] [--checkpoint FILE] [--samples 5000]

The default preset trains on 50,000 of MNIST's training images (or a checkpoint is taken that this script wrote before); the other
10,000 are what rejection is calibrated on. Figures compare samples with even labels to the 10,000 test images, class by class in the
features of a classifier. Density of real images is about 1; above it samples crowd where the real ones are thickest.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "10000000")

import numpy as np
import torch
from families import Measure, mnist
from machine import machine
from torch import Tensor
from two_workers import train_with_two_workers

from gan.checkpoint import LoadedGenerator, load_generator
from gan.classifier import embed
from gan.metrics.diversity import diversity
from gan.metrics.frechet import Gaussian, frechet_distance
from gan.metrics.manifold import manifold
from gan.presets import Budget, choose
from gan.rejection import RejectionSampler
from gan.sampling import generate

HELD_OUT = 10_000


def trained(images: Tensor, labels: Tensor, seconds: float, file: Path | None) -> LoadedGenerator:
    """The default preset after so many seconds, or what the file holds."""
    if file is not None and file.exists():
        return load_generator(file.read_bytes())
    spec, recipe, _ = choose("auto", images.shape[2], 1, torch.bincount(labels).tolist(), Budget(seconds=seconds))
    return train_with_two_workers(images, labels, spec, recipe, seed=0, keep=file)


def show(name: str, images: Tensor, y: Tensor, measure: Measure, passed: float) -> None:
    """One row; figures by class, then their mean."""
    features, logits = embed(measure.extractor, images)[0], embed(measure.judge, images)[1]
    classes = y.unique().tolist()
    found = [manifold(measure.features[measure.labels == c], features[y == c], 5) for c in classes]
    mean = {key: float(np.mean([getattr(m, key) for m in found])) for key in ("precision", "recall", "density", "coverage")}
    spread = float(np.mean(list(diversity(measure.features, measure.labels, features, y).values())))
    print(f"{name:<30} agreement {float((logits.argmax(1) == y).double().mean()):.3f}  FD-domain "
          f"{frechet_distance(Gaussian(measure.features), Gaussian(features)):7.3f}  "
          + "  ".join(f"{key} {value:.3f}" for key, value in mean.items())
          + f"  diversity {spread:.3f}  passed {passed:6.1%}", flush=True)


def main() -> None:
    """Prints a row for each setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--checkpoint", type=Path, help="kept here, and taken from here when it is there")
    parser.add_argument("--cache", type=Path, default=Path(), help="folder of the judge and the extractor")
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--truncations", default="1.2,1,0.9,0.8,0.7,0.5")
    parser.add_argument("--keep", default="0.8,0.5,0.25,0.1")
    args = parser.parse_args()
    print(machine())
    data = mnist(args.mnist)
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(5))
    held, seen = order[:HELD_OUT], order[HELD_OUT:]
    loaded = trained(data.train[seen], data.labels[seen], args.seconds, args.checkpoint)
    measure = Measure.of(data, args.cache)
    y = torch.arange(data.classes).repeat_interleave(args.samples // data.classes)
    seeds = np.arange(len(y), dtype=np.int64) + 10**6
    print(f"{loaded.spec.family}, {loaded.meta['kimg']:.0f} kimg; {len(y):,} samples; floor FD-domain {measure.floor:.3f}")
    per_class = [data.train[held][data.labels[held] == c][: args.samples // data.classes] for c in range(data.classes)]
    show("real training images", torch.cat(per_class), y, measure, 1.0)
    for psi in (float(t) for t in args.truncations.split(",")):
        show(f"truncation {psi:g}", generate(loaded.net, y, seeds, truncation=psi), y, measure, 1.0)
    for keep in [float(k) for k in args.keep.split(",")]:
        sampler = RejectionSampler(loaded.net, loaded.discriminator, data.train[held], data.labels[held], data.classes, keep=keep)
        kept = sampler.sample(y, seeds)
        show(f"rejection, keep {keep:g}", kept.samples, y, measure, len(y) / int(kept.draws.sum()))


if __name__ == "__main__":
    main()

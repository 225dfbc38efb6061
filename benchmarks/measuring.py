"""The measuring rooms: the classifier on MNIST, and precision, recall, density, coverage beside `prdc`.

    python benchmarks/measuring.py [--data FOLDER_OF_IDX_FILES] [--rows 10000]
"""

import argparse
import resource
import time
from pathlib import Path

import torch
from machine import machine
from textbook_cdcgan import read_idx
from torch.nn import functional as F

from gan.classical import ClassicalAugment
from gan.classifier import predict, train_classifier
from gan.metrics.manifold import manifold


def classifier(folder: Path, steps: int) -> None:
    """Test accuracy and seconds of the convolutional classifier on all of MNIST."""
    images, labels = (read_idx(folder / f"train-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1"))
    test, truth = (read_idx(folder / f"t10k-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1"))
    padded, unseen = (F.pad(x.unsqueeze(1), (2, 2, 2, 2)) for x in (images, test))
    began = time.perf_counter()
    net = train_classifier(padded, labels.long(), 10, steps=steps, seed=0, width=16, augment=ClassicalAugment())
    seconds = time.perf_counter() - began
    right = float((predict(net, unseen).argmax(dim=1) == truth).double().mean())
    print(f"classifier: {100 * right:.2f} % on MNIST test after {steps} steps of 128 in {seconds:.1f} s, "
          f"{steps * 128 / seconds:,.0f} images/s, {torch.get_num_threads()} thread(s)")


def neighbours(rows: int, width: int = 128) -> None:
    """Seconds and peak memory of the four figures, and of `prdc`'s, on the same features."""
    from prdc import compute_prdc

    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(rows, width, generator=generator) for _ in range(2))
    began, before = time.perf_counter(), peak_mib()
    ours = manifold(real, fake, 5)
    seconds, after = time.perf_counter() - began, peak_mib()
    began = time.perf_counter()
    theirs = compute_prdc(real.numpy(), fake.numpy(), nearest_k=5)
    print(f"{rows:,} × {rows:,} rows of {width}: {seconds:.2f} s and {after - before:.0f} MiB more at the peak, "
          f"prdc {time.perf_counter() - began:.2f} s and {peak_mib() - after:.0f} MiB; largest difference "
          f"{max(abs(getattr(ours, name) - value) for name, value in theirs.items()):.5f}")


def peak_mib() -> float:
    """Largest resident size so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the four MNIST IDX files (.gz); leave out for none")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--rows", type=int, default=10_000)
    args = parser.parse_args()
    print(machine())
    neighbours(args.rows)
    if args.data is not None:
        classifier(args.data, args.steps)


if __name__ == "__main__":
    main()

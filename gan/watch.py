"""Watches a run: does the generator still vary within its classes, and do both players still learn?"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gan.sampler import as_float, splitmix64
from gan.sampling import generate

POOLED = 8                   # images are averaged to 8×8 before they are compared: noise in single pixels is no variety
PER_CLASS = 16
MOST_CLASSES = 32
MOST_REAL = 256              # a class
COLLAPSED = "collapsed generator"


def spread(images: Tensor) -> float:
    """Root mean variance over a set of uint8 images (n, C, H, W), each averaged to 8×8; in units of [-1, 1]."""
    pooled = F.adaptive_avg_pool2d(as_float(images), min(POOLED, images.shape[-1])).flatten(1)
    return float(pooled.var(0).mean().sqrt()) if len(images) > 1 else 0.0


class DiversityWatch:
    """Per-class spread of samples with fixed seeds, against the real images'.

    A ratio near 1 is healthy, near 0 all samples of a class look alike. Losses don't show this.
    """

    def __init__(self, images: Tensor, labels: Tensor, classes: int, seed: int) -> None:
        real: dict[int, float] = {}
        counts = torch.bincount(labels, minlength=classes)
        for label in torch.nonzero(counts > 1).flatten()[:: max(1, classes // MOST_CLASSES)].tolist():
            rows = torch.nonzero(labels == label).flatten()[:MOST_REAL]
            # A class of equal images has no spread to compare with, which says nothing about the generator.
            if (value := spread(images[rows])) > 0.01:
                real[label] = value
        self.real = real
        self._labels = torch.tensor(list(real), dtype=torch.int64).repeat_interleave(PER_CLASS)
        start = splitmix64(seed) >> 2
        self._seeds = np.arange(start, start + len(self._labels), dtype=np.int64)

    def measure(self, g: nn.Module) -> dict[int, float]:
        """Generated over real spread by label; classes whose real images don't vary are left out."""
        if not self.real:
            return {}
        samples = generate(g, self._labels, self._seeds)
        return {label: spread(samples[i * PER_CLASS:(i + 1) * PER_CLASS]) / real
                for i, (label, real) in enumerate(self.real.items())}


class Alarm:
    """Turns readings into a reason to stop, or None.

    A generator counts as collapsed when its mean diversity ratio stays under the floor for `PATIENCE` looks in a row.
    Networks start dull, so nobody looks before `EARLY_KIMG`, nor in the first fifth of the run unless that is longer
    than `LATE_KIMG`.
    """

    EARLY_KIMG = 20.0
    LATE_KIMG = 1000.0
    PATIENCE = 3
    STILL = 1e-9             # gradient norm under which a player learns nothing
    STILL_PATIENCE = 5

    def __init__(self, min_diversity: float) -> None:
        self.min_diversity = min_diversity
        self._dull = 0
        self._still = {"grad_norm_d": 0, "grad_norm_g": 0}

    def hear_metrics(self, metrics: Mapping[str, float]) -> str | None:
        """Looks at losses and gradient norms."""
        for name in ("loss_d", "loss_g"):
            if not math.isfinite(metrics.get(name, 0.0)):
                return f"{name} is {metrics[name]}"
        for name, meaning in (("grad_norm_d", "dead discriminator: its gradient is zero"),
                              ("grad_norm_g", "the generator receives no gradient any more")):
            value = metrics.get(name)
            if value is None:
                continue
            if not math.isfinite(value):
                return f"{name} is {value}"
            self._still[name] = self._still[name] + 1 if value < self.STILL else 0
            if self._still[name] >= self.STILL_PATIENCE:
                return meaning
        return None

    def is_varied(self, ratios: Mapping[int, float]) -> bool:
        """Is the mean diversity above the floor? Where no class of real images varies there is none to miss."""
        return not ratios or sum(ratios.values()) / len(ratios) >= self.min_diversity

    def hear_diversity(self, ratios: Mapping[int, float], t: float, kimg: float) -> str | None:
        """Looks at the per-class diversity at progress t after `kimg`."""
        if not ratios:
            return None
        mean = sum(ratios.values()) / len(ratios)
        if not math.isfinite(mean):
            return "the generator's images are not finite"
        counts = kimg > self.EARLY_KIMG and (t > 0.2 or kimg > self.LATE_KIMG)
        self._dull = self._dull + 1 if counts and mean < self.min_diversity else 0
        if self._dull >= self.PATIENCE:
            return f"{COLLAPSED}: samples of a class vary {mean:.3f} times as much as real images do"
        return None

"""Two-dimensional Gaussian mixtures: a ground on which everything about a GAN can be computed.

`two` is ½N((-2, -2), I) + ½N((2, 2), I); `ring8` and `grid25` are PacGAN's (Lin 2018):
eight modes on the unit circle with deviation 0.01, and a 5×5 grid with spacing 2 and deviation 0.05.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gan.errors import BadData

QUALITY_RADIUS = 3.0         # in deviations; e^(-4.5) of a true mixture's samples lie beyond, so 98.89 % is the ceiling


@dataclass(frozen=True)
class Mixture:
    """Equal-weighted Gaussians: means (k, 2), one deviation for all."""

    name: str
    means: NDArray[np.float64]
    deviation: float

    def sample(self, n: int, seed: int) -> Tensor:
        """n points, float32 (n, 2); follows from the seed alone."""
        rng = np.random.default_rng(seed)
        points = self.means[rng.integers(len(self.means), size=n)] + self.deviation * rng.standard_normal((n, 2))
        return torch.from_numpy(points.astype(np.float32))

    def log_density(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """log p at points (n, 2), (n,)."""
        squares = ((points[:, None] - self.means) ** 2).sum(-1) / self.deviation**2
        nearest = squares.min(1)
        total = np.exp(-0.5 * (squares - nearest[:, None])).mean(1)
        return np.log(total) - 0.5 * nearest - math.log(2 * math.pi * self.deviation**2)

    @property
    def scale(self) -> float:
        """Root mean square of a coordinate, by which networks see the plane in units near 1."""
        return float(np.sqrt((self.means**2).mean() + self.deviation**2))


def _ring(k: int, radius: float) -> NDArray[np.float64]:
    angles = 2 * np.pi * np.arange(k) / k
    return radius * np.stack([np.cos(angles), np.sin(angles)], 1)


def _grid(side: int, spacing: float) -> NDArray[np.float64]:
    steps = spacing * (np.arange(side) - (side - 1) / 2)
    return np.stack(np.meshgrid(steps, steps, indexing="ij"), -1).reshape(-1, 2)


MIXTURES: dict[str, Mixture] = {
    "two": Mixture("two", np.array([[-2.0, -2.0], [2.0, 2.0]]), 1.0),
    "ring8": Mixture("ring8", _ring(8, 1.0), 0.01),
    "grid25": Mixture("grid25", _grid(5, 2.0), 0.05),
}


@dataclass(frozen=True)
class ModeFigures:
    """What PacGAN's tables report, of n generated points.

    Attributes:
        modes: modes with at least one high-quality point.
        high_quality: share of points within three deviations of a mode's mean.
        reverse_kl: KL(generated ‖ true) in nats over modes, each point counted to its nearest mode.
        spread_ratio: for each mode, deviation of its high-quality points over the true one's; NaN where a mode has none.
    """

    modes: int
    of: int
    high_quality: float
    reverse_kl: float
    spread_ratio: tuple[float, ...]


def mode_figures(points: NDArray[np.float64], mixture: Mixture) -> ModeFigures:
    """Mode coverage and quality of generated points (n, 2).

    Raises:
        BadData: no points, points that are not on the plane, or values that are not finite.
    """
    if points.ndim != 2 or points.shape[1] != 2 or len(points) == 0:
        raise BadData(f"points must be (n, 2), got {points.shape}" if len(points) else "there are no points to measure")
    if not np.isfinite(points).all():
        raise BadData("points hold NaN or infinity")
    distances = np.sqrt(((points[:, None] - mixture.means) ** 2).sum(-1))
    nearest, k = distances.argmin(1), len(mixture.means)
    good = distances[np.arange(len(points)), nearest] <= QUALITY_RADIUS * mixture.deviation
    share = np.bincount(nearest, minlength=k) / len(points)
    present = share > 0
    # The deviation of a Gaussian cut at three deviations: √(1 - 4.5·e^(-4.5)/(1 - e^(-4.5))) of the whole one's.
    tail = math.exp(-(QUALITY_RADIUS**2) / 2)
    cut = math.sqrt(1 - QUALITY_RADIUS**2 / 2 * tail / (1 - tail))
    ratios = []
    for mode in range(k):
        mine = points[(nearest == mode) & good]
        ratios.append(float(np.sqrt(mine.var(0).mean()) / (mixture.deviation * cut)) if len(mine) > 1 else math.nan)
    return ModeFigures(
        modes=int((np.bincount(nearest[good], minlength=k) > 0).sum()), of=k, high_quality=float(good.mean()),
        reverse_kl=float((share[present] * np.log(share[present] * k)).sum()), spread_ratio=tuple(ratios))


@dataclass(frozen=True)
class Summary:
    """Mean and standard error of each figure over runs with different seeds."""

    runs: int
    modes: tuple[float, float]
    high_quality: tuple[float, float]
    reverse_kl: tuple[float, float]


def summarise(figures: Sequence[ModeFigures]) -> Summary:
    """Mean ± standard error, as PacGAN reports ten runs; the error of one run is NaN."""
    def pair(values: list[float]) -> tuple[float, float]:
        error = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
        return float(np.mean(values)), error

    return Summary(len(figures), pair([float(f.modes) for f in figures]), pair([f.high_quality for f in figures]),
                   pair([f.reverse_kl for f in figures]))

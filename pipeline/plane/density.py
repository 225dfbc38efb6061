"""Density of points on the plane, smoothed on a raster, and its contours."""

from collections.abc import Sequence
from typing import Any

import contourpy
import numpy as np

CELLS = 120                                          # a side
SMOOTHING = 1.5                                      # deviation of the kernel, in cells

Line = list[tuple[float, float]]


def smoothed(points: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Density of points (n, 2) a cell of the square `limits`², float64 (CELLS, CELLS) as [row y, column x].

    A Gaussian kernel on the histogram; points outside count as mass that is not shown.
    """
    counts, _, _ = np.histogram2d(points[:, 1], points[:, 0], bins=CELLS, range=[limits, limits])
    reach = np.arange(-6, 7)
    kernel = np.exp(-0.5 * (reach / SMOOTHING) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        counts = np.apply_along_axis(np.convolve, axis, counts, kernel, mode="same")
    return counts / max(1, len(points))


def contours(density: np.ndarray, levels: Sequence[float], limits: tuple[float, float]) -> list[Line]:
    """Lines of equal density, coordinates in the units of `limits`."""
    low, high = limits
    centres = low + (np.arange(len(density)) + 0.5) * (high - low) / len(density)
    found: Any = contourpy.contour_generator(centres, centres, density)
    return [[(float(x), float(y)) for x, y in line] for level in levels for line in found.lines(level)]


def levels_of(density: np.ndarray, shares: Sequence[float] = (0.05, 0.2, 0.4, 0.6, 0.8)) -> list[float]:
    """Densities at these shares of the highest, lowest first."""
    return [share * float(density.max()) for share in shares]

"""Squared Euclidean distances between two sets of features, block by block, so that memory stays bounded."""

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_FLOATS = 8_000_000                             # a block of distances: 32 MB in float32


def check_finite(*sets: Tensor) -> None:
    """Raises `ValueError` where a set of features or logits holds NaN or infinity: comparisons with these are false, whatever they ask."""
    if not all(torch.isfinite(rows).all() for rows in sets):
        raise ValueError("features hold NaN or infinity")


def distance_blocks(a: Tensor, b: Tensor, block_floats: int = BLOCK_FLOATS) -> Iterator[tuple[int, Tensor]]:
    """Yields (first row, squared distances (rows, m)) for a (n, d) against b (m, d), in the dtype of `a`.

    By ‖x‖² + ‖y‖² - 2⟨x, y⟩ about b's mean (less cancellation), never below 0. The block may be changed in place.

    Raises:
        ValueError: a value that is not finite, or whose square isn't.
    """
    check_finite(a, b)
    centre = b.mean(dim=0) if len(b) else 0.0
    a, b = a - centre, b - centre
    squares = b.square().sum(dim=1)
    check_finite(4 * squares, 4 * a.square().sum(dim=1))   # (‖x‖ + ‖y‖)² is four times the larger at most
    rows = max(1, block_floats // max(1, len(b)))
    for first in range(0, len(a), rows):
        part = a[first : first + rows]
        block = torch.addmm(squares, part, b.T, alpha=-2.0)
        yield first, block.add_(part.square().sum(dim=1, keepdim=True)).clamp_min_(0.0)


def nearest(a: Tensor, b: Tensor, k: int = 1, *, same: bool = False) -> tuple[Tensor, Tensor]:
    """Distances (n, k) and rows (n, k) of the k nearest of b (m, d) to each of a (n, d), nearest first.

    Args:
        same: a and b are one set; a row is then not its own neighbour (equal rows elsewhere are, at distance 0).

    Raises:
        ValueError: fewer than k neighbours, or see `distance_blocks`.
    """
    available = len(b) - 1 if same else len(b)
    if available < k or k < 1:
        raise ValueError(f"asked for the {k} nearest of {available} rows")
    distances, rows = torch.empty(len(a), k, dtype=a.dtype), torch.empty(len(a), k, dtype=torch.int64)
    for first, block in distance_blocks(a, b):
        last = first + len(block)
        if same:
            block.diagonal(offset=first).fill_(torch.inf)
        near, index = block.topk(k, dim=1, largest=False)
        distances[first:last], rows[first:last] = near.sqrt().cpu(), index.cpu()
    return distances, rows

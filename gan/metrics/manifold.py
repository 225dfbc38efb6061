"""Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020) by k nearest neighbours."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gan.metrics.distances import distance_blocks, nearest


@dataclass(frozen=True)
class Manifold:
    """Each in 0 … 1 but density, which can exceed 1."""

    precision: float                                 # share of generated rows inside some real row's neighbourhood
    recall: float                                    # share of real rows inside some generated row's neighbourhood
    density: float                                   # mean number of real neighbourhoods around a generated row, over k
    coverage: float                                  # share of real neighbourhoods that hold a generated row
    k: int


def neighbourhood_size(rows: int, k: int = 5) -> int:
    """The k that a set of `rows` bears: at most rows - 1, 0 when no row has a neighbour."""
    return max(0, min(k, rows - 1))


def manifold(real: Tensor, fake: Tensor, k: int = 5, *, with_recall: bool = True) -> Manifold:
    """All four figures from features real (n, d), fake (m, d); memory is bounded, whatever n and m.

    A neighbourhood is the open ball about a row that reaches to its k-th nearest other row of the same set. For equal
    distributions and n = m the expected coverage is about 1 - 2^-k.

    Args:
        with_recall: recall alone needs neighbourhoods of the generated rows; False saves a third of the time and
            leaves recall at NaN.

    Raises:
        ValueError: k other than 1 … rows - 1 in a set whose neighbourhoods are needed, no generated row, or a value that is not finite.
    """
    if len(fake) == 0:
        raise ValueError("no generated rows")
    reach = nearest(real, real, k, same=True)[0][:, -1].square().to(real)
    fake_reach = nearest(fake, fake, k, same=True)[0][:, -1].square().to(real) if with_recall else None
    inside = torch.zeros(len(fake), dtype=torch.int64, device=real.device)
    covered = recalled = 0
    for first, block in distance_blocks(real, fake):
        radius = reach[first : first + len(block), None]
        if fake_reach is not None:
            recalled += int((block < fake_reach).any(dim=1).sum())
        holds = block < radius
        covered += int(holds.any(dim=1).sum())
        inside += holds.sum(dim=0)
    return Manifold(
        precision=float((inside > 0).double().mean()),
        recall=recalled / len(real) if with_recall else float("nan"),
        density=float(inside.double().mean()) / k,
        coverage=covered / len(real),
        k=k,
    )


def expected_coverage(real: int, fake: int, k: int) -> float:
    """Coverage expected of `fake` rows from the very distribution of `real` rows (Naeem et al. 2020, appendix).

    1 - Π_{i=1..k} (real - i) / (real + fake - i)
    """
    missed = 1.0
    for i in range(1, k + 1):
        missed *= (real - i) / (real + fake - i)
    return 1.0 - missed

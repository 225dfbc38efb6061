"""Memorisation: are generated images nearer to the training images than unseen real images are?

Distances to the nearest training row, of generated and of held-out real rows, in one feature space, relative to how
thickly training rows lie there (a plain class lies thicker than a varied one). A row is *too near* when it undercuts
what practically no held-out row undercuts; it is *authentic* (Alaa et al. 2022) when it is farther from its nearest
training row than that row is from the rest of the training set.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gan.metrics.distances import nearest

NEIGHBOURS = 5
LEAST_THICKNESS = 0.05                               # of the median


@dataclass(frozen=True)
class Memorisation:
    """What the distances say. Relative: over the mean distance of that training row to its five nearest."""

    too_near: float                                  # share of generated rows under `threshold`
    threshold: float                                 # relative distance
    authentic: float                                 # share of generated rows that are authentic
    authentic_held_out: float                        # the same of held-out real rows: what to expect of new images
    median_ratio: float                              # median distance, generated / held-out: 1 is as far as new images
    pairs: tuple[tuple[int, int, float], ...]        # nearest first: (generated row, training row, relative distance)


def memorisation(
    train: Tensor, held_out: Tensor, generated: Tensor, *, quantile: float = 0.01, pairs: int = 20
) -> Memorisation:
    """Compares features train (n, d), held_out (h, d), generated (m, d).

    Args:
        quantile: share of held-out rows that may lie under the threshold.
        pairs: how many of the nearest pairs to give, each generated row once.

    Raises:
        ValueError: fewer than two training rows, no held-out or no generated row, or a value that is not finite.
    """
    if len(train) < 2 or len(held_out) == 0 or len(generated) == 0:
        counts = f"{len(train)} training, {len(held_out)} held-out, {len(generated)} generated rows"
        raise ValueError(f"{counts}: need 2, 1, 1")
    held, held_row = (t[:, 0] for t in nearest(held_out, train))
    made, made_row = (t[:, 0] for t in nearest(generated, train))
    own, thickness = surroundings(train, torch.cat([held_row, made_row]).unique())
    held_relative, relative = held / thickness[held_row], made / thickness[made_row]
    threshold = float(held_relative.sort().values[lower_rank(len(held), quantile)])
    order = relative.argsort(stable=True)[:pairs].tolist()
    return Memorisation(
        too_near=float((relative < threshold).double().mean()),
        threshold=threshold,
        authentic=float((made > own[made_row]).double().mean()),
        authentic_held_out=float((held > own[held_row]).double().mean()),
        median_ratio=float(made.median() / held.median().clamp_min(1e-12)),
        pairs=tuple((i, int(made_row[i]), float(relative[i])) for i in order),
    )


def surroundings(train: Tensor, rows: Tensor, floor: float | None = None) -> tuple[Tensor, Tensor]:
    """Distance to the nearest and mean distance to the five nearest other training rows, float (n,); NaN but at `rows`.

    Args:
        train: features (n, d), n at least 2.
        rows: int64, the ones wanted.
        floor: least thickness, so that rows among their own doubles lie in some; None: a twentieth of the median of `rows`.
    """
    near = nearest(train[rows], train, min(NEIGHBOURS, len(train) - 1) + 1)[0][:, 1:]     # the first is the row itself
    own, thickness = torch.full((2, len(train)), torch.nan, dtype=train.dtype)
    own[rows] = near[:, 0]
    mean = near.mean(dim=1)
    thickness[rows] = mean.clamp_min(LEAST_THICKNESS * float(mean.median()) if floor is None else floor).clamp_min(1e-12)
    return own, thickness


def lower_rank(n: int, quantile: float) -> int:
    """Index of the order statistic of n values that, in 19 of 20 draws, no more than `quantile` of new values undercut.

    Normal approximation of the binomial's 5 % point; the smallest value when n is small.
    """
    expected = n * quantile
    return max(0, math.floor(expected - 1.645 * math.sqrt(expected * (1 - quantile))) - 1)

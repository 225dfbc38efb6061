"""Kernel distance: unbiased squared maximum mean discrepancy (Gretton et al. 2012) under the cubic polynomial kernel,
on Inception features the KID of Bińkowski et al. 2018."""

import torch
from torch import Tensor

from gan.metrics.distances import check_finite

_BLOCK = 2048                                        # rows a side: 32 MB in float64


def kernel_distance(
    a: Tensor, b: Tensor, *, degree: int = 3, gamma: float | None = None, offset: float = 1.0
) -> float:
    """MMD² of features a (n, d), b (m, d) with k(x, y) = (γ⟨x, y⟩ + offset)^degree over all pairs, in float64.

    Unbiased, so it can fall below 0 for sets that are alike. All rows are used at once: the mean over random subsets
    that is usual for KID has the same expectation and more noise.

    Args:
        gamma: 1/d when None.

    Raises:
        ValueError: fewer than two rows in a set, or a value that is not finite.
    """
    if len(a) < 2 or len(b) < 2:
        raise ValueError(f"the kernel distance needs two rows in each set, got {len(a)} and {len(b)}")
    check_finite(a, b)
    scale = 1.0 / a.shape[1] if gamma is None else gamma

    def total(x: Tensor, y: Tensor) -> float:
        blocks = ((p.double() @ q.double().T).mul_(scale).add_(offset).pow_(degree).sum()
                  for p in x.split(_BLOCK) for q in y.split(_BLOCK))
        return float(sum(float(block) for block in blocks))

    def diagonal(x: Tensor) -> float:
        return float((x.double().square().sum(dim=1) * scale + offset).pow(degree).sum())

    n, m = len(a), len(b)
    with torch.inference_mode():
        within = (total(a, a) - diagonal(a)) / (n * (n - 1)) + (total(b, b) - diagonal(b)) / (m * (m - 1))
        return within - 2 * total(a, b) / (n * m)

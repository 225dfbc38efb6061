"""How varied a class is: mean pairwise distance of its generated rows over that of its real rows."""

import torch
from torch import Tensor

from gan.metrics.distances import check_finite, distance_blocks


def spread(features: Tensor) -> float:
    """Mean Euclidean distance over all pairs of different rows of features (n, d); NaN below two rows."""
    n = len(features)
    if n < 2:
        return float("nan")
    total = 0.0
    for first, block in distance_blocks(features, features):
        block.diagonal(offset=first).zero_()
        total += float(block.sqrt_().sum(dtype=torch.float64))
    return total / (n * (n - 1))


def diversity(real: Tensor, real_labels: Tensor, fake: Tensor, fake_labels: Tensor) -> dict[int, float]:
    """Class → spread generated / spread real; 1 is as varied as real, 0 is one image over and over.

    Classes with fewer than two rows on a side, or whose real rows are all alike, are left out: nothing can be said.

    Raises:
        ValueError: a value that is not finite.
    """
    check_finite(real, fake)
    ratios = {}
    for c in torch.unique(torch.cat([real_labels, fake_labels])).tolist():
        of_real, of_fake = spread(real[real_labels == c]), spread(fake[fake_labels == c])
        if of_real > 0 and of_fake >= 0:
            ratios[int(c)] = of_fake / of_real
    return ratios

"""Agreement: does an independent classifier see the class that was asked for?"""

import torch
from torch import Tensor

from gan.metrics.distances import check_finite


def agreement(logits: Tensor, labels: Tensor) -> tuple[float, dict[int, float]]:
    """Share of rows whose largest of logits (n, classes) is at `labels` (n,): over all rows, and by class present.

    Raises:
        ValueError: no rows, or a logit that is not finite.
    """
    if len(labels) == 0:
        raise ValueError("no rows")
    check_finite(logits)
    right = logits.argmax(dim=1) == labels
    per_class = {int(c): float(right[labels == c].double().mean()) for c in torch.unique(labels)}
    return float(right.double().mean()), per_class


def balanced_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Mean of the classes' recalls, classes without a row left out (0 … 1)."""
    per_class = agreement(logits, labels)[1]
    return sum(per_class.values()) / len(per_class)

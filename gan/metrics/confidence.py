"""Inception-like score: Salimans et al. 2016's formula on any classifier's logits."""

import math

import torch
from torch import Tensor

from gan.metrics.distances import check_finite


def inception_like_score(logits: Tensor) -> float:
    """exp(mean KL(p(y|x) ‖ p(y))) of logits (n, classes), in float64: 1 (nothing told) … classes (sure and even).

    Raises:
        ValueError: no rows, or a logit that is not finite.
    """
    if len(logits) == 0:
        raise ValueError("no rows")
    check_finite(logits)
    conditional = torch.log_softmax(logits.double(), dim=1)
    marginal = torch.logsumexp(conditional, dim=0) - math.log(len(logits))
    return math.exp(float((conditional.exp() * (conditional - marginal)).nan_to_num(0.0).sum(dim=1).mean()))

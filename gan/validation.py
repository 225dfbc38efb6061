"""A cheap score on held-out images, by which the checkpoint worth keeping is chosen.

Fréchet joint distance (DeVries 2019): the features of a network that never learnt anything beside the label as a vector, both
scaled to the same total variance. What is no digit, what doesn't vary and what doesn't fit its label all count. It ranks the
checkpoints of one run; as a figure of quality it says nothing.
"""

import math
import statistics
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from gan.classifier import Classifier, ClassifierSpec, build_classifier, embed, standardise
from gan.metrics.frechet import Gaussian, frechet_distance
from gan.recipe import Recipe
from gan.sampler import check_data, splitmix64
from gan.sampling import generate

GROUPS = 20                  # of held-out images, each left out once, by which a score's scatter is told
ROWS = 1000                  # held-out images at most, and generated ones
WIDTH = 16                   # of the feature network
LABEL_WIDTH = 32             # a label is one of so many directions at most; more classes share them
EVERY_KIMG = 20.0            # between scores: a score costs as much as training on some 400 images
EVERY_S = 20.0


class Validation:
    """Scores generators against held-out images; the same images, labels and latents each time.

    Args:
        images, labels: uint8 (N, C, H, H), int64 (N,); never training or test images.
    """

    def __init__(self, images: Tensor, labels: Tensor, classes: int, seed: int) -> None:
        check_data(images, labels, classes)
        rng = np.random.default_rng(0)
        rows = torch.from_numpy(rng.permutation(len(images))[:ROWS])
        self._labels = labels[rows].repeat(-(-ROWS // len(rows)))[:ROWS]
        start = splitmix64(seed ^ 0x56A1) >> 2
        self._seeds = np.arange(start, start + ROWS, dtype=np.int64)
        self._net: Classifier = build_classifier(ClassifierSpec("conv", images.shape[2], images.shape[1], classes, WIDTH), seed=0)
        standardise(self._net, images)
        self._net.eval()
        width = min(classes, LABEL_WIDTH)
        directions = np.eye(classes) if width == classes else rng.standard_normal((classes, width)) / math.sqrt(width)
        self._directions = torch.from_numpy(directions)
        features = embed(self._net, images[rows])[0].double()
        beside = self._directions[labels[rows]]
        self._scale, self._label_scale = (_total(x) for x in (features, beside))
        joint = self._joint(features, labels[rows])
        self._real = Gaussian(joint)
        group = torch.empty(len(joint), dtype=torch.int64)
        group[labels[rows].argsort(stable=True)] = torch.arange(len(joint)) % min(GROUPS, len(joint))       # of each class about as many
        self._without = [Gaussian(joint[group != k]) for k in range(int(group.max()) + 1)] if len(joint) > 1 else []

    def _joint(self, features: Tensor, labels: Tensor) -> Tensor:
        return torch.cat([features.double() / self._scale, self._directions[labels] / self._label_scale], 1)

    def score(self, g: nn.Module) -> tuple[float, list[float]]:
        """The score, lower being better and at least 0, and the same without each group of held-out images, for `standard_error`."""
        made = Gaussian(self._joint(embed(self._net, generate(g, self._labels, self._seeds))[0], self._labels))
        return frechet_distance(self._real, made), [frechet_distance(real, made) for real in self._without]


def standard_error(without_a: Sequence[float], without_b: Sequence[float]) -> float:
    """Of the difference of two generators' scores over other held-out images: the delete-a-group jackknife (Kott 2001).

    Args:
        without_a, without_b: of `Validation.score`; 0 where there are none.
    """
    differences = [a - b for a, b in zip(without_a, without_b)]
    groups = len(differences)
    return (groups - 1) / math.sqrt(groups) * statistics.stdev(differences) if groups > 1 else 0.0


def _total(x: Tensor) -> float:
    """Root of the total variance, 1 where nothing varies."""
    return float(x.var(0, correction=0).sum().sqrt()) or 1.0


def stride(recipe: Recipe) -> int | None:
    """Every so manieth checkpoint is scored, by the recipe alone; None where the whole run is too short for a score."""
    total, every, spacing = (
        (recipe.total_kimg, EVERY_KIMG, recipe.checkpoint_every_kimg) if recipe.total_kimg is not None
        else (recipe.total_seconds, EVERY_S, recipe.checkpoint_every_s))
    if total is None or total < every:
        return None
    if spacing is None:                              # spaced in the other unit, or evenly over the run
        other = recipe.checkpoint_every_s or recipe.checkpoint_every_kimg
        spacing = total / recipe.checkpoints if other is None else every
    return math.ceil(every / spacing - 1e-9)

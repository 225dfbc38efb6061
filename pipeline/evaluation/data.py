"""The images that are looked at: prepared splits, and sets of images as features."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.lift import Rows, only_known
from pipeline.prepare import load_split
from pipeline.store import Store


@dataclass(frozen=True)
class Splits:
    """The prepared images in memory; val and test without classes that train lacks."""

    train: Rows
    val: Rows
    test: Rows


@dataclass(frozen=True)
class Seen:
    """A set of images as features float32 (n, 128) of the extractor, with labels int64 (n,)."""

    features: Tensor
    labels: Tensor

    def of(self, label: int) -> Tensor:
        """The features of one class."""
        return self.features[self.labels == label]

    def take(self, rows: Tensor) -> "Seen":
        """The rows given by number or mask."""
        return Seen(self.features[rows], self.labels[rows])


def load(run: Store, classes: int) -> Splits:
    """The three prepared splits of a run folder."""
    rows = []
    for name in ("train", "val", "test"):
        split = load_split(run, name)
        rows.append(Rows(torch.from_numpy(split.images), torch.from_numpy(split.labels)))
    train, val, test = rows
    return Splits(train, only_known(val, train, classes), only_known(test, train, classes))


def thinned(seen: Seen, most: int) -> Seen:
    """At most `most` rows, evenly through the set."""
    if len(seen.labels) <= most:
        return seen
    return seen.take(torch.linspace(0, len(seen.labels) - 1, most).round().long())

"""Which items go where, from labels and content hashes alone: pure, and the same whatever the order of the items.

Items of equal content form a group. A group never crosses splits, and since the hashes are keyed by the run's seed,
their order is the random order from which shares are taken: adding an image moves few others.
"""

import math
from collections.abc import Sequence

import numpy as np

from pipeline.config import Subset
from pipeline.errors import ConfigError

UNLIMITED = np.iinfo(np.int64).max


def quotas(subset: Subset | None, classes: Sequence[str]) -> np.ndarray:
    """How many train items (validation included) of each class to draw.

    Long tail: `head · ratio^(-c / (C - 1))`, rounded, at least 1, for the c-th of the C wanted classes in the source's
    order.

    Returns:
        int64 (classes,): 0 for a class that is left out, `UNLIMITED` for all that there are.

    Raises:
        ConfigError: `classes` names one that the source doesn't have.
    """
    if subset is None:
        return np.full(len(classes), UNLIMITED)
    unknown = [name for name in subset.classes or () if name not in classes]
    if unknown:
        known = ", ".join(map(repr, classes[:20])) + (", …" if len(classes) > 20 else "")
        raise ConfigError(f"source.subset.classes: no class {', '.join(map(repr, unknown))} in the source; "
                          f"there are: {known}")
    wanted = [c for c, name in enumerate(classes) if subset.classes is None or name in subset.classes]
    asked = np.zeros(len(classes), np.int64)
    for place, c in enumerate(wanted):
        if subset.longtail is not None:
            position = place / (len(wanted) - 1) if len(wanted) > 1 else 0.0
            asked[c] = max(1, math.floor(subset.longtail.head * subset.longtail.ratio ** -position + 0.5))
        else:
            asked[c] = subset.per_class if subset.per_class is not None else UNLIMITED
    return asked


def held_out_rows(rows: int, share: float, leave: int) -> int:
    """How many of `rows` a share is: rounded, at least one, leaving at least `leave`."""
    return max(0, min(max(1, math.floor(rows * share + 0.5)), rows - leave))


def hold_out(labels: np.ndarray, digests: np.ndarray, share: float, leave: int) -> np.ndarray:
    """Takes a share of every class out, whole groups at a time, in the order of their hashes.

    Args:
        labels: int64 (N,).
        digests: (N,) keyed content hashes, equal for equal content.
        share: of each class's items, 0 … 1.
        leave: groups of each class that must stay; a class needs at least one more.

    Returns:
        bool (N,): in each class exactly `held_out_rows` items where no content occurs twice; with groups the nearest
        count from below that whole groups in their order allow, and at least one group.
    """
    out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        _, group, sizes = np.unique(digests[members], return_inverse=True, return_counts=True)
        out[members] = _fill(sizes, held_out_rows(len(members), share, leave), leave)[group]
    return out


def _fill(sizes: np.ndarray, target: int, leave: int) -> np.ndarray:
    """bool (groups,): the groups, first ones first, that together have at most `target` items."""
    chosen = np.zeros(len(sizes), bool)
    most = len(sizes) - leave
    if most <= 0:
        return chosen
    if (sizes == 1).all():
        chosen[:min(target, most)] = True
        return chosen
    items = groups = 0
    for i, size in enumerate(sizes.tolist()):
        if groups < most and items + size <= target:
            chosen[i] = True
            items, groups = items + size, groups + 1
    if not groups:
        chosen[int(np.argmin(sizes))] = True         # every group is larger than the share: the smallest one
    return chosen


def draw(labels: np.ndarray, keys: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The `asked` items of each class whose keys come first; all of a class that has no more.

    Args:
        labels: int64 (N,).
        keys: (N,) keyed content hashes.
        asked: int64 (classes,).

    Returns:
        bool (N,).
    """
    order = np.lexsort((keys, labels))
    sorted_labels = labels[order]
    rank = np.arange(len(labels)) - np.searchsorted(sorted_labels, sorted_labels)
    drawn = np.empty(len(labels), bool)
    drawn[order] = rank < asked[sorted_labels]
    return drawn


def conflicting(labels: np.ndarray, digests: np.ndarray) -> np.ndarray:
    """bool (N,): items whose content also occurs under another label."""
    _, group = np.unique(digests, return_inverse=True)
    low = np.full(group.max(initial=-1) + 1, np.iinfo(np.int64).max)
    high = np.full(len(low), -1)
    np.minimum.at(low, group, labels)
    np.maximum.at(high, group, labels)
    return np.asarray(low[group] != high[group])


def repeated(digests: np.ndarray) -> int:
    """How many items have content that another one has too."""
    _, counts = np.unique(digests, return_counts=True)
    return int(counts[counts > 1].sum())


def groups_per_class(labels: np.ndarray, digests: np.ndarray, classes: int) -> np.ndarray:
    """int64 (classes,): different contents in each class."""
    first = np.unique(digests, return_index=True)[1]
    return np.bincount(labels[first], minlength=classes).astype(np.int64)

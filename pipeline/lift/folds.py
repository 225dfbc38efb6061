"""Where val is a handful of images, ways without synthesis are told apart by cross-validation over train and val together.

Only they can be: a generator has seen the train split, and would have to be trained anew for every fold. Test is in no fold.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from pipeline.lift.laboratory import Replicate
from pipeline.lift.pool import Rows
from pipeline.lift.trial import Bench
from pipeline.seeds import derive

FOLDS = 4
FEW_VAL = 500                # images in val from which its own choice is trusted: with fewer, 95 % right scatters by a point and more
FEW_VAL_QUICK = 50           # the same for a quick trial, which has few ways to choose among: with fewer, an image is two points and more


def folded(replicates: Sequence[Replicate], few: int = FEW_VAL) -> list[Replicate]:
    """Each distinct bench of the replicates as `FOLDS` replicates, numbered from 0.

    Val and test of each are the fold that it doesn't train on. Empty where every bench's val has `few` images or more.
    """
    distinct = {r.bench.train.images.data_ptr(): r for r in replicates}.values()
    if all(len(r.bench.val) >= few for r in distinct):
        return []
    benches = [(derive(r.seed, "fold", k), bench) for r in distinct for k, bench in enumerate(_benches(r.bench, r.seed))]
    # Nothing is drawn from a generator here: `draw` of the first is never asked.
    return [replace(replicates[0], number=number, seed=seed, bench=bench, model=None, pools={})
            for number, (seed, bench) in enumerate(benches)]


def _benches(bench: Bench, seed: int) -> list[Bench]:
    every = bench.train.joined(bench.val)
    fold_of = torch.from_numpy(assign(every, seed))
    found = []
    for k in range(FOLDS):
        held = every.take(torch.nonzero(fold_of == k)[:, 0])
        if len(held):
            found.append(replace(bench, train=every.take(torch.nonzero(fold_of != k)[:, 0]), val=held, test=held))
    return found


def assign(rows: Rows, seed: int) -> np.ndarray:
    """The fold of each row, int64 (n,): each class spread evenly, copies of an image in the same.

    -1, which is in every training, for a class of one image.
    """
    fold = np.full(len(rows), -1, np.int64)
    rng = np.random.default_rng([seed, 2])
    labels = rows.labels.numpy()
    for label in np.unique(labels).tolist():
        copies: dict[bytes, list[int]] = defaultdict(list)
        for index in np.flatnonzero(labels == label).tolist():
            copies[rows.images[index].numpy().tobytes()].append(index)
        groups = list(copies.values())
        if len(groups) == 1:
            continue
        first = int(rng.integers(FOLDS))             # so that the odd ones out of small classes don't all meet in the first fold
        for place, group in enumerate(rng.permutation(len(groups)).tolist()):
            fold[groups[group]] = (first + place) % FOLDS
    return fold

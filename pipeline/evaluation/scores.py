"""Every figure but lift, each read against the same figure of unseen real images in the samples' place."""

import itertools
import math
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gan.classifier import Classifier, embed, predict
from gan.metrics.agreement import agreement, balanced_accuracy
from gan.metrics.confidence import inception_like_score
from gan.metrics.diversity import diversity
from gan.metrics.frechet import Gaussian, frechet_distance
from gan.metrics.kernel import kernel_distance
from gan.metrics.manifold import Manifold, manifold, neighbourhood_size
from gan.metrics.memorisation import Memorisation, memorisation
from pipeline import keys
from pipeline.config import Config
from pipeline.evaluation.data import Seen, Splits, thinned
from pipeline.evaluation.networks import Networks
from pipeline.evaluation.samples import Samples, first_of_each, look_at_samples, nearest_pairs, sample_counts
from pipeline.lift import Draw
from pipeline.progress import Progress
from pipeline.records import Scorecard, Snapshot
from pipeline.store import Store
from pipeline.wording import counted

MOST_REAL = 10_000                                   # test images that distances and neighbourhoods are taken of
MOST_KERNEL = 5_000                                  # rows a side of the kernel distance, which costs their product
DRAWS = 3                                            # whose distances are averaged, where there are rows for so many
FEW_TEST_IMAGES = 10                                 # of a class: fewer, and its figures get a note
PAIRS = 20


def measure(
    config: Config, snapshot: Snapshot, splits: Splits, draw: Draw, networks: Networks, run: Store, progress: Progress,
    notes: list[str],
) -> Scorecard:
    """All figures but lift; puts the nearest pairs' picture."""
    classes = len(snapshot.classes)
    prior, counts = sample_counts(splits.test.counts(classes), splits.train.counts(classes), config.evaluate.samples)
    progress.note(f"generating {counts.sum():,} samples")
    samples = look_at_samples(draw, counts, networks, config.seed)
    train, val, test = (Seen(embed(networks.extractor, rows.images)[0], rows.labels)
                        for rows in (splits.train, splits.val, splits.test))
    made, as_prior = samples.seen, first_of_each(samples.labels, prior)
    held_out, overall = thinned(test, MOST_REAL), made.take(as_prior)
    real = real_figures(held_out, val, len(made.labels), notes)
    of_real, of_samples = matched_figures(held_out, val, made)
    whole = _manifold(held_out.features, overall.features)
    per_class = coverage_per_class(held_out, made, snapshot.classes, notes)
    spread = diversity(*_for_diversity(splits, train, val, test), made.features, made.labels)
    memory = memorisation(train.features, thinned(test, 2000).features, overall.features, pairs=PAIRS)
    run.put(keys.NEAREST, nearest_pairs(draw, samples, torch.nonzero(as_prior)[:, 0], splits.train.images, memory))
    judged = _judge(networks.judge, splits, samples, as_prior, snapshot.classes, notes)
    _note_what_must_be_known(config, snapshot, networks, prior, counts, memory, notes)
    return Scorecard(
        samples=int(prior.sum()), features=networks.features, fd_reference=_reference(held_out, val),
        fd=_distance(held_out, overall), fd_floor=of_real.get("fd", 0.0), real=real | of_real, matched=of_samples,
        precision=whole.precision, recall=whole.recall, density=whole.density,
        coverage=_mean(per_class, whole.coverage), coverage_per_class=per_class,
        diversity_per_class={snapshot.classes[c]: round(v, 4) for c, v in spread.items()},
        memorised=memory.too_near, authentic=memory.authentic, nearest_pairs_key=keys.NEAREST,
        kernel_distance=_kernel(held_out, overall), **judged,
    )


def _distance(real: Seen, other: Seen) -> float:
    return round(frechet_distance(Gaussian(real.features), Gaussian(other.features)), 4)


def matched_figures(held_out: Seen, val: Seen, made: Seen) -> tuple[dict[str, float], dict[str, float]]:
    """"fd" and "recall" of unseen real images, and of samples, against the same others, equally many of both in each class.

    Both hang on how many there are. The fewer rows covariances are taken of, the larger the distance (Chong & Forsyth 2020):
    150 real images lie farther from 10,000 others than 5,000 poor samples do. And the fewer the neighbours, the wider apart.
    """
    place, rest = _in_the_samples_place(held_out, val)
    classes = 1 + int(torch.cat([place.labels, made.labels]).max()) if len(place.labels) and len(made.labels) else 0
    counts = torch.stack([torch.bincount(seen.labels, minlength=classes) for seen in (place, made)])
    shared = counts.amin(dim=0)
    if not shared.any() or not len(rest.labels):
        return {}, {}
    return _mean_figures(rest, place, shared), _mean_figures(rest, made, shared)


def _mean_figures(real: Seen, other: Seen, counts: Tensor) -> dict[str, float]:
    """The means over disjoint draws of `counts` rows of each class of `other`, up to `DRAWS`."""
    have = torch.bincount(other.labels, minlength=len(counts))
    draws = min(DRAWS, int((have // counts.clamp_min(1))[counts > 0].min()))
    ends = [first_of_each(other.labels, k * counts.numpy()) for k in range(draws + 1)]
    parts = [other.take(upto & ~before) for before, upto in itertools.pairwise(ends)]
    return {"fd": round(fmean(_distance(real, part) for part in parts), 4),
            "recall": fmean(_manifold(real.features, part.features).recall for part in parts)}


def _kernel(real: Seen, other: Seen) -> float | None:
    if len(real.labels) < 2 or len(other.labels) < 2:
        return None
    a, b = thinned(real, MOST_KERNEL), thinned(other, MOST_KERNEL)
    return round(1000 * kernel_distance(a.features, b.features), 4)


def _manifold(real: Tensor, fake: Tensor, *, with_recall: bool = True) -> Manifold:
    """The four figures with k = 5, or as many neighbours as there are; zeros where a set has no two rows."""
    k = neighbourhood_size(min(len(real), len(fake)) if with_recall else len(real))
    if k == 0 or len(fake) == 0:
        return Manifold(0.0, 0.0, 0.0, 0.0, 0)
    return manifold(real, fake, k, with_recall=with_recall)


def real_figures(held_out: Seen, val: Seen, samples: int, notes: list[str]) -> dict[str, float]:
    """Unseen real images in the samples' place: what a perfect generator could reach, and no more.

    Coverage falls with the number of images in that place: of the held-out ones so many are taken that both stand to each
    other as with `samples`, of which no more than there are held-out images count.
    """
    place, rest = _in_the_samples_place(held_out, val)
    if place is not val:
        notes.append("No validation images: the real-against-real figures compare two halves of the test images.")
    if len(place.labels) < 1 or len(rest.labels) < 1:
        return {}
    whole = _manifold(rest.features, place.features, with_recall=False)
    fair = min(len(rest.labels), math.ceil(len(place.labels) * max(1.0, len(held_out.labels) / max(1, samples))))
    spread = torch.linspace(0, len(rest.labels) - 1, fair).long()
    per_class = coverage_per_class(rest.take(spread), place, (), [])
    return {"rows": float(len(place.labels)), "precision": whole.precision, "density": whole.density,
            "coverage": _mean(per_class, whole.coverage)}


def _in_the_samples_place(held_out: Seen, val: Seen) -> tuple[Seen, Seen]:
    """(real images that stand for samples, those that they are compared with): val and test, or two halves of test."""
    if len(val.labels) >= 2:
        return val, held_out
    odd = torch.arange(len(held_out.labels)) % 2 == 1
    return held_out.take(odd), held_out.take(~odd)


def coverage_per_class(real: Seen, made: Seen, classes: tuple[str, ...], notes: list[str]) -> dict[str, float]:
    """Class → coverage (k = 5 or what the class bears), from no more samples than there are real rows.

    With more samples than real rows coverage would rise by their number alone.

    Args:
        classes: names; () to name classes by their numbers and to note nothing.
    """
    found: dict[str, float] = {}
    for label in torch.unique(made.labels).tolist():
        rows, samples = real.of(label), made.of(label)
        name = classes[label] if classes else str(label)
        if classes and len(rows) < FEW_TEST_IMAGES:
            rest = "; its coverage is left out" if len(rows) < 2 else ": its figures are rough"
            notes.append(f"Class {name!r} has {counted(len(rows), 'test image')}{rest}.")
        if len(rows) >= 2:
            found[name] = _manifold(rows, samples[: len(rows)], with_recall=False).coverage
    return found


def _for_diversity(splits: Splits, train: Seen, val: Seen, test: Seen) -> tuple[Tensor, Tensor]:
    """Real rows to compare variety with: unseen ones, and the training ones of classes with too few of those."""
    features, labels = torch.cat([val.features, test.features]), torch.cat([val.labels, test.labels])
    counts = torch.bincount(labels, minlength=int(train.labels.max()) + 1)
    scarce = counts[train.labels] < FEW_TEST_IMAGES
    return torch.cat([features, train.features[scarce]]), torch.cat([labels, train.labels[scarce]])


def _judge(
    judge: Classifier | None, splits: Splits, samples: Samples, as_prior: Tensor, classes: tuple[str, ...],
    notes: list[str],
) -> dict[str, Any]:
    """The judge's figures, by the scorecard's names."""
    logits = samples.logits
    if judge is None or logits is None:
        notes.append("One class only: nobody can disagree about labels, and features are those of a random network.")
        present = {classes[int(c)]: 1.0 for c in torch.unique(samples.labels)}
        return {"agreement": 1.0, "agreement_per_class": present, "judge_accuracy": 1.0, "inception_like": None}
    _, per_class = agreement(logits, samples.labels)
    reached = balanced_accuracy(predict(judge, splits.test.images), splits.test.labels) if len(splits.test) else 0.0
    if reached < 0.8:
        notes.append(f"The judge itself is right on {100 * reached:.0f} % of the test images only: read agreement so.")
    return {
        "agreement": round(agreement(logits[as_prior], samples.labels[as_prior])[0], 6),
        "agreement_per_class": {classes[c]: round(v, 6) for c, v in per_class.items()},
        "judge_accuracy": round(reached, 6), "inception_like": round(inception_like_score(logits[as_prior]), 4),
    }


def _reference(held_out: Seen, val: Seen) -> str:
    floor = f"{len(val.labels):,} validation images" if len(val.labels) >= 2 else "their two halves"
    return f"{len(held_out.labels):,} test images; floor: {floor} in the samples' place"


def _note_what_must_be_known(
    config: Config, snapshot: Snapshot, networks: Networks, prior: np.ndarray, counts: np.ndarray, memory: Memorisation,
    notes: list[str],
) -> None:
    if config.evaluate.features == "domain" and networks.features == "random":
        notes.append("Features are those of a random network, since a classifier can't be trained on one class.")
    if (counts > prior).any():
        more = int((counts > prior).sum())
        notes.append(f"Labels of the samples follow the test images; {counted(more, 'scarce class', 'scarce classes')} got more "
                     "samples for the figures by class, which the overall figures leave out.")
    absent = [name for name in snapshot.classes if not snapshot.rows_per_class["train"].get(name)]
    if absent:
        some = ", ".join(map(repr, absent[:5])) + (", …" if len(absent) > 5 else "")
        notes.append(f"Without training images, and so left out: {some}.")
    notes.append(f"Authentic: {memory.authentic:.2f} of the samples, {memory.authentic_held_out:.2f} of unseen real "
                 f"images; median distance to the nearest training image {memory.median_ratio:.2f} times theirs.")


def _mean(per_class: dict[str, float], otherwise: float) -> float:
    values = [v for v in per_class.values() if math.isfinite(v)]
    return round(sum(values) / len(values), 6) if values else otherwise

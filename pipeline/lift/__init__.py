"""Lift: do the synthetic images help a classifier? Measured against the same classifier without them.

    arms        what each way of training changes
    pool        the rows that an arm adds
    trial       one arm, one seed, one classifier
    laboratory  all trials side by side, resumable row by row; the choice on val
    statistics  intervals, p-values, scores
    remote      the trials as Ray tasks, on a cluster of more than this machine
    verdict     the figure and its sentence
"""

import time
from collections.abc import Sequence

from gan.classifier import Classifier
from pipeline.cluster import local_cpus
from pipeline.config import LiftConfig
from pipeline.lift import arms
from pipeline.lift.laboratory import Laboratory, Replicate, Row, RowBook, best, grouped, mean, on_threads
from pipeline.lift.pool import NO_FILTER, Draw, Filter, FilterModel, Keep, Rows
from pipeline.lift.remote import cluster_is_larger, on_ray
from pipeline.lift.trial import Bench, Mix, Schedule
from pipeline.lift.verdict import judged, unjudged
from pipeline.progress import Progress
from pipeline.records import LiftFigure
from pipeline.seeds import derive
from pipeline.store import Store

__all__ = ["Bench", "Draw", "Keep", "Replicate", "Rows", "Schedule", "compare", "filter_model", "measure_lift"]

SIGMAS_OVER_CHANCE = 3.0
FILTER = Filter(min_confidence=0.5, max_distance=0.95)


def measure_lift(
    config: LiftConfig, bench: Bench, draw: Draw, seed: int, progress: Progress, *,
    model: Classifier | None = None, run: Store | None = None, inputs: str = "", workers: int | None = None,
) -> LiftFigure:
    """How much synthetic images change a classifier's balanced accuracy on test, chosen on val.

    `quick`: classical augmentation and balanced sampling, against the same with synthetic images at each ratio. `all`:
    the best of the arms without synthesis against the best of those with it, and the controls beside them. Data, split
    and generator are the same for all seeds: these pair the classifier's weights, its order and the synthetic draw.

    Args:
        draw: the generator.
        model: classifier trained on the train split alone, for the filtered arms; None: no arm filters.
        run: the run folder; finished rows are kept there, and taken from there if `inputs` are the same.
        inputs: fingerprint of data, generator and config.
        workers: trials at a time, one thread each; by default one a CPU.

    Returns:
        The figure. Without seeds, and its sentence saying why, where nothing can be judged.
    """
    judge = filter_model(model, bench) if model is not None and why_not(bench) is None else None
    replicates = [Replicate(number, derive(seed, "lift", number), bench, draw, judge) for number in range(config.seeds)]
    return compare(config, replicates, progress, RowBook(run, inputs) if run is not None else None, workers)


def filter_model(model: Classifier, bench: Bench) -> FilterModel:
    """The filter's model on a bench: centroids from train, the scale of distances from val."""
    return FilterModel(model, bench.train, bench.val, len(bench.classes))


def compare(
    config: LiftConfig, replicates: Sequence[Replicate], progress: Progress, book: RowBook | None = None,
    workers: int | None = None,
) -> LiftFigure:
    """As `measure_lift`, over replicates that may each have a split and a generator of their own."""
    began = time.perf_counter()
    reason = next((reason for r in replicates if (reason := why_not(r.bench)) is not None), None)
    if reason is not None:
        return unjudged(reason, config.ratios)
    runner = on_ray if workers is None and cluster_is_larger() else on_threads(workers or local_cpus())
    laboratory = Laboratory(replicates, book, progress, runner)
    trial = _all_arms if config.arms == "all" else _quick_arms
    return trial(laboratory, config, replicates[0].bench, began)


def _quick_arms(laboratory: Laboratory, config: LiftConfig, bench: Bench, began: float) -> LiftFigure:
    with_synthetic = [(arms.with_synthesis(arms.BALANCED), Mix(ratio)) for ratio in config.ratios]
    rows = laboratory.conduct([(arms.BALANCED, Mix()), *with_synthetic], len(laboratory.replicates) * (1 + len(with_synthetic)))
    baseline, *rest = grouped(rows)
    return _figure(baseline, best(rest), rows, bench, config.ratios, began)


def _all_arms(laboratory: Laboratory, config: LiftConfig, bench: Bench, began: float) -> LiftFigure:
    """First the arms without synthesis; the best of them on val is what the others start from and are held against."""
    smote = Mix(max(config.ratios))
    without = [(arm, smote if arm.added else Mix()) for arm in arms.WITHOUT_SYNTHESIS]
    filters = (NO_FILTER, FILTER) if laboratory.can_filter else (NO_FILTER,)
    mixes = [Mix(ratio, filter=wanted) for wanted in filters for ratio in config.ratios]
    expected = len(laboratory.replicates) * (len(without) + len(config.ratios) * (2 * len(filters)) + 4)
    plain = grouped(laboratory.conduct(without, expected))
    baseline = best(plain)
    assert baseline is not None                      # arms without a filter can always be made
    fairer = best(group for group in plain if group[0]["arm"] in (arms.BALANCED.name, arms.ADJUSTED.name))
    base = arms.ADJUSTED if fairer and fairer[0]["arm"] == arms.ADJUSTED.name else arms.BALANCED
    uneven = [(arms.SYNTHETIC if mix.filter == NO_FILTER else arms.FILTERED, mix) for mix in mixes]
    laboratory.conduct([*uneven, *((arms.with_synthesis(base), mix) for mix in mixes)], expected)
    synthetic = best(group for group in grouped(laboratory.rows) if group[0]["arm"].startswith("G"))
    if synthetic is not None:
        mix = Mix(synthetic[0]["ratio"])
        laboratory.conduct([*((arm, mix) for arm in arms.controls(base)), (arms.SYNTHETIC_ALONE, mix)], expected)
    return _figure(baseline, synthetic, laboratory.rows, bench, config.ratios, began)


def _figure(
    baseline: Sequence[Row], synthetic: Sequence[Row] | None, rows: Sequence[Row], bench: Bench,
    ratios: Sequence[float], began: float,
) -> LiftFigure:
    seconds = time.perf_counter() - began
    reason = why_not_learnt(baseline, bench)
    if reason is not None:
        return unjudged(reason, ratios, seconds, rows)
    if synthetic is None:
        return unjudged("no arm with synthetic images could be made", ratios, seconds, rows)
    helps = mean(synthetic, "val", "balanced_accuracy") > mean(baseline, "val", "balanced_accuracy")
    chosen = synthetic[0]["ratio"] if helps else 0.0
    return judged(baseline, synthetic, rows, bench.classes, ratios, chosen, seconds)


def why_not(bench: Bench) -> str | None:
    """Why nothing can be judged on this data, whatever the generator; None when it can."""
    counts = {name: split.counts(len(bench.classes)) for name, split in
              (("training", bench.train), ("validation", bench.val), ("test", bench.test))}
    present = [c for c in range(len(bench.classes)) if counts["training"][c]]
    if len(present) < 2:
        return f"a classifier needs two classes and there {'is 1' if present else 'are 0'} with training images"
    for split in ("validation", "test"):
        absent = [bench.classes[c] for c in present if not counts[split][c]]
        if absent:
            some = ", ".join(repr(name) for name in absent[:5]) + (", …" if len(absent) > 5 else "")
            return f"class {some} has no {split} image" if len(absent) == 1 else f"classes {some} have no {split} image"
    return None


def why_not_learnt(baseline: Sequence[Row], bench: Bench) -> str | None:
    """Why a classifier's figures mean nothing: it does no better on val than guessing would; None when it does."""
    classes = int((bench.train.counts(len(bench.classes)) > 0).sum())
    chance, n = 1 / classes, len(bench.val)
    least = chance + SIGMAS_OVER_CHANCE * (chance * (1 - chance) / n) ** 0.5
    reached = mean(baseline, "val", "balanced_accuracy")
    if reached > least:
        return None
    return (f"the classifier did not learn: {100 * reached:.1f} % balanced accuracy on validation images, where "
            f"guessing gives {100 * chance:.1f} %")


def only_known(rows: Rows, train: Rows, classes: int) -> Rows:
    """The rows of classes that have a training row; others can't be learnt, and are no generator's fault."""
    import torch

    known = torch.bincount(train.labels, minlength=classes) > 0
    return rows.take(torch.nonzero(known[rows.labels])[:, 0])

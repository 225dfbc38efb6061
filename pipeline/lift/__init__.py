"""Lift: do the synthetic images help a classifier? Measured against the same classifier without them.

    arms        what each way of training changes
    pool        the rows that an arm adds (`pipeline.filtering` says which are good enough)
    trial       one arm, one seed, one classifier
    laboratory  all trials side by side, resumable row by row; the choice on val
    folds       cross-validation of the ways without synthesis, where val is a handful of images
    statistics  intervals, p-values, scores
    remote      the trials as Ray tasks, on a cluster of more than this machine
    verdict     the figure and its sentence
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from gan.classifier import Classifier
from pipeline.cluster import local_cpus
from pipeline.config import LiftConfig
from pipeline.filtering import NO_FILTER, Filter, Screen
from pipeline.lift import arms
from pipeline.lift.arms import Arm
from pipeline.lift.folds import FEW_VAL, FEW_VAL_QUICK, folded
from pipeline.lift.laboratory import Laboratory, Replicate, Row, RowBook, Runner, alike, best, grouped, mean, on_threads
from pipeline.lift.pool import Draw, Keep, Rows
from pipeline.lift.remote import cluster_is_larger, on_ray
from pipeline.lift.trial import Bench, Mix, Schedule
from pipeline.lift.verdict import judged, preference, unjudged
from pipeline.progress import Progress
from pipeline.records import LiftFigure
from pipeline.seeds import derive
from pipeline.store import Store
from pipeline.wording import counted

__all__ = ["Bench", "Draw", "Keep", "Replicate", "Rows", "Schedule", "compare", "measure_lift", "screen"]

SIGMAS_OVER_CHANCE = 3.0
LEAST_TEST, LEAST_VAL = 20, 10                       # images: with fewer, one of them is five points or more
FILTER = Filter(min_confidence=0.5, max_centroid_distance=0.95)
LIGHT = 0.5                                          # weight of synthetic rows that is tried beside 1
TAIL = 0.25                                          # share of the steps, the last ones, on real rows alone; tried without it as well


def measure_lift(
    config: LiftConfig, bench: Bench, draw: Draw, seed: int, progress: Progress, *,
    model: Classifier | None = None, discriminator: nn.Module | None = None, published: Filter = NO_FILTER,
    even: bool = False, memorised: float | None = None, run: Store | None = None, inputs: str = "", workers: int | None = None,
) -> LiftFigure:
    """How much synthetic images change a classifier's balanced accuracy on test, chosen on val.

    `quick`: balanced sampling, logit adjustment, and the better of them under stronger augmentation; against the best of these with
    synthetic images at each ratio, and at the better ratio under the other strength.
    `all`: every arm without synthesis against every one with it, and the controls beside them. Both sides get the same
    number of tries. Data, split and generator are the same for all seeds: these pair the classifier's weights, its order and
    the synthetic draw.

    Args:
        draw: the generator.
        model: classifier trained on the train split alone, for the filtered arms; None: no arm filters.
        discriminator: of the generator, for filters that ask it.
        published: the filter that the rows to be published must pass, so it is what is tried.
        even: whether rows of every class will be published. Then each class gets as many, and the same share of its draws;
            else the scarcest classes are filled first.
        memorised: share of samples that are near copies; too many of them, and there is no win.
        run: the run folder; finished rows are kept there, and taken from there if `inputs` are the same.
        inputs: fingerprint of data, generator and config.
        workers: trials at a time, one thread each; by default one a CPU.

    Returns:
        The figure. Without seeds, and its sentence saying why, where nothing can be judged.
    """
    needs_screen = config.arms == "all" or published != NO_FILTER
    ready = screen(model, bench, discriminator) if needs_screen and model is not None and why_not(bench) is None else None
    replicates = [Replicate(number, derive(seed, "lift", number), bench, draw, ready) for number in range(config.seeds)]
    book = RowBook(run, inputs) if run is not None else None
    return compare(config, replicates, progress, book, workers, published=published, even=even, memorised=memorised)


def screen(model: Classifier, bench: Bench, discriminator: nn.Module | None = None) -> Screen:
    """The filter on a bench: centroids from train, scales and quantiles from val."""
    train, val = ((rows.images, rows.labels) for rows in (bench.train, bench.val))
    return Screen.fitted(model, train, val, len(bench.classes), discriminator)


def compare(
    config: LiftConfig, replicates: Sequence[Replicate], progress: Progress, book: RowBook | None = None,
    workers: int | None = None, *, published: Filter = NO_FILTER, even: bool = False, memorised: float | None = None,
    runner: Runner | None = None,
) -> LiftFigure:
    """As `measure_lift`, over replicates that may each have a split and a generator of their own.

    Args:
        runner: what runs the trials, instead of threads or a cluster.
    """
    began = time.perf_counter()
    reason = next((reason for r in replicates if (reason := why_not(r.bench)) is not None), None)
    if reason is not None:
        return unjudged(reason, config.ratios)
    # A GPU runs one recorded step after the other: several threads would only take turns.
    side_by_side = 1 if replicates[0].bench.device != "cpu" else local_cpus()
    usual = on_ray if workers is None and cluster_is_larger() else on_threads(workers or side_by_side)
    laboratory = Laboratory(replicates, book, progress, runner or usual)
    quick = config.arms == "quick"
    course = Course(config, laboratory, tuple(_filters(laboratory, published or NO_FILTER, quick)), quick, published, even)
    chosen = course.run()
    figure = replace(_figure(chosen, laboratory, config.ratios, began, memorised), cross_validated=chosen.cross_validated)
    return replace(figure, preferred_filter=course.preferred_filter()) if figure.seeds else figure


def _filters(laboratory: Laboratory, published: Filter, quick: bool) -> Iterator[Filter]:
    """The filters to try: the one that will be published with alone, or with `all` none and the usual one beside it."""
    if quick or not laboratory.can_filter:
        yield published
        return
    yield NO_FILTER
    yield FILTER
    if published not in (NO_FILTER, FILTER):
        yield published


@dataclass(frozen=True)
class Chosen:
    """Rows of the best way without synthesis and of the best one with it, None where none could be made."""

    baseline: Sequence[Row]
    synthetic: Sequence[Row] | None
    to_beat: Sequence[Row]                           # of the way without synthesis that is best on val itself
    cross_validated: dict[str, float]                # arm → percent, where the baseline was chosen by that


@dataclass(frozen=True)
class Course:
    """The order of trials: without synthesis first; what was best of that on val is what synthesis is added to."""

    config: LiftConfig
    laboratory: Laboratory
    filters: tuple[Filter, ...]
    quick: bool
    published: Filter | None                         # what the figure must speak of; None: of whichever val prefers
    even: bool = False                               # G3's rows evenly over the classes; else the scarcest first, as G1's always

    @property
    def mixes(self) -> list[Mix]:
        """Every filter at every ratio; the last steps on real rows alone."""
        return [Mix(ratio, filter=wanted, distinct=self.config.distinct, real_only_tail=TAIL)
                for wanted in self.filters for ratio in self.config.ratios]

    @property
    def tries(self) -> int:
        """Of ways with synthesis, and so of ways without it; a quick trial tries one of either kind at another strength beside them."""
        return len(self.mixes) * (1 if self.quick else 2) + (0 if self.quick else 4 + self.even)

    def run(self) -> Chosen:
        """What is best on val of either kind; of the ways without synthesis by cross-validation, where val is small."""
        ways = arms.ladder(self.config.ratios, self.quick)[: self.tries]
        ladder = [(arm, Mix(ratio, distinct=self.config.distinct if ratio else 1)) for arm, ratio in ways]
        folds = folded(list(self.laboratory.replicates.values()), FEW_VAL_QUICK if self.quick else FEW_VAL)
        beside = 2 if self.quick else 4              # another strength of augmentation on either side, or the controls
        expected = (len(self.laboratory.replicates) * (len(ladder) + self.tries + beside)
                    + len(folds) * (len(ladder) + self.quick))
        plain, trusted = self._without_synthesis(ladder, folds, expected)
        tried = [arm for arm, _ in ways]
        if self.quick:
            stronger = [arm for arm in arms.stronger(self._base(trusted, tried)) if arm not in tried]
            more = self._without_synthesis([(arm, Mix()) for arm in stronger], folds, expected)
            plain, trusted, tried = plain + more[0], trusted + more[1], tried + stronger
        baseline = _like(best(trusted), plain)
        base = self._base(trusted, tried)
        chosen = Chosen(baseline, None, best(plain) or baseline, _percentages(trusted) if folds else {})
        with_base = arms.with_synthesis(base)
        self.laboratory.conduct([(with_base, replace(mix, even=self.even)) for mix in self.mixes], expected)
        if self.quick:
            self._refine(base, expected)
            return replace(chosen, synthetic=self._best_synthetic())
        uneven = [(arms.SYNTHETIC if mix.filter == NO_FILTER else arms.FILTERED, mix) for mix in self.mixes]
        self.laboratory.conduct(uneven, expected)
        self._refine(base, expected)
        synthetic = self._best_synthetic()
        if synthetic is not None:
            mix = Mix(synthetic[0]["ratio"], even=synthetic[0]["even"], distinct=self.config.distinct)
            # Real images bear no mark that would say "rare class": where that class gets them first they are worth most.
            headroom = replace(mix, even=False)
            if synthetic[0]["arm"] == arms.with_synthesis_otherwise(base).name:
                base = arms.other_strength(base)
            asked = [(arm, headroom if arm.added is arms.Added.REAL else mix) for arm in arms.controls(base)]
            self.laboratory.conduct([*asked, (arms.SYNTHETIC_ALONE, mix)], expected)
        return replace(chosen, synthetic=synthetic)

    def _without_synthesis(
        self, ways: Sequence[tuple[Arm, Mix]], folds: Sequence[Replicate], expected: int,
    ) -> tuple[list[list[Row]], list[list[Row]]]:
        """Rows of each way: with their own val, and those to choose by, which are the same where nothing is folded."""
        plain = grouped(self.laboratory.conduct(ways, expected))
        return plain, grouped(self.laboratory.conduct_on_folds(folds, ways, expected)) if folds else plain

    def _base(self, plain: Sequence[Sequence[Row]], tried: Sequence[Arm]) -> Arm:
        """The best on val of balanced sampling and logit adjustment, at whatever strength."""
        fair = {arm.name: arm for arm in tried if arm.name.startswith((arms.BALANCED.name, arms.ADJUSTED.name))}
        found = best(group for group in plain if group[0]["arm"] in fair)
        return fair[found[0]["arm"]] if found else arms.BALANCED

    def _refine(self, base: Arm, expected: int) -> None:
        """The best mix so far under the other strength of augmentation; of a whole trial with lighter synthetic rows too, with them
        to the end, with both changes, and filled otherwise.
        """
        with_base = arms.with_synthesis(base)
        found = best(group for group in self._synthetic() if group[0]["arm"] == with_base.name)
        if found is None:
            return
        wanted = next(f for f in self.filters if f.name == found[0]["filter"])
        mix = Mix(found[0]["ratio"], even=self.even, filter=wanted, distinct=self.config.distinct, real_only_tail=TAIL)
        finer = [(arms.with_synthesis_otherwise(base), mix)]
        if not self.quick:
            lighter, to_the_end = replace(mix, weight=LIGHT), replace(mix, real_only_tail=0.0)
            finer += [(with_base, lighter), (with_base, to_the_end), (with_base, replace(lighter, real_only_tail=0.0))]
            if self.even:
                finer.append((with_base, replace(mix, even=False)))
        self.laboratory.conduct(finer, expected)

    def _best_synthetic(self) -> Sequence[Row] | None:
        return best(self._synthetic())

    def _synthetic(self) -> list[list[Row]]:
        """The ways with synthesis that the figure may speak of."""
        return [group for group in grouped(self.laboratory.rows) if group[0]["arm"].startswith("G")
                and (self.published is None or group[0]["filter"] == self.published.name)]

    def preferred_filter(self) -> dict[str, float]:
        """Thresholds of the filter that val prefers, whatever will be published."""
        found = best(group for group in grouped(self.laboratory.rows) if group[0]["arm"].startswith("G"))
        return dict(found[0]["thresholds"]) if found else {}


def _like(chosen: Sequence[Row] | None, groups: Sequence[Sequence[Row]]) -> Sequence[Row]:
    """The group of the same arm and mix as `chosen`."""
    assert chosen is not None                        # arms without a filter can always be made
    return next(group for group in groups if alike(group[0]) == alike(chosen[0]))


def _percentages(groups: Sequence[Sequence[Row]]) -> dict[str, float]:
    """Arm → its mean balanced accuracy on what it was validated on; SMOTE's ratios apart."""
    def name(row: Row) -> str:
        return f"{row['arm']}, ratio {row['ratio']:g}" if row["ratio"] else str(row["arm"])

    return {name(rows[0]): round(100 * mean(rows, "val", "balanced_accuracy"), 4) for rows in groups}


def _figure(chosen: Chosen, laboratory: Laboratory, ratios: Sequence[float], began: float, memorised: float | None) -> LiftFigure:
    baseline, synthetic = chosen.baseline, chosen.synthetic
    rows, benches = laboratory.rows, [r.bench for r in laboratory.replicates.values()]
    seconds = time.perf_counter() - began
    reason = why_not_learnt(baseline, benches)
    if reason is not None:
        return unjudged(reason, ratios, seconds, rows)
    if synthetic is None:
        cannot = next((row["cannot"] for row in reversed(rows) if "cannot" in row), "none was asked for")
        return unjudged(f"no arm with synthetic images could be made: {cannot}", ratios, seconds, rows)
    helps = preference(chosen.to_beat, synthetic, sum({b.val.images.data_ptr(): len(b.val) for b in benches}.values()))
    return judged(baseline, synthetic, rows, benches[0], ratios, helps, seconds, memorised)


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
    for split, least in (("validation", LEAST_VAL), ("test", LEAST_TEST)):
        images = int(counts[split].sum())
        if images < least:
            return f"{counted(images, f'{split} image')} are too few: {least} are the least by which anything can be told"
    return None


def why_not_learnt(baseline: Sequence[Row], benches: Sequence[Bench]) -> str | None:
    """Why a classifier's figures mean nothing: it does no better on val than guessing would; None when it does.

    A class's recall by guessing scatters with the square root of its images: few of one class, and the mean over the
    classes scatters too.
    """
    counts = benches[0].val.counts(len(benches[0].classes))
    counts = counts[counts > 0]
    splits = len({bench.val.images.data_ptr() for bench in benches})
    chance = 1 / len(counts)
    scatter = float(np.sqrt(chance * (1 - chance) * (1 / counts).sum() / splits) / len(counts))
    least = chance + SIGMAS_OVER_CHANCE * scatter
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

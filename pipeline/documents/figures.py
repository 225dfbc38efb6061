"""A scorecard in plain words: each figure with its N, what it is read against, and what it means.

The report and the dataset card say the same because both take it from here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.config import GateConfig
from pipeline.records import LiftFigure, Scorecard, Snapshot
from pipeline.wording import counted


@dataclass(frozen=True)
class Figure:
    """One score, ready to be read. Texts are plain, never markup."""

    name: str
    value: str
    reference: str                                   # floor or best possible value
    threshold: str | None                            # what the gate asks; None when it doesn't look at this figure
    met: bool | None                                 # None without a threshold
    n: str                                           # how many images (or seeds) it rests on
    meaning: str


def figures(scorecard: Scorecard, gate: GateConfig, snapshot: Snapshot) -> tuple[Figure, ...]:
    """Every figure of the scorecard in reading order; lift, the one that matters most, first."""
    s = scorecard
    n = f"{s.samples:,}"
    return (
        *([_lift(s.lift, gate)] if s.lift is not None else []),
        _distance(s, gate),
        *([_plain("Kernel distance × 1000", s.kernel_distance, n, "The same question asked in another way, which few "
                  "images disturb less.", "about 0 when real")] if s.kernel_distance is not None else []),
        _plain("Precision", s.precision, n, f"{_share(s.precision)} of the synthetic images look like something real. "
               "Low: blurred or broken images.", _as_real(s, "precision")),
        _plain("Recall", s.recall, n, f"{_share(s.recall)} of the real images look like something that the generator "
               "makes. Low: it leaves things out.", _as_real(s, "recall")),
        _plain("Density", s.density, n, "How thickly the synthetic images lie where the real ones do. "
               "Far above the reference: it makes the typical too often.", _as_real(s, "density", "about 1 when real")),
        _at_least("Coverage", s.coverage, gate.min_coverage, _as_real(s, "coverage"), n,
                  f"{_share(s.coverage)} of the real images have a synthetic one close by (mean over the classes). "
                  "Low: too little variety."),
        _at_least("Label agreement", s.agreement, gate.min_agreement, f"real images {decimal(s.judge_accuracy, 3)}", n,
                  f"An independent classifier gives {percent(s.agreement)} of the synthetic images the class that was "
                  "asked for. Low: wrong labels, which would teach a classifier wrong things.", digits=3),
        Figure("Judge's accuracy", decimal(s.judge_accuracy, 3), "at best 1", None, None,
               f"{snapshot.rows.get('test', 0):,} real",
               "How often that classifier is right on held-out real images: agreement can't be trusted beyond it."),
        _diversity(s, gate),
        _memorised(s, gate),
        *([_plain("Authentic", s.authentic, n, f"{_share(s.authentic)} of the synthetic images are farther from their "
                  "nearest training image than that one is from the others. Low: training images, slightly altered.",
                  _as_real(s, "authentic", "as unseen real images"))] if s.authentic is not None else []),
    )


def lowest_diversity(scorecard: Scorecard) -> tuple[str, float]:
    """(class, ratio) of the least varied class; ("", nan) when none was measured."""
    measured = {name: v for name, v in scorecard.diversity_per_class.items() if math.isfinite(v)}
    return min(measured.items(), key=lambda item: item[1], default=("", math.nan))


def lift_word(lift: LiftFigure | None) -> str | None:
    """"lift", "no lift", "harm" or "not judged"; None when lift was not measured at all."""
    if lift is None:
        return None
    if not math.isfinite(lift.lift_pp) or not lift.seeds:
        return "not judged"
    high = lift.interval_pp[1]
    if lift.won:
        return "lift"
    return "harm" if math.isfinite(high) and high < 0 else "no lift"


def lift_interval(lift: LiftFigure) -> tuple[float, float] | None:
    """The 95 % interval in points; None where one seed, or none, leaves nothing to say."""
    return lift.interval_pp if len(lift.seeds) > 1 else None


def lift_sentence(lift: LiftFigure | None) -> str:
    """The lift verdict in one sentence that says "no lift" in so many words where there is none."""
    word = lift_word(lift)
    if lift is None:
        return "Lift was not measured, so nobody knows yet whether these images help a classifier."
    said = lift.sentence.strip()
    if word == "not judged":
        return said or "Lift could not be judged."
    if word != "lift" and "no lift" not in said.lower():
        return f"No lift: {said or _lift_meaning(lift)}"
    return said or _lift_meaning(lift)


def decimal(value: float, digits: int = 2) -> str:
    """`value` with `digits` decimals and a true minus sign; "n/a" when it is not a finite number."""
    return f"{value:,.{digits}f}".replace("-", "−") if math.isfinite(value) else "n/a"


def points(value: float) -> str:
    """A difference in percentage points with its sign: +1.25, −0.40."""
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "−") if math.isfinite(value) else "n/a"


def percent(share: float, digits: int = 1) -> str:
    """A share 0 … 1 as "81.3 %", not to be broken at its space."""
    return f"{100 * share:.{digits}f}\u00a0%" if math.isfinite(share) else "n/a"


def rarest_and_most_frequent(
    counts: Mapping[str, int], classes: tuple[str, ...], each: int = 10,
) -> tuple[list[str], list[str]]:
    """(shown, folded away): all in the source's order up to 2·`each` classes, else the rarest and the most frequent.

    Args:
        counts: class name → real rows; a class without an entry counts as 0.
        classes: the names in the source's order.
    """
    if len(classes) <= 2 * each:
        return list(classes), []
    ordered = sorted(classes, key=lambda name: counts.get(name, 0))
    return [*ordered[:each], *ordered[-each:]], ordered[each:-each]


def _lift(lift: LiftFigure, gate: GateConfig) -> Figure:
    limit = gate.min_lift_pp
    judged = bool(lift.seeds)
    return Figure(
        "Lift", lift_value(lift), lift_reference(lift),
        None if limit is None else f"{'proven, ' * (limit >= 0)}at least {limit:g}\u00a0pp".replace("-", "−"),
        None if limit is None else judged and lift.lift_pp >= limit and (lift.won or limit < 0),
        counted(len(lift.seeds), "seed"), _lift_meaning(lift),
    )


def lift_value(lift: LiftFigure) -> str:
    """"+1.30 pp", or "n/a" where it could not be judged."""
    return f"{points(lift.lift_pp)}\u00a0pp" if lift.seeds and math.isfinite(lift.lift_pp) else "n/a"


def lift_reference(lift: LiftFigure) -> str:
    """The interval in words."""
    interval = lift_interval(lift)
    if interval is None:
        return "one seed: no interval" if lift.seeds else "could not be judged"
    return f"95\u00a0% interval {points(interval[0])}\u00a0…\u00a0{points(interval[1])}"


def _lift_meaning(lift: LiftFigure) -> str:
    word = lift_word(lift)
    if word == "not judged":
        return lift.sentence.strip() or "Could not be judged."
    gain = f"{abs(lift.lift_pp):.2f} points of balanced accuracy"
    if word == "lift":
        return f"A classifier trained with the synthetic images is {gain} better, and the interval lies above zero."
    if word == "harm":
        return f"A classifier trained with the synthetic images is {gain} worse, and the interval lies below zero."
    if lift.interval_pp[0] > 0:
        return f"A classifier trained with the synthetic images is {gain} better, but that is no win, see the sentence above."
    direction = "better" if lift.lift_pp >= 0 else "worse"
    return f"A classifier trained with the synthetic images came out {gain} {direction}, which may be chance."


def _distance(s: Scorecard, gate: GateConfig) -> Figure:
    name = "FID" if s.features == "inception" else f"Fréchet distance (FD-{s.features})"
    ratio, limit = s.fd_ratio, gate.max_fd_ratio
    near = "No farther from the real images than"
    far = f"{decimal(ratio, 1)} times as far from the real images as" if math.isfinite(ratio) else "Farther than"
    network = {"inception": "the usual FID network", "random": "a random network"}
    return Figure(
        name, decimal(s.fd), distance_reference(s),
        None if limit is None else f"at most {limit:g} × the floor",
        None if limit is None else ratio <= limit,
        f"{s.samples:,}",
        f"{near if ratio <= 1 else far} real images are from each other, equally many of both, by the features of "
        f"{network.get(s.features, 'a classifier of this very domain')}. Measured against {s.fd_reference}.",
    )


def distance_reference(s: Scorecard) -> str:
    """What the Fréchet distance is read against: that of real images, and that of as many samples."""
    return f"real against real {decimal(s.fd_floor)}{_as_many(s, 'fd')}"


def _as_many(s: Scorecard, name: str) -> str:
    """The figure of as many samples as there are real images to compare with, where it hangs on their number."""
    return f", as many samples {decimal(s.matched[name])}" if name in s.matched else ""


def _as_real(s: Scorecard, name: str, otherwise: str = "at best 1") -> str:
    """What unseen real images reach in the samples' place, where that was measured."""
    return f"real images {decimal(s.real[name])}{_as_many(s, name)}" if math.isfinite(s.real.get(name, math.nan)) else otherwise


def _plain(name: str, value: float, n: str, meaning: str, reference: str) -> Figure:
    return Figure(name, decimal(value), reference, None, None, n, meaning)


def _at_least(
    name: str, value: float, limit: float | None, reference: str, n: str, meaning: str, digits: int = 2,
) -> Figure:
    met = None if limit is None else value >= limit      # what could not be measured does not meet it
    threshold = None if limit is None else f"at least {limit:g}"
    return Figure(name, decimal(value, digits), reference, threshold, met, n, meaning)


def _diversity(s: Scorecard, gate: GateConfig) -> Figure:
    name, ratio = lowest_diversity(s)
    found = f"The least varied class, “{name}”, varies {decimal(ratio)} times as much as its real images. "
    meaning = (found if name else "") + "Near 0: the class has collapsed to one picture."
    best = "1 when as varied as real"
    return _at_least("Lowest diversity", ratio, gate.min_diversity, best, f"{s.samples:,}", meaning)


def _memorised(s: Scorecard, gate: GateConfig) -> Figure:
    limit = gate.max_memorised
    met = None if limit is None else s.memorised <= limit
    return Figure(
        "Memorised", percent(s.memorised), "0\u00a0% when nothing is copied",
        None if limit is None else f"at most {percent(limit)}", met, f"{s.samples:,}",
        f"{_share(s.memorised)} of the synthetic images lie closer to a training image than new real images "
        "practically ever do: near copies, which add nothing and may give private pictures away.",
    )


def _share(value: float) -> str:
    """A share at the beginning of a sentence."""
    if not math.isfinite(value):
        return "An unknown share"
    return {0.0: "None", 1.0: "All"}.get(value) or percent(value)

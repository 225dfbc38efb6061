"""The report's lift section: every arm with its interval, recall by class, the mixing ratio, what the filter did."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from pipeline.config import Config
from pipeline.documents import charts
from pipeline.documents.figures import decimal, lift_interval, lift_reference, lift_sentence, lift_word, points
from pipeline.documents.pictures import MAX_LINE_PX, Strip, strip
from pipeline.records import LiftFigure, Snapshot
from pipeline.wording import counted

SAME_PP = 0.01                                       # figures this close are the baseline's own, rounded
SIEVED_COLUMNS = 10                                  # images that a filter kept, and as many that it threw away
SHOWN_CLASSES = 20                                   # of more classes: those that changed most


@dataclass(frozen=True)
class Sieved:
    """One class's first draws, told apart by a filter. Images are uint8 (n, C, H, W)."""

    name: str
    drawn: int
    kept: np.ndarray
    thrown: np.ndarray
    reasons: Mapping[str, int]                       # reason → how many of the draws


@dataclass(frozen=True)
class Lift:
    """The lift section, ready to be laid out."""

    word: str
    sentence: str
    seeds: tuple[tuple[int, str, str, str], ...]     # seed, baseline, + synthetic, difference
    mean: tuple[str, str, str]
    interval: str
    plot: Markup
    arms: Markup
    ratios: Markup
    ratio_legend: tuple[tuple[str, str], ...]
    recalls: Markup
    recalls_shown: str
    columns: tuple[str, ...]                         # of the table of every trained classifier
    rows: tuple[tuple[str, ...], ...]
    story: str                                       # what was compared, in a sentence or two
    sieved: tuple["SievedRow", ...]
    sieve: str                                       # the filter's thresholds in words
    pixelated: bool


@dataclass(frozen=True)
class SievedRow:
    """What a filter kept and threw away of one class."""

    name: str
    kept: Strip | None
    thrown: Strip | None
    share: str
    reasons: str


def lift_section(config: Config, snapshot: Snapshot, lift: LiftFigure | None, sieved: Sequence[Sieved] = ()) -> Lift | None:
    """The section; None where lift was not measured."""
    if lift is None:
        return None
    pairs = list(zip(lift.seeds, lift.baseline, lift.synthetic))
    before, after = lift.recall_baseline, lift.recall_synthetic
    changes = [(name, before.get(name, math.nan), after.get(name, math.nan)) for name in snapshot.classes]
    most = sorted(changes, key=lambda c: -abs(c[2] - c[1]) if math.isfinite(c[2] - c[1]) else 0.0)[: SHOWN_CLASSES]
    kept = [c for c in changes if c in most]
    columns = tuple(dict.fromkeys(str(key) for row in lift.rows for key in row))
    by_ratio = _by_ratio(lift)
    return Lift(
        word=lift_word(lift) or "", sentence=lift_sentence(lift),
        seeds=tuple((seed, decimal(b), decimal(s), points(s - b)) for seed, b, s in pairs),
        mean=(decimal(_mean(lift.baseline)), decimal(_mean(lift.synthetic)), points(lift.lift_pp)),
        interval=lift_reference(lift),
        plot=charts.differences(
            [(f"seed {seed}", s - b) for seed, b, s in pairs], lift.lift_pp if pairs else math.nan,
            lift_interval(lift) or (math.nan, math.nan),
            label="Difference of balanced accuracy per seed with the 95 % interval of the mean",
            x_label="balanced accuracy with synthetic minus without, points", threshold=config.gate.min_lift_pp,
        ),
        arms=charts.intervals(
            _arms(lift), label="Each arm against the baseline",
            x_label="against the baseline, points",
        ),
        ratios=charts.against(
            by_ratio, label="Difference from the baseline against the mixing ratio",
            x_label="synthetic images per real one", y_label="points on test",
        ),
        ratio_legend=_legend([name for name, _ in by_ratio]),
        recalls=charts.dumbbells(
            kept, label="Recall per class without and with synthetic images", x_label="recall on the test split",
            before="without", after="with synthetic",
        ),
        recalls_shown=f"the {len(kept)} classes that changed most" if len(kept) < len(changes) else "",
        columns=columns, rows=tuple(tuple(_cell(row.get(key)) for key in columns) for row in lift.rows),
        story=_story(lift), sieved=tuple(_sieved(row) for row in sieved),
        sieve=", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in sieve_of(config, lift).items()),
        pixelated=snapshot.resolution * SIEVED_COLUMNS <= MAX_LINE_PX,
    )


def sieve_of(config: Config, lift: LiftFigure | None) -> dict[str, float]:
    """The thresholds whose work the report shows: the published rows', else those that val prefers; empty for none."""
    published = {key: value for key, value in config.sample.filter.items() if value}
    return published or dict(lift.preferred_filter if lift is not None else {})


def _sieved(row: Sieved) -> SievedRow:
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(row.reasons.items(), key=lambda item: -item[1]))
    kept = row.drawn - sum(row.reasons.values())
    return SievedRow(row.name, strip(row.kept[:SIEVED_COLUMNS], SIEVED_COLUMNS), strip(row.thrown[:SIEVED_COLUMNS], SIEVED_COLUMNS),
                     f"{kept} of {row.drawn} kept", reasons or "none thrown away")


def _story(lift: LiftFigure) -> str:
    """What was compared."""
    without = len({_way(row) for row in lift.rows if str(row.get("arm")).startswith("A")})
    with_synthesis = len({_way(row) for row in lift.rows if str(row.get("arm")).startswith("G")})
    ratios = ", ".join(f"{ratio:g}" for ratio in lift.ratios)
    distinct = max((number(row.get("distinct")) for row in lift.rows if str(row.get("arm")).startswith("G")), default=math.nan)
    many = f", drawn from up to {distinct:g} times as many" if distinct > 1 else ""
    chosen = f"{lift.chosen_ratio:g} synthetic images per real one were" if lift.chosen_ratio else "no synthetic image at all was"
    return (f"For every seed the same classifier is trained with the same steps and settings in "
            f"{counted(without, 'way')} without synthetic images and {with_synthesis} with them (ratios {ratios}{many}). The best of each "
            "kind on the validation split, "
            f"{' and '.join(filter(None, lift.arms)) or 'one each'}, are compared on test images that nothing else has seen. "
            + (f"The validation split is too small to tell them apart, so test had a say in what is recommended: {chosen} best."
               if lift.test_advised else f"By the validation split {chosen} best.") + _by_folds(lift) + _advice(lift))


def _by_folds(lift: LiftFigure) -> str:
    """How the ways without synthesis came out in cross-validation."""
    if not lift.cross_validated:
        return ""
    ranked = sorted(lift.cross_validated.items(), key=lambda way: -way[1])
    return (" The validation split is small, so the ways without synthetic images were chosen by cross-validation over it and the training "
            f"images: {', '.join(f'{name} {decimal(value)} %' for name, value in ranked)}.")


def _advice(lift: LiftFigure) -> str:
    """What else val would have."""
    if lift.preferred_filter == (lift.mix.get("filter") or {}) or not lift.chosen_ratio:
        return ""
    wanted = ", ".join(f"{key}: {value:g}" for key, value in lift.preferred_filter.items())
    return f" It would rather have rows filtered otherwise: sample.filter: {{{wanted}}}."


def _way(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(row.get(key, "")) for key in ("arm", "ratio", "even", "filter", "weight", "real_only_tail"))


def _arms(lift: LiftFigure) -> list[tuple[str, list[float]]]:
    """(arm, difference to the baseline per seed) of every arm but the baseline, from the table of all classifiers."""
    baseline = lift.arms[0] if lift.arms else ""
    return [(_told(*way), differences) for way, differences in _differences(lift).items()
            if max(map(abs, differences)) > SAME_PP or (baseline and way[0] != baseline)]


def _differences(lift: LiftFigure) -> dict[tuple[str, ...], list[float]]:
    """(arm, ratio, even, filter, weight, last steps on real rows) → difference from the baseline on test by seed, in points."""
    tests: dict[tuple[str, ...], dict[Any, float]] = {}
    for row in lift.rows:
        test = number(row.get("test"))
        if math.isfinite(test):
            tests.setdefault(_way(row), {})[row.get("seed")] = test
    baseline = dict(zip(lift.seeds, lift.baseline))
    found = {way: [by_seed[seed] - value for seed, value in baseline.items() if seed in by_seed] for way, by_seed in tests.items()}
    return {way: differences for way, differences in found.items() if differences}


def _told(arm: str, ratio: str, even: str, kept: str, weight: str, tail: str) -> str:
    """An arm with its mix, short: "G3, 0.5 per real, even, p0.8"."""
    parts = [arm, f"{float(ratio):g} per real" if ratio and float(ratio) > 0 else "", "even" if even == "True" else "",
             kept if kept not in ("", "none") else "",
             f"w{float(weight):g}" if weight and float(weight) != 1 else "",
             f"t{float(tail):g}" if tail and float(tail) > 0 else ""]
    return ", ".join(filter(None, parts))


def _by_ratio(lift: LiftFigure) -> list[tuple[str, list[tuple[float, list[float]]]]]:
    """Each arm with synthetic images, at each filter: (name, [(ratio, differences), …]); the chosen one first."""
    found: dict[str, list[tuple[float, list[float]]]] = {}
    for (arm, ratio, even, kept, weight, tail), differences in _differences(lift).items():
        if arm.startswith("G") and (not weight or float(weight) == 1) and ratio:
            found.setdefault(_told(arm, "", even, kept, "", tail), []).append((float(ratio), differences))
    chosen = lift.arms[-1] if lift.arms else ""
    longest = max(map(len, found.values()), default=0)
    found = {name: points for name, points in found.items() if len(points) > 1 or longest == 1}       # one point is no line beside lines
    return sorted(found.items(), key=lambda item: (not item[0].startswith(chosen), -len(item[1]), item[0]))[:6]


def _legend(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """(colour, what is drawn in it): the first two have one of their own."""
    own = tuple((f"s{1 + n}", name) for n, name in enumerate(names[:2]))
    return (*own, ("faint", f"others: {'; '.join(names[2:])}")) if len(names) > 2 else own


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "−") if math.isfinite(value) else "n/a"
    return "" if value is None else str(value)


def number(value: Any) -> float:
    """A float, NaN for whatever is none."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan

"""From rows to the figure and its one sentence."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pipeline.lift.folds import FEW_VAL
from pipeline.lift.laboratory import Row, alike, best, grouped, mean
from pipeline.lift.statistics import LEAST_FOR_BOOTSTRAP, paired_interval, sign_flip_p
from pipeline.lift.trial import Bench, Mix, class_weights
from pipeline.records import LiftFigure
from pipeline.wording import counted

MAX_P = 0.05                                         # of the sign-flip test, for a win, where so few pairs can reach it
MAX_RECALL_LOSS = 0.02                               # of any class, for a win
MAX_MEMORISED = 0.02                                 # share of samples that are near copies, for a win


def unjudged(reason: str, ratios: Sequence[float], seconds: float = 0.0, rows: Sequence[Row] = ()) -> LiftFigure:
    """The record that holds no figure: no seeds, and the reason in its sentence."""
    return LiftFigure(
        seeds=(), chosen_ratio=0.0, ratios=tuple(ratios), baseline=(), synthetic=(), lift_pp=0.0,
        interval_pp=(0.0, 0.0), recall_baseline={}, recall_synthetic={},
        sentence=f"Lift can't be judged, because {reason}.",
        seconds=seconds, rows=tuple(flat(row) for row in rows),
    )


def judged(
    baseline: Sequence[Row], synthetic: Sequence[Row], every: Sequence[Row], bench: Bench, ratios: Sequence[float],
    helps: bool | None, seconds: float, memorised: float | None = None,
) -> LiftFigure:
    """The figure of `synthetic` against `baseline` on test, paired by seed.

    Args:
        baseline, synthetic: rows of one arm each, the same seeds in the same order.
        every: all rows that were made.
        bench: of the first replicate; gives classes and the class weights of the recommended mix.
        helps: whether val prefers the synthetic arm; None: it is too small to tell, and test may still deny what it doesn't.
        memorised: share of samples that are near copies of training images; None where it was not measured.
    """
    before = [100 * row["test"]["balanced_accuracy"] for row in baseline]
    after = [100 * row["test"]["balanced_accuracy"] for row in synthetic]
    differences = [b - a for a, b in zip(before, after)]
    interval = paired_interval(differences)
    recall_before, recall_after = _recall(baseline, bench.classes), _recall(synthetic, bench.classes)
    rival = strongest(every, baseline, after)
    loss = _greatest_loss(recall_before, recall_after)
    obstacle = why_no_win(interval, helps is not False, loss, memorised, _nonsense(every, before), rival,
                          sign_flip_p(differences) if len(differences) >= LEAST_FOR_BOOTSTRAP else 0.0)
    advised = obstacle is None if helps is None else helps
    chosen = synthetic[0] if advised else baseline[0]
    return LiftFigure(
        seeds=tuple(row["seed"] for row in baseline), chosen_ratio=synthetic[0]["ratio"] if advised else 0.0, ratios=tuple(ratios),
        baseline=tuple(round(v, 4) for v in before), synthetic=tuple(round(v, 4) for v in after),
        lift_pp=round(sum(differences) / len(differences), 4), interval_pp=(round(interval[0], 4), round(interval[1], 4)),
        recall_baseline=recall_before, recall_synthetic=recall_after,
        sentence=sentence(differences, interval, synthetic[0], baseline[0]["title"], helps, obstacle, rival, _short(synthetic[0], bench)),
        seconds=round(seconds, 3), rows=tuple(flat(row) for row in every), won=obstacle is None,
        arms=(baseline[0]["arm"], synthetic[0]["arm"]), mix=recommended(chosen, bench), rival=rival, test_advised=helps is None,
    )


def preference(without: Sequence[Row], synthetic: Sequence[Row], val: int) -> bool | None:
    """Does val prefer synthetic images to none? None: it is no better with them, and too small for that to mean anything.

    Twenty images are often all right either way. Below `FEW_VAL` of them a difference within two standard errors of the accuracy
    itself (with one right and one wrong image added, so that a perfect score has an error too) says nothing.

    Args:
        without: rows of the way without synthesis that is best on val.
        val: its images, of all splits.
    """
    if best([without, synthetic]) is synthetic:
        return True
    reached, lost = mean(without, "val", "balanced_accuracy"), mean(synthetic, "val", "balanced_accuracy")
    share = (val * reached + 1) / (val + 2)
    small = val < FEW_VAL and reached - lost <= 2 * math.sqrt(share * (1 - share) / val)
    return None if small else False


def strongest(every: Sequence[Row], baseline: Sequence[Row], synthetic: Sequence[float]) -> dict[str, Any]:
    """What synthesis gained over the arm without it that is best on test; {} where that is the baseline.

    Val may be a handful of images, and choose a poor baseline by them: anything is a gain over that. Here test only denies: the
    best of many on test is a little too good, never too bad.

    Args:
        synthetic: per seed, the chosen arm with synthesis on test, in percent.

    Returns:
        arm, title, test (its mean, in percent), difference and its interval, low and high, in points.
    """
    whole = [rows for rows in grouped(row for row in every if row["arm"].startswith("A"))
             if len(rows) == len(synthetic) and not any("cannot" in row for row in rows)]
    best = max(whole, key=lambda rows: mean(rows, "test", "balanced_accuracy"), default=None)
    if best is None or mean(best, "test", "balanced_accuracy") <= mean(baseline, "test", "balanced_accuracy"):
        return {}
    differences = [after - 100 * row["test"]["balanced_accuracy"] for after, row in zip(synthetic, best)]
    low, high = paired_interval(differences)
    return {"arm": best[0]["arm"], "title": best[0]["title"], "test": round(100 * mean(best, "test", "balanced_accuracy"), 4),
            "difference": round(sum(differences) / len(differences), 4), "low": round(low, 4), "high": round(high, 4)}


def recommended(row: Row, bench: Bench) -> dict[str, Any]:
    """What a training job must know to train as `row`'s arm did.

    ratio: synthetic rows per real one, as they count in the draws; distinct: different ones to draw from for each that counts, where
    there are so many. class_weights: class name → share of the draws. synthetic_share: of each class's
    draws, with as many synthetic rows of each class; None: the scarcest classes are filled first, and synthetic_weight says how
    often one that counts is drawn, relative to a real one of its class. real_only_share: of the steps, the last ones, that see
    real rows alone. logit_adjustment: tau of the loss. augmentation: the classical one of every batch, `gan.classical.ClassicalAugment`'s
    fields; {} for none. filter: what the synthetic rows had to pass. arm: its name.
    """
    given = row["ratio"] if row["arm"].startswith("G") else 0.0
    real = bench.train.counts(len(bench.classes))
    mix = Mix(given, even=row["even"], weight=row["weight"])
    weights = class_weights(row["balanced"], 0.0 if mix.even else mix.weight, real, mix.counts(real, bench.planned))
    return {
        "ratio": given, "distinct": row["distinct"] if given else 1.0,
        "class_weights": {bench.classes[c]: round(share, 6) for c, share in weights.items()},
        "synthetic_share": mix.share, "synthetic_weight": 1.0 if mix.even else mix.weight, "real_only_share": row["real_only_tail"],
        "logit_adjustment": row["logit_adjustment"],
        "augmentation": asdict(bench.augment.scaled(row["strength"])) if row["strength"] else {},
        "filter": dict(row["thresholds"]), "arm": row["title"],
    }


def _short(row: Row, bench: Bench) -> int | None:
    """How many synthetic rows count, where fewer will be published than the ratio has; None elsewhere."""
    real, mix = bench.train.counts(len(bench.classes)), Mix(row["ratio"], even=row["even"])
    counted = int(mix.counts(real, bench.planned).sum())
    return counted if counted < int(mix.counts(real).sum()) else None


def why_no_win(
    interval: tuple[float, float], helps: bool, loss: tuple[str, float] | None, memorised: float | None,
    nonsense: float = 0.0, rival: Mapping[str, Any] | None = None, p: float = 0.0,
) -> str | None:
    """What stands between the figure and a win; None for a win.

    A win needs an interval above zero, and from six pairs on a `p` that says so too: the bootstrap of so few is too narrow (see
    `benchmarks/false_lift.py`), where Student's t, of fewer, isn't. It needs that val doesn't advise against synthetic images (one that is
    large enough must prefer them, see `preference`), no class whose recall falls by more than two points, and no more near
    copies than new images would show by chance. Nor may an arm without synthesis that val passed over (`rival`, see
    `strongest`) do as well on test. Where the same images under shuffled labels (`nonsense`, the lower end of their interval)
    are a win too, the trial itself is out of order.
    """
    if not interval[0] > 0:
        return "No lift shown"
    if p > MAX_P:
        return f"No lift shown, since p is above {MAX_P:g}"
    if not helps:
        return "No lift shown, since validation sees no gain"
    if rival and not rival["low"] > 0:
        return "No lift counted, since validation passed over a way without synthesis that does as well"
    if memorised is not None and not memorised <= MAX_MEMORISED:
        return f"No lift counted, since {100 * memorised:.1f} % of the synthetic images are near copies of training images"
    if nonsense > 0:
        return "No lift counted, since the same images under shuffled labels came out better than none too"
    if loss is not None:
        return f"No lift, since the recall of class {loss[0]!r} fell by {100 * loss[1]:.1f} points"
    return None


def sentence(
    differences: Sequence[float], interval: tuple[float, float], synthetic: Row, title: str, helps: bool | None, obstacle: str | None,
    rival: Mapping[str, Any] | None = None, short: int | None = None,
) -> str:
    """The verdict in one sentence.

    Args:
        synthetic: a row of the arm with synthesis.
        title: of the arm without.
        helps: see `judged`.
        obstacle: see `why_no_win`.
        rival: see `strongest`.
        short: how many count, where the ratio would have more than will be published.
    """
    n, lift = len(differences), sum(differences) / len(differences)
    seeds = counted(n, "paired seed")
    figures = f"{_signed(lift)} points of balanced accuracy"
    if n > 1:
        figures += f" (95 % interval {_signed(interval[0])} to {_signed(interval[1])}, {seeds}, sign-flip p = " \
                   f"{sign_flip_p(differences):.2g})"
    else:
        figures += f" ({seeds}: no interval)"
    kept = "" if synthetic["filter"] == "none" else " filtered"
    evenly = ", evenly over the classes," if synthetic["even"] else ""
    fewer = "" if short is None else f", of which only {short:,} will be published,"
    what = f"{synthetic['ratio']:g}{kept} synthetic images per real one{fewer or evenly} gave {figures} over {title}"
    if rival and n > 1:
        what += (f", and {_signed(rival['difference'])} ({_signed(rival['low'])} to {_signed(rival['high'])}) over {rival['title']}, "
                 "the best without synthesis on test")
    by_val = {True: "", False: "; validation recommends none", None: "; validation is too small to tell"}[helps]
    return f"{obstacle or 'Lift'}: {what}{by_val}."


def published(figure: LiftFigure) -> dict[str, Any]:
    """`lift.json`: the figure with every row, and `summary`, a line for each way of training; null where nothing could be judged."""
    content = {"summary": summary(figure), **figure.to_json()}
    return content if figure.seeds else content | {"lift_pp": None, "interval_pp": None}


def flat(row: Row) -> dict[str, Any]:
    """A row for tables: one value a column, accuracies in percent."""
    head = {k: row[k] for k in ("arm", "ratio", "even", "distinct", "filter", "weight", "real_only_tail", "seed")}
    if "cannot" in row:
        return {**head, "cannot": row["cannot"]}
    test = row["test"]
    return {
        **head, "val": _percent(row["val"]["balanced_accuracy"]), "test": _percent(test["balanced_accuracy"]),
        "rarest third": _percent(test["rarest_third"]), "macro F1": _percent(test["macro_f1"]),
        "NLL": round(test["nll"], 4), "ECE": round(test["ece"], 4), "added": row["added_rows"],
        "seconds": round(row["seconds"], 1),
    }


def summary(figure: LiftFigure) -> list[dict[str, Any]]:
    """Each arm at each mix in one line: mean val and test, and the paired difference on test from the baseline.

    The baseline is the arm whose values by seed are the figure's; its own line has no difference.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in figure.rows:
        if "cannot" not in row:
            groups.setdefault(alike(row), []).append(row)
    lines = []
    for (arm, ratio, even, distinct, weight, tail, kept), rows in groups.items():
        test = [row["test"] for row in sorted(rows, key=lambda row: row["seed"])]
        line = {"arm": arm, "ratio": ratio, "even": even, "distinct": distinct, "filter": kept, "weight": weight, "real_only_tail": tail,
                "seeds": len(rows),
                "test": round(sum(test) / len(rows), 3),
                "val": round(sum(row["val"] for row in rows) / len(rows), 3)}
        differences = [t - b for t, b in zip(test, figure.baseline)]
        if len(test) == len(figure.baseline) and (arm != figure.arms[0] or max(map(abs, differences)) > 1e-3):
            low, high = paired_interval(differences)
            line |= {"difference": round(sum(differences) / len(differences), 3), "low": round(low, 3),
                     "high": round(high, 3), "p": sign_flip_p(differences)}
        lines.append(line)
    return lines


def _recall(rows: Sequence[Row], classes: Sequence[str]) -> dict[str, float]:
    """Class name → mean recall on test over the seeds."""
    return {classes[int(label)]: round(sum(row["test"]["recall"][label] for row in rows) / len(rows), 6)
            for label in rows[0]["test"]["recall"]}


def _greatest_loss(before: dict[str, float], after: dict[str, float]) -> tuple[str, float] | None:
    """(class, recall lost) of the class that lost most, if that is more than two points."""
    name = max(before, key=lambda c: before[c] - after[c])
    lost = before[name] - after[name]
    return (name, lost) if lost > MAX_RECALL_LOSS else None


def _nonsense(every: Sequence[Row], baseline: Sequence[float]) -> float:
    """Lower end of the interval of what images under shuffled labels (N2) gained over the baseline; 0 where none were tried."""
    tested = [100 * row["test"]["balanced_accuracy"] for row in sorted((r for r in every if r["arm"] == "N2"), key=lambda r: r["seed"])
              if "cannot" not in row]
    if len(tested) != len(baseline) or len(tested) < 2:
        return 0.0
    return paired_interval([a - b for a, b in zip(tested, baseline)])[0]


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")     # + 0.0: no minus before nothing


def _percent(share: float) -> float:
    return round(100 * share, 3)

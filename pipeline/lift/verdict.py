"""From rows to the figure and its one sentence."""

from collections.abc import Sequence
from typing import Any

from pipeline.lift.laboratory import Row
from pipeline.lift.statistics import paired_interval, sign_flip_p
from pipeline.records import LiftFigure

MAX_RECALL_LOSS = 0.02                               # of any class, for a win


def unjudged(reason: str, ratios: Sequence[float], seconds: float = 0.0, rows: Sequence[Row] = ()) -> LiftFigure:
    """The record that holds no figure: no seeds, and the reason in its sentence."""
    return LiftFigure(
        seeds=(), chosen_ratio=0.0, ratios=tuple(ratios), baseline=(), synthetic=(), lift_pp=0.0,
        interval_pp=(0.0, 0.0), recall_baseline={}, recall_synthetic={},
        sentence=f"Lift can't be judged, because {reason}.",
        seconds=seconds, rows=tuple(flat(row) for row in rows),
    )


def judged(
    baseline: Sequence[Row], synthetic: Sequence[Row], every: Sequence[Row], classes: Sequence[str],
    ratios: Sequence[float], chosen_ratio: float, seconds: float,
) -> LiftFigure:
    """The figure of `synthetic` against `baseline` on test, paired by seed.

    Args:
        baseline, synthetic: rows of one arm each, the same seeds in the same order.
        every: all rows that were made.
        chosen_ratio: what val recommends, 0 = no synthetic rows.
    """
    before = [100 * row["test"]["balanced_accuracy"] for row in baseline]
    after = [100 * row["test"]["balanced_accuracy"] for row in synthetic]
    differences = [b - a for a, b in zip(before, after)]
    interval = paired_interval(differences)
    recall_before, recall_after = _recall(baseline, classes), _recall(synthetic, classes)
    lift = sum(differences) / len(differences)
    loss = _greatest_loss(recall_before, recall_after)
    return LiftFigure(
        seeds=tuple(row["seed"] for row in baseline), chosen_ratio=chosen_ratio, ratios=tuple(ratios),
        baseline=tuple(round(v, 4) for v in before), synthetic=tuple(round(v, 4) for v in after),
        lift_pp=round(lift, 4), interval_pp=(round(interval[0], 4), round(interval[1], 4)),
        recall_baseline=recall_before, recall_synthetic=recall_after,
        sentence=sentence(differences, interval, synthetic[0]["ratio"], chosen_ratio, baseline[0]["title"], loss),
        seconds=round(seconds, 3), rows=tuple(flat(row) for row in every),
    )


def sentence(
    differences: Sequence[float], interval: tuple[float, float], ratio: float, chosen_ratio: float, title: str,
    loss: tuple[str, float] | None,
) -> str:
    """The verdict. A win needs an interval above zero, no class whose recall falls by more than two points, and that val
    recommends synthetic images at all: where val can't tell them from none, a difference on test alone proves nothing."""
    n, lift = len(differences), sum(differences) / len(differences)
    seeds = f"{n} paired seed{'s' * (n != 1)}"
    figures = f"{_signed(lift)} points of balanced accuracy"
    if n > 1:
        figures += f" (95 % interval {_signed(interval[0])} to {_signed(interval[1])}, {seeds}, sign-flip p = " \
                   f"{sign_flip_p(differences):.2g})"
    else:
        figures += f" ({seeds}: no interval)"
    what = f"{ratio:g} synthetic images per real one beside {title} gave {figures}"
    if interval[0] > 0 and chosen_ratio == 0:
        word = "No lift shown, since validation sees no gain"
    elif interval[0] > 0 and loss is None:
        word = "Lift"
    elif interval[0] > 0 and loss is not None:
        word = f"No lift, since the recall of class {loss[0]!r} fell by {100 * loss[1]:.1f} points"
    else:
        word = "No lift shown"
    advice = "" if chosen_ratio > 0 else "; validation recommends none"
    return f"{word}: {what}{advice}."


def flat(row: Row) -> dict[str, Any]:
    """A row for tables: one value a column, accuracies in percent."""
    head = {k: row[k] for k in ("arm", "ratio", "filter", "seed")}
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
            groups.setdefault((row["arm"], row["ratio"], row["filter"]), []).append(row)
    lines = []
    for (arm, ratio, kept), rows in groups.items():
        test = [row["test"] for row in sorted(rows, key=lambda row: row["seed"])]
        line = {"arm": arm, "ratio": ratio, "filter": kept, "seeds": len(rows), "test": round(sum(test) / len(rows), 3),
                "val": round(sum(row["val"] for row in rows) / len(rows), 3)}
        differences = [t - b for t, b in zip(test, figure.baseline)]
        if len(test) == len(figure.baseline) and max(map(abs, differences)) > 1e-3:
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


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _percent(share: float) -> float:
    return round(100 * share, 3)

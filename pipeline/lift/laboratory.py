"""The laboratory: runs trials side by side, keeps each finished row in the run folder, and chooses on val."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline import keys
from pipeline.errors import MissingObject
from pipeline.filtering import NO_FILTER, Filter, Screen
from pipeline.lift.arms import Added, Arm
from pipeline.lift.pool import (
    CannotFill,
    Draw,
    Rows,
    SyntheticPool,
    duplicates,
    shuffled,
    smote,
    spare_rows,
)
from pipeline.lift.trial import Bench, Mix, run_trial
from pipeline.progress import Progress
from pipeline.side_by_side import Stop, side_by_side
from pipeline.store import Store


@dataclass(frozen=True)
class Replicate:
    """One paired seed: its data, its generator's images, its classifier's seed."""

    number: int
    seed: int
    bench: Bench
    draw: Draw
    model: Screen | None = None                      # None: no arm can filter
    pools: dict[str, SyntheticPool] = field(default_factory=dict, repr=False)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """What travels to another process: not the lock, and no images that can be drawn again."""
        return {**self.__dict__, "pools": {}, "lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, lock=threading.Lock())

    def added(self, arm: Arm, mix: Mix) -> Rows | None:
        """The rows that `arm` adds at `mix`; None for none.

        Raises:
            CannotFill: the filter lets too little of a class through.
        """
        if arm.added is None:
            return None
        train = self.bench.train
        counts, planned = train.counts(len(self.bench.classes)), self.bench.planned
        if arm.added is Added.SMOTE:                 # whatever will be published: nothing keeps it from making as many as are best
            return smote(train, mix.rows(counts), self.seed)
        if arm.added is Added.DUPLICATES:            # a row drawn more often is all that more of them would be
            return duplicates(train, mix.counts(counts, planned), self.seed)
        if arm.added is Added.REAL:
            return spare_rows(self.bench.spare, mix.counts(counts, planned), self.seed)
        with self.lock:                              # a pool grows as it is asked
            rows = self._pool(mix.filter).take(mix.rows(counts, planned))
        return shuffled(rows, self.seed) if arm.added is Added.SHUFFLED else rows

    def _pool(self, wanted: Filter) -> SyntheticPool:
        if wanted.name not in self.pools:
            if wanted != NO_FILTER and self.model is None:
                raise ValueError(f"filter {wanted.name} asked for, and there is no model to filter by")
            keep = self.model.keep(wanted) if self.model else None
            self.pools[wanted.name] = SyntheticPool(self.draw, len(self.bench.classes), self.seed, keep)
        return self.pools[wanted.name]


@dataclass(frozen=True)
class Trial:
    """An arm at a mix, for one replicate."""

    arm: Arm
    mix: Mix
    replicate: int
    kind: str = "s"                                  # of replicate: s, a seed; x, a fold

    @property
    def name(self) -> str:
        """Unique within a laboratory; safe in a key."""
        mix, even, of = self.mix, "-even" * self.mix.even, f"{self.kind}{self.replicate}"
        return f"{self.arm.name}-r{mix.ratio:g}{even}-d{mix.distinct:g}-w{mix.weight:g}-t{mix.real_only_tail:g}-f{mix.filter.name}-{of}"


Row = dict[str, Any]
"""A finished trial: arm, title, ratio, even, distinct, weight, real_only_tail, filter, seed (the replicate's number), and
`run_trial`'s result; `cannot` instead of that where the filter let too little through."""


class RowBook:
    """Finished rows in the run folder, each under the fingerprint of what it was made from."""

    def __init__(self, run: Store, inputs: str) -> None:
        self._run, self._inputs = run, inputs

    def read(self, trial: Trial) -> Row | None:
        """The row, if it is there, made from the same inputs and by the same way: synthesis may have been added to another then."""
        try:
            kept = self._run.get_json(keys.lift_row(trial.name))
        except MissingObject:
            return None
        if kept.get("inputs") != self._inputs or kept["row"]["title"] != trial.arm.title:
            return None
        row: Row = kept["row"]
        return row

    def write(self, trial: Trial, row: Row) -> None:
        """Keeps a finished row."""
        self._run.put_json(keys.lift_row(trial.name), {"inputs": self._inputs, "row": row})


Runner = Callable[[Sequence[Trial], dict[int, Replicate]], Iterator[tuple[int, Row]]]
"""Runs trials on replicates (by number); yields (number of the trial, row) as they finish."""


def on_threads(workers: int) -> Runner:
    """Trials in this process, `workers` at a time."""

    def run(trials: Sequence[Trial], replicates: dict[int, Replicate]) -> Iterator[tuple[int, Row]]:
        jobs = [lambda stop, trial=trial: run_one(replicates[trial.replicate], trial, stop) for trial in trials]
        return side_by_side(jobs, workers)

    return run


class Laboratory:
    """Runs trials. Rows come back in the order asked, from the book where they are finished."""

    def __init__(self, replicates: Sequence[Replicate], book: RowBook | None, progress: Progress, runner: Runner,
                 kind: str = "s", elsewhere: int = 0) -> None:
        self.replicates = {r.number: r for r in replicates}
        self.rows: list[Row] = []
        self._book, self._progress, self._runner, self._kind = book, progress, runner, kind
        self._elsewhere = elsewhere                  # trials of the same evaluation that are no row of this one

    @property
    def can_filter(self) -> bool:
        """Whether arms may ask for a filter."""
        return all(replicate.model is not None for replicate in self.replicates.values())

    def conduct(self, arms: Iterable[tuple[Arm, Mix]], expected: int = 0) -> list[Row]:
        """Every given arm at its mix, for every replicate.

        Args:
            expected: trials of the whole evaluation, for the progress shown; 0 when that is not known.
        """
        trials = [Trial(arm, mix, number, self._kind) for arm, mix in arms for number in self.replicates]
        found = {trial: self._book.read(trial) if self._book else None for trial in trials}
        missing = [trial for trial, row in found.items() if row is None]
        done = self._elsewhere + len(self.rows) + len(trials) - len(missing)
        for number, row in self._runner(missing, self.replicates) if missing else ():
            trial = missing[number]
            found[trial] = row
            if self._book:
                self._book.write(trial, row)
            done += 1
            self._progress.update(done, expected or None, **_told(row))
        rows = [row for row in (found[trial] for trial in trials) if row is not None]
        self.rows += rows
        return rows

    def conduct_on_folds(self, folds: Sequence[Replicate], arms: Iterable[tuple[Arm, Mix]], expected: int = 0) -> list[Row]:
        """The same on other replicates, which are folds of the data; none of `rows`."""
        beside = Laboratory(folds, self._book, self._progress, self._runner, "x", self._elsewhere + len(self.rows))
        rows = beside.conduct(arms, expected)
        self._elsewhere += len(rows)
        return rows


def run_one(replicate: Replicate, trial: Trial, stop: Stop | None = None) -> Row:
    """One trial on its replicate."""
    mix = trial.mix
    head: Row = {
        "arm": trial.arm.name, "title": trial.arm.title, "balanced": trial.arm.balanced,
        "strength": trial.arm.strength if trial.arm.augment else 0.0,
        "logit_adjustment": trial.arm.logit_adjustment, "ratio": mix.ratio, "even": mix.even, "distinct": mix.distinct,
        "weight": mix.weight, "real_only_tail": mix.real_only_tail, "filter": mix.filter.name, "thresholds": mix.filter.asked,
        "seed": trial.replicate,
    }
    try:
        added = replicate.added(trial.arm, mix)
    except CannotFill as e:
        name = replicate.bench.classes[e.label]
        return {**head, "cannot": f"class {name!r}: {e.kept} of {e.drawn} draws passed the filter"}
    return {**head, **_keyed(run_trial(trial.arm, mix, replicate.bench, added, replicate.seed, stop))}


def _keyed(result: dict[str, Any]) -> dict[str, Any]:
    """Recall under the class numbers as JSON will have them, so that a row read back equals the row made."""
    for split in ("val", "test"):
        result[split]["recall"] = {str(label): value for label, value in result[split]["recall"].items()}
    return result


def _told(row: Row) -> dict[str, Any]:
    if "cannot" in row:
        return {"arm": row["arm"]}
    return {"arm": f"{row['arm']} {row['ratio']:g}", "accuracy": round(100 * row["val"]["balanced_accuracy"], 2)}


def mean(rows: Sequence[Row], split: str, figure: str) -> float:
    """Mean of a figure over rows."""
    return float(np.mean([row[split][figure] for row in rows]))


def best(groups: Iterable[Sequence[Row]]) -> Sequence[Row] | None:
    """The group of rows (one arm at one mix, all seeds) with the highest mean balanced accuracy on val.

    Groups tied within a hundredth of a point are told apart by val's log loss. Groups with a row that could not be
    made, or without rows, don't take part; None when none is left.
    """
    whole = [rows for rows in groups if rows and not any("cannot" in row for row in rows)]
    if not whole:
        return None
    highest = max(mean(rows, "val", "balanced_accuracy") for rows in whole)
    tied = [rows for rows in whole if mean(rows, "val", "balanced_accuracy") >= highest - 1e-4]
    return min(tied, key=lambda rows: mean(rows, "val", "nll"))


def alike(row: Row) -> tuple[Any, ...]:
    """What rows of one arm at one mix have in common."""
    return (row["arm"], row["ratio"], row.get("even", False), row.get("distinct", 1.0), row.get("weight", 1.0),
            row.get("real_only_tail", 0.0), row.get("filter", "none"))


def grouped(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows of one arm at one mix together, in the order of first appearance, each by seed."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(alike(row), []).append(row)
    return [sorted(group, key=lambda row: row["seed"]) for group in groups.values()]

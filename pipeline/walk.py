"""The walk of a run, stage by stage, without Prefect: what the flow's tasks and the single-stage commands both call.

    begin → prepare → train → evaluate → gate → plan → sample → publish

Each stage finds its inputs in its arguments and what it finished before in the run's folder.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import keys, runs
from pipeline.config import Config
from pipeline.errors import CorruptShard, GateRefused, StoreError
from pipeline.plan import Plan, PlanRecord
from pipeline.progress import Progress
from pipeline.records import Checkpoint, Receipt, Scorecard, Snapshot, Verdict, Version
from pipeline.runs import Run
from pipeline.wording import counted


@dataclass(frozen=True)
class Planned:
    """The shards to make, and what was written down of them: the version's name above all."""

    shards: Plan
    record: PlanRecord


def begin(config: Config, run_id: str | None, progress: Progress) -> Run:
    """Opens the run's folder in the store, after checking that the store can be written."""
    progress.stage("begin")
    run = runs.open_run(config, run_id)
    progress.note(f"run {run.run_id} in {run.folder.where()}")
    if run.lacking:
        progress.note(run.lacking)
    from pipeline.adoption import adopt

    adopted = adopt(config, run)
    if adopted is not None:
        progress.note(f"data, generator and evaluation are those of run {adopted}: nothing that decides them changed")
    return run


def published_already(config: Config, run: Run, progress: Progress) -> dict[str, Any] | None:
    """The latest manifest, if it was made from this very source, config and code."""
    return runs.published_version(config, run)


def prepare(config: Config, run: Run, progress: Progress) -> Snapshot:
    """Reads, checks, splits and stores the source's images.

    Raises:
        ConfigError: among others, there is nothing to make for `sample.target`: said now, not after the training.
    """
    from pipeline import prepare as room
    from pipeline.plan import rows_to_make

    progress.stage("prepare")
    snapshot = room.prepare(config, run.folder, progress)
    rows = snapshot.rows
    bad = sum(snapshot.quarantined.values())
    progress.note(
        f"{sum(rows.values()):,} images of {len(snapshot.classes)} classes: {rows['train']:,} train, {rows['val']:,} val, "
        f"{rows['test']:,} test" + (f"; {bad:,} quarantined" if bad else "")
    )
    rows_to_make(snapshot.rows_per_class["train"], snapshot.classes, config.sample.target)
    return snapshot


def train(config: Config, snapshot: Snapshot, run: Run, progress: Progress) -> Checkpoint:
    """Trains the generator on Ray."""
    from pipeline import training

    progress.stage("train")
    checkpoint = training.train(config, snapshot, run.folder, progress)
    progress.note(f"{checkpoint.model}: {checkpoint.trained_kimg:,.0f} kimg in {checkpoint.seconds:,.0f} s")
    return checkpoint


def evaluate(config: Config, snapshot: Snapshot, checkpoint: Checkpoint, run: Run, progress: Progress) -> Scorecard:
    """Measures the generator's images."""
    from pipeline import evaluation

    progress.stage("evaluate")
    scorecard = evaluation.evaluate(config, snapshot, checkpoint, run.folder, progress)
    beside = f" ({scorecard.fd_ratio:.2f} times real images')" if math.isfinite(scorecard.fd_ratio) else ""
    progress.note(
        f"agreement {scorecard.agreement:.3f}, FD-{scorecard.features} {scorecard.fd:.2f}{beside}, "
        f"coverage {scorecard.coverage:.2f}" + (f"; {scorecard.lift.sentence}" if scorecard.lift else "")
    )
    return scorecard


def gate(
    config: Config, snapshot: Snapshot, checkpoint: Checkpoint, scorecard: Scorecard, run: Run, progress: Progress
) -> Verdict:
    """Lets the thresholds decide.

    Raises:
        GateRefused: after the report, which says why, was written into the run's folder.
    """
    from pipeline import gate as room

    progress.stage("gate")
    verdict = room.decide(config.gate, scorecard)
    return obey(verdict, run, progress, lambda: _report(config, snapshot, checkpoint, scorecard, verdict, run))


def obey(verdict: Verdict, run: Run, progress: Progress, report: Callable[[], bytes]) -> Verdict:
    """Keeps the verdict in the run's folder and goes on, or doesn't.

    Raises:
        GateRefused: after the report, which says why, was written into the run's folder.
    """
    run.folder.put_json(keys.VERDICT, verdict.to_json())
    if verdict.passed or not verdict.enforced:
        progress.note("passed" if verdict.passed else "not passed, but the gate is off: " + " ".join(verdict.reasons))
        return verdict
    run.folder.put(keys.REPORT, report())
    raise GateRefused(f"{' '.join(verdict.reasons)} Nothing was published. Report: {run.folder.where(keys.REPORT)}")


def plan(config: Config, snapshot: Snapshot, checkpoint: Checkpoint, run: Run, progress: Progress) -> Planned:
    """Works out the rows and shards, and the version's name; the run's own plan if it has one already."""
    from pipeline.plan import open_plan

    progress.stage("plan")
    shards, record = open_plan(config, snapshot, checkpoint, run.folder, run.dataset)
    progress.note(f"{shards.rows:,} images in {counted(len(shards), 'shard')} of {record.version}")
    return Planned(shards, record)


def sample(
    config: Config, snapshot: Snapshot, checkpoint: Checkpoint, planned: Planned, run: Run, progress: Progress
) -> Sequence[Receipt]:
    """Makes the shards that have no receipt yet, on Ray."""
    from pipeline import fanout
    from pipeline.filtering import filter_loader

    progress.stage("sample")
    receipts = fanout.sample(
        config, snapshot, checkpoint, planned.shards, run.folder, run.dataset, planned.record.version, progress,
        load_filter=filter_loader(config, run.folder, checkpoint, len(snapshot.classes)),
    )
    rejected = sum(count for receipt in receipts for count in receipt.rejects.values())
    progress.note(f"{sum(r.rows for r in receipts):,} images made" + (f", {rejected:,} redrawn" if rejected else ""))
    return receipts


def publish(
    config: Config, snapshot: Snapshot, checkpoint: Checkpoint, scorecard: Scorecard, verdict: Verdict, planned: Planned,
    receipts: Sequence[Receipt], run: Run, progress: Progress,
) -> Version:
    """Writes card, Croissant, report and manifest, and makes the version visible."""
    from pipeline import publication

    progress.stage("publish")

    def attachments(manifest: dict[str, Any]) -> dict[str, bytes]:
        report = _report(config, snapshot, checkpoint, scorecard, verdict, run, planned, manifest["created"], receipts)
        run.folder.put(keys.REPORT, report)
        return {keys.REPORT: report, **_cards(config, snapshot, scorecard, manifest)}

    version = publication.commit(
        config, snapshot, checkpoint, scorecard, verdict, planned.shards, receipts, run.dataset, run.run_id,
        planned.record.version, attachments,
    )
    progress.note(f"{version.name} is visible: {version.rows:,} images in {counted(version.shards, 'object')}")
    _retire(config, run, progress)
    return version


def _retire(config: Config, run: Run, progress: Progress) -> None:
    """Removes old versions as `publish.retention` says. The new one is out by now, so a store that refuses is no failure."""
    from pipeline.retention import retire

    if config.publish.retention is None:
        return
    try:
        retired = retire(run.dataset, config.publish.retention)
    except (StoreError, CorruptShard) as e:
        progress.note(f"old versions stay for now: {e}")
        return
    if retired:
        progress.note(f"removed {', '.join(retired)}: publish.retention keeps {config.publish.retention}")


def report(
    config: Config, snapshot: Snapshot, checkpoint: Checkpoint, scorecard: Scorecard, verdict: Verdict, run: Run,
    progress: Progress,
) -> str:
    """Writes the report into the run's folder again; its URL. A published version's report is never touched."""
    progress.stage("report")
    run.folder.put(keys.REPORT, _report(config, snapshot, checkpoint, scorecard, verdict, run))
    return run.folder.where(keys.REPORT)


def recall_all(run: Run, *, before: str) -> tuple[Any, ...]:
    """(snapshot, checkpoint[, scorecard, verdict]) that the stage `before` needs, from the run's folder.

    Raises:
        RunMismatch: an earlier stage has not finished; says which.
    """
    wanted: list[tuple[str, Any, str]] = [
        (keys.SNAPSHOT, Snapshot, "train"), (keys.TRAINED, Checkpoint, "train"),
        (keys.SCORECARD, Scorecard, "evaluate"), (keys.VERDICT, Verdict, "evaluate"),
    ]
    return tuple(
        runs.recall(run, key, record, stage) for key, record, stage in wanted[: 2 if before == "evaluate" else 4]
    )


def _report(
    config: Config, snapshot: Snapshot, checkpoint: Checkpoint, scorecard: Scorecard, verdict: Verdict, run: Run,
    planned: Planned | None = None, created: str = "", receipts: Sequence[Receipt] = (),
) -> bytes:
    from pipeline.documents.gathering import make_report

    return make_report(
        config, snapshot, checkpoint, scorecard, verdict, planned.shards.rows_per_class if planned else {}, run.folder,
        run.run_id, version=planned.record.version if planned else None, created=created, receipts=receipts,
        timings={"prepare": snapshot.seconds, "train": checkpoint.seconds, "evaluate": scorecard.seconds},
    )


def _cards(config: Config, snapshot: Snapshot, scorecard: Scorecard, manifest: dict[str, Any]) -> dict[str, bytes]:
    from pipeline.documents.card import dataset_card
    from pipeline.documents.croissant import croissant
    from pipeline.lift.verdict import published
    from pipeline.store import json_bytes

    cards = {
        keys.CARD: dataset_card(manifest, scorecard, snapshot, config).encode(),
        keys.CROISSANT: json_bytes(croissant(manifest)),
    }
    return cards if scorecard.lift is None else cards | {keys.LIFT_ROWS_PUBLISHED: json_bytes(published(scorecard.lift))}


"""The stages as Prefect tasks: each calls one function of the floor below and shows its result on the run page.

No task caches: what is finished lies in the run folder with its fingerprint, and each stage returns it from there.
Retries only where the fault may pass by itself: the object store and the source. A diverged training or a refusal
would only repeat itself, and a lost worker is dealt with below, by Ray.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar, cast

from prefect import task
from prefect.cache_policies import NO_CACHE

from flows import page
from flows.outcome import Outcome
from flows.outcome import published as published_outcome
from flows.outcome import up_to_date as up_to_date_outcome
from pipeline import keys, walk
from pipeline.config import Config
from pipeline.errors import StoreError
from pipeline.records import Checkpoint, Receipt, Scorecard, Snapshot, Verdict, Version
from pipeline.runs import Run
from pipeline.walk import Planned

P = ParamSpec("P")
R = TypeVar("R")


def _store_trouble(_task: Any, _run: Any, state: Any) -> bool:
    """Only a store's trouble is worth another try."""
    return isinstance(state.result(raise_on_failure=False), StoreError)


def stage(retries: int = 0) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A Prefect task named after its function; `retries` for trouble with the store."""

    def wrap(function: Callable[P, R]) -> Callable[P, R]:
        made = task(
            name=function.__name__, retries=retries, retry_delay_seconds=[2.0, 10.0, 30.0][:retries] or None,
            retry_condition_fn=_store_trouble if retries else None, cache_policy=NO_CACHE, persist_result=False,
        )(function)
        return cast(Callable[P, R], made)

    return wrap


@stage(retries=3)
def begin(config: Config, run_id: str | None, progress: Any) -> Run:
    """Opens the run's folder."""
    return walk.begin(config, run_id, progress)


@stage(retries=3)
def up_to_date(config: Config, run: Run, progress: Any) -> Outcome | None:
    """The published version, if it was made from this very source, config and code."""
    manifest = walk.published_already(config, run, progress)
    if manifest is None:
        return None
    outcome = up_to_date_outcome(run, manifest)
    page.up_to_date(outcome)
    progress.note(outcome.sentence)
    return outcome


@stage(retries=3)
def prepare(config: Config, run: Run, progress: Any) -> Snapshot:
    """Source → snapshot."""
    snapshot = walk.prepare(config, run, progress)
    page.class_table(snapshot)
    return snapshot


@stage()
def train(config: Config, snapshot: Snapshot, run: Run, progress: Any) -> Checkpoint:
    """Snapshot → checkpoint, on Ray."""
    checkpoint = walk.train(config, snapshot, run, progress)
    with contextlib.suppress(StoreError):            # no run fails for want of a picture
        newest = run.folder.list(keys.GRIDS)[-1:]
        for info in newest:
            page.picture("ganmill-samples", run.folder.get(info.key), f"Samples after {checkpoint.trained_kimg:,.0f} kimg")
    return checkpoint


@stage(retries=1)
def evaluate(config: Config, snapshot: Snapshot, checkpoint: Checkpoint, run: Run, progress: Any) -> Scorecard:
    """Checkpoint → scorecard."""
    scorecard = walk.evaluate(config, snapshot, checkpoint, run, progress)
    page.scores(scorecard)
    with contextlib.suppress(StoreError):
        page.picture("ganmill-nearest", run.folder.get(keys.NEAREST), "Samples, each beside its nearest training image")
    return scorecard


@stage()
def gate(
    config: Config, snapshot: Snapshot, checkpoint: Checkpoint, scorecard: Scorecard, run: Run, progress: Any
) -> Verdict:
    """Scorecard → verdict; raises `GateRefused` after writing the report."""
    try:
        return walk.gate(config, snapshot, checkpoint, scorecard, run, progress)
    finally:
        with contextlib.suppress(StoreError):
            page.verdict(Verdict.from_json(run.folder.get_json(keys.VERDICT)))


@stage(retries=3)
def plan(config: Config, snapshot: Snapshot, checkpoint: Checkpoint, run: Run, progress: Any) -> Planned:
    """Which rows, in which shards, in which version."""
    return walk.plan(config, snapshot, checkpoint, run, progress)


@stage(retries=2)
def sample(config: Config, snapshot: Snapshot, checkpoint: Checkpoint, plan: Planned, run: Run, progress: Any) -> Sequence[Receipt]:
    """Plan → shards in the store, on Ray; what has a receipt is kept."""
    return walk.sample(config, snapshot, checkpoint, plan, run, progress)


@stage(retries=3)
def publish(
    config: Config, snapshot: Snapshot, checkpoint: Checkpoint, scorecard: Scorecard, verdict: Verdict, plan: Planned,
    receipts: Sequence[Receipt], run: Run, progress: Any,
) -> Version:
    """Receipts → a version, visible all at once, with its card and report."""
    return walk.publish(config, snapshot, checkpoint, scorecard, verdict, plan, receipts, run, progress)


@stage()
def submit(config: Config, raw: dict[str, Any], run_id: str | None, progress: Any) -> Outcome:
    """The whole run as a job of the cluster; its story is told here as if it happened here."""
    from flows.submission import submitted

    told = submitted("run", config, raw, run_id, progress)
    outcome = Outcome(**{field.name: told[field.name] for field in dataclasses.fields(Outcome)})
    if outcome.status == "published":
        page.published(outcome)
    else:
        page.up_to_date(outcome)
    return outcome


@stage()
def announce(config: Config, run: Run, version: Version, progress: Any, rows_are: str = "images") -> Outcome:
    """Links on the run page and an event for whoever waits for this dataset."""
    outcome = published_outcome(run, version, rows_are)
    page.published(outcome)
    progress.note(f"{version.name} is visible at {time.strftime('%H:%M:%S')}")
    return outcome

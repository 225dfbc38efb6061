"""The stages for points on the plane, as Prefect tasks and as single commands; see `pipeline.plane`."""

from collections.abc import Sequence
from typing import Any

from flows.outcome import Outcome
from flows.outcome import published as published_outcome
from pipeline.config import Config
from pipeline.records import Checkpoint, Receipt, Snapshot, Verdict, Version
from pipeline.runs import Run
from pipeline.walk import Planned


def augment(config: Config, run: Run, progress: Any) -> Outcome:
    """From the mixture's name to a published version, each stage a task of the flow run that this is called in.

    Raises:
        GateRefused: the points did not pass; the report in the run folder says why.
    """
    from flows import stages
    from pipeline.plane import walk
    from pipeline.plane.scorecard import PlaneScorecard

    task = stages.stage

    @task(retries=3)
    def prepare() -> Snapshot:
        return walk.prepare(config, run, progress)

    @task()
    def train() -> Checkpoint:
        return walk.train(config, run, progress)

    @task()
    def evaluate() -> PlaneScorecard:
        return walk.evaluate(config, run, progress)

    @task()
    def gate(scorecard: PlaneScorecard) -> Verdict:
        return walk.gate(config, scorecard, run, progress)

    @task(retries=3)
    def plan(snapshot: Snapshot, checkpoint: Checkpoint) -> Planned:
        return walk.plan(config, snapshot, checkpoint, run, progress)

    @task(retries=2)
    def sample(snapshot: Snapshot, checkpoint: Checkpoint, planned: Planned) -> Sequence[Receipt]:
        return walk.sample(config, snapshot, checkpoint, planned, run, progress)

    @task(retries=3)
    def publish(
        snapshot: Snapshot, checkpoint: Checkpoint, scorecard: PlaneScorecard, verdict: Verdict, planned: Planned,
        receipts: Sequence[Receipt],
    ) -> Version:
        return walk.publish(config, snapshot, checkpoint, scorecard, verdict, planned, receipts, run, progress)

    snapshot, checkpoint, scorecard = prepare(), train(), evaluate()
    verdict, planned = gate(scorecard), plan(snapshot, checkpoint)
    version = publish(snapshot, checkpoint, scorecard, verdict, planned, sample(snapshot, checkpoint, planned))
    return stages.announce(config, run, version, progress, "points")


def run_stage(name: str, config: Config, run: Run, progress: Any) -> dict[str, Any]:
    """One stage as a plain call.

    Args:
        name: train | evaluate | sample | report.
    """
    from pipeline import keys, runs
    from pipeline.plane import walk
    from pipeline.plane.scorecard import PlaneScorecard

    if name == "train":
        walk.prepare(config, run, progress)
        trained = walk.train(config, run, progress)
        text = f"trained on {trained.trained_kimg:,.0f} thousand points; next: ganmill evaluate CONFIG --run-id {run.run_id}"
        return {"text": text, "run_id": run.run_id, **trained.to_json()}
    snapshot = runs.recall(run, keys.SNAPSHOT, Snapshot, "train")
    checkpoint = runs.recall(run, keys.TRAINED, Checkpoint, "train")
    if name == "evaluate":
        scorecard = walk.evaluate(config, run, progress)
        walk.gate(config, scorecard, run, progress)
        return {"text": f"passed the gate; next: ganmill sample CONFIG --run-id {run.run_id}", "run_id": run.run_id, **scorecard.scores}
    scorecard = runs.recall(run, keys.SCORECARD, PlaneScorecard, "evaluate")
    verdict = runs.recall(run, keys.VERDICT, Verdict, "evaluate")
    if name == "report":
        url = walk.report(config, scorecard, verdict, run, progress)
        return {"text": f"report: {url}", "run_id": run.run_id, "report_url": url}
    planned = walk.plan(config, snapshot, checkpoint, run, progress)
    receipts = walk.sample(config, snapshot, checkpoint, planned, run, progress)
    version = walk.publish(config, snapshot, checkpoint, scorecard, verdict, planned, receipts, run, progress)
    return published_outcome(run, version, "points").to_result()

"""What the Prefect run page shows of a run, and the event that tells others. Says nothing outside a flow run."""

from typing import Any

from flows.outcome import Outcome
from pipeline.records import Scorecard, Snapshot

PUBLISHED_EVENT = "ganmill.dataset.published"


def class_table(snapshot: Snapshot) -> None:
    """A table: class, rows in each split."""
    if _in_flow_run():
        from prefect.artifacts import create_table_artifact

        rows = [
            {"class": name, **{split: per_class.get(name, 0) for split, per_class in snapshot.rows_per_class.items()}}
            for name in snapshot.classes
        ]
        create_table_artifact(table=rows, key="ganmill-classes", description="Real images per class and split")


def scores(scorecard: Scorecard) -> None:
    """A table of the figures and, in words, what the lift trial found."""
    if _in_flow_run():
        from prefect.artifacts import create_table_artifact

        words = scorecard.lift.sentence if scorecard.lift is not None else "lift was not measured"
        rows = [{"figure": name, "value": value} for name, value in scorecard.scores.items()]
        create_table_artifact(table=rows, key="ganmill-scores", description=f"{words} N = {scorecard.samples:,} samples")


def published(outcome: Outcome) -> None:
    """A link to the report, and the event, which comes only after `LATEST.json` moved."""
    if _in_flow_run():
        from prefect.artifacts import create_link_artifact, create_markdown_artifact
        from prefect.events import emit_event

        create_link_artifact(link=outcome.report_url, link_text="report", key="ganmill-report", description=outcome.version)
        create_markdown_artifact(markdown=_story(outcome), key="ganmill-version")
        emit_event(
            PUBLISHED_EVENT, resource={"prefect.resource.id": f"ganmill.dataset.{outcome.dataset_url}"},
            payload={"version": outcome.version, "rows": outcome.rows, "url": outcome.dataset_url, "run_id": outcome.run_id},
        )


def _story(outcome: Outcome) -> str:
    made = "\n".join(f"| {name} | {count:,} |" for name, count in outcome.rows_per_class.items())
    return f"**{outcome.version}**, {outcome.rows:,} images at `{outcome.dataset_url}`\n\n| class | synthetic |\n|---|---|\n{made}\n"


def _in_flow_run() -> Any:
    from prefect.context import FlowRunContext

    return FlowRunContext.get()

"""What the Prefect run page shows of a run, and the events that tell others. Says nothing outside a flow run."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flows.outcome import Outcome
from pipeline.config import Config
from pipeline.errors import GanmillError, GateRefused, Interrupted
from pipeline.records import Scorecard, Snapshot, Verdict
from pipeline.redaction import public_url
from pipeline.store import Store

PUBLISHED_EVENT = "ganmill.dataset.published"
REFUSED_EVENT = "ganmill.dataset.refused"            # measured, and not good enough: the version before stays
UP_TO_DATE_EVENT = "ganmill.dataset.up-to-date"     # nothing had to be done; with the first, the sign of life
FAILED_EVENT = "ganmill.dataset.failed"              # the run ended without a word on the images
_UNKNOWN = "ganmill.dataset.unknown"
MAX_PICTURE_BYTES = 500_000                          # the server keeps it in its database


def run_name() -> str:
    """Name of a flow run: the run id where one was given, else dataset and time of the firing."""
    from prefect.runtime import flow_run

    parameters = flow_run.parameters or {}
    config = parameters.get("config") or {}
    name = config.get("name", "ganmill") if isinstance(config, dict) else getattr(config, "name", "ganmill")
    return str(parameters.get("run_id") or f"{name}-{flow_run.scheduled_start_time:%Y%m%d-%H%M%S}")


@dataclass
class Subject:
    """What a run is about, as far as it is known by now."""

    name: str
    run_id: str | None
    settings: Config | None = None

    @property
    def resource(self) -> dict[str, str]:
        """The dataset as Prefect's event resource."""
        url = None if self.settings is None else public_url(Store(self.settings.dataset_url).where())
        return {"prefect.resource.id": f"ganmill.dataset.{url}" if url else _UNKNOWN, "prefect.resource.name": self.name}


@contextlib.contextmanager
def bad_ends(config: Any, run_id: str | None) -> Iterator[Subject]:
    """Emits an event when what is inside refuses or fails; a stop on request is neither."""
    subject = Subject(str(config.get("name", "")) if isinstance(config, dict) else "", run_id)
    try:
        yield subject
    except Interrupted:
        raise
    except GateRefused as e:
        _emit_bad_end(REFUSED_EVENT, subject, e)
        raise
    except Exception as e:
        _emit_bad_end(FAILED_EVENT, subject, e)
        raise


def _emit_bad_end(event: str, subject: Subject, error: Exception) -> None:
    if not _in_flow_run():
        return
    from prefect.events import emit_event

    named = isinstance(error, GanmillError)          # an unnamed fault's text may hold anything; the log has it
    emit_event(event, resource=subject.resource, payload={
        "name": subject.name, "run_id": subject.run_id, "kind": type(error).__name__,
        "reason": str(error) if named else f"unexpected {type(error).__name__}; see the run's log",
    })


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


def picture(key: str, png: bytes, text: str) -> None:
    """A picture on the run page, sent along with it: the store's address may mean nothing to a browser."""
    if _in_flow_run() and len(png) <= MAX_PICTURE_BYTES:
        from base64 import b64encode

        from prefect.artifacts import create_image_artifact

        create_image_artifact(image_url=f"data:image/png;base64,{b64encode(png).decode()}", key=key, description=text)


def verdict(decided: Verdict) -> None:
    """What the gate decided, and why."""
    if _in_flow_run():
        from prefect.artifacts import create_markdown_artifact

        word = "passed" if decided.passed else "**refused**" if decided.enforced else "not passed, but the gate is off"
        create_markdown_artifact(markdown="\n".join([word, "", *(f"- {reason}" for reason in decided.reasons)]), key="ganmill-verdict")


def published(outcome: Outcome) -> None:
    """A link to the report, and the event, which comes only after `LATEST.json` moved."""
    if _in_flow_run():
        from prefect.artifacts import create_link_artifact, create_markdown_artifact

        create_link_artifact(link=outcome.report_url, link_text="report", key="ganmill-report", description=outcome.version)
        create_markdown_artifact(markdown=_story(outcome), key="ganmill-version")
        _emit_good_end(PUBLISHED_EVENT, outcome)


def up_to_date(outcome: Outcome) -> None:
    """A word that nothing had to be done, and which version stands."""
    if _in_flow_run():
        from prefect.artifacts import create_markdown_artifact

        create_markdown_artifact(markdown=f"**up to date**: {outcome.version} stands. {_story(outcome)}", key="ganmill-version")
        _emit_good_end(UP_TO_DATE_EVENT, outcome)


def _emit_good_end(event: str, outcome: Outcome) -> None:
    from prefect.events import emit_event

    emit_event(
        event,
        resource={"prefect.resource.id": f"ganmill.dataset.{outcome.dataset_url}",
                  "prefect.resource.name": outcome.dataset_url.rsplit("/", 1)[-1]},
        payload={"version": outcome.version, "rows": outcome.rows, "url": outcome.dataset_url, "run_id": outcome.run_id},
    )


def _story(outcome: Outcome) -> str:
    made = "\n".join(f"| {name} | {count:,} |" for name, count in outcome.rows_per_class.items())
    return f"**{outcome.version}**, {outcome.rows:,} images at `{outcome.dataset_url}`\n\n| class | synthetic |\n|---|---|\n{made}\n"


def _in_flow_run() -> Any:
    from prefect.context import FlowRunContext

    return FlowRunContext.get()

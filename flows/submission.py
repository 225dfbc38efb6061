"""Runs that a Ray cluster's Jobs URL takes: what the job says is heard here as if it happened here."""

from collections.abc import Mapping
from typing import Any

from pipeline import errors
from pipeline.config import Config
from pipeline.errors import ClusterError, GanmillError


def submitted(command: str, config: Config, raw: Mapping[str, Any], run_id: str | None, progress: Any) -> dict[str, Any]:
    """`ganmill <command>` on the cluster of `config.cluster.address`, followed to its end.

    Args:
        command: run | train | evaluate | sample | report.
        raw: the config as read, `${NAME}` not yet replaced.

    Returns:
        The command's result as plain values, `text` for a person.

    Raises:
        GanmillError: as the command itself would here, by the same name.
    """
    from pipeline.cluster.jobs import run_as_job

    def hear(event: dict[str, Any]) -> None:
        if event["event"] == "stage":
            progress.stage(event["stage"])
        elif event["event"] == "note":
            progress.note(event["message"])
        elif event["event"] == "progress":
            figures = {k: v for k, v in event.items() if k not in ("event", "time", "stage", "done", "total")}
            progress.update(event["done"], event["total"], **figures)

    result = run_as_job(config.cluster.address, command, raw, run_id, hear, ship_code=config.cluster.ship_code)
    told = {k: v for k, v in result.items() if k not in ("event", "time")}
    if "error" in told:
        raise _error(told)
    told.setdefault("text", told.get("sentence") or f"{command} done on {config.cluster.address}")
    return told


def _error(told: dict[str, Any]) -> GanmillError:
    """The job's error by its own name, so that a refusal there is a refusal here."""
    kind = getattr(errors, str(told["error"]), None)
    if isinstance(kind, type) and issubclass(kind, GanmillError):
        return kind(str(told["message"]))
    return ClusterError(f"the job failed: {told['message']}")


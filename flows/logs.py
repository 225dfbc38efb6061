"""Structured logs: with GANMILL_LOG_FORMAT=json every line that a person would read becomes one JSON object.

Each has `time` (UTC), `level`, `message`, and, as soon as they are known, `run_id` and `stage`; progress has its figures
beside them. Text stays the default.
"""

import json
import logging
import os
import time
import traceback
from datetime import UTC, datetime
from typing import IO, Any

from pipeline.errors import ConfigError

FORMAT = "GANMILL_LOG_FORMAT"
PROGRESS_EVERY_S = 5.0
_FROM_PREFECT = ("flow_run_id", "flow_run_name", "task_run_name")

_run_id: str | None = None                           # of the one run that this process does


def json_wanted() -> bool:
    """Whether GANMILL_LOG_FORMAT asks for JSON lines.

    Raises:
        ConfigError: it is neither text nor json.
    """
    wanted = os.environ.get("GANMILL_LOG_FORMAT", "text") or "text"
    if wanted not in ("text", "json"):
        raise ConfigError(f"{FORMAT}: {wanted!r} is no format; set it to text or json")
    return wanted == "json"


def name_run(run_id: str | None) -> None:
    """From now on this process's lines carry `run_id`."""
    global _run_id
    _run_id = run_id


def line(level: str, message: str, stage: str = "", **more: Any) -> str:
    """One JSON object on one line."""
    told = {"time": _stamp(time.time()), "level": level, "message": message, "run_id": _run_id, "stage": stage or None, **more}
    return json.dumps({key: value for key, value in told.items() if value is not None}, default=str, ensure_ascii=False)


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class StructuredProgress:
    """A listener that writes JSON lines: stages and notes at once, progress every few seconds."""

    def __init__(self, out: IO[str]) -> None:
        self._out, self._stage, self._last = out, "", 0.0

    def stage(self, name: str) -> None:
        """A line that a stage begins."""
        self._stage, self._last = name, time.monotonic()
        self._say(line("INFO", f"stage {name}", name))

    def update(self, done: float, total: float | None = None, **figures: float | str) -> None:
        """A line if the last one is some seconds old."""
        if time.monotonic() - self._last >= PROGRESS_EVERY_S:
            self._last = time.monotonic()
            self._say(line("INFO", "progress", self._stage, done=done, total=total, **figures))

    def note(self, message: str) -> None:
        """A line at once."""
        self._say(line("INFO", message, self._stage))

    def close(self) -> None:
        """Nothing to tidy."""

    def _say(self, text: str) -> None:
        print(text, file=self._out, flush=True)


class JsonLines(logging.Formatter):
    """Log records in the same form; a record may bring its `stage`."""

    def format(self, record: logging.LogRecord) -> str:
        """One JSON object on one line, a traceback inside it."""
        more = {name: getattr(record, name, None) for name in _FROM_PREFECT}
        if record.exc_info and record.exc_info[0] is not None:
            more["exception"] = "".join(traceback.format_exception(*record.exc_info))
        return line(record.levelname, record.getMessage(), getattr(record, "stage", ""), logger=record.name, **more)


def structure_console(logger: logging.Logger) -> None:
    """Gives every handler that writes to the console, from `logger` up to the root, the JSON form."""
    current: logging.Logger | None = logger
    while current is not None:
        for handler in current.handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setFormatter(JsonLines())
        current = current.parent if current.propagate else None

"""Who hears what a run says: the command line's listener, Prefect's run page, or both."""

import contextlib
import contextvars
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

from flows.console import Tee
from flows.logs import json_wanted, structure_console

ARTIFACT_EVERY_S = 2.0
LAST_FIGURE_S = 5.0

_command_line: Any = None                            # set by the command line for the run that it starts


@contextlib.contextmanager
def command_line(progress: Any) -> Iterator[None]:
    """Lets `progress` hear the flow that is started within."""
    global _command_line
    _command_line = progress
    try:
        yield
    finally:
        _command_line = None


@contextlib.contextmanager
def listener(*others: Any) -> Iterator[Any]:
    """The listener for this flow run: the command line's if it started the run, Prefect's run page, and `others`."""
    page = RunPage()
    progress = Tee(*([_command_line] if _command_line is not None else []), page, *others)
    try:
        yield progress
    finally:
        page.close()


class RunPage:
    """Notes into the run's log, progress into one progress artifact.

    The artifact is for whoever looks at a server's page: without a server there is none, and a server that is slow or gone
    neither holds the run up nor ends it.
    """

    def __init__(self) -> None:
        from prefect.context import FlowRunContext
        from prefect.logging import get_run_logger
        from prefect.settings import get_current_settings

        context = FlowRunContext.get()
        self._logger = get_run_logger() if context is not None else None
        self._watched = context is not None and bool(get_current_settings().api.url)
        if context is not None and json_wanted():
            structure_console(logging.getLogger("prefect.flow_runs"))
            structure_console(logging.getLogger("prefect.task_runs"))
        self._artifact: Any = None
        self._sending: threading.Thread | None = None
        self._stage, self._last = "", 0.0

    def stage(self, name: str) -> None:
        """A line in the log."""
        self._stage, self._last = name, 0.0
        if self._logger is not None:
            self._logger.info("stage %s", name, extra={"stage": name})

    def update(self, done: float, total: float | None = None, **figures: float | str) -> None:
        """Moves the progress artifact, every two seconds at most."""
        if not self._watched or not total or time.monotonic() - self._last < ARTIFACT_EVERY_S:
            return
        if self._sending is not None and self._sending.is_alive():
            return                                   # the server takes its time: a later figure will do
        from flows.console import describe

        self._last = time.monotonic()
        told = min(100.0, 100.0 * done / total), f"{self._stage}: {describe(figures)}"
        self._sending = threading.Thread(target=contextvars.copy_context().run, args=(self._send, *told), daemon=True)
        self._sending.start()

    def _send(self, percent: float, text: str) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        try:
            if self._artifact is None:
                self._artifact = create_progress_artifact(progress=percent, key="ganmill-progress", description=text)
            else:
                update_progress_artifact(self._artifact, progress=percent, description=text)
        except Exception as e:  # noqa: BLE001  the run is worth more than the page that shows it
            logging.getLogger(__name__).debug("progress was not told to Prefect: %s", e)

    def note(self, message: str) -> None:
        """A line in the log."""
        if self._logger is not None:
            self._logger.info("%s: %s", self._stage, message, extra={"stage": self._stage})

    def close(self) -> None:
        """Waits a little for the last figure; the artifact stays."""
        if self._sending is not None:
            self._sending.join(LAST_FIGURE_S)



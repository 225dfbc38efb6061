"""What a person or a program sees while a run goes on.

Three listeners to the same events: live bars on a terminal, a line every few seconds where output is piped, JSON lines
on stdout for programs (everything human then goes to stderr).
"""

import json
import sys
import time
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from flows.logs import StructuredProgress, json_wanted

LINE_EVERY_S = 5.0
JSON_EVERY_S = 1.0
_FOR_PROGRAMS = {"queue", "in_flight"}           # in the JSON and for Prometheus, not on a terminal
_LABELS = {"images_per_s": "images/s", "loss_d": "D", "loss_g": "G", "kimg": "kimg"}


def describe(figures: dict[str, float | str]) -> str:
    """`12.8 kimg  1,612 images/s  D 1.21  G 0.88`."""
    parts = []
    for name, value in figures.items():
        if name in _FOR_PROGRAMS:
            continue
        label = _LABELS.get(name, name.replace("_", " "))
        if isinstance(value, str):
            parts.append(f"{label} {value}")
        elif name in ("images_per_s", "kimg"):
            parts.append(f"{value:,.{0 if value >= 100 else 1}f} {label}")
        else:
            parts.append(f"{label} {value:.3g}")
    return "  ".join(parts)


class LineProgress:
    """One line every few seconds: for logs and pipes."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._stage, self._last = "", 0.0
        self._first: tuple[float, float] | None = None        # when the stage first told how far it is, and how far: it may be resumed

    def stage(self, name: str) -> None:
        """Names the stage that begins."""
        self._stage, self._first, self._last = name, None, time.monotonic()
        self._say(name)

    def update(self, done: float, total: float | None = None, **figures: float | str) -> None:
        """A line if the last one is some seconds old."""
        now = time.monotonic()
        self._first = self._first or (now, done)
        if now - self._last < LINE_EVERY_S:
            return
        self._last = now
        (began, before) = self._first
        share = f"{100 * done / total:3.0f} %" if total else f"{done:g}"
        eta = f"  ETA {_duration((now - began) * (total - done) / (done - before))}" if total and done > before else ""
        self._say(f"{self._stage}: {share}  {describe(figures)}{eta}")

    def note(self, message: str) -> None:
        """A line at once."""
        self._say(f"{self._stage}: {message}" if self._stage else message)

    def close(self) -> None:
        """Nothing to tidy."""

    def _say(self, line: str) -> None:
        print(f"{time.strftime('%H:%M:%S')}  {line}", file=self._out, flush=True)


class BarProgress:
    """A live bar for the stage at work, lines for what was finished."""

    def __init__(self, out: IO[str]) -> None:
        self._console = Console(file=out, highlight=False)
        self._bars = Progress(
            TextColumn("[bold]{task.description:<9}"), BarColumn(bar_width=28), TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(compact=True), TextColumn("[dim]{task.fields[figures]}"), console=self._console, transient=True,
        )
        self._bar: TaskID | None = None
        self._stage, self._began = "", time.monotonic()

    def stage(self, name: str) -> None:
        """A new bar; the last stage becomes a line with its time."""
        self._finish_stage()
        self._stage, self._began = name, time.monotonic()
        self._bars.start()
        self._bar = self._bars.add_task(name, total=None, figures="")

    def update(self, done: float, total: float | None = None, **figures: float | str) -> None:
        """Moves the bar."""
        if self._bar is not None:
            self._bars.update(self._bar, completed=done, total=total, figures=describe(figures))

    def note(self, message: str) -> None:
        """A line above the bar."""
        self._console.print(f"[dim]{self._stage:<9}[/dim] {_plain(message)}")

    def close(self) -> None:
        """Takes the bar away."""
        self._finish_stage()
        self._bars.stop()

    def _finish_stage(self) -> None:
        if self._bar is not None:
            self._bars.remove_task(self._bar)
            self._bar = None
            self._console.print(f"[green]✓[/green] {self._stage:<9} [dim]{_duration(time.monotonic() - self._began)}[/dim]")


class JsonProgress:
    """Events as JSON lines: {"event": "stage" | "progress" | "note", …}."""

    def __init__(self, out: IO[str]) -> None:
        self._out, self._stage, self._last = out, "", 0.0

    def stage(self, name: str) -> None:
        """An event that a stage begins."""
        self._stage, self._last = name, 0.0
        self._emit(event="stage", stage=name)

    def update(self, done: float, total: float | None = None, **figures: float | str) -> None:
        """At most one progress event a second."""
        if time.monotonic() - self._last >= JSON_EVERY_S:
            self._last = time.monotonic()
            self._emit(event="progress", stage=self._stage, done=done, total=total, **figures)

    def note(self, message: str) -> None:
        """An event with a message."""
        self._emit(event="note", stage=self._stage, message=message)

    def close(self) -> None:
        """Nothing to tidy."""

    def _emit(self, **event: Any) -> None:
        print(json.dumps({"time": time.time(), **event}), file=self._out, flush=True)


class Tee:
    """Tells several listeners."""

    def __init__(self, *listeners: Any) -> None:
        self._listeners = listeners

    def stage(self, name: str) -> None:
        """To each."""
        for listener in self._listeners:
            listener.stage(name)

    def update(self, done: float, total: float | None = None, **figures: float | str) -> None:
        """To each."""
        for listener in self._listeners:
            listener.update(done, total, **figures)

    def note(self, message: str) -> None:
        """To each."""
        for listener in self._listeners:
            listener.note(message)

    def close(self) -> None:
        """Each that can."""
        for listener in self._listeners:
            listener.close()


def console_progress(as_json: bool) -> Any:
    """The listener that fits where output goes."""
    lines = StructuredProgress(sys.stderr) if json_wanted() else LineProgress(sys.stderr)
    if as_json:
        return Tee(JsonProgress(sys.stdout), lines)
    return BarProgress(sys.stderr) if sys.stderr.isatty() and not json_wanted() else lines


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _plain(message: str) -> str:
    """Brackets shown as they are, not read as colours."""
    return message.replace("[", r"\[")

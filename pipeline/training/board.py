"""The board between the workers and the driver."""

from typing import Any


class Board:
    """Where workers tell how far they are and learn that they should stop; lives in a Ray actor."""

    def __init__(self) -> None:
        self._events: list[tuple[str, Any]] = []
        self._stop = False
        self._given_up = False

    def push(self, kind: str, payload: Any) -> None:
        """Keeps one event for the driver."""
        self._events.append((kind, payload))
        self._given_up = self._given_up or kind == "failed"

    def given_up(self) -> bool:
        """Did a worker fail for good?"""
        return self._given_up

    def drain(self) -> list[tuple[str, Any]]:
        """The events since the last call."""
        events, self._events = self._events, []
        return events

    def stop(self) -> None:
        """Asks the workers to write a checkpoint and return."""
        self._stop = True

    def stopping(self) -> bool:
        """Were the workers asked to stop?"""
        return self._stop

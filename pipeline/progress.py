"""How a stage tells its user how far it is; the terminal, the JSON stream and Prefect each listen in their own way."""

from typing import Protocol


class Progress(Protocol):
    """What a stage may say. Calls are cheap and may come often; the listener thins them out."""

    def stage(self, name: str) -> None:
        """A stage begins."""

    def update(self, done: float, total: float | None = None, **figures: float | str) -> None:
        """`done` of `total` units of this stage, with figures worth showing (images_per_s=…, loss_d=…)."""

    def note(self, message: str) -> None:
        """One line that a human should read now and in the log."""


class NullProgress:
    """Says nothing."""

    def stage(self, name: str) -> None:
        """Ignored."""

    def update(self, done: float, total: float | None = None, **figures: float | str) -> None:
        """Ignored."""

    def note(self, message: str) -> None:
        """Ignored."""

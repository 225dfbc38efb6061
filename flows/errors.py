"""What can go wrong on this floor alone, by name; see `pipeline.errors` for the rest."""

from pipeline.errors import GanmillError


class PrefectError(GanmillError):
    """There is no Prefect server, it does not answer, or it refused what was asked."""

"""How often requests to the store failed in this process, whether another try helped or not; for whoever watches."""

import threading

_lock = threading.Lock()
_count = 0


def count() -> int:
    """Since this process began, with what its workers told of theirs."""
    return _count


def add(more: int = 1) -> None:
    """Counts failures: one's own, or those of a worker that told them."""
    global _count
    with _lock:
        _count += more


def take() -> int:
    """The count, which begins again at nothing: what a worker tells its driver."""
    global _count
    with _lock:
        taken, _count = _count, 0
    return taken

"""What of a machine of our own is ours, and who gives way to whom there: Ray's helpers to the threads that train.

Each of Ray's dozen processes wakes a hundred times a second for a moment. Every time the kernel stops a computing thread for it,
and the other threads of the step wait. Under Linux's SCHED_BATCH a process that wakes up waits for the next tick instead: half as
many interruptions. It costs no rights, changes no shares of time, and goes over to whatever a process starts.
"""

import contextlib
import os
from collections.abc import Iterator


def local_cpus() -> int:
    """CPUs that this process may use (not those that the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_asked() -> int | None:
    """What OMP_NUM_THREADS asks for, None where it says nothing. To be asked in the driver: Ray sets it for its workers."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(asked) if asked.isdigit() and int(asked) > 0 else None


@contextlib.contextmanager
def giving_way() -> Iterator[None]:
    """What this thread starts inside, and all that it starts, waits for its turn; where the user chose a policy, that stays."""
    if not _unset():
        yield
        return
    _take("SCHED_BATCH")
    try:
        yield
    finally:
        _take("SCHED_OTHER")


def go_first() -> None:
    """This thread, and those that it starts from now on, have it as if nothing had been said."""
    _take("SCHED_OTHER")


def _unset() -> bool:
    """Has nobody chosen a policy for this thread? False too where there are none to choose from."""
    return hasattr(os, "SCHED_BATCH") and os.sched_getscheduler(0) == os.SCHED_OTHER


def _take(policy: str) -> None:
    """For the calling thread; not known outside Linux, and forbidden in some containers: then all stays as it was."""
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setscheduler(0, getattr(os, policy), os.sched_param(0))

"""The processes of a local cluster: which they are, and that none outlives it.

Ray's own shutdown asks its processes to end and goes on. Now and then one hangs in its exit handler (seen with Ray 2.60's
TrainController, some 400 MB) and would stay for ever.
"""

import contextlib
import os
import time
from collections.abc import Sequence

import psutil

PATIENCE_S = 5.0
POLL_S = 0.05


def below(mark: str) -> list[psutil.Process]:
    """This process's children that carry `mark` in their command line (the cluster's own folder), and all that these started.

    To be asked while the cluster still runs: once its raylet has gone, nobody knows whose the workers were.
    """
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):              # it ended meanwhile
            if any(mark in word for word in child.cmdline()):
                found += [child, *child.children(recursive=True)]
    return found


def inheriting(mark: str) -> list[psutil.Process]:
    """Every process but this one whose environment names `mark`, the cluster's own folder: for when its raylet has gone."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):         # it ended meanwhile, or is somebody else's
            if process.pid != os.getpid() and any(mark in value for value in process.environ().values()):
                found.append(process)
    return found


def see_off(processes: Sequence[psutil.Process], patience_s: float = PATIENCE_S) -> int:
    """Waits until they have ended; how many had to be killed after `patience_s` seconds."""
    left = _left(processes, patience_s)
    for process in left:
        with contextlib.suppress(psutil.Error):              # psutil tells a reused id from the process that it was
            process.kill()
    _left(left, patience_s)
    return len(left)


def alive(process: psutil.Process) -> bool:
    """Does it still run? An orphan that has ended but that nobody reaped (a container without an init) does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _left(processes: Sequence[psutil.Process], patience_s: float) -> Sequence[psutil.Process]:
    """Those that still run after so many seconds; at once when none does."""
    end = time.monotonic() + patience_s
    while (left := [process for process in processes if alive(process)]) and time.monotonic() < end:
        time.sleep(POLL_S)
    return left

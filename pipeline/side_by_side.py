"""Several torch jobs at once in this process, one thread each.

For small networks one thread a job is worth more than several threads in one job: nothing waits at a barrier for a
core that somebody else is using. Torch leaves the interpreter lock while it computes, the data is shared as it lies.
"""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from pipeline.errors import Interrupted

_T = TypeVar("_T")
POLL_S = 0.5                                         # so that Ctrl-C is heard while jobs run


class Stop:
    """Asked by long jobs now and then: raises when the others gave up."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Tells every job to end."""
        self._event.set()

    def check(self, *_: object) -> None:
        """To be called every second or so.

        Raises:
            Interrupted: `set` was called.
        """
        if self._event.is_set():
            raise Interrupted("stopped, because another job failed or the run was interrupted")


def side_by_side(jobs: Iterable[Callable[[Stop], _T]], workers: int) -> Iterator[tuple[int, _T]]:
    """Runs jobs on `workers` threads, each with one torch thread; yields (number of the job, result) as they finish.

    A job that raises stops the others at their next `Stop.check`, and its error leaves here; so does Ctrl-C.
    """
    import torch

    before, stop = torch.get_num_threads(), Stop()
    pool = ThreadPoolExecutor(max(1, workers), initializer=torch.set_num_threads, initargs=(1,))
    futures: dict[Future[_T], int] = {pool.submit(job, stop): number for number, job in enumerate(jobs)}
    try:
        pending = set(futures)
        while pending:
            done, pending = wait(pending, POLL_S, FIRST_COMPLETED)
            for future in sorted(done, key=futures.__getitem__):
                yield futures[future], future.result()
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(before)                # the count set last is what new threads begin with


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread for what this thread does inside."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def all_side_by_side(jobs: Iterable[Callable[[Stop], _T]], workers: int) -> list[_T]:
    """As `side_by_side`: the results in the jobs' order."""
    return [result for _, result in sorted(side_by_side(jobs, workers), key=lambda pair: pair[0])]

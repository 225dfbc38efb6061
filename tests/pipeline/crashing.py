"""What tests and `benchmarks/crash_matrix.py` kill runs with."""

import multiprocessing
import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pipeline import keys
from pipeline.errors import MissingObject
from pipeline.publication import verify
from pipeline.store import Store
from tests.pipeline.small import SmallRun, small_run

WRITES = ("put", "put_if_absent", "copy", "swap", "delete", "delete_prefix")
MADE = {"cat": 17, "größe/2": 0, "empty": 0, "dog": 9}

BEFORE_OR_AFTER = pytest.mark.parametrize("after", [pytest.param(False, marks=pytest.mark.slow), True], ids=["before", "after"])
"""A death after a write leaves the store as one before the next write does: one of both is enough for every day."""


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the code catches it."""


class Reaper:
    """Kills at the n-th write, before or after it was carried out; counts writes, and looks on as a reader would."""

    def __init__(self, at: int | None = None, after: bool = False, dataset: Store | None = None):
        self.at, self.after, self.dataset = at, after, dataset
        self.writes, self.dead, self.looks = 0, False, 0
        self._counting = threading.RLock()

    def write(self, carry_out: Callable[[], Any]) -> Any:
        """One write of the code under test."""
        with self._counting:
            if self.dead:
                raise Killed
            self.writes += 1
            now = self.writes == self.at
            if now and not self.after:
                self.dead = True
                raise Killed
            result = carry_out()
            self.look()
            if now:
                self.dead = True
                raise Killed
            return result

    def look(self) -> None:
        """A reader finds nothing, or a whole version."""
        if self.dataset is not None:
            try:
                verify(self.dataset.url, storage_options=self.dataset.storage_options)
                self.looks += 1
            except MissingObject:
                assert not self.dataset.exists(keys.LATEST)


@contextmanager
def reaped(reaper: Reaper) -> Iterator[Reaper]:
    """Every write of every store goes past the reaper."""
    before = {name: getattr(Store, name) for name in WRITES}

    def through(name: str) -> Callable[..., Any]:
        def write(self: Store, *args: Any) -> Any:
            return reaper.write(lambda: before[name](self, *args))

        return write

    try:
        for name in WRITES:
            setattr(Store, name, through(name))
        yield reaper
    finally:
        for name, method in before.items():
            setattr(Store, name, method)


def killed_at_each_write(
    prepared: Callable[[], SmallRun], after: bool, kind: type[Reaper] = Reaper
) -> Iterator[tuple[SmallRun, Any]]:
    """Runs that died before (or after) their first, second, … and last write, each with the reaper that looked on."""
    at, died = 1, True
    while died:
        run = prepared()
        reaper = kind(at, after, run.dataset)
        with reaped(reaper), suppress(Killed):
            run.finish()
        died = reaper.dead
        if died:
            yield run, reaper
        at += 1


def memory_run(**section: Any) -> SmallRun:
    return small_run(f"memory://{uuid.uuid4().hex}", **section)


def die(run: SmallRun, at: int, after: bool, watch: bool = False) -> bool:
    """Runs until the write; False when the run ended before it."""
    with reaped(Reaper(at, after, run.dataset if watch else None)):
        try:
            run.finish()
        except Killed:
            return True
    return False


def assert_whole(run: SmallRun, rows: dict[str, int] | None = None) -> None:
    told = verify(run.dataset.url, deep=True, orphans=True, storage_options=run.dataset.storage_options)
    assert told["rows_per_class"] == (rows or MADE) and told["orphans"] == told["unpublished"] == []


def killed_child(run: SmallRun, calls: str, at: int, after: bool) -> bool:
    """Runs in a process of its own that is killed at the n-th such call; False: it ended before."""
    def child() -> None:
        count = 0

        def through(call: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*args: Any, **kwargs: Any) -> Any:
                nonlocal count
                count += 1
                if count == at and not after:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = call(*args, **kwargs)
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return counted

        if calls == "rename":
            Path.replace = through(Path.replace)        # type: ignore[method-assign]
            os.link = through(os.link)
        else:
            os.fsync = through(os.fsync)
        run.finish()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0

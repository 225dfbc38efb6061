"""Ray's processes wait for their turn, the training thread does not, and nothing of it is left in this process."""

import importlib
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pipeline import cluster
from pipeline.cluster import _LOCAL_ENV, _environment, importing_ahead
from pipeline.scheduling import giving_way, go_first

pytestmark = pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux alone has it")


def policy_of_a_child() -> int:
    """The policy of a process that this thread starts."""
    code = "import os; print(os.sched_getscheduler(0))"
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def test_what_is_started_inside_gives_way_and_what_comes_after_does_not() -> None:
    with giving_way():
        assert policy_of_a_child() == os.SCHED_BATCH
    assert os.sched_getscheduler(0) == os.SCHED_OTHER == policy_of_a_child()


def test_a_policy_that_the_user_chose_stays() -> None:
    def chosen() -> int:                                     # in a thread of its own: the policy is each thread's
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        with giving_way():
            inside = os.sched_getscheduler(0)
        assert os.sched_getscheduler(0) == os.SCHED_IDLE
        return inside

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(chosen).result() == os.SCHED_IDLE


def test_a_computing_thread_goes_first_with_those_that_it_starts() -> None:
    def computing() -> list[int]:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        go_first()
        seen: list[int] = [os.sched_getscheduler(0)]
        helper = threading.Thread(target=lambda: seen.append(os.sched_getscheduler(0)))
        helper.start()
        helper.join()
        return seen

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(computing).result() == [os.SCHED_OTHER] * 2


def test_the_environment_is_lent_and_the_users_own_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[Any] = list(_LOCAL_ENV)
    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(names[0], "mine")
    with _environment(_LOCAL_ENV):
        assert os.environ[names[0]] == "mine" and all(os.environ[name] == _LOCAL_ENV[name] for name in names[1:])
    assert os.environ[names[0]] == "mine" and not [name for name in names[1:] if name in os.environ]


def test_what_training_needs_is_imported_ahead_with_the_threads_told_before() -> None:
    """In a process that has loaded nothing yet; after it nothing is imported beside the main thread."""
    code = """
import os, sys, threading
from pipeline.cluster import importing_ahead
before = {"torch", "ray"} & set(sys.modules)
with importing_ahead():
    ahead = [t.name for t in threading.enumerate()]
after = {"torch", "ray", "ray.train.torch", "gan.loop"} & set(sys.modules)
print(len(before), len(after), "importing-ahead" in ahead, "importing-ahead" in [t.name for t in threading.enumerate()],
      os.environ["GOMP_SPINCOUNT"], os.environ["RAY_TRAIN_V2_ENABLED"])
"""
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert told.stdout.split() == ["0", "4", "True", "False", "10000000", "1"]


@pytest.mark.filterwarnings("error")
def test_an_import_that_fails_ahead_is_left_to_whoever_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(cluster, "_set_environment", lambda: None)
    monkeypatch.setattr(importlib, "import_module", broken)
    with importing_ahead():
        pass

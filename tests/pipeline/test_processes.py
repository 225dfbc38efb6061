"""Nothing of a local cluster outlives it, not even a process that can't end by itself."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from pipeline.cluster import connected
from pipeline.cluster.processes import alive, below, see_off
from pipeline.config import parse_config

DEAF = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
STARTER = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {DEAF!r}])"


@pytest.fixture
def marked() -> Iterator[subprocess.Popen[str]]:
    """A child with a mark in its command line, whose own child does not end when asked."""
    parent = subprocess.Popen([sys.executable, "-c", STARTER, "the-mark"], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert parent.stdout and parent.stdout.readline() == "up\n"
    yield parent
    try:
        os.killpg(parent.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    parent.wait()
    parent.stdout.close()


def test_the_grandchild_is_found_and_killed_after_its_parent_has_gone(marked: subprocess.Popen[str]) -> None:
    found = below("the-mark")
    assert len(found) == 2 and found[0].pid == marked.pid
    marked.kill()
    marked.wait()
    assert alive(found[1]) and found[1].ppid() != marked.pid       # an orphan: nobody's child any more
    assert see_off(found, patience_s=0.2) == 1
    assert not alive(found[1])


def test_others_are_left_alone(marked: subprocess.Popen[str]) -> None:
    assert below("another-mark") == []
    assert see_off([]) == 0
    assert alive(psutil.Process(marked.pid))


def test_what_ray_does_not_end_does_not_outlive_its_cluster(tmp_path: Path) -> None:
    def start_another() -> int:                              # Ray ends its workers, and knows nothing of what they started
        return subprocess.Popen([sys.executable, "-c", DEAF], start_new_session=True).pid

    config = parse_config({"name": "d", "source": {"format": "digits"}, "publish": {"url": str(tmp_path)}})
    with connected(config):
        stray = psutil.Process(ray.get(ray.remote(start_another).remote()))
    assert not alive(stray)

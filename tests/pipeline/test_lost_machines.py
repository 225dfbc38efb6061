"""SIGKILL on a node of a Ray cluster, and on the driver: what was finished counts, the rest is made once."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline import keys
from pipeline.publication import verify
from tests.pipeline.small import SmallRun, load_slow, small_run
from tests.pipeline.test_fanout import on_ray

pytestmark = pytest.mark.slow
SAMPLE = """
import sys
from pipeline.cluster import connected
from tests.pipeline.small import load_slow
from tests.pipeline.test_fanout import on_ray
run = on_ray(sys.argv[1], rows_per_shard=1)
with connected(run.config):
    run.sample(load=load_slow)
"""


def receipts(run: SmallRun) -> int:
    """How many there are."""
    return len(run.folder.list(keys.RECEIPTS))


def wait_for(count: int, run: SmallRun) -> None:
    """Until so many shards are finished."""
    deadline = time.monotonic() + 300
    while receipts(run) < count:
        assert time.monotonic() < deadline, "no worker made anything"
        time.sleep(0.05)


def assert_whole(run: SmallRun) -> None:
    told = verify(run.dataset.url, deep=True, orphans=True)
    assert told["rows_per_class"] == {"cat": 17, "größe/2": 0, "empty": 0, "dog": 9} and told["orphans"] == []


def test_a_node_of_three_dies(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 * 2**20})
    try:
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        run = on_ray(str(tmp_path), rows_per_shard=1, workers=3)
        at_death: list[int] = []

        def kill() -> None:
            wait_for(5, run)
            at_death.append(receipts(run))
            cluster.remove_node(nodes[0], allow_graceful=False)

        killer = threading.Thread(target=kill)
        killer.start()
        made = run.sample(load=load_slow)
        killer.join()
        assert 5 <= at_death[0] < 26 and len(made) == 26
        run.publish(made)
        assert_whole(run)
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_the_driver_dies_and_another_starts_at_once(tmp_path: Path) -> None:
    """The dead driver's workers may write on for a while: they write what the new ones write."""
    root = Path(__file__).resolve().parent.parent.parent
    run = small_run(str(tmp_path), rows_per_shard=1, workers=2)
    run.plan()
    driver = subprocess.Popen([sys.executable, "-c", SAMPLE, str(tmp_path)], cwd=root, start_new_session=True,
                              env={**os.environ, "PYTHONPATH": str(root)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(4, run)
        driver.kill()
        driver.wait()
        kept = receipts(run)
        assert 4 <= kept < 26
        made: list[Any] = run.sample()
        run.publish(made)
        assert_whole(run)
        time.sleep(4)
        assert_whole(run)                                # whatever the dead driver's workers did meanwhile
    finally:
        try:
            os.killpg(driver.pid, signal.SIGKILL)        # Ray's processes, should any be left
        except ProcessLookupError:
            pass

"""SIGKILL on a node of a Ray cluster: what was finished counts, the rest is made once."""

import threading
import time
from pathlib import Path

import pytest

from pipeline import keys
from pipeline.publication import verify
from tests.pipeline.small import SmallRun, load_slow
from tests.pipeline.test_fanout import on_ray

pytestmark = pytest.mark.slow


def receipts(run: SmallRun) -> int:
    """How many there are."""
    return len(run.folder.list(keys.RECEIPTS))


def wait_for(count: int, run: SmallRun) -> None:
    """Until so many shards are finished."""
    deadline = time.monotonic() + 120
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

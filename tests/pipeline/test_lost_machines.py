"""SIGKILL on a node of a Ray cluster, and on the driver: what was finished counts, the rest is made once."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest

from gan.checkpoint import load_generator
from pipeline import keys, training
from tests.pipeline.crashing import assert_whole
from tests.pipeline.small import Notes, SmallRun, load_slow, short_folder, small_run
from tests.pipeline.test_fanout import on_ray
from tests.pipeline.test_training import config_of, prepared

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


@contextlib.contextmanager
def three_nodes() -> Iterator[tuple[Any, list[Any]]]:
    """(cluster, the two nodes that are not its head), one CPU each; this process is a driver at the head."""
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 * 2**20}
    with short_folder() as temp, mock.patch.dict(os.environ, RAY_TMPDIR=temp):
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            nodes = [cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20) for _ in range(2)]
            ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
            yield cluster, nodes
        finally:
            ray.shutdown()
            cluster.shutdown()


def kill_node(node: Any) -> None:
    """SIGKILL to its raylet and all that this one started: the machine is gone."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    for process in [raylet, *raylet.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)


def trains(node: Any) -> bool:
    """Is one of the training workers there?"""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return any("RayTrainWorker" in " ".join(p.cmdline()) for p in raylet.children(recursive=True) if p.is_running())


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("min_workers", [None, 1], ids=["as many workers", "elastic"])
def test_a_node_of_three_dies_in_mid_training(tmp_path: Path, min_workers: int | None) -> None:
    """Two nodes are left: two workers go on there. Elastic: three trained, two go on."""
    workers = 2 if min_workers is None else 3
    config = config_of(budget={"kimg": 12}, workers=workers, min_workers=min_workers, batch_size=36,
                       options={"width": 8, "metrics_every_s": 0.1, "checkpoint_every_kimg": 0.5})
    run, snapshot = prepared(str(tmp_path), config)
    at_death: list[float] = []
    with three_nodes() as (_, nodes):
        def kill() -> None:
            deadline = time.monotonic() + 600
            while not (found := sorted((tmp_path / "checkpoints").glob("*.json"))):
                assert time.monotonic() < deadline, "no checkpoint"
                time.sleep(0.05)
            at_death.append(run.get_json(f"checkpoints/{found[-1].name}")["kimg"])
            kill_node(next(node for node in nodes if trains(node)))

        killer = threading.Thread(target=kill)
        killer.start()
        notes = Notes()
        made = training.train(config, snapshot, run, notes)
        killer.join()
    assert 0 < at_death[0] < 12
    assert [note for note in notes.notes if "continuing from the checkpoint" in note], notes.notes
    assert made.trained_kimg == pytest.approx(12, abs=0.04)
    load_generator(run.get(made.key))                # its digest is checked
    kimgs = [m["kimg"] for m in training.load_metrics(run) if "loss_d" in m]
    assert kimgs == sorted(kimgs) and kimgs[-1] > at_death[0]


def test_a_node_of_three_dies_in_mid_sampling(tmp_path: Path) -> None:
    with three_nodes() as (_, nodes):
        run = on_ray(str(tmp_path), rows_per_shard=1, workers=3)
        at_death: list[int] = []

        def kill() -> None:
            wait_for(5, run)
            at_death.append(receipts(run))
            kill_node(nodes[0])

        killer = threading.Thread(target=kill)
        killer.start()
        made = run.sample(load=load_slow)
        killer.join()
        assert 5 <= at_death[0] < 26 and len(made) == 26
        run.publish(made)
        assert_whole(run)


def test_the_driver_dies_and_another_starts_at_once(tmp_path: Path) -> None:
    """The dead driver's workers may write on for a while: they write what the new ones write."""
    root = Path(__file__).resolve().parent.parent.parent
    run = small_run(str(tmp_path), rows_per_shard=1, workers=2)
    run.plan()
    with short_folder() as temp:
        env = {**os.environ, "PYTHONPATH": str(root), "TMPDIR": temp}    # a killed driver cleans nothing up
        driver = subprocess.Popen([sys.executable, "-c", SAMPLE, str(tmp_path)], cwd=root, start_new_session=True, env=env,
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
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

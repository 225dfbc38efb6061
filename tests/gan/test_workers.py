"""Workers of one machine add up in shared memory: the right sums, the same on all, whoever comes late or not at all."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gan.workers import IN_ORDER, Workers, _lives, _offer

from .summing_workers import SIZES, numbers

SHARED = Path("/dev/shm")
pytestmark = pytest.mark.skipif(not SHARED.is_dir() or platform.machine() not in IN_ORDER,
                                reason="no memory that processes share by a file's name and see written in order")


def together(world: int, what: str, folder: Path) -> list[tuple[int, str, list[Tensor]]]:
    """(exit status, what it printed, its tensors) of each rank."""
    script = Path(__file__).with_name("summing_workers.py")
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    started = [subprocess.Popen([sys.executable, str(script), str(rank), str(world), str(folder), what], env=env, text=True,
                                stdout=subprocess.PIPE) for rank in range(world)]
    said = [process.communicate(timeout=90)[0] for process in started]
    kept = [folder / f"{rank}.pt" for rank in range(world)]
    return [(process.returncode, text, torch.load(file, weights_only=True) if file.exists() else [])
            for process, text, file in zip(started, said, kept)]


@pytest.mark.parametrize(("world", "what", "how"), [(3, "sums", "shared"), (2, "apart", "sockets"),
                                                    (2, "contained", "sockets"), (2, "crowded", "sockets")])
def test_all_get_the_same_sum_by_memory_or_by_sockets(world: int, what: str, how: str, tmp_path: Path) -> None:
    before = set(SHARED.iterdir())
    ranks = together(world, what, tmp_path)
    assert [(status, text.split()) for status, text, _ in ranks] == [(0, [how])] * world
    for i, size in enumerate(SIZES):
        brought = [numbers(rank, size) for rank in range(world)]
        torch.testing.assert_close(ranks[0][2][i], torch.stack(brought).sum(0))
        if how == "shared":                                  # in the order of ranks, so the bits are known
            assert torch.equal(ranks[0][2][i], sum(brought[1:], brought[0]))
        assert all(torch.equal(tensors[i], ranks[0][2][i]) for _, _, tensors in ranks)
    assert not [path for path in set(SHARED.iterdir()) - before if path.name.startswith("ganmill-")]


def test_nobody_reads_too_early_or_too_late(tmp_path: Path) -> None:
    ranks = together(3, "hurried", tmp_path)
    for status, _, tensors in ranks:
        assert status == 0 and torch.equal(tensors[0], 6.0 * torch.arange(1, 1001))


def test_a_worker_that_died_is_named(tmp_path: Path) -> None:
    (status, text, _), (killed, _, _) = together(2, "deserted", tmp_path)
    assert killed == -9 and status == 0
    assert text.startswith("worker 1 (process ") and text.endswith("does not answer any more\n")


def test_no_memory_where_a_counter_may_be_seen_before_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert _offer(2) is None


def test_one_worker_alone_has_nobody_to_ask() -> None:
    network = torch.nn.Linear(2, 1)
    network.weight.grad = torch.ones(1, 2)
    figures = torch.tensor([3.0])
    assert Workers(1).average_(network, figures) is figures and torch.equal(network.weight.grad, torch.ones(1, 2))


def test_a_process_that_was_not_reaped_does_not_live() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays a zombie
    assert not _lives(child.pid) and _lives(os.getpid())
    child.wait()
    assert not _lives(child.pid)

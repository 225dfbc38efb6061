"""The lift trial of benchmarks/lift_settings.py shared out over processes: the same rows as in one."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from gan.classical import ClassicalAugment
from pipeline.config import LiftConfig
from pipeline.lift import Bench, Replicate, Schedule, compare
from pipeline.progress import NullProgress
from tests.pipeline.bars import oracle, rows

SEEDS = 3


def make(seed: int) -> Replicate:
    """A replicate with splits of its own; picklable by its name."""
    splits = [rows([n, n], 10 * seed + k) for k, n in enumerate((12, 6, 20, 8))]
    bench = Bench(*splits, ("across", "down"), ClassicalAugment(), Schedule(2, 8, 4))
    return Replicate(seed, 100 + seed, bench, oracle)


def test_rows_are_those_of_one_process_whichever_makes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from side_processes import Processes

    config = LiftConfig.model_validate({"seeds": SEEDS, "ratios": [1.0], "arms": "all", "distinct": 2})
    replicates = [make(seed) for seed in range(SEEDS)]
    alone = compare(config, replicates, NullProgress(), workers=1, even=True)
    with Processes(make, SEEDS, 2) as processes:
        processes.prepare()
        shared = compare(config, replicates, NullProgress(), workers=1, even=True, runner=processes.run)

    def plain(figure: Any) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in figure.rows]

    assert plain(shared) == plain(alone) and len({row["seed"] for row in plain(shared)}) == SEEDS
    assert shared.cross_validated == alone.cross_validated and len(shared.cross_validated) > 3
    assert (shared.baseline, shared.synthetic, shared.arms) == (alone.baseline, alone.synthetic, alone.arms)
    assert len({tuple(row.values()) for row in plain(shared)}) == len(plain(shared))


def test_a_killed_benchmark_leaves_no_process_behind() -> None:
    code = """
import os, sys, time
from side_processes import Processes
if __name__ == "__main__":
    with Processes(None, 1, 1) as processes:
        pool = processes._of(0)
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600).result()
"""
    folder = Path(__file__).parents[2] / "benchmarks"
    started = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=folder)
    assert started.stdout is not None
    child = psutil.Process(int(started.stdout.readline()))
    assert child.ppid() == started.pid
    started.kill()
    started.wait()
    started.stdout.close()
    try:
        child.wait(60)
    finally:
        if child.is_running():
            child.kill()

"""Trials as Ray tasks, for a cluster of more than this machine.

The data goes into Ray's object store once, by reference to every task. On one machine threads do the same without
starting processes and copying the data, see `pipeline.side_by_side`.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.cluster import local_cpus
from pipeline.lift.laboratory import Replicate, Row, Trial, run_one

POLL_S = 0.5                                         # a wait on Ray can't be interrupted by a cancellation
MAX_RETRIES = 2                                      # of a trial whose worker died


def cluster_is_larger() -> bool:
    """Whether Ray is connected to a cluster with more CPUs than this machine."""
    import sys

    if "ray" not in sys.modules:                     # nobody connected, so don't spend seconds on the import
        return False
    import ray

    return bool(ray.is_initialized() and ray.cluster_resources().get("CPU", 0) > local_cpus())


def on_ray(trials: Sequence[Trial], replicates: dict[int, Replicate]) -> Iterator[tuple[int, Row]]:
    """Runs trials as tasks of one CPU each; yields (number of the trial, row) as they finish.

    Raises:
        ray.exceptions.RayError: a trial failed, or its worker died more than twice.
    """
    import ray

    shared = ray.put(replicates)
    task = ray.remote(num_cpus=1, max_retries=MAX_RETRIES)(_trial)
    pending: dict[Any, int] = {task.remote(shared, trial): number for number, trial in enumerate(trials)}
    try:
        while pending:
            done, _ = ray.wait(list(pending), num_returns=1, timeout=POLL_S)
            for reference in done:
                yield pending.pop(reference), ray.get(reference)
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)


def _trial(replicates: dict[int, Replicate], trial: Trial) -> Row:
    import torch

    from gan.allocator import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(1)
    return run_one(replicates[trial.replicate], trial)

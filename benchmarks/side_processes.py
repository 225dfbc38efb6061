"""Trials in processes of their own, a seed's always in the same one: its data, its generator and its images are made there once."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

import torch
from parent import end_with_it

from pipeline.lift.folds import folded
from pipeline.lift.laboratory import Replicate, Row, Trial, run_one
from pipeline.scheduling import local_cpus

_replicates: dict[int, Replicate] = {}               # of this process
_folds: dict[int, list[Replicate]] = {}


class Processes:
    """A runner for `pipeline.lift.compare`; `with` ends its processes.

    Args:
        make: seed's number → its replicate; is called in the processes, so it must be picklable.
        seeds: how many there are.
        count: processes.
    """

    def __init__(self, make: Callable[[int], Replicate], seeds: int, count: int) -> None:
        spawned = multiprocessing.get_context("spawn")   # a forked process could not use a GPU
        self._make, self._seeds = make, seeds
        count = min(count, seeds)
        self._pools = [ProcessPoolExecutor(1, mp_context=spawned, initializer=_begin, initargs=(count,))     # with its first task
                       for _ in range(count)]

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)

    def prepare(self) -> None:
        """Makes every replicate, all at once."""
        for future in [self._of(seed).submit(_prepare, self._make, seed) for seed in range(self._seeds)]:
            future.result()

    def _of(self, seed: int) -> ProcessPoolExecutor:
        return self._pools[seed % len(self._pools)]

    def run(self, trials: Sequence[Trial], replicates: dict[int, Replicate]) -> Iterator[tuple[int, Row]]:
        """Yields (number of the trial, its row) as they finish; see `pipeline.lift.laboratory.Runner`."""
        each = len(replicates) // self._seeds if trials and trials[0].kind == "x" else 1
        started = {}
        for number, trial in enumerate(trials):
            seed, fold = divmod(trial.replicate, each)
            started[self._of(seed).submit(_conduct, self._make, seed, fold, trial)] = number
        for future in as_completed(started):
            yield started[future], future.result()


def _begin(processes: int) -> None:
    """Threads that meet wait for each other: the CPUs are shared out, unless the environment says how many threads each has."""
    end_with_it()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, local_cpus() // processes))


def _prepare(make: Callable[[int], Replicate], seed: int) -> None:
    if seed not in _replicates:
        _replicates[seed] = make(seed)


def _conduct(make: Callable[[int], Replicate], seed: int, fold: int, trial: Trial) -> Row:
    _prepare(make, seed)
    if trial.kind == "s":
        return run_one(_replicates[seed], trial)
    if seed not in _folds:
        _folds[seed] = folded([_replicates[seed]])
    return run_one(_folds[seed][fold], trial)

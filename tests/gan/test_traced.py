"""Steps traced on CPUs: when they are, and that they give the very bits of steps as they are written."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gan import loop, traced
from gan.checkpoint import TrainState
from gan.loop import Hooks, train
from gan.networks import NetSpec
from gan.recipe import Recipe
from gan.step import Moment, Update
from gan.traced import Traced, why_not

from .test_recorded import VARIANTS

CPU = torch.device("cpu")
SHORT = Recipe(total_kimg=0.64, batch_size=16, checkpoints=4, loss="hinge", metrics_every_s=1e9)
LONG = Recipe(total_kimg=100.0, batch_size=16)
SPEC = NetSpec("dcgan", 8, 1, 2, z_dim=8, width=8)
Data = tuple[Tensor, Tensor]
MORE: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("dcgan", {"features": 8, "features_weight": 4}, {"augment_p": 0.0, "label_prior_tau": 0.5}),
    ("dcgan", {}, {"r1_gamma": 0.3, "penalty_every": 4, "penalty_step": 0.1, "penalty_share": 0.5, "warmup": 0.2, "gamma_decay": 0.1}),
    ("dcgan", {}, {"label_ramp": 0.3, "ema_every": 2, "augment_p": 0.5}),
    ("wgan-gp", {}, {"loss": "wasserstein", "wgan_gp_weight": 10.0, "d_steps": 2}),
    ("dcgan", {"d_norm": "batch", "minibatch_std": 4, "hidden": 8, "g_blocks": 1}, {"loss": "nonsaturating", "joint_pass": False}),
    ("dcgan", {}, {"precision": "bf16", "joint_pass": False}),
    ("dcgan", {"features": 8}, {"precision": "bf16", "fresh_g_batch": True, "augment_p": 0.5}),
    ("autoencoder", {}, {"objective": "reconstruction"}),
]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Traced]:
    """All that the loop makes, short runs too."""
    found: list[Traced] = []

    class Kept(Traced):
        def __init__(self, update: Update) -> None:
            super().__init__(update)
            found.append(self)

    monkeypatch.setattr(traced, "LEAST_STEPS", 0)
    monkeypatch.setattr(loop.traced, "Traced", Kept)
    return found


@pytest.mark.parametrize(("recipe", "device", "word"), [
    (LONG, "cpu", None), (LONG, "cuda", "CPU"), (SHORT, "cpu", "short"),
    (LONG.replace({"total_kimg": None, "total_seconds": 19.0}), "cpu", "short"),
    (LONG.replace({"total_kimg": None, "total_seconds": 30.0}), "cpu", None), (LONG.replace({"optimizer": "rmsprop"}), "cpu", "Adam"),
    (LONG.replace({"beta2_start": 0.9}), "cpu", "Adam"), (LONG.replace({"objective": "reconstruction"}), "cpu", "gather"),
])
def test_what_is_traced(recipe: Recipe, device: str, word: str | None) -> None:
    told = why_not(recipe, torch.device(device), 2)
    assert told is None if word is None else told is not None and word in told


@pytest.mark.parametrize(("family", "options", "change"), VARIANTS + MORE)
def test_traced_steps_give_the_bits_of_written_ones(family: str, options: dict[str, Any], change: dict[str, Any], squares: Data,
                                                    made: list[Traced]) -> None:
    spec, recipe = NetSpec(family, 8, 1, 2, z_dim=8, width=8, options=tuple(options.items())), SHORT.replace(change)
    heard: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    states = {record: train(*squares, spec, recipe, seed=3, record=record, hooks=Hooks(on_metrics=heard[record].append))
              for record in (True, False)}
    (update,) = made
    kinds = {((i + 1) % recipe.d_steps == 0, i % recipe.penalty_every == 0) for i in range(40)}
    assert set(update.traces) == kinds and not update.failed and states[True].step == states[False].step == 40
    assert same(states[True], states[False])
    means = [[row["loss_g"] for row in heard[record] if "loss_g" in row][-1] for record in (True, False)]
    assert means[0] == means[1]


def test_a_run_that_is_interrupted_ends_in_the_same_bits(squares: Data, made: list[Traced]) -> None:
    recipe = SHORT.replace({"augment_p": 0.5})
    whole = train(*squares, SPEC, recipe, seed=3)
    kept: list[bytes] = []
    calls = iter(range(1000))
    hooks = Hooks(should_stop=lambda: next(calls) == 11, on_checkpoint=lambda data, _: kept.append(data))
    train(*squares, SPEC, recipe, seed=3, hooks=hooks)
    resumed = train(*squares, SPEC, recipe, seed=3, resume=kept[-1])
    assert all(update.traces for update in made) and len(made) == 3
    assert same(resumed, whole)


@pytest.mark.parametrize(("family", "change"), [
    ("dcgan", {"r1_gamma": 0.3}), ("wgan-gp", {"d_steps": 2}), ("vae", {"objective": "variational"})])
def test_gradient_norms_are_those_of_written_steps(family: str, change: dict[str, Any], squares: Data, made: list[Traced]) -> None:
    spec, recipe = NetSpec(family, 8, 1, 2, z_dim=8, width=8), SHORT.replace({"metrics_every_s": 0.0, **change})
    heard: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for record in (True, False):
        train(*squares, spec, recipe, seed=3, record=record, hooks=Hooks(on_metrics=heard[record].append))
    read = [[{name: row.get(name) for name in ("grad_norm_d", "grad_norm_g", "loss_d")} for row in rows if "loss_d" in row]
            for rows in heard.values()]
    assert made[0].traces and len(read[0]) == 40 and all(row["grad_norm_d"] > 0 for row in read[0])
    assert read[0] == read[1]


def test_a_step_that_cant_be_traced_is_taken_once_as_it_is_written(squares: Data, made: list[Traced],
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    plain = train(*squares, SPEC, SHORT, seed=0, record=False)
    turn = Update.turn

    def looks(self: Update, now: Moment, control: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        readings, control = turn(self, now, control)
        readings["loss_g"].item()                    # after everything was updated; a trace has no values
        return readings, control

    monkeypatch.setattr(Update, "turn", looks)
    with pytest.warns(UserWarning, match="can't be traced"):
        state = train(*squares, SPEC, SHORT, seed=0)
    assert made[0].failed and same(state, plain)


def test_two_workers_trace_what_they_tell_each_other(tmp_path: Path) -> None:
    script = Path(__file__).with_name("traced_workers.py")
    workers = [subprocess.Popen([sys.executable, str(script), str(rank), str(tmp_path)]) for rank in range(2)]
    try:
        assert [worker.wait(300) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    for rank in range(2):
        told = torch.load(tmp_path / f"{rank}.pt")
        assert told["traces"] == [2, 2]              # with penalties and without
        for way in ("memory", "sockets"):
            kept, written = told[way]
            assert all(torch.equal(kept[name], tensor) for name, tensor in written.items()), way


def same(one: TrainState, other: TrainState) -> bool:
    """Networks, average and optimizers, bit for bit."""
    for a, b in ((one.g, other.g), (one.d, other.d), (one.ema, other.ema)):
        theirs = b.state_dict()
        if not all(torch.equal(tensor, theirs[name]) for name, tensor in a.state_dict().items()):
            return False
    for left, right in ((one.opt_g, other.opt_g), (one.opt_d, other.opt_d)):
        pairs = zip(left.state.values(), right.state.values(), strict=True)
        if not all(torch.equal(s[name], t[name]) for s, t in pairs for name in s):
            return False
    return True

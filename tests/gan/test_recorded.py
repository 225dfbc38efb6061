"""Steps recorded as CUDA graphs: when they may be, and (on a GPU) that a replayed step is the step."""

from typing import Any

import pytest
import torch
from torch import Tensor

from gan import loop
from gan.checkpoint import TrainState
from gan.loop import Hooks, new_state, train
from gan.networks import NetSpec
from gan.recipe import Recipe
from gan.recorded import Recorded, why_not
from gan.sampler import Sampler
from gan.step import Moment, Players, Update
from gan.workers import Workers

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SHORT = Recipe(total_kimg=0.64, batch_size=16, checkpoints=4, loss="hinge")
Data = tuple[Tensor, Tensor]
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@pytest.mark.parametrize(("change", "word"), [
    ({"d_steps": 2}, "not every step"), ({"penalty_every": 8, "r1_gamma": 1.0}, "not every step"), ({"beta2_start": 0.9}, "beta2"),
    ({"label_ramp": 0.3}, "labels"), ({"optimizer": "rmsprop"}, "RMSprop"), ({}, None), ({"r1_gamma": 1.0, "augment_p": 0.5}, None),
])
def test_only_steps_that_are_all_alike_are_recorded(change: dict[str, Any], word: str | None) -> None:
    told = why_not(SHORT.replace(change), CUDA, 1)
    assert told is None if word is None else told is not None and word in told


def test_neither_cpus_nor_several_workers_record() -> None:
    assert why_not(SHORT, torch.device("cpu"), 1) is not None
    assert why_not(SHORT, CUDA, 2) is not None


@pytest.mark.parametrize("change", [{"augment_p": 0.6}, {"r1_gamma": 0.25, "augment_p": 0.6, "loss": "relativistic"}])
def test_schedules_as_tensors_make_the_same_step(change: dict[str, Any], squares: Data) -> None:
    """A recording reads γ and p from tensors; the weights after a step must be those of the plain numbers (of γ that float32 holds)."""
    results = []
    for convert in (float, torch.tensor):
        update, state = fresh(squares, SHORT.replace(change))
        update(Moment(5, convert(0.75), convert(0.6)), torch.zeros(3))
        results.append(state)
    for name, tensor in weights(results[0]).items():
        assert torch.equal(weights(results[1])[name], tensor), name


VARIANTS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("dcgan", {}, {"augment_p": 0.5, "augment_ramp": 0.5}),
    ("dcgan", {"features": 8}, {"precision": "bf16"}),
    ("dcgan", {}, {"loss": "relativistic", "r1_gamma": 0.3, "r2_gamma": 0.3, "gamma_decay": 0.1, "fresh_g_batch": True, "augment_p": 0.5}),
    ("sngan", {}, {"class_noise": 0.5, "label_prior_tau": 0.5, "class_pooling": 4.0}),
    ("dcgan", {}, {"loss": "wasserstein", "wgan_gp_weight": 10.0, "joint_pass": False}),
    ("r3", {"group_width": 4}, {"loss": "relativistic", "r1_gamma": 0.1, "r2_gamma": 0.1}),
    ("mlp", {}, {"channels_last": False}),
    ("vae", {}, {"objective": "variational"}),
]


@gpu
@pytest.mark.parametrize(("family", "options", "change"), VARIANTS)
def test_replayed_steps_equal_steps_kernel_by_kernel(family: str, options: dict[str, Any], change: dict[str, Any], squares: Data,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Recorded] = []

    class Kept(Recorded):
        def __init__(self, update: Update) -> None:
            super().__init__(update)
            made.append(self)

    monkeypatch.setattr(loop.recorded, "Recorded", Kept)
    spec, recipe = NetSpec(family, 8, 1, 2, z_dim=8, width=8, options=tuple(options.items())), SHORT.replace(change)
    heard: list[dict[str, Any]] = []
    replayed = train(*squares, spec, recipe, seed=3, device=CUDA, hooks=Hooks(on_metrics=heard.append))
    plain = train(*squares, spec, recipe, seed=3, device=CUDA, record=False)
    assert [r.replay.graph is not None for r in made] == [True]
    assert replayed.step == plain.step == 40 and any("loss_g" in row for row in heard)
    tolerance = 0.05 if recipe.precision == "bf16" else 5e-3          # sums of float32 in the order of arrival, 40 times
    for name, tensor in weights(plain).items():
        apart = (weights(replayed)[name].float() - tensor.float()).norm() / tensor.float().norm().clamp_min(1e-2)
        assert float(apart) < tolerance, (name, float(apart))


@gpu
def test_a_resumed_run_on_a_gpu_goes_on_where_it_was(squares: Data) -> None:
    spec = NetSpec("dcgan", 8, 1, 2, z_dim=8, width=8)
    whole = train(*squares, spec, SHORT, seed=3, device=CUDA)
    kept: list[bytes] = []
    calls = iter(range(1000))
    train(*squares, spec, SHORT, seed=3, device=CUDA,
          hooks=Hooks(should_stop=lambda: next(calls) == 11, on_checkpoint=lambda data, _: kept.append(data)))
    resumed = train(*squares, spec, SHORT, seed=3, device=CUDA, resume=kept[-1])
    for name, tensor in weights(whole).items():
        assert float((weights(resumed)[name].float() - tensor.float()).norm() / tensor.float().norm().clamp_min(1e-2)) < 5e-3, name


@gpu
@pytest.mark.parametrize(("family", "options"), [("dcgan", {}), ("dcgan", {"features": 8}), ("sngan", {}), ("r3", {})])
def test_no_step_makes_the_host_wait(family: str, options: dict[str, Any], squares: Data) -> None:
    spec = NetSpec(family, 8, 1, 2, z_dim=8, width=8, options=tuple(options.items()))
    recipe = SHORT.replace({"augment_p": 0.5, "r1_gamma": 0.1})
    update, _ = fresh(squares, recipe, CUDA, spec)
    control = torch.zeros(3, device=CUDA)
    for index in range(3):
        update(Moment(index, 1.0, 0.5), control)
    torch.cuda.set_sync_debug_mode("error")
    try:
        update(Moment(3, 1.0, 0.5), control)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@gpu
def test_a_step_that_can_t_be_recorded_runs_and_says_so(squares: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    turn = Update.turn

    def waits(self: Update, now: Moment, control: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        readings, control = turn(self, now, control)
        readings["loss_g"].item()                    # not allowed while a graph is recorded
        return readings, control

    monkeypatch.setattr(Update, "turn", waits)
    with pytest.warns(UserWarning, match="kernel by kernel"):
        state = train(*squares, NetSpec("dcgan", 8, 1, 2, z_dim=8, width=8), SHORT, seed=0, device=CUDA)
    assert state.finished and all(bool(torch.isfinite(p).all()) for p in state.g.parameters())


def fresh(data: Data, recipe: Recipe, device: torch.device = CPU, spec: NetSpec | None = None) -> tuple[Update, TrainState]:
    """A new state and its update."""
    images, labels = data
    spec = spec or NetSpec("dcgan", 8, 1, 2, z_dim=8, width=8)
    state = new_state(images, labels, spec, recipe, 0, device)
    sampler = Sampler(images.to(device), labels.to(device), 2, recipe.label_prior_tau, 0, recipe.batch_size)
    return Update(Players(state.g.train(), state.d.train(), state.opt_g, state.opt_d), recipe, sampler, Workers(1)), state


def weights(state: TrainState) -> dict[str, Tensor]:
    """Of G, D and the average, on the CPU."""
    return {f"{n}/{k}": v.cpu() for n in ("g", "d", "ema") for k, v in getattr(state, n).state_dict().items()}

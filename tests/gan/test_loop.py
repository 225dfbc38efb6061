"""Training: learns, resumes bit for bit, shares work exactly, and stops when it has gone wrong."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gan import loop
from gan.checkpoint import load_generator, read_tensors
from gan.errors import BadData, BadRecipe, CheckpointMismatch, TrainingDiverged
from gan.loop import Hooks, train
from gan.networks import NetSpec
from gan.recipe import Recipe
from gan.sampling import generate
from gan.watch import Alarm, DiversityWatch, spread
from gan.workers import Workers

from . import two_workers

SPEC = NetSpec("dcgan", 8, 1, 2, z_dim=8, width=8)
SHORT = Recipe(total_kimg=0.64, batch_size=16, joint_pass=False, checkpoints=4)
Data = tuple[Tensor, Tensor]


def weights(state: object) -> dict[str, Tensor]:
    return {f"{n}/{k}": v for n in ("g", "d", "ema") for k, v in getattr(state, n).state_dict().items()}


def test_learns_what_the_label_means(squares: Data) -> None:
    recipe = Recipe(total_kimg=16, batch_size=32, lr_g=3e-3, lr_d=3e-3, joint_pass=False)
    state = train(*squares, NetSpec("dcgan", 8, 1, 2, z_dim=16, width=16), recipe, seed=0)
    labels = torch.tensor([0, 1]).repeat(50)
    middle = generate(state.ema, labels, torch.arange(100).numpy()).float()[:, 0, 3:5, 3:5].mean((1, 2))
    dark, bright = middle[::2], middle[1::2]
    assert dark.mean() < 90 and bright.mean() > 170
    assert state.finished and state.kimg == 16


VARIANTS = [
    {}, {"loss": "relativistic", "r1_gamma": 0.3, "r2_gamma": 0.3, "augment_p": 0.5, "fresh_g_batch": True},
    {"loss": "wasserstein", "wgan_gp_weight": 10.0, "d_steps": 3, "beta1": 0.0}, {"loss": "hinge", "joint_pass": True},
    {"loss": "wasserstein", "clip": 0.05, "optimizer": "rmsprop"}, {"loss": "minimax", "precision": "bf16"},
    {"r1_gamma": 0.2, "penalty_step": 0.1, "penalty_every": 2, "penalty_share": 0.5, "ema_every": 2},
    {"beta2_start": 0.9, "ema_half_life_kimg": 0.0, "channels_last": False},
    {"label_ramp": 0.6, "class_noise": 0.5, "label_prior_tau": 0.5, "class_pooling": 4.0},
]


FAMILY_VARIANTS = [
    *((family, variant) for family in ("dcgan", "r3") for variant in VARIANTS),
    ("mlp", {}), ("sngan", {"loss": "hinge"}), ("dcgan+features", {"loss": "hinge", "r1_gamma": 0.1}),
    ("wgan-gp", {"loss": "wasserstein", "wgan_gp_weight": 10.0}), ("vae", {"objective": "variational"}),
    ("autoencoder", {"objective": "reconstruction"}),
]


@pytest.mark.parametrize(("family", "variant"), FAMILY_VARIANTS)
def test_resumed_equals_uninterrupted_bit_for_bit(family: str, variant: dict, squares: Data) -> None:
    family, _, extra = family.partition("+")
    options = ((extra, 8),) if extra else ()
    spec, recipe = NetSpec(family, 8, 1, 2, z_dim=8, width=8, options=options), SHORT.replace({"total_kimg": 0.24, **variant})
    kept: list[bytes] = []
    whole = train(*squares, spec, recipe, seed=3, hooks=Hooks(on_checkpoint=lambda data, _: kept.append(data)))
    of_whole = read_tensors(kept[-1])[0]
    torch.manual_seed(99)                             # as another process would have it
    calls = iter(range(1000))
    stopped = train(*squares, spec, recipe, seed=3,
                    hooks=Hooks(should_stop=lambda: next(calls) == 6, on_checkpoint=lambda data, _: kept.append(data)))
    assert not stopped.finished and stopped.step == 7 < whole.step == 15
    torch.manual_seed(123)                            # whatever happened between has no say
    resumed = train(*squares, spec, recipe, seed=3, resume=kept[-1], hooks=Hooks(on_checkpoint=lambda data, _: kept.append(data)))
    assert resumed.step == whole.step
    assert all(torch.equal(of_whole[name], tensor) for name, tensor in read_tensors(kept[-1])[0].items())
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(resumed)[name], tensor), name


def test_training_moves_every_network(squares: Data) -> None:
    start = loop.new_state(*squares, SPEC, SHORT, 3, torch.device("cpu"))
    end = train(*squares, SPEC, SHORT, seed=3)
    for name, tensor in weights(start).items():
        if name == "d/head.u":                        # the singular vector of a row: 1, always
            continue
        assert not torch.equal(tensor, weights(end)[name]), name


def test_process_keeps_its_small_numbers(squares: Data) -> None:
    train(*squares, SPEC, SHORT.replace({"total_kimg": 0.032}), seed=3)
    assert 1e-310 * 0.5 > 0.0


def test_resume_of_a_finished_run_does_nothing(squares: Data) -> None:
    kept: list[bytes] = []
    done = train(*squares, SPEC, SHORT, seed=0, hooks=Hooks(on_checkpoint=lambda data, _: kept.append(data)))
    again = train(*squares, SPEC, SHORT, seed=0, resume=kept[-1])
    assert again.step == done.step and again.finished
    assert all(torch.equal(weights(again)[k], v) for k, v in weights(done).items())


@pytest.mark.parametrize(("change", "word"), [
    ({"recipe": SHORT.replace({"lr_g": 1e-3})}, "lr_g"), ({"seed": 1}, "seed"),
    ({"spec": NetSpec("mlp", 8, 1, 2, z_dim=8, width=8)}, "family"), ({"data": True}, "training data"),
])
def test_resume_of_another_run_is_refused_by_name(change: dict, word: str, squares: Data) -> None:
    kept: list[bytes] = []
    train(*squares, SPEC, SHORT.replace({"total_kimg": 0.032}), seed=0,
          hooks=Hooks(on_checkpoint=lambda data, _: kept.append(data)))
    images, labels = squares
    if change.get("data"):
        images = images.clone()
        images[0, 0, 0, 0] = 9
    recipe = change.get("recipe", SHORT.replace({"total_kimg": 0.032}))
    with pytest.raises(CheckpointMismatch, match=word):
        train(images, labels, change.get("spec", SPEC), recipe, seed=change.get("seed", 0), resume=kept[-1])


def test_two_workers_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Workers, "one_for_all", two_workers.with_two_threads)
    families = ["dcgan", "sngan", "autoencoder", "dcgan+features", "dcgan+features+plain"]
    root = Path(__file__).parents[2]
    script = Path(__file__).with_name("two_workers.py")
    env = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen([sys.executable, str(script), str(rank), "2", str(tmp_path), *families], env=env)
                 for rank in range(2)]
    assert [p.wait(timeout=120) for p in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for family in families:
        one, two = two_workers.run(0, 1, family), first[family]
        assert two["step"] == one["step"] == 12
        for name, tensor in one["weights"].items():
            assert torch.equal(two["weights"][name], second[family]["weights"][name]), (family, name)
            torch.testing.assert_close(two["weights"][name], tensor, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(torch.tensor(two["losses"]), torch.tensor(one["losses"]), atol=1e-5, rtol=1e-4)


def test_metrics_grids_and_checkpoints_are_told(squares: Data) -> None:
    metrics: list[dict] = []
    grids: list[tuple[float, Tensor]] = []
    kept: list[tuple[bytes, dict]] = []
    milestones: list[float] = []
    recipe = SHORT.replace({"metrics_every_s": 0.0, "grids": 2, "r1_gamma": 0.1, "penalty_every": 2})
    train(*squares, SPEC, recipe, seed=0, hooks=Hooks(
        on_metrics=metrics.append, on_grid=lambda k, i: grids.append((k, i)), on_checkpoint=lambda *a: kept.append(a),
        on_milestone=milestones.append))
    wanted = {"kimg", "progress", "seconds", "loss_d", "loss_g", "grad_norm_d", "grad_norm_g", "images_per_s", "lr_g",
              "gradient_real", "real_logit", "fake_logit", "augment_p"}
    assert wanted <= set(metrics[0])
    assert all(math.isfinite(v) for m in metrics for v in m.values() if isinstance(v, float))
    diversity = [m for m in metrics if "diversity_per_class" in m]
    assert diversity and set(diversity[0]["diversity_per_class"]) == {"0", "1"}
    assert [round(k, 2) for k, _ in grids] == [0.32, 0.64] and grids[0][1].shape == (24, 1, 8, 8)
    assert [m["kimg"] for _, m in kept] == milestones == pytest.approx([0.16, 0.32, 0.48, 0.64])
    assert [m["finished"] for _, m in kept] == [False, False, False, True]
    assert load_generator(kept[-1][0]).meta["kimg"] == 0.64


def test_checkpoints_by_kimg(squares: Data) -> None:
    kept: list[float] = []
    train(*squares, SPEC, SHORT.replace({"checkpoint_every_kimg": 0.2}), seed=0,
          hooks=Hooks(on_checkpoint=lambda _, m: kept.append(m["kimg"])))
    assert kept == pytest.approx([0.208, 0.4, 0.608, 0.64])


def test_budget_in_seconds_is_kept_and_drives_schedules(squares: Data) -> None:
    rates: list[float] = []
    recipe = SHORT.replace({"total_seconds": 1.5, "metrics_every_s": 0.1, "lr_floor": 0.0})
    state = train(*squares, SPEC, recipe, seed=0, hooks=Hooks(on_metrics=lambda m: rates.append(m.get("lr_g", 0))))
    assert state.finished and 1.5 <= state.elapsed_s < 3.0
    rates = [r for r in rates if r]
    assert rates[0] > 0.8 * recipe.lr_g and rates[-1] < 0.05 * recipe.lr_g


def test_non_finite_loss_stops_with_the_last_good_checkpoint(squares: Data) -> None:
    kept: list[bytes] = []

    def poison(metrics: dict) -> None:
        if metrics["kimg"] >= 0.3 and "loss_d" in metrics:
            with torch.no_grad():
                next(iter(captured[0].d.parameters())).fill_(math.nan)

    captured: list = []
    original = loop.new_state

    def spy(*args: object) -> object:
        captured.append(original(*args))              # type: ignore[arg-type]
        return captured[-1]

    loop.new_state = spy                              # type: ignore[assignment]
    try:
        with pytest.raises(TrainingDiverged, match=r"loss_d is nan|grad_norm") as caught:
            train(*squares, SPEC, SHORT.replace({"metrics_every_s": 0.0}), seed=0,
                  hooks=Hooks(on_metrics=poison, on_checkpoint=lambda d, _: kept.append(d)))
    finally:
        loop.new_state = original
    assert caught.value.kimg < 0.4 and caught.value.last_good == kept[-1]
    assert all(torch.isfinite(p).all() for p in load_generator(kept[-1]).net.parameters())


def test_absurd_rate_stops(squares: Data) -> None:
    with pytest.raises(TrainingDiverged):
        train(*squares, NetSpec("r3", 8, 1, 2, 8, width=8), SHORT.replace({"lr_g": 1e30, "lr_d": 1e30}), seed=0)


class Constant(torch.nn.Module):
    """A collapsed generator: one image a class."""

    z_dim = 8

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.weight, self.noise = torch.nn.Parameter(torch.zeros(1)), noise

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        level = torch.where(y == 1, 0.6, -0.6)[:, None, None, None]
        return (level + self.weight + self.noise * z[:, :1, None, None]).expand(-1, 1, 8, 8)


def test_planted_constant_generator_raises_the_alarm(squares: Data) -> None:
    watch, alarm = DiversityWatch(*squares, 2, 0), Alarm(0.1)
    ratios = watch.measure(Constant())
    assert set(ratios) == {0, 1} and max(ratios.values()) < 0.01
    assert watch.measure(Constant(0.2))[0] > 0.5
    assert alarm.hear_diversity(ratios, 0.1, 30) is None      # early: networks start dull
    told = [alarm.hear_diversity(ratios, 0.5, 50) for _ in range(3)]
    assert told[:2] == [None, None] and "collapsed" in str(told[2])


def test_collapse_stops_a_run(squares: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DiversityWatch, "measure", lambda self, g: {0: 0.01, 1: 0.02})
    monkeypatch.setattr(Alarm, "EARLY_KIMG", 0.0)
    with pytest.raises(TrainingDiverged, match="collapsed generator") as caught:
        train(*squares, SPEC, SHORT, seed=0)
    assert caught.value.last_good is not None and caught.value.kimg < 0.4


def test_healthy_and_recovering_generators_are_left_alone() -> None:
    alarm = Alarm(0.1)
    for ratio in (0.05, 0.04, 0.5, 0.05, 0.06, 0.9):
        assert alarm.hear_diversity({0: ratio}, 0.5, 100) is None


def test_dead_players_are_noticed() -> None:
    alarm = Alarm(0.1)
    still = {"loss_d": 0.0, "loss_g": 1.0, "grad_norm_d": 0.0, "grad_norm_g": 1.0}
    told = [alarm.hear_metrics(still) for _ in range(5)]
    assert told[:4] == [None] * 4 and "dead discriminator" in str(told[4])
    alarm = Alarm(0.1)
    assert "loss_g is inf" in str(alarm.hear_metrics({"loss_g": math.inf}))


def test_constant_identical_and_single_image_classes_are_sound() -> None:
    images = torch.full((41, 1, 8, 8), 7, dtype=torch.uint8)
    images[20:40] = 200                                       # class 1: constant as well; class 2: one image
    labels = torch.cat([torch.arange(40) // 20, torch.tensor([2])])
    assert DiversityWatch(images, labels, 3, 0).real == {}
    state = train(images, labels, NetSpec("dcgan", 8, 1, 3, z_dim=8, width=8), SHORT, seed=0)
    assert state.finished


def test_spread_is_the_within_set_deviation() -> None:
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    images[1] = 255
    assert spread(images) == pytest.approx(math.sqrt(2))      # unbiased deviation of {-1, 1}
    assert spread(images[:1]) == 0.0


@pytest.mark.parametrize(("change", "error", "word"), [
    ({"spec": NetSpec("dcgan", 12, 1, 2)}, BadData, "networks are for"),
    ({"spec": NetSpec("dcgan", 8, 1, 1)}, BadData, "1 classes"),
    ({"recipe": Recipe()}, BadRecipe, "exactly one"),
    ({"world": 3}, BadRecipe, "3 workers"), ({"world": 2}, BadRecipe, "torch.distributed"),
])
def test_bad_input_is_refused_before_any_work(change: dict, error: type, word: str, squares: Data) -> None:
    arguments = {"spec": SPEC, "recipe": SHORT, "seed": 0} | change
    with pytest.raises(error, match=word):
        train(*squares, **arguments)

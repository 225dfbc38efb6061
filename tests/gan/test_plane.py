"""A GAN on the plane: what it learns, the value function's known optimum, and what is kept of a run."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from gan.checkpoint import load_generator
from gan.errors import BadCheckpoint, BadRecipe, TrainingDiverged
from gan.loop import Hooks, train
from gan.losses import logistic_d
from gan.mixtures import MIXTURES
from gan.networks import NetSpec
from gan.plane import (
    _UNKNOWN,
    Look,
    MixtureRecipe,
    MixtureRun,
    _Duel,
    _rule,
    figures_of,
    fresh_discriminator_loss,
    load_run,
    save_run,
    train_mixture,
    value,
)
from gan.recipe import Recipe
from gan.rejection import Rejection

LOG_4 = math.log(4)
SHORT = MixtureRecipe(steps=300, batch_size=128, width=32, depth=2)


@pytest.fixture(scope="module")
def short() -> MixtureRun:
    return train_mixture(MIXTURES["two"], SHORT, seed=3)


def test_short_training_learns_and_follows_from_its_seed(short: MixtureRun) -> None:
    torch.manual_seed(1)
    looks: list[tuple[float, Look]] = []
    again = train_mixture(MIXTURES["two"], SHORT, seed=3, on_look=lambda t, look: looks.append((t, look)))
    assert torch.equal(short.sample(50, 0), again.sample(50, 0)) and short.curve == again.curve
    assert [look for _, look in looks] == list(short.curve) and looks[-1][0] == 1.0 and 35 <= len(looks) <= 45
    assert short.points == 300 * 128
    other = train_mixture(MIXTURES["two"], SHORT, seed=4)
    assert not torch.equal(short.sample(50, 0), other.sample(50, 0))
    points = short.sample(2000, 9)
    assert 0.2 < (points.sum(1) > 0).float().mean() < 0.8
    assert points.mean().abs() < 1.5 and 1.0 < points.std() < 4.0
    assert not torch.equal(points[:50], short.sample(50, 10))


@pytest.mark.parametrize("packing", [1, 3])
def test_every_loss_and_packing_runs(packing: int) -> None:
    for loss in ("minimax", "nonsaturating", "hinge", "wasserstein", "relativistic"):
        run = train_mixture(MIXTURES["ring8"], MixtureRecipe(steps=5, batch_size=8, width=8, depth=1, loss=loss, packing=packing))
        assert run.points == 5 * 8 * packing and torch.isfinite(run.sample(10, 0)).all()


def test_budget_in_seconds_ends_the_run() -> None:
    run = train_mixture(MIXTURES["two"], MixtureRecipe(seconds=0.5, batch_size=8, width=8, depth=1))
    assert 0.5 <= run.seconds < 3 and run.points > 8


@pytest.mark.parametrize("change", [{"packing": 0}, {"steps": 0}, {"loss": "lsgan"}, {"seconds": -1.0}, {"z_dim": 0},
                                    {"penalty_every": 0}, {"reject": 1}, {"lr_g": -1e-3}, {"width": 10**6}, {"gamma": math.nan},
                                    {"width": "wide"}])
def test_refusals(change: dict) -> None:
    with pytest.raises(BadRecipe, match=next(iter(change))):
        MixtureRecipe(**change)


def test_divergence_is_told() -> None:
    with pytest.raises(TrainingDiverged, match="losses are"):
        train_mixture(MIXTURES["two"], MixtureRecipe(steps=200, batch_size=8, width=8, depth=1, lr_g=1e30, lr_d=1e30))


def test_schedules() -> None:
    recipe = MixtureRecipe(lr_floor=0.1, gamma=1.0, gamma_end=0.01, noise=0.4, noise_until=0.5)
    assert (recipe.lr_scale(0), recipe.lr_scale(1)) == (1.0, pytest.approx(0.1))
    assert (recipe.gamma_at(0), recipe.gamma_at(0.5), recipe.gamma_at(1)) == (1.0, pytest.approx(0.1), pytest.approx(0.01))
    assert [recipe.noise_at(t) for t in (0, 0.25, 0.5, 0.9)] == [0.4, pytest.approx((0.4 * 0.01) ** 0.5), 0, 0]
    assert MixtureRecipe(gamma=0.0).gamma_at(0.3) == 0.0 and MixtureRecipe(noise=0.0).noise_at(0) == 0.0


# ---- rejection ------------------------------------------------------------------------------------------------


class Skewed(nn.Module):
    """A generator with a known fault: the modes of `ring8`, the first as likely as the other seven together."""

    def forward(self, z: Tensor) -> Tensor:
        mixture = MIXTURES["ring8"]
        share = torch.special.ndtr(z[:, 2])
        mode = torch.where(share < 0.5, 0, 1 + ((share - 0.5) * 14).long().clamp(0, 6))
        points = torch.from_numpy(mixture.means).float()[mode] + mixture.deviation * z[:, :2]
        return points / mixture.scale


def test_rejection_evens_out_the_modes_of_a_generator_with_a_known_fault() -> None:
    """D is fitted to the planted generator, so its logit is the density ratio; the exact rule must then undo the skew."""
    mixture, recipe = MIXTURES["ring8"], MixtureRecipe(width=64, depth=2, z_dim=3, lr_d=3e-3)
    duel, skewed = _Duel(mixture, recipe, 0), Skewed()
    for _ in range(300):
        with torch.no_grad():
            fake = skewed(torch.randn(512, 3, generator=duel.rng))
        duel.opt_d.zero_grad()
        logistic_d(*duel.d(torch.cat([duel.real(512), fake])).squeeze(1).chunk(2)).backward()
        duel.opt_d.step()
    run = MixtureRun(mixture, recipe, 0, skewed, duel.d, figures=_UNKNOWN, curve=(Look(1, 0.0, 0.0, 0.0, 8, 1.0),), seconds=0.0)
    before, after = (figures_of(r, 2500) for r in (run, dataclasses.replace(run, rule=_rule(run))))
    assert before.reverse_kl > 0.4 and after.reverse_kl < 0.05 and after.modes == 8


def test_a_minted_point_follows_from_its_seed_alone(short: MixtureRun) -> None:
    seeds = np.arange(40, dtype=np.int64)
    strict = dataclasses.replace(short, rule=Rejection(scale=1.0, offset=0.0, ceilings=(2.0,)))
    minted = strict.minted(seeds)
    torch.testing.assert_close(strict.minted(seeds[7:9]), minted[7:9])
    assert not torch.equal(minted, strict.drawn(seeds))
    every = dataclasses.replace(short, rule=None)
    assert torch.equal(every.minted(seeds), short.drawn(seeds))


@pytest.mark.parametrize("change", [{"reject": False}, {"packing": 2}])
def test_where_nothing_is_rejected_every_draw_is_kept(change: dict) -> None:
    run = train_mixture(MIXTURES["two"], MixtureRecipe(steps=5, batch_size=8, width=8, depth=1, **change))
    assert run.rule is None and run.figures == run.as_drawn
    assert torch.equal(load_run(save_run(run)).sample(10, 0), run.sample(10, 0))


# ---- the value function -----------------------------------------------------------------------------------------


def test_value_is_minus_log_4_where_nothing_can_be_told_and_known_elsewhere() -> None:
    rng = np.random.default_rng(0)
    same = [torch.from_numpy(rng.normal(size=50_000)) for _ in range(2)]
    assert value(*same) == pytest.approx(-LOG_4, abs=1e-3)
    assert value(same[0] + 100, same[1] - 100) == pytest.approx(0, abs=0.01)
    # x ~ N(½, 1) against N(-½, 1): the best D is σ(x), and -value is E log(1 + e^-x) over both.
    real, fake = (torch.from_numpy(rng.normal(m, 1, 100_000)) for m in (0.5, -0.5))
    grid = np.linspace(-9, 9, 20_001)
    want = -2 * np.trapezoid(stats.norm(0.5, 1).pdf(grid) * np.logaddexp(0, -grid), grid)
    assert value(real, fake) == pytest.approx(want, abs=0.01)
    assert value(7 * real - 3, 7 * fake - 3) == pytest.approx(value(real, fake), abs=1e-6)       # a line is no matter


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name == "ring8" else pytest.mark.slow) for name in MIXTURES])
def test_fresh_discriminator_knows_log_4_and_small_faults(name: str) -> None:
    """Two true sets can't be told apart; a set half as wide within its modes, or without one mode, can."""
    mixture = MIXTURES[name]

    def loss(points: Tensor) -> float:
        return fresh_discriminator_loss(points, mixture.sample(20_000, 2), mixture.deviation, steps=300)

    true = mixture.sample(20_000, 1)
    base = loss(true)
    assert base == pytest.approx(LOG_4, abs=0.04)
    middles = torch.from_numpy(mixture.means[np.argmin(((true.numpy()[:, None] - mixture.means) ** 2).sum(-1), 1)]).float()
    assert loss(middles + 0.5 * (true - middles)) < base - 0.08
    missing = true[(middles - middles[0]).abs().sum(1) > 1e-6]
    assert loss(missing) < base - 0.008
    assert loss(true + 20) < 0.2


# ---- keeping a run ----------------------------------------------------------------------------------------------


def test_a_kept_run_comes_back(short: MixtureRun, squares: tuple[Tensor, Tensor]) -> None:
    data = save_run(short)
    back = load_run(data)
    assert (back.mixture, back.recipe, back.seed, back.figures, back.curve) == (
        short.mixture, short.recipe, short.seed, short.figures, short.curve)
    assert torch.equal(back.sample(100, 5), short.sample(100, 5)) and figures_of(back, 100) == figures_of(short, 100)
    assert save_run(back) == data


def test_other_checkpoints_are_refused_by_name(short: MixtureRun, squares: tuple[Tensor, Tensor]) -> None:
    kept: list[bytes] = []
    train(*squares, NetSpec("mlp", 8, 1, 2, z_dim=4, width=8), Recipe(total_kimg=0.032, batch_size=16), seed=0,
          hooks=Hooks(on_checkpoint=lambda data, _: kept.append(data)))
    with pytest.raises(BadCheckpoint, match="family mlp, which makes images"):
        load_run(kept[-1])
    with pytest.raises(BadCheckpoint):
        load_generator(save_run(short))
    data = bytearray(save_run(short))
    data[-5] ^= 1
    with pytest.raises(BadCheckpoint, match="sha256"):
        load_run(bytes(data))

"""Mixtures on the plane: density, figures with known answers, a short training, and D's optimum."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from gan.errors import BadRecipe
from gan.mixtures import MIXTURES, MixtureRecipe, fresh_discriminator_loss, mode_figures, summarise, train_mixture


@pytest.mark.parametrize("name", MIXTURES)
def test_density_equals_scipys(name: str) -> None:
    mixture = MIXTURES[name]
    points = mixture.sample(200, 1).numpy().astype(np.float64)
    parts = [stats.multivariate_normal(mean, mixture.deviation**2).logpdf(points) for mean in mixture.means]
    wanted = np.logaddexp.reduce(parts, axis=0) - math.log(len(mixture.means))
    np.testing.assert_allclose(mixture.log_density(points), wanted, rtol=1e-9)


@pytest.mark.parametrize("name", ["ring8", "grid25"])
def test_true_samples_reach_the_ceiling(name: str) -> None:
    mixture = MIXTURES[name]
    figures = mode_figures(mixture.sample(40_000, 0).numpy().astype(np.float64), mixture)
    assert figures.modes == figures.of == len(mixture.means)
    assert figures.high_quality == pytest.approx(1 - math.exp(-4.5), abs=0.003)
    assert figures.reverse_kl < 0.002
    assert np.allclose(figures.spread_ratio, 1.0, atol=0.06)


def test_figures_of_collapse_and_noise_are_known() -> None:
    mixture = MIXTURES["ring8"]
    one = np.repeat(mixture.means[:1], 100, 0)
    figures = mode_figures(one, mixture)
    assert (figures.modes, figures.high_quality) == (1, 1.0)
    assert figures.reverse_kl == pytest.approx(math.log(8)) and figures.spread_ratio[0] == 0.0
    assert math.isnan(figures.spread_ratio[1])
    far = mode_figures(mixture.means * 1.5, mixture)
    assert (far.modes, far.high_quality) == (0, 0.0) and far.reverse_kl == pytest.approx(0.0)


def test_fresh_discriminator_knows_log_4_and_the_difference() -> None:
    two = MIXTURES["two"]
    same = fresh_discriminator_loss(two.sample(20_000, 1), two.sample(20_000, 2), steps=200)
    assert same == pytest.approx(math.log(4), abs=0.03)
    assert fresh_discriminator_loss(two.sample(4000, 1) + 20, two.sample(4000, 2), steps=200) < 0.2


def test_short_training_is_deterministic_and_learns() -> None:
    recipe = MixtureRecipe(steps=300, batch_size=128, width=32, depth=2)
    torch.manual_seed(0)
    a = train_mixture(MIXTURES["two"], recipe, seed=3)
    torch.manual_seed(1)
    b = train_mixture(MIXTURES["two"], recipe, seed=3)
    assert torch.equal(a.sample(50, 0), b.sample(50, 0)) and len(a.curve) == 3
    points = a.sample(2000, 9)
    assert 0.2 < (points.sum(1) > 0).float().mean() < 0.8
    assert points.mean().abs() < 1.5 and 1.0 < points.std() < 4.0


def test_refusals_and_summary() -> None:
    with pytest.raises(BadRecipe):
        train_mixture(MIXTURES["two"], MixtureRecipe(packing=0))
    with pytest.raises(BadRecipe, match="lsgan"):
        train_mixture(MIXTURES["two"], MixtureRecipe(loss="lsgan"))
    mixture = MIXTURES["ring8"]
    figures = [mode_figures(mixture.sample(500, i).numpy().astype(np.float64), mixture) for i in range(4)]
    summary = summarise(figures)
    assert summary.runs == 4 and summary.modes == (8.0, 0.0)
    values = [f.high_quality for f in figures]
    assert summary.high_quality[1] == pytest.approx(np.std(values, ddof=1) / 2)

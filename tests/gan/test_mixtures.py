"""Mixtures on the plane: densities, and figures with known answers."""

import math
import re

import numpy as np
import pytest
from scipy import stats

from gan.errors import BadData
from gan.mixtures import MIXTURES, mode_figures, summarise


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


def test_summary_is_mean_and_standard_error() -> None:
    mixture = MIXTURES["ring8"]
    figures = [mode_figures(mixture.sample(500, i).numpy().astype(np.float64), mixture) for i in range(4)]
    summary = summarise(figures)
    assert summary.runs == 4 and summary.modes == (8.0, 0.0)
    values = [f.high_quality for f in figures]
    assert summary.high_quality == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1) / 2))
    assert math.isnan(summarise(figures[:1]).reverse_kl[1])


@pytest.mark.parametrize(("points", "words"), [
    (np.zeros((0, 2)), "no points"), (np.zeros((3, 3)), "(3, 3)"), (np.array([[0.0, math.nan]]), "NaN"),
])
def test_what_is_no_set_of_points_is_refused(points: np.ndarray, words: str) -> None:
    with pytest.raises(BadData, match=re.escape(words)):
        mode_figures(points, MIXTURES["two"])

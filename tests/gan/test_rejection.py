"""Rejection and truncation against densities that are known: the target comes out, variances shrink as stated."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from gan.errors import BadData
from gan.mixtures import MIXTURES
from gan.networks import NetSpec, build
from gan.rejection import Critic, Kept, Rejection, RejectionSampler, fit, logistic_line, sift
from gan.sampling import generate, latents, redraw_seeds, uniforms

WIDE = stats.norm(0, 3)                              # what the generator makes
TARGET = [(0.7, stats.norm(-2, 0.5)), (0.3, stats.norm(1.5, 0.8))]


def target_pdf(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sum([w * part.pdf(x) for w, part in TARGET], axis=0)


def target_cdf(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sum([w * part.cdf(x) for w, part in TARGET], axis=0)


def draw(labels: Tensor, seeds: NDArray[np.int64]) -> Tensor:
    """N(0, 9) on the line, (n, 1)."""
    return 3 * latents(seeds, 1)


def log_ratio(x: Tensor, labels: Tensor) -> Tensor:
    values = x[:, 0].double().numpy()
    return torch.from_numpy(np.log(target_pdf(values)) - WIDE.logpdf(values))


def ceiling() -> float:
    grid = np.linspace(-12, 12, 200_001)
    return float((np.log(target_pdf(grid)) - WIDE.logpdf(grid)).max())


def kept_on_the_line(n: int, rule: Rejection, first: int = 0, max_draws: int = 400) -> Kept:
    return sift(draw, log_ratio, torch.zeros(n, dtype=torch.int64), np.arange(first, first + n), rule, max_draws)


# ---- the rule ---------------------------------------------------------------------------------------------------


def test_exact_rule_recovers_a_mixture_on_the_line() -> None:
    kept = kept_on_the_line(20_000, Rejection(1.0, 0.0, (ceiling(),)))
    assert not kept.given_up.any()
    assert stats.kstest(kept.samples[:, 0].numpy(), target_cdf).pvalue > 0.001
    assert stats.kstest(draw(torch.zeros(0), np.arange(20_000))[:, 0].numpy(), target_cdf).pvalue < 1e-9     # the test can fail
    # One draw in M passes: draws a row are geometric with mean M.
    assert kept.draws.mean() == pytest.approx(math.exp(ceiling()), rel=0.03)


def test_exact_rule_recovers_a_mixture_on_the_plane() -> None:
    """The generator lacks weight: ¾ of its points in one of two modes. What passes has them half and half."""
    two = MIXTURES["two"]

    def lopsided(labels: Tensor, seeds: NDArray[np.int64]) -> Tensor:
        left = torch.from_numpy(uniforms(seeds ^ 0x5555) < 0.75)
        return latents(seeds, 2) + torch.where(left, -2.0, 2.0)[:, None]

    def ratio(points: Tensor, labels: Tensor) -> Tensor:
        x = points.double().numpy()
        parts = [np.log(w) + stats.multivariate_normal([m, m]).logpdf(x) for w, m in ((0.75, -2.0), (0.25, 2.0))]
        return torch.from_numpy(two.log_density(x) - np.logaddexp(*parts))

    kept = sift(lopsided, ratio, torch.zeros(8000, dtype=torch.int64), np.arange(8000), Rejection(1.0, 0.0, (math.log(2),)))
    right = (kept.samples.sum(1) > 0).double().mean()
    assert abs(float(right) - 0.5) < 4 * 0.5 / math.sqrt(8000)
    assert kept.draws.mean() == pytest.approx(2.0, rel=0.05)
    assert kept.samples.var(0).tolist() == pytest.approx([5.0, 5.0], rel=0.05)


def test_acceptance_is_the_density_ratio_over_its_largest() -> None:
    rule = Rejection(1.0, 0.0, (2.0, 5.0))
    logits, labels = torch.tensor([2.0, 1.0, -3.0, 7.0]), torch.tensor([0, 0, 1, 1])
    assert rule.acceptance(logits, labels).tolist() == pytest.approx([1, math.exp(-1), math.exp(-8), 1], rel=1e-6)
    boosted = Rejection(1.0, 0.0, (2.0, 5.0), boost=math.log(3)).acceptance(logits[1:2], labels[1:2])
    odds = math.exp(-1) / (1 - math.exp(-1))
    assert float(boosted) == pytest.approx(3 * odds / (1 + 3 * odds), rel=1e-9)


@pytest.mark.parametrize("keep", [0.1, 0.4, 0.9])
def test_keep_is_the_share_that_passes_and_the_worst_go_first(keep: float) -> None:
    real = torch.from_numpy(np.concatenate([p.rvs(int(20_000 * w), random_state=i) for i, (w, p) in enumerate(TARGET)]))[:, None]
    fake = draw(torch.zeros(0), np.arange(20_000))
    zeros = torch.zeros(20_000, dtype=torch.int64)
    rule = fit(log_ratio(real, zeros), zeros, log_ratio(fake, zeros), zeros, 1, keep)
    kept = kept_on_the_line(20_000, rule, first=10**6)
    assert 1 / kept.draws.mean() == pytest.approx(keep, rel=0.05)
    chance = rule.acceptance(log_ratio(fake, zeros), zeros)
    order = log_ratio(fake, zeros).argsort()
    assert (chance[order].diff() >= -1e-12).all()


def test_calibration_finds_the_scale_of_a_stretched_ratio() -> None:
    """A D that says 3 + 5·log ratio, on samples of both: the line back is 1/5 and -3/5."""
    rng = np.random.default_rng(0)
    real, fake = (torch.from_numpy(rng.normal(m, 1, 100_000)) for m in (0.5, -0.5))     # log ratio of N(½, 1) to N(-½, 1) is x
    zeros = torch.zeros(100_000, dtype=torch.int64)
    rule = fit(3 + 5 * real, zeros, 3 + 5 * fake, zeros, 1)
    assert rule.scale == pytest.approx(0.2, rel=0.02)
    assert rule.offset == pytest.approx(-0.6, abs=0.02)
    assert rule.ceilings[0] == pytest.approx(float(fake.max()), rel=0.05)


def test_logistic_line_against_scikit_learn_and_at_its_ends() -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(1)
    x, t = rng.normal(size=400) * 7 + 20, rng.integers(0, 2, 400)
    x = x + 5 * t
    a, b = logistic_line(torch.from_numpy(x), torch.from_numpy(t.astype(float)), torch.ones(400, dtype=torch.float64))
    want = LogisticRegression(C=1e6, tol=1e-10, max_iter=10_000).fit(x[:, None], t)
    assert (a, b) == (pytest.approx(want.coef_[0, 0], rel=1e-3), pytest.approx(want.intercept_[0], rel=1e-3))
    falling, flat = logistic_line(torch.tensor([0.0, 0, 1, 1]).double(), torch.tensor([1.0, 1, 0, 0]).double(), torch.ones(4).double())
    assert (falling, flat) == (0.0, 0.0)             # a D that is wrong about everything says nothing
    a, b = logistic_line(torch.tensor([0.0, 0, 1, 1]).double(), torch.tensor([0.0, 0, 1, 1]).double(), torch.ones(4).double())
    assert a > 5 and math.isfinite(a) and math.isfinite(b)                     # separable
    a, b = logistic_line(torch.zeros(4).double(), torch.tensor([0.0, 1, 1, 1]).double(), torch.ones(4).double())
    assert math.isfinite(a) and b == pytest.approx(math.log(3), rel=1e-3)      # D says the same of all


def test_classes_count_alike_and_have_ceilings_of_their_own() -> None:
    logits, labels = torch.tensor([0.0, 1.0, 5.0, 6.0]), torch.tensor([0, 0, 2, 2])
    rule = fit(logits + 1, labels, logits, labels, 3)
    assert rule.ceilings[0] == pytest.approx(rule.scale * 1 + rule.offset)
    assert rule.ceilings[1] == rule.ceilings[2] == pytest.approx(rule.scale * 6 + rule.offset)     # an unseen class: the largest
    for real, fake, words in ((labels, labels + 1, "no class in common"), (labels[:0], labels, "no class in common")):
        with pytest.raises(BadData, match=words):
            fit(logits[: len(real)], real, logits, fake, 4)
    with pytest.raises(BadData, match="not finite"):
        fit(logits * math.nan, labels, logits, labels, 3)
    with pytest.raises(BadData, match="keep"):
        fit(logits, labels, logits, labels, 3, keep=1.0)


# ---- rows stand alone -------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(seeds=st.lists(st.integers(-2**62, 2**62), min_size=1, max_size=12, unique=True), keep=st.sampled_from([0.3, 0.9]))
def test_a_row_follows_from_its_seed_alone(seeds: list[int], keep: float) -> None:
    rule = Rejection(1.0, 0.0, (ceiling(),), boost=math.log(keep / (1 - keep)))
    zeros = torch.zeros(len(seeds), dtype=torch.int64)
    whole = sift(draw, log_ratio, zeros, np.array(seeds, np.int64), rule)
    for i, seed in enumerate(seeds):
        alone = sift(draw, log_ratio, zeros[:1], np.array([seed], np.int64), rule)
        assert torch.equal(alone.samples[0], whole.samples[i])
        assert (alone.seeds[0], alone.draws[0]) == (whole.seeds[i], whole.draws[i])
    assert torch.equal(draw(zeros, whole.seeds), whole.samples)                # the seed that is given is the one that made it


def test_redraws_and_coins_are_independent_of_the_latents() -> None:
    seeds = np.arange(20_000)
    assert np.array_equal(redraw_seeds(seeds, 0), seeds)
    streams = [latents(redraw_seeds(seeds, k), 1)[:, 0].double().numpy() for k in range(3)]
    coins = [uniforms(redraw_seeds(seeds, k)) for k in range(3)]
    assert all(stats.kstest(c, "uniform").pvalue > 0.001 for c in coins)
    assert np.abs(np.corrcoef(streams + coins) - np.eye(6)).max() < 5 / math.sqrt(20_000)
    assert len(np.unique(np.concatenate([redraw_seeds(seeds, k) for k in range(20)]))) == 400_000
    assert (redraw_seeds(seeds, 7) >= 0).all()


def test_giving_up_keeps_the_likeliest_draw_and_says_so() -> None:
    never = Rejection(1.0, 0.0, (60.0,))
    kept = kept_on_the_line(200, never, max_draws=5)
    assert kept.given_up.all() and (kept.draws == 5).all()
    chances = torch.stack([log_ratio(draw(torch.zeros(0), redraw_seeds(np.arange(200), k)), torch.zeros(0)) for k in range(5)])
    torch.testing.assert_close(log_ratio(kept.samples, torch.zeros(0)), chances.max(0).values)


def test_nothing_asked_nothing_made() -> None:
    kept = kept_on_the_line(0, Rejection(1.0, 0.0, (0.0,)))
    assert len(kept.samples) == len(kept.seeds) == 0


# ---- images -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), (("minibatch_std", 4),)])
def test_images_that_pass_are_those_of_their_seeds(options: tuple, squares: tuple[Tensor, Tensor]) -> None:
    g, d = build(NetSpec("dcgan", 8, 1, 2, 8, width=8, options=options), 0)
    sampler = RejectionSampler(g, d, *squares, 2, keep=0.3, truncation=0.8)
    labels, seeds = torch.arange(40) % 2, np.arange(100, 140)
    kept = sampler.sample(labels, seeds)
    assert kept.samples.shape == (40, 1, 8, 8) and kept.samples.dtype == torch.uint8
    again = generate(g, labels, kept.seeds, truncation=0.8)
    assert (kept.samples.int() - again.int()).abs().max() <= 1                 # batches of another size: the last bit
    assert (kept.seeds == seeds)[kept.draws == 1].all() and (kept.draws > 1).any()
    some = sampler.sample(labels[7:9], seeds[7:9])
    assert (some.samples.int() - kept.samples[7:9].int()).abs().max() <= 1


def test_critic_judges_rows_apart(squares: tuple[Tensor, Tensor]) -> None:
    """A discriminator that compares rows (minibatch_std) still gives a row the same logit whatever stands beside it."""
    _, d = build(NetSpec("dcgan", 8, 1, 2, 8, width=8, options=(("minibatch_std", 4),)), 0)
    critic = Critic(d, *squares)
    whole = critic(squares[0][:50], squares[1][:50])
    parts = torch.cat([critic(squares[0][i:i + 5], squares[1][i:i + 5]) for i in range(0, 50, 5)])
    torch.testing.assert_close(whole, parts, atol=1e-4, rtol=1e-4)
    assert len(critic(squares[0][:0], squares[1][:0])) == 0


def test_images_of_another_form_are_refused(squares: tuple[Tensor, Tensor]) -> None:
    g, d = build(NetSpec("dcgan", 8, 1, 2, 8, width=8), 0)
    with pytest.raises(BadData, match="the networks' "):
        RejectionSampler(g, d, squares[0].expand(-1, 3, -1, -1), squares[1], 2)
    with pytest.raises(BadData, match="the networks' "):
        RejectionSampler(g, d, squares[0].repeat(1, 1, 2, 2), squares[1], 2)
    with pytest.raises(BadData, match="classes"):
        RejectionSampler(g, d, *squares, 1)


# ---- truncation -------------------------------------------------------------------------------------------------


class Passing(nn.Module):
    """Shows its latents: pixel j of the image is z_j / 8, at the middle of the range."""

    z_dim = 64

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return (self.weight * z / 8).view(-1, 1, 8, 8)


@pytest.mark.parametrize("psi", [1.0, 0.7, 0.5, 1.3, 0.0])
def test_truncation_shrinks_the_variance_by_its_square(psi: float) -> None:
    images = generate(Passing(), torch.zeros(4000, dtype=torch.int64), np.arange(4000), truncation=psi)
    z = (images.double() / 127.5 - 1) * 8
    rounding = (8 / 127.5) ** 2 / 12
    assert float(z.var()) == pytest.approx(psi**2 + (rounding if psi else 0), rel=0.01, abs=1e-9)
    assert abs(float(z.mean())) < 0.04               # the middle grey is 127.5, which no byte is


def test_truncation_of_one_changes_nothing_and_others_are_refused() -> None:
    g, _ = build(NetSpec("dcgan", 8, 1, 2, 8, width=8), 0)
    y, seeds = torch.arange(9) % 2, np.arange(9)
    assert torch.equal(generate(g, y, seeds), generate(g, y, seeds, truncation=1.0))
    assert not torch.equal(generate(g, y, seeds), generate(g, y, seeds, truncation=0.5))
    for psi in (-0.1, 2.1, math.nan):
        with pytest.raises(BadData, match="truncation"):
            generate(g, y, seeds, truncation=psi)


@pytest.mark.parametrize("family", ["mlp", "dcgan", "sngan", "r3", "vae"])
def test_scaling_z_is_truncation_towards_the_mean_intermediate_latent(family: str) -> None:
    """w̄ + ψ(w - w̄) with w the first layer's output: the mean over z is that of z = 0, since the layer is linear."""
    g, _ = build(NetSpec(family, 8, 1, 2, 8, width=8), 0)
    linear = next(m for m in g.modules() if isinstance(m, nn.Linear))
    extra = linear.in_features - 8                   # what stands beside z: a one-hot or embedded label
    z, beside = torch.randn(500, 8), torch.randn(1, extra).expand(500, extra)
    w, scaled, middle = (linear(torch.cat([part, beside], 1)) for part in (z, 0.6 * z, 0 * z))
    torch.testing.assert_close(scaled, middle + 0.6 * (w - middle), atol=1e-5, rtol=1e-5)

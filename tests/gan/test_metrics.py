"""Each metric against an oracle or an analytic value, and the same whatever the chunk."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gan.metrics import distances
from gan.metrics.agreement import agreement, balanced_accuracy
from gan.metrics.confidence import inception_like_score
from gan.metrics.distances import nearest
from gan.metrics.diversity import diversity, spread
from gan.metrics.frechet import Gaussian, frechet_distance
from gan.metrics.kernel import kernel_distance
from gan.metrics.manifold import expected_coverage, manifold
from gan.metrics.memorisation import lower_rank, memorisation

torch.set_num_threads(1)


def normal(
    n: int, d: int, seed: int, shift: float = 0.0, scale: float = 1.0, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64).mul(scale).add(shift).to(dtype)


class Identity(torch.nn.Module):
    """torchmetrics' `feature` that hands its input on."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.num_features = d

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)


# ---- Fréchet ----------------------------------------------------------------------------------------------------


def by_sqrtm(x: torch.Tensor, y: torch.Tensor) -> float:
    a, b = np.cov(x.numpy(), rowvar=False), np.cov(y.numpy(), rowvar=False)
    cross = np.trace(np.real(scipy.linalg.sqrtm(a @ b)))
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * cross)


def test_frechet_against_scipy_and_torchmetrics() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    x, y = normal(400, 12, 0) @ normal(12, 12, 5), normal(300, 12, 1, 0.3, 1.5)
    got = frechet_distance(Gaussian(x), Gaussian(y))
    assert got == pytest.approx(by_sqrtm(x, y), rel=1e-9)
    oracle = FrechetInceptionDistance(feature=Identity(12), input_img_size=(12, 1, 1)).set_dtype(torch.float64)
    oracle.update(x.view(-1, 12, 1, 1), real=True)
    oracle.update(y.view(-1, 12, 1, 1), real=False)
    assert got == pytest.approx(float(oracle.compute()), rel=1e-5)


def test_frechet_is_exact_where_covariances_are_singular() -> None:
    """Rank one in eight dimensions: N(0, a²) and N(m, b²) on a line, distance m² + (a - b)²."""
    line = torch.zeros(8, dtype=torch.float64)
    line[2] = 1
    t = normal(1000, 1, 3)
    t = (t - t.mean()) / t.std()
    got = frechet_distance(Gaussian(3 * t * line), Gaussian((2 * t + 5) * line))
    assert got == pytest.approx(25 + 1, rel=1e-9)
    few = normal(5, 64, 1, scale=1e3)               # five rows in 64 dimensions against themselves
    assert frechet_distance(Gaussian(few), Gaussian(few)) == pytest.approx(0, abs=1e-6)
    one = frechet_distance(Gaussian(torch.zeros(1, 4)), Gaussian(torch.ones(1, 4)))
    assert one == pytest.approx(4)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.floats(-1e4, 1e4))
def test_gaussian_does_not_depend_on_the_batches(sizes: list[int], shift: float) -> None:
    rows = normal(sum(sizes), 5, sum(sizes), shift)
    whole, parts = Gaussian(rows), Gaussian()
    for part in rows.split(sizes):
        parts.update(part)
    assert parts.count == whole.count
    torch.testing.assert_close(parts.mean, whole.mean, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(parts.covariance, whole.covariance, rtol=1e-7, atol=1e-7)


def test_gaussian_refuses_what_it_cannot_use() -> None:
    with pytest.raises(ValueError, match="NaN"):
        Gaussian(torch.tensor([[float("nan"), 0.0]]))
    with pytest.raises(ValueError, match=r"\(n, 2\)"):
        Gaussian(torch.zeros(3, 2)).update(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="need rows"):
        frechet_distance(Gaussian(), Gaussian(torch.zeros(3, 2)))


# ---- kernel -----------------------------------------------------------------------------------------------------


def test_kernel_distance_against_torchmetrics_and_the_double_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchmetrics.image.kid import KernelInceptionDistance

    x, y = normal(90, 6, 0), normal(90, 6, 1, 0.4)
    got = kernel_distance(x, y)

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b.T / 6 + 1) ** 3

    off = 1 - torch.eye(90, dtype=torch.float64)
    direct = ((kernel(x, x) + kernel(y, y)) * off).sum() / (90 * 89) - 2 * kernel(x, y).mean()
    assert got == pytest.approx(float(direct), rel=1e-10)
    oracle = KernelInceptionDistance(feature=Identity(6), subsets=1, subset_size=90).set_dtype(torch.float64)
    oracle.update(x.view(-1, 6, 1, 1), real=True)
    oracle.update(y.view(-1, 6, 1, 1), real=False)
    assert got == pytest.approx(float(oracle.compute()[0]), rel=1e-4)
    monkeypatch.setattr("gan.metrics.kernel._BLOCK", 7)
    assert kernel_distance(x, y) == pytest.approx(got, rel=1e-10)


def test_kernel_distance_is_unbiased() -> None:
    """Mean over many pairs of sets from one distribution: zero within three standard errors, and negative at times."""
    values = np.array([kernel_distance(normal(20, 3, 2 * i), normal(20, 3, 2 * i + 1)) for i in range(200)])
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(200)
    assert values.min() < 0


# ---- precision, recall, density, coverage -----------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m", "d", "shift"), [(120, 80, 3, 0.5), (60, 200, 10, 0.0), (40, 40, 2, 3.0)])
def test_manifold_against_prdc(n: int, m: int, d: int, shift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from prdc import compute_prdc

    real, fake = normal(n, d, 0), normal(m, d, 1, shift)
    want = compute_prdc(real.numpy(), fake.numpy(), nearest_k=5)
    for block in (distances.BLOCK_FLOATS, 300):
        monkeypatch.setattr(distances.distance_blocks, "__defaults__", (block,))
        got = manifold(real, fake, 5)
        assert (got.precision, got.recall, got.coverage) == (want["precision"], want["recall"], want["coverage"])
        assert got.density == pytest.approx(want["density"])


def test_manifold_of_thousands_of_rows_is_bounded_in_memory_and_agrees_with_prdc() -> None:
    from prdc import compute_prdc

    real, fake = normal(2500, 64, 0, dtype=torch.float32), normal(2500, 64, 1, 0.05, dtype=torch.float32)
    want = compute_prdc(real.numpy(), fake.numpy(), nearest_k=5)
    got = manifold(real, fake, 5)
    assert got.coverage == pytest.approx(want["coverage"], abs=2e-3)
    assert got.recall == pytest.approx(want["recall"], abs=2e-3)
    largest = max(block.numel() for _, block in distances.distance_blocks(real, fake))
    assert largest <= distances.BLOCK_FLOATS


def test_manifold_sees_missing_modes_and_bad_samples() -> None:
    real = torch.cat([normal(200, 2, 0), normal(200, 2, 1, 50)])
    half = manifold(real, normal(400, 2, 2))          # one of two modes
    assert half.coverage == pytest.approx(0.5, abs=0.05)
    assert half.precision > 0.9
    wrong = manifold(real, normal(400, 2, 3, -500))
    assert (wrong.precision, wrong.coverage, wrong.density) == (0, 0, 0)


@pytest.mark.parametrize(("n", "m", "k"), [(400, 400, 5), (300, 150, 3)])
def test_coverage_of_equal_distributions_is_as_expected(n: int, m: int, k: int) -> None:
    values = [manifold(normal(n, 2, 2 * i), normal(m, 2, 2 * i + 1), k, with_recall=False).coverage for i in range(8)]
    assert np.mean(values) == pytest.approx(expected_coverage(n, m, k), abs=0.015)


def test_a_class_of_two_rows_bears_one_neighbour() -> None:
    got = manifold(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.1], [0.2]]), 1)
    assert (got.coverage, got.precision) == (1.0, 1.0)
    with pytest.raises(ValueError, match="5 nearest of 1"):
        manifold(torch.tensor([[0.0], [1.0]]), torch.zeros(9, 1), 5)


def test_nearest_leaves_a_row_out_of_its_own_neighbours_but_keeps_its_double() -> None:
    rows = torch.tensor([[0.0], [0.0], [3.0]])
    distance, index = nearest(rows, rows, 1, same=True)
    assert distance[:, 0].tolist() == [0, 0, 3]
    assert index[0, 0] == 1


# ---- confidence, agreement, diversity ---------------------------------------------------------------------------


def test_inception_like_score_at_its_ends() -> None:
    sure = torch.eye(4).repeat(5, 1) * 1e4
    assert inception_like_score(sure) == pytest.approx(4)
    assert inception_like_score(torch.zeros(9, 4)) == pytest.approx(1)
    assert inception_like_score(sure[:1]) == pytest.approx(1)          # one image: nothing varied
    p = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64)
    want = math.exp(float((p * (p / p.mean(0)).log()).sum(1).mean()))
    assert inception_like_score(p.log()) == pytest.approx(want)


def test_agreement_overall_and_by_class() -> None:
    logits = torch.eye(3)[torch.tensor([0, 0, 1, 2])]
    assert agreement(logits, torch.tensor([0, 1, 1, 2])) == (0.75, {0: 1.0, 1: 0.5, 2: 1.0})
    assert balanced_accuracy(logits, torch.tensor([0, 0, 0, 0])) == 0.5
    with pytest.raises(ValueError, match="no rows"):
        agreement(logits[:0], torch.tensor([], dtype=torch.int64))


def test_diversity_by_class_and_what_cannot_be_said() -> None:
    x = normal(30, 4, 0)
    real = torch.cat([x, x, x[:1], x[:1].repeat(5, 1)])
    labels = torch.tensor([0] * 30 + [1] * 30 + [2] + [3] * 5)
    fake = torch.cat([x * 0.5, x[:1].repeat(30, 1), x, x])
    fake_labels = torch.tensor([0] * 30 + [1] * 30 + [2] * 30 + [3] * 30)
    got = diversity(real, labels, fake, fake_labels)
    assert got == {0: pytest.approx(0.5), 1: pytest.approx(0, abs=1e-6)}     # 2: one real row; 3: all alike
    assert spread(torch.tensor([[0.0], [1.0], [3.0]])) == pytest.approx(2.0)
    assert math.isnan(spread(x[:1]))


@pytest.mark.parametrize("metric", [
    lambda good, odd: Gaussian(odd), kernel_distance, manifold, lambda good, odd: manifold(good, odd, with_recall=False),
    lambda good, odd: diversity(good, torch.arange(40) % 2, odd, torch.arange(40) % 2), lambda good, odd: spread(odd),
    lambda good, odd: memorisation(good, good, odd), lambda good, odd: memorisation(good, odd, good),
    lambda good, odd: memorisation(odd, good, good), nearest, lambda good, odd: inception_like_score(odd),
    lambda good, odd: agreement(odd, torch.arange(40) % 3),
])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_value_that_is_no_number_refuses_the_whole_figure(metric: Callable, value: float) -> None:
    odd = normal(40, 3, 1)
    odd[17, 1] = value
    with pytest.raises(ValueError, match="features hold NaN or infinity"):
        metric(normal(40, 3, 0), odd)


def test_features_too_large_to_square_are_no_new_images() -> None:
    train, held_out = normal(40, 3, 0, dtype=torch.float32), normal(20, 3, 1, dtype=torch.float32)
    assert math.isfinite(memorisation(train, held_out, train * 1e18).median_ratio)
    with pytest.raises(ValueError, match="NaN or infinity"):
        memorisation(train, held_out, train * 1e20)


# ---- memorisation -----------------------------------------------------------------------------------------------


def test_a_planted_copy_is_caught_and_new_rows_are_not() -> None:
    train, held_out, new = normal(800, 16, 0), normal(400, 16, 1), normal(1000, 16, 2)
    clean = memorisation(train, held_out, new)
    assert clean.too_near <= 0.02
    assert clean.median_ratio == pytest.approx(1, abs=0.05)
    assert clean.authentic == pytest.approx(clean.authentic_held_out, abs=0.06)
    planted = new.clone()
    planted[100:150] = train[300:350] + 0.01 * normal(50, 16, 3)
    caught = memorisation(train, held_out, planted)
    assert caught.too_near == pytest.approx(0.05, abs=0.02)
    assert {i for i, _, _ in caught.pairs} <= set(range(100, 150))
    assert all(row == i + 200 for i, row, _ in caught.pairs)
    assert len(caught.pairs) == 20
    assert memorisation(train, held_out, train).too_near == 1.0
    assert memorisation(train, held_out, train).authentic == 0.0


def test_the_threshold_is_seldom_undercut_by_new_real_rows() -> None:
    """Held-out sets of several sizes: the share of new rows under the threshold stays at or below 1 % in most draws."""
    rng = np.random.default_rng(0)
    for n in (50, 300, 2000, 10000):
        over = [np.sort(rng.random(n))[lower_rank(n, 0.01)] > 0.01 for _ in range(300)]
        assert np.mean(over) < (0.65 if n == 50 else 0.1)      # 50 values can't reach 1 %: their smallest it is


def test_memorisation_of_a_tiny_set_gives_values_or_a_clear_word() -> None:
    got = memorisation(normal(2, 3, 0), normal(1, 3, 1), normal(4, 3, 2))
    assert 0 <= got.too_near <= 1
    assert len(got.pairs) == 4
    with pytest.raises(ValueError, match="need 2, 1, 1"):
        memorisation(normal(1, 3, 0), normal(1, 3, 1), normal(4, 3, 2))

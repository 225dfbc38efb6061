"""Metrics against SciPy, scikit-learn, torchmetrics and plain double loops, and the same whatever the block."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist, pdist
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from torch import Tensor, nn

from gan.metrics import distances
from gan.metrics.agreement import agreement, balanced_accuracy
from gan.metrics.confidence import inception_like_score
from gan.metrics.distances import nearest
from gan.metrics.diversity import diversity, spread
from gan.metrics.frechet import Gaussian, frechet_distance
from gan.metrics.kernel import kernel_distance
from gan.metrics.manifold import manifold
from gan.metrics.memorisation import NEIGHBOURS, lower_rank, memorisation


def normal(n: int, d: int, seed: int, shift: float = 0.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(shift, 1, (n, d))).to(dtype)


class Passing(nn.Module):
    """torchmetrics' `feature` that hands its input on."""

    num_features = 7

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


# ---- against other packages -------------------------------------------------------------------------------------


def test_nearest_against_scipys_tree() -> None:
    a, b = normal(300, 4, 0), normal(200, 4, 1)
    got, rows = nearest(a, b, 6)
    want, want_rows = cKDTree(b.numpy()).query(a.numpy(), 6)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-9)
    np.testing.assert_array_equal(rows.numpy(), want_rows)
    own, _ = nearest(b, b, 5, same=True)
    np.testing.assert_allclose(own.numpy(), cKDTree(b.numpy()).query(b.numpy(), 6)[0][:, 1:], rtol=1e-9)


def test_spread_against_scipys_pairwise_distances() -> None:
    x = normal(150, 5, 3, shift=100.0)               # far from the origin, where a careless formula cancels
    assert spread(x) == pytest.approx(pdist(x.numpy()).mean(), rel=1e-9)
    labels = torch.arange(150) % 3
    got = diversity(x, labels, 2 * x, labels)
    assert got == {c: pytest.approx(2.0) for c in range(3)}


def test_agreement_against_scikit_learn() -> None:
    rng = np.random.default_rng(5)
    logits, labels = torch.from_numpy(rng.normal(size=(500, 6))), torch.from_numpy(rng.choice(5, 500, p=[0.6, 0.2, 0.1, 0.05, 0.05]))
    whole, per_class = agreement(logits, labels)
    said = logits.argmax(1).numpy()
    assert whole == pytest.approx(accuracy_score(labels.numpy(), said))
    assert balanced_accuracy(logits, labels) == pytest.approx(balanced_accuracy_score(labels.numpy(), said))
    assert set(per_class) == set(labels.tolist())


def test_inception_like_score_against_torchmetrics() -> None:
    from torchmetrics.image.inception import InceptionScore

    logits = 2 * normal(400, 7, 8)
    oracle = InceptionScore(feature=Passing(), splits=1)
    oracle.update(logits.view(-1, 7, 1, 1))
    assert inception_like_score(logits) == pytest.approx(float(oracle.compute()[0]), rel=1e-5)


# ---- against plain loops ----------------------------------------------------------------------------------------


def plain_manifold(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, float, float, float]:
    """Precision, recall, density, coverage by the definitions, whole matrices at once."""
    reach, fake_reach = (np.sort(cdist(x, x), 1)[:, k] for x in (real, fake))
    between = cdist(real, fake)
    inside = between < reach[:, None]
    return (inside.any(0).mean(), (between < fake_reach[None]).any(1).mean(), inside.sum(0).mean() / k, inside.any(1).mean())


@settings(max_examples=30, deadline=None)
@given(st.integers(7, 60), st.integers(7, 60), st.integers(1, 6), st.integers(1, 6), st.floats(0, 3), st.integers(0, 10**6))
def test_manifold_against_the_definitions(n: int, m: int, d: int, k: int, shift: float, seed: int) -> None:
    real, fake = normal(n, d, seed), normal(m, d, seed + 1, shift)
    got = manifold(real, fake, k)
    want = plain_manifold(real.numpy(), fake.numpy(), k)
    assert (got.precision, got.recall, got.density, got.coverage) == pytest.approx(want, abs=1e-12)


def plain_memorisation(train: np.ndarray, held_out: np.ndarray, made: np.ndarray) -> tuple[float, float, float, float]:
    """too_near, authentic, authentic_held_out, median_ratio by the definitions."""
    among = cdist(train, train)
    np.fill_diagonal(among, np.inf)
    own = among.min(1)
    thickness = np.sort(among, 1)[:, :NEIGHBOURS].mean(1)
    found = []
    for rows in (held_out, made):
        to_train = cdist(rows, train)
        near = to_train.argmin(1)
        found.append((to_train.min(1), near))
    (held, held_row), (new, new_row) = found
    threshold = np.sort(held / thickness[held_row])[lower_rank(len(held), 0.01)]
    return (float((new / thickness[new_row] < threshold).mean()), float((new > own[new_row]).mean()),
            float((held > own[held_row]).mean()), float(np.median(new) / np.median(held)))


@pytest.mark.parametrize("planted", [0, 20])
def test_memorisation_against_the_definitions(planted: int) -> None:
    train, held_out, made = normal(301, 3, 0), normal(201, 3, 1), normal(251, 3, 2)
    made[:planted] = train[:planted] + 1e-3
    got = memorisation(train, held_out, made)
    want = plain_memorisation(train.numpy(), held_out.numpy(), made.numpy())
    assert (got.too_near, got.authentic, got.authentic_held_out, got.median_ratio) == pytest.approx(want, rel=1e-9)
    assert got.too_near >= planted / 251


# ---- whatever the block, the batch, the order -------------------------------------------------------------------


def everything(real: Tensor, fake: Tensor) -> list[float]:
    """A figure of every metric that works on features."""
    m, remembered = manifold(real, fake, 5), memorisation(real, real.flip(0)[:90] + 0.3, fake)
    return [m.precision, m.recall, m.density, m.coverage, spread(fake), kernel_distance(real, fake),
            frechet_distance(Gaussian(real), Gaussian(fake)), remembered.too_near, remembered.authentic, remembered.median_ratio]


@pytest.mark.parametrize("block", [1, 97, 1000, 10**9])
def test_no_figure_depends_on_the_block(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = normal(180, 6, 0), normal(150, 6, 1, 0.5)
    want = everything(real, fake)
    monkeypatch.setattr(distances.distance_blocks, "__defaults__", (block,))
    monkeypatch.setattr("gan.metrics.kernel._BLOCK", max(1, block % 1000))
    assert everything(real, fake) == pytest.approx(want, rel=1e-9)


def test_no_figure_depends_on_the_order_of_the_rows() -> None:
    real, fake = normal(180, 6, 0), normal(150, 6, 1, 0.5)
    shuffled = torch.from_numpy(np.random.default_rng(0).permutation(150))
    assert everything(real, fake[shuffled]) == pytest.approx(everything(real, fake), rel=1e-9)


def test_float32_features_give_the_figures_of_float64() -> None:
    real, fake = normal(400, 32, 0, 5.0), normal(400, 32, 1, 5.1)
    wide, narrow = (everything(real.to(t), fake.to(t)) for t in (torch.float64, torch.float32))
    assert narrow == pytest.approx(wide, rel=2e-3, abs=6e-3)

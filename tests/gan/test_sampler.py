"""The sampler: a pure function of (seed, step), shared by workers, with the prior it claims."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gan.augment import Augmentation, apply
from gan.errors import BadData
from gan.sampler import Sampler


def data(counts: list[int]) -> tuple[Tensor, Tensor]:
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images = torch.arange(len(labels)).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    return images[order], labels[order]


def test_step_decides_the_batch_whatever_came_before() -> None:
    images, labels = data([30, 5, 60])
    a, b = (Sampler(images, labels, 3, 1.0, 7, 16) for _ in range(2))
    for step in range(5):
        a.begin(step)
        a.real(), a.normal(4)
    b.begin(4)
    a.begin(4)
    for left, right in zip(a.real(), b.real()):
        assert torch.equal(left, right)
    assert torch.equal(a.normal(4), b.normal(4))


def test_steps_and_seeds_differ() -> None:
    images, labels = data([90, 90])
    drawn = set()
    for seed in (0, 1):
        sampler = Sampler(images, labels, 2, 1.0, seed, 32)
        for step in range(20):
            sampler.begin(step)
            drawn.add(tuple(sampler.real()[0][:, 0, 0, 0].tolist()))
    assert len(drawn) == 40


@settings(max_examples=20, deadline=None)
@given(world=st.sampled_from([1, 2, 3, 4, 6]), seed=st.integers(0, 2**62), step=st.integers(0, 10**9))
def test_workers_see_together_what_one_sees(world: int, seed: int, step: int) -> None:
    images, labels = data([30, 5, 60])
    what = Augmentation(color=True)
    one = Sampler(images, labels, 3, 0.5, seed, 12)
    one.begin(step)
    x, y = one.real()
    z, drawn = one.normal(5), one.augmentation(what, 0.7, 2)
    both = apply(torch.cat([x, x]).float(), drawn).chunk(2)
    parts = []
    for rank in range(world):
        s = Sampler(images, labels, 3, 0.5, seed, 12, rank, world)
        s.begin(step)
        xr, yr = s.real()
        zr, dr = s.normal(5), s.augmentation(what, 0.7, 2)
        parts.append((xr, yr, zr, *apply(torch.cat([xr, xr]).float(), dr).chunk(2)))
    for whole, pieces in zip((x, y, z, *both), zip(*parts)):
        torch.testing.assert_close(torch.cat(pieces), whole)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_label_prior_is_tempered_and_images_fit_their_labels(tau: float) -> None:
    counts = [400, 0, 100, 25]
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
    images = labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    sampler = Sampler(images, labels, 4, tau, 0, 8000)
    sampler.begin(0)
    x, y = sampler.real()
    assert torch.equal(x[:, 0, 0, 0].long(), y)
    weights = torch.tensor([n**tau if n else 0.0 for n in counts])
    torch.testing.assert_close(torch.bincount(y, minlength=4) / 8000, weights / weights.sum(), atol=0.02, rtol=0)


def test_every_image_of_a_class_is_reached() -> None:
    images, labels = data([20, 20])
    sampler = Sampler(images, labels, 2, 1.0, 0, 1000)
    sampler.begin(0)
    assert len(sampler.real()[0][:, 0, 0, 0].unique()) == 40


def test_batch_larger_than_the_data_and_one_image() -> None:
    images, labels = data([1])
    sampler = Sampler(images, labels, 1, 1.0, 0, 64)
    sampler.begin(0)
    assert sampler.real()[0].shape == (64, 1, 8, 8)


@pytest.mark.parametrize(("images", "labels", "word"), [
    (torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64), "uint8"),
    (torch.zeros(4, 1, 8, 9, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), "uint8"),
    (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), "labels must be"),
    (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.full((4,), 9), "classes"),
    (torch.zeros(0, 1, 8, 8, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), "no images"),
])
def test_wrong_data_is_refused(images: Tensor, labels: Tensor, word: str) -> None:
    with pytest.raises(BadData, match=word):
        Sampler(images, labels, 2, 1.0, 0, 4)

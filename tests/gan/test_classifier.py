"""The CNN classifiers: they learn, follow from the seed alone, and say what they can't use."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from gan.classical import ClassicalAugment
from gan.classifier import (
    FEATURES,
    ClassifierSpec,
    ConvClassifier,
    ResidualClassifier,
    balanced_draws,
    build_classifier,
    embed,
    even_draws,
    group_draws,
    load_classifier,
    one_cycle,
    predict,
    save_classifier,
    to_unit,
    train_classifier,
)
from gan.errors import BadCheckpoint
from gan.metrics.agreement import balanced_accuracy

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 digits at 16×16, uint8 (n, 1, 16, 16), shuffled by a fixed seed."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = F.interpolate(torch.tensor(bunch.images)[:, None] * 255 / 16, size=(16, 16), mode="bilinear")
    order = np.random.default_rng(0).permutation(len(images))
    return images.round().to(torch.uint8)[order], torch.tensor(bunch.target).long()[order]


def test_learns_digits_in_seconds(digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    net = train_classifier(x[:600], y[:600], 10, steps=120, batch_size=64, seed=0, augment=ClassicalAugment())
    assert balanced_accuracy(predict(net, x[600:]), y[600:]) > 0.97


@pytest.mark.parametrize("architecture", ["conv", "residual"])
def test_follows_from_the_seed_alone(digits: tuple[Tensor, Tensor], architecture: str) -> None:
    x, y = digits[0][:80], digits[1][:80]
    torch.manual_seed(7)
    before = torch.get_rng_state()
    arguments = {"steps": 4, "batch_size": 16, "augment": ClassicalAugment(), "balanced": True}
    a, b, c = (train_classifier(x, y, 10, seed=s, architecture=architecture, **arguments) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)           # the global random state is left alone
    assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values()))
    assert not torch.equal(a.head.weight, c.head.weight)


@pytest.mark.parametrize("net", [ConvClassifier, ResidualClassifier])
@pytest.mark.parametrize(
    ("resolution", "channels", "classes"), [(8, 1, 1), (12, 1, 2), (28, 1, 10), (32, 3, 100), (64, 3, 7), (256, 3, 2)]
)
def test_every_size(net: type, resolution: int, channels: int, classes: int) -> None:
    model = net(resolution, channels, classes).eval()
    x = torch.zeros(2, channels, resolution, resolution)
    assert model(x).shape == (2, classes)
    assert model.features(x).shape == (2, FEATURES)


def test_embedding_does_not_depend_on_the_batch(digits: tuple[Tensor, Tensor]) -> None:
    net = build_classifier(ClassifierSpec("conv", 16, 1, 10), seed=0).eval()
    whole, parts = embed(net, digits[0][:100], 100), embed(net, digits[0][:100], 7)
    torch.testing.assert_close(whole[0], parts[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole[1], parts[1], rtol=1e-4, atol=1e-4)
    assert embed(net, digits[0][:0])[0].shape == (0, FEATURES)


def test_saved_and_loaded_is_the_same_and_strangers_are_refused(digits: tuple[Tensor, Tensor]) -> None:
    net = train_classifier(digits[0][:64], digits[1][:64], 10, steps=2, batch_size=16, seed=0, architecture="residual")
    data = save_classifier(net, {"threshold": 0.5})
    again, facts = load_classifier(data)
    assert facts == {"threshold": 0.5}
    assert torch.equal(predict(net, digits[0][:9]), predict(again, digits[0][:9]))
    for wrong in (b"", data[:500], b"PK\x03\x04 a pickle", data[:-4]):
        with pytest.raises(BadCheckpoint):
            load_classifier(wrong)


def test_sound_on_one_image_a_constant_class_and_a_batch_larger_than_the_data() -> None:
    black = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    one = train_classifier(black[:1], torch.tensor([0]), 1, steps=2, seed=0, batch_size=32)
    assert torch.isfinite(predict(one, black)).all()
    x = torch.cat([torch.zeros(6, 3, 8, 8), torch.full((2, 3, 8, 8), 255)]).to(torch.uint8)
    y = torch.tensor([0] * 6 + [4] * 2)               # classes 1 to 3 have no row
    net = train_classifier(x, y, 5, steps=20, seed=0, batch_size=32, augment=ClassicalAugment(), balanced=True)
    assert predict(net, x).argmax(1).tolist() == y.tolist()


@pytest.mark.parametrize(("images", "labels", "word"), [
    (torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]), "uint8"),
    (torch.zeros(0, 1, 8, 8, dtype=torch.uint8), torch.tensor([], dtype=torch.int64), "at least one"),
    (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 2]), "0 … 1"),
])
def test_refuses_what_it_cannot_train_on(images: Tensor, labels: Tensor, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        train_classifier(images, labels, 2, steps=1, seed=0)


def test_logit_adjustment_raises_the_rare_classs_recall() -> None:
    """Two overlapping Gaussians in brightness, 95 to 5: the adjusted boundary lies nearer the middle."""
    rng = np.random.default_rng(0)
    y = torch.from_numpy((rng.random(1500) < 0.05).astype(np.int64))
    brightness = np.clip(rng.normal(110 + 30 * y.numpy(), 25), 0, 255)
    x = torch.from_numpy(brightness).to(torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 8, 8)
    recall = {}
    for tau in (0.0, 1.0):
        net = train_classifier(x, y, 2, steps=100, batch_size=64, seed=0, logit_adjustment=tau)
        recall[tau] = float((predict(net, x).argmax(1) == 1)[y == 1].double().mean())
    assert recall[1.0] > recall[0.0] + 0.2


# ---- draws ------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 200), st.integers(0, 9))
def test_draws_are_rows_and_even_within_one(labels: list[int], total: int, seed: int) -> None:
    y = torch.tensor(labels)
    even = even_draws(y, total, np.random.default_rng(seed)).numpy()
    counts = np.bincount(even, minlength=len(y))
    assert counts.max() - counts.min() <= 1
    balanced = y[balanced_draws(y, total, np.random.default_rng(seed))].numpy()
    per_class = np.bincount(balanced, minlength=5)[np.unique(labels)]
    assert per_class.max() - per_class.min() <= 1
    assert len(even) == len(balanced) == total


def test_shares_of_groups_are_kept() -> None:
    rows = group_draws([np.arange(10), np.arange(10, 12)], [0.25, 0.75], 4000, np.random.default_rng(0)).numpy()
    assert (rows >= 10).mean() == pytest.approx(0.75, abs=0.03)
    assert np.ptp(np.bincount(rows)[10:]) <= 1


@pytest.mark.parametrize("label", [0, 1])
def test_draws_given_decide_what_is_seen(label: int) -> None:
    x = torch.randint(0, 256, (10, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    y = torch.tensor([0] * 5 + [1] * 5)
    net = train_classifier(x, y, 2, steps=60, seed=0, batch_size=8, draws=(torch.arange(5) + 5 * label).repeat(96))
    assert predict(net, x).argmax(1).tolist() == [label] * 10
    with pytest.raises(ValueError, match="80 rows"):
        train_classifier(x, y, 2, steps=10, seed=0, batch_size=8, draws=torch.arange(5))


def test_one_cycle_goes_up_and_down() -> None:
    values = [one_cycle(i / 100, 0.2) for i in range(100)]
    assert max(values) == values[20] == pytest.approx(1)
    assert values[0] == pytest.approx(0.04)
    assert values[-1] < 0.01


# ---- augmentation -----------------------------------------------------------------------------------------------


def ramp(channels: int = 1) -> Tensor:
    """A left-right ramp, which a flip mirrors and a shift moves."""
    return torch.linspace(-1, 1, 16).expand(6, channels, 16, 16).contiguous()


def test_no_strength_no_change() -> None:
    x = to_unit(torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8))
    assert torch.equal(ClassicalAugment(0, 0, 0, 0)(x, torch.Generator()), x)
    still = ClassicalAugment(0, 1e-9, 0, 0)(x, torch.Generator())
    torch.testing.assert_close(still, x, atol=1e-4, rtol=0)


def test_flip_mirrors_about_half_and_only_if_asked() -> None:
    x = ramp()[:1].repeat(400, 1, 1, 1)
    flipped = ClassicalAugment(0, 0, 0, 0, flip=True)(x, torch.Generator().manual_seed(0))
    mirrored = (flipped[:, 0, 0, 0] > 0).double().mean()
    assert 0.4 < mirrored < 0.6
    torch.testing.assert_close(flipped[flipped[:, 0, 0, 0] > 0][0], x[0].flip(-1), atol=1e-5, rtol=0)
    strong = ClassicalAugment.allowed(flip=False, color=False)(x, torch.Generator().manual_seed(0))
    assert (strong[:, 0, :, 0].mean(1) < 0).all()


def test_geometry_stays_within_its_strength_and_values_within_range() -> None:
    x = torch.full((200, 1, 17, 17), -1.0)
    x[:, :, 8, 8] = 1                                 # one bright pixel in the middle
    moved = ClassicalAugment(shift=0.1, rotate_deg=0, scale=0, shear_deg=0)(x, torch.Generator().manual_seed(0)) + 1
    place = torch.arange(17).float()
    for axis in (2, 3):
        centre = (moved.sum(dim=5 - axis)[:, 0] * place).sum(1) / moved.sum(dim=(1, 2, 3)) - 8
        assert centre.abs().max() <= 0.1 * 17 + 0.05
        assert centre.abs().max() > 1.2
    wild = ClassicalAugment(0.3, 45, 0.4, 20, True, 0.5, 0.5, 0.5, 0.5)(ramp(3), torch.Generator().manual_seed(1))
    assert wild.shape == (6, 3, 16, 16)
    assert wild.abs().max() <= 1


def test_augmentation_follows_from_its_generator() -> None:
    augment = ClassicalAugment.allowed(flip=True, color=True)
    a, b, c = (augment(ramp(3), torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert not torch.equal(a[0], a[1])                # each image apart


def test_pooling_before_the_rectifier_changes_nothing(digits: tuple[Tensor, Tensor]) -> None:
    """The largest of four rectified numbers is the rectified largest, and so are the derivatives, where all four are negative too."""
    images, labels = digits[0][:32], digits[1][:32]
    usual = build_classifier(ClassifierSpec("conv", images.shape[2], images.shape[1], 10), seed=0)
    other = build_classifier(ClassifierSpec("conv", images.shape[2], images.shape[1], 10), seed=0)
    layers = list(other.body)                        # type: ignore[arg-type]
    pools = [place for place, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    for place in pools:
        layers[place : place + 2] = layers[place + 1], layers[place]
    other.body = nn.Sequential(*layers)
    assert pools and all(isinstance(layers[place], nn.ReLU) for place in pools)
    found = []
    for net in (usual, other):
        loss = F.cross_entropy(net(to_unit(images)), labels)
        loss.backward()
        found.append((loss.detach(), [p.grad for p in net.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)

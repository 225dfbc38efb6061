"""Presets: every family serves through `train` as chosen; `auto` reads its table; overrides are checked."""

import pytest
import torch
from torch import Tensor

from gan.augment import Augmentation
from gan.checkpoint import load_generator
from gan.errors import BadRecipe, GanError, UnknownFamily, UnsupportedSpec
from gan.loop import Hooks, train
from gan.networks import FAMILIES
from gan.presets import AUTO, PRESETS, Budget, choose
from gan.recorded import why_not


def test_every_family_has_a_preset() -> None:
    assert set(PRESETS) == set(FAMILIES)
    assert {row.family for row in AUTO} <= set(FAMILIES) and all(row.reason for row in AUTO)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_serves(family: str, squares: tuple[Tensor, Tensor]) -> None:
    spec, recipe, _ = choose(family, 8, 1, [200, 200], Budget(kimg=0.2), batch_size=16, options={"width": 8})
    kept: list[bytes] = []
    state = train(*squares, spec, recipe, seed=0, hooks=Hooks(on_checkpoint=lambda data, _: kept.append(data)))
    assert state.finished and spec.family == family
    loaded = load_generator(kept[-1])
    images = loaded.net(torch.randn(4, spec.z_dim), torch.tensor([0, 1, 0, 1]))
    assert images.shape == (4, 1, 8, 8) and images.abs().max() <= 1


@pytest.mark.parametrize("resolution", [8, 28, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("per_class", [50, 500, 5000])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_auto_always_chooses_with_a_reason(resolution: int, channels: int, per_class: int, device: str) -> None:
    for counts in ([per_class] * 10, [max(1, per_class >> i) for i in range(10)]):
        for budget in (Budget(kimg=200), Budget(seconds=86400)):
            spec, recipe, reason = choose("auto", resolution, channels, counts, budget, device)
            assert spec.resolution == resolution and spec.classes == 10 and reason.startswith(spec.family)
            assert recipe.total_kimg == budget.kimg and recipe.total_seconds == budget.seconds


def test_few_images_are_augmented_and_long_tails_tempered() -> None:
    few, many = (choose("dcgan", 32, 1, [n] * 10, Budget(kimg=1))[1] for n in (50, 5000))
    assert few.augment_p > many.augment_p == 0
    assert choose("dcgan", 32, 3, [5000] * 10, Budget(kimg=1))[1].augment_p == few.augment_p     # photographs at any number
    assert choose("dcgan", 32, 1, [4000, 40], Budget(kimg=1))[1].label_prior_tau == 0.5
    assert choose("dcgan", 32, 1, [4000, 4000, 0], Budget(kimg=1))[1].label_prior_tau == 1.0


@pytest.mark.parametrize(("channels", "counts", "kimg", "pooled"), [
    (1, [36, 4], 200, True), (1, [36, 4], 60, False), (1, [10, 10], 200, False), (3, [36, 4], 1000, False),
])
def test_rare_classes_are_pooled_where_it_was_measured(channels: int, counts: list[int], kimg: float, pooled: bool) -> None:
    assert (choose("auto", 16, channels, counts, Budget(kimg=kimg))[1].class_pooling > 0) == pooled


def test_a_gpu_takes_large_batches_where_the_budget_bears_them() -> None:
    sizes = [choose("dcgan", 32, 1, [5000] * 10, budget, device)[1].batch_size for budget, device in (
        (Budget(seconds=60), "cuda"), (Budget(kimg=5000), "cuda:1"), (Budget(kimg=60), "cuda"), (Budget(seconds=60), "cpu"))]
    assert sizes == [256, 256, 64, 64]


def test_r3_is_as_large_as_its_budget_and_says_what_to_expect() -> None:
    (short, minutes, word), (long, hours, none), (_, cpu, warned) = (
        choose("r3", 32, 3, [5000] * 10, budget, device) for budget, device in (
            (Budget(seconds=600), "cuda"), (Budget(seconds=8 * 3600), "cuda"), (Budget(seconds=600), "cpu")))
    assert (short.width, minutes.batch_size, minutes.lr_g) == (48, 256, 5e-4)
    assert (long.width, hours.batch_size, hours.lr_g) == (128, 512, 2e-4)
    assert minutes.r1_gamma == minutes.r2_gamma == hours.r1_gamma / 10
    assert why_not(minutes, torch.device("cuda"), 1) is None        # one recorded graph a step
    assert why_not(hours, torch.device("cuda"), 1) is not None      # for β2 moves
    assert none == "r3: as asked" and "hours" in word and "made for a GPU" in warned
    assert cpu.batch_size == 32 and cpu.penalty_every == 1 and cpu.penalty_share == 0.25


def test_overrides_by_name() -> None:
    spec, recipe, reason = choose("dcgan", 32, 3, [100] * 3, Budget(seconds=5), batch_size=48,
                                  augment=Augmentation(flip=True),
                                  options={"lr_g": 1e-5, "width": 16, "z_dim": 8, "g_blocks": 2})
    assert recipe.batch_size == 48 and recipe.lr_g == 1e-5 and recipe.augment.flip and reason == "dcgan: as asked"
    assert spec.width == 16 and spec.z_dim == 8 and dict(spec.options)["g_blocks"] == 2


@pytest.mark.parametrize(("change", "error"), [
    ({"model": "biggan"}, UnknownFamily), ({"resolution": 30}, UnsupportedSpec), ({"channels": 2}, UnsupportedSpec),
    ({"images_per_class": []}, UnsupportedSpec), ({"options": {"petals": 3}}, UnsupportedSpec),
    ({"options": {"lr_g": "fast"}}, BadRecipe), ({"batch_size": 1}, BadRecipe),
    ({"options": {"g_blocks": 0.5}}, GanError), ({"options": {"objective": "variational"}}, BadRecipe),
    ({"model": "vae", "options": {"objective": "adversarial"}}, BadRecipe),
    ({"model": "autoencoder", "options": {"objective": "variational"}}, BadRecipe),
])
def test_impossible_choices_are_refused(change: dict, error: type) -> None:
    arguments = {"model": "dcgan", "resolution": 32, "channels": 1, "images_per_class": [5], "budget": Budget(kimg=1)}
    with pytest.raises(error):
        choose(**arguments | change)


def test_budget_is_one_of_two() -> None:
    for wrong in ({}, {"kimg": 1, "seconds": 1}):
        with pytest.raises(BadRecipe):
            Budget(**wrong)


@pytest.mark.parametrize(("channels", "images", "features"), [
    (1, 50, 0), (1, 99, 0), (1, 100, 16), (1, 6000, 16), (3, 100, 0), (3, 299, 0), (3, 300, 16), (3, 6000, 16)])
def test_features_only_where_a_classifier_can_learn_them(channels: int, images: int, features: int) -> None:
    spec, recipe, _ = choose("auto", 28, channels, [images] * 10, Budget(kimg=100))
    assert spec.option("features", 0) == features
    assert spec.option("features_weight", 0) == (4 if features else 0)
    assert recipe.ema_ramp == (0.1 if features else 0.05)            # of 100 kimg: the longer average where features are
    assert min(recipe.ema_half_life_kimg, 100 * recipe.ema_ramp) == (10 if features else 5)

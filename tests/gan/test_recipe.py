"""Hyper-parameters: checked by name; schedules follow the budget."""

import math

import pytest

from gan.augment import Augmentation
from gan.errors import BadRecipe
from gan.recipe import Recipe


@pytest.mark.parametrize("change", [
    {"lr_g": -1}, {"lr_g": "fast"}, {"lr_g": math.nan}, {"batch_size": 1}, {"batch_size": 64.0}, {"loss": "lsgan"},
    {"precision": "fp16"}, {"joint_pass": 1}, {"augment_p": 1.5}, {"d_steps": 0}, {"learning_rate": 1e-3},
    {"augment": {"rotate": True}}, {"augment": "all"}, {"lr_d": True}, {"total_kimg": 0},
    {"total_kimg": 3, "total_seconds": 5}, {"optimizer": "sgd"},
    {"penalty_precision": "half"}, {"penalty_precision": "bf16", "penalty_step": 0.1},
])
def test_wrong_values_are_named(change: dict) -> None:
    with pytest.raises(BadRecipe, match=next(iter(change)).split("_")[0]):
        Recipe(total_kimg=1).replace(change)


def test_json_and_replace() -> None:
    recipe = Recipe(total_kimg=100, augment=Augmentation(flip=True), beta2_start=0.9)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert recipe.replace({"total_seconds": 60}).total_kimg is None
    assert recipe.replace({"lr_g": 1e-3}).total_kimg == 100


def test_progress_is_the_share_of_the_budget() -> None:
    assert Recipe(total_kimg=100).progress(25_000, 999.0) == 0.25
    assert Recipe(total_seconds=60).progress(10**9, 15.0) == 0.25
    assert Recipe(total_kimg=1).progress(5000, 0.0) == 1.0


def test_schedules() -> None:
    cosine = Recipe(total_kimg=1, lr_floor=0.1, lr_hold=0.5, warmup=0.1)
    assert [cosine.lr_scale(t) for t in (0, 0.05, 0.3, 0.5, 0.75, 1)] == pytest.approx([0, 0.5, 1, 1, 0.55, 0.1])
    linear = Recipe(total_kimg=1, lr_schedule="linear", lr_floor=0.0)
    assert [linear.lr_scale(t) for t in (0, 0.25, 1)] == pytest.approx([1, 0.75, 0])
    assert Recipe(total_kimg=1, lr_schedule="constant").lr_scale(0.9) == 1
    assert Recipe(total_kimg=1, gamma_decay=0.1).gamma_scale(0.5) == pytest.approx(0.1**0.5)
    beta = Recipe(total_kimg=1, beta2_start=0.9, beta2=0.99)
    assert [beta.beta2_at(t) for t in (0, 0.5, 1)] == pytest.approx([0.9, 1 - 0.1**1.5, 0.99])
    ramp = Recipe(total_kimg=1, augment_p=0.6, augment_ramp=0.5)
    assert [ramp.augment_p_at(t) for t in (0, 0.25, 0.5, 1)] == pytest.approx([0, 0.3, 0.6, 0.6])

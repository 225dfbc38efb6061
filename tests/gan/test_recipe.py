"""Hyper-parameters: checked by name; schedules follow the budget."""

import dataclasses
import math
import re

import pytest

from gan.augment import Augmentation
from gan.errors import BadRecipe
from gan.plane import MixtureRecipe
from gan.recipe import Recipe, parse_settings


@pytest.mark.parametrize("change", [
    {"lr_g": -1}, {"lr_g": "fast"}, {"lr_g": math.nan}, {"batch_size": 1}, {"batch_size": 64.0}, {"loss": "lsgan"},
    {"precision": "fp16"}, {"joint_pass": 1}, {"augment_p": 1.5}, {"d_steps": 0}, {"learning_rate": 1e-3},
    {"augment": {"rotate": True}}, {"augment": "all"}, {"lr_d": True}, {"total_kimg": 0},
    {"total_kimg": 3, "total_seconds": 5}, {"optimizer": "sgd"},
    {"penalty_precision": "half"}, {"penalty_precision": "bf16", "penalty_step": 0.1}, {"loss": [1]}, {"objective": {}},
    {"augment": {"flip": "x"}}, {"augment": {"translate": 1}}, {"augment": None}, {"kl_weight": "x"}, {"ema_ramp": -1},
])
def test_wrong_values_are_named(change: dict) -> None:
    with pytest.raises(BadRecipe, match=next(iter(change)).split("_")[0]):
        Recipe(total_kimg=1).replace(change)


@pytest.mark.parametrize("recipe", [Recipe(total_kimg=1), MixtureRecipe()])
def test_every_field_refuses_other_types_and_numbers_beyond_sense(recipe: Recipe | MixtureRecipe) -> None:
    """Walks the fields, so that one added later is checked or fails here."""
    numbers = [math.nan, math.inf, -math.inf, -1, 10**400]
    for f in dataclasses.fields(recipe):
        odd = [[1], {}, "x", b"1", 1j, *(numbers if f.type in (int, float, float | None) else [7])]
        odd += [True] if f.type is not bool else []
        odd += [1.5] if f.type is int else []
        odd += [None] if f.default is not None else []
        for value in odd:
            with pytest.raises(BadRecipe, match=re.escape(f"{f.name} {value!r}: must be ")):
                dataclasses.replace(recipe, **{f.name: value})


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


def test_settings_of_a_command_line() -> None:
    digits = "9" * 5000                              # more than Python reads as a number
    assert parse_settings(["a=1", "b=True", "c=1e-3", "d=x=y", f"e={digits}"]) == {"a": 1, "b": True, "c": 1e-3, "d": "x=y", "e": digits}
    with pytest.raises(BadRecipe, match="NAME=VALUE"):
        parse_settings(["lr_g"])

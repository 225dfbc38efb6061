"""The estimate of `validate` against what runs took, and against what it is made of."""

from typing import Any

import pytest

from pipeline import estimate
from pipeline.config import Config, LiftConfig, load_config, parse_config
from tests.test_house import ROOT


def config(**sections: Any) -> Config:
    return parse_config({"name": "x", "source": {"format": "digits"}, "evaluate": {"lift": None}, **sections})


def of(made: Config) -> float:
    return estimate.seconds(made, [50] * 10, 100, 1000, 0.0)


@pytest.mark.parametrize(("bf16", "side", "kimg", "steps", "took"), [
    (False, 16, 60, 250, 217),                       # AMD EPYC without AVX512
    (True, 32, 100, 300, 170),                       # Intel Xeon with AMX
])
def test_the_demo_takes_as_long_as_is_said(
    monkeypatch: pytest.MonkeyPatch, bf16: bool, side: int, kimg: float, steps: int, took: float
) -> None:
    monkeypatch.setattr(estimate, "has_bf16", lambda device: bf16)
    demo = load_config(ROOT / "examples/digits.yaml", [f"prepare.resolution={side}", f"train.budget.kimg={kimg}",
                                                       f"evaluate.lift.steps={steps}"])
    assert estimate.seconds(demo, [99, 77, 59, 46, 35, 27, 21, 16, 12, 10], 88, 588, 1.0) == pytest.approx(took, rel=0.15)


def test_what_makes_a_run_longer() -> None:
    base = of(config())
    assert of(config(train={"budget": {"minutes": 10}})) == pytest.approx(600 + 1000 / 8000 + 70)
    assert estimate.training(config(train={"budget": {"kimg": 400}})) == pytest.approx(2 * estimate.training(config()))
    assert of(config(prepare={"resolution": 64})) > 2 * base - 140 > 0
    assert of(config(prepare={"resolution": 64, "channels": "rgb"})) > of(config(prepare={"resolution": 64}))
    assert estimate.training(config(train={"model": "r3"})) > 5 * estimate.training(config())
    assert of(config(evaluate={"lift": {"seeds": 3}})) > base
    with_gpu = config(train={"gpus_per_worker": 1, "budget": {"kimg": 1000}})
    assert estimate.training(with_gpu) == pytest.approx(1000 / 30)


def test_a_full_trial_trains_many_more_classifiers() -> None:
    quick, every = LiftConfig(seeds=3, ratios=[0.5, 1.0]), LiftConfig(seeds=3, ratios=[0.5, 1.0], arms="all")
    assert estimate.classifiers(quick, 50) == 18 and estimate.classifiers(quick, 20) == 18 + 4 * 3
    assert estimate.classifiers(every, 20) == estimate.classifiers(every, 5000) + 4 * 13
    assert estimate.classifiers(every, 5000, own_filter=True) - estimate.classifiers(every, 5000) == 3 * 8

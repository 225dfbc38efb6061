"""The gate: every threshold can fail, says so in one sentence, and nothing unmeasured passes."""

import dataclasses
import math

import pytest

from pipeline.config import GateConfig
from pipeline.gate import decide
from pipeline.records import LiftFigure, Scorecard

LIFT = LiftFigure(
    seeds=(0, 1, 2), chosen_ratio=0.5, ratios=(0.5,), baseline=(90.0, 91.0, 92.0), synthetic=(91.0, 92.0, 93.0),
    lift_pp=1.0, interval_pp=(0.5, 1.5), recall_baseline={}, recall_synthetic={}, sentence="Lift.", won=True,
)
GOOD = Scorecard(
    samples=100, features="domain", fd=3.0, fd_floor=1.0, matched={"fd": 3.0}, fd_reference="", precision=0.9, recall=0.9, density=1.0,
    coverage=0.8, coverage_per_class={}, agreement=0.99, agreement_per_class={}, judge_accuracy=0.99,
    diversity_per_class={"a": 0.9, "b": 0.7}, memorised=0.01, lift=LIFT,
)
STRICT = GateConfig(min_lift_pp=0.5, max_memorised=0.02, min_coverage=0.7, min_agreement=0.95, min_diversity=0.6,
                    max_fd_ratio=4.0)


def changed(**values: object) -> Scorecard:
    return dataclasses.replace(GOOD, **values)  # type: ignore[arg-type]


def with_lift(**values: object) -> Scorecard:
    return changed(lift=dataclasses.replace(LIFT, **values))  # type: ignore[arg-type]


def test_a_good_card_passes() -> None:
    verdict = decide(STRICT, GOOD)
    assert (verdict.passed, verdict.reasons, verdict.enforced) == (True, (), True)


@pytest.mark.parametrize(("card", "words"), [
    (with_lift(lift_pp=0.2), ["lift_pp", "0.2", "min_lift_pp 0.5"]),
    (with_lift(lift_pp=math.nan), ["lift_pp", "min_lift_pp"]),
    (changed(memorised=0.021), ["memorised", "0.021", "max_memorised 0.02"]),
    (changed(memorised=math.nan), ["memorised", "could not be measured"]),
    (changed(coverage=0.6), ["coverage", "0.6", "min_coverage 0.7"]),
    (changed(coverage=math.nan), ["coverage", "could not be measured"]),
    (changed(agreement=0.5), ["agreement", "0.5", "min_agreement 0.95"]),
    (changed(agreement=math.nan), ["agreement", "could not be measured"]),
    (changed(diversity_per_class={"a": 0.9, "b": 0.1}), ["'b'", "0.1", "min_diversity 0.6"]),
    (changed(diversity_per_class={}), ["diversity", "could not be measured"]),
    (changed(matched={"fd": 4.5}), ["fd_domain", "4.5", "max_fd_ratio 4"]),
    (changed(matched={}), ["fd_domain", "could not be measured"]),
    (changed(matched={"fd": math.nan}), ["fd_domain", "could not be measured"]),
    (changed(fd_floor=0.0), ["fd_domain", "could not be measured"]),
])
def test_each_figure_can_fail_and_says_what_and_why(card: Scorecard, words: list[str]) -> None:
    verdict = decide(STRICT, card)
    assert not verdict.passed
    assert len(verdict.reasons) == 1
    assert all(word in verdict.reasons[0] for word in words), verdict.reasons
    assert verdict.reasons[0].endswith(".")


def test_a_threshold_itself_passes_and_a_null_threshold_asks_nothing() -> None:
    edge = changed(memorised=0.02, coverage=0.7, agreement=0.95, diversity_per_class={"a": 0.6}, matched={"fd": 4.0})
    assert decide(STRICT, dataclasses.replace(edge, lift=dataclasses.replace(LIFT, lift_pp=0.5))).passed
    nothing = GateConfig(min_lift_pp=None, max_memorised=None, min_coverage=None, min_diversity=None)
    bad = changed(memorised=1.0, coverage=0.0, agreement=0.0, diversity_per_class={}, matched={"fd": 1e9}, lift=None)
    assert decide(nothing, bad).passed


def test_lift_that_cannot_be_judged_fails_and_lift_not_asked_for_does_not() -> None:
    unjudged = with_lift(seeds=(), lift_pp=0.0, sentence="Lift can't be judged, because class 'x' has no test image.")
    verdict = decide(STRICT, unjudged)
    assert "no test image" in verdict.reasons[0]
    assert "min_lift_pp" in verdict.reasons[0]
    assert decide(STRICT, changed(lift=None)).passed
    assert "lift_pp" not in unjudged.scores


def test_a_threshold_of_zero_asks_for_proof_and_one_below_for_no_more_than_the_figure() -> None:
    lucky = with_lift(lift_pp=0.04, interval_pp=(-1.1, 1.2), sentence="No lift shown: …", won=False)
    zero = STRICT.model_copy(update={"min_lift_pp": 0.0})
    verdict = decide(zero, lucky)
    assert not verdict.passed
    assert verdict.reasons[0].startswith("No lift shown: …; gate.min_lift_pp 0 asks for a lift that is proven")
    assert decide(zero, with_lift(lift_pp=0.04)).passed
    lenient = STRICT.model_copy(update={"min_lift_pp": -1.0})
    assert decide(lenient, lucky).passed
    assert "below gate.min_lift_pp -1" in decide(lenient, with_lift(lift_pp=-1.5, won=False)).reasons[0]
    assert decide(STRICT.model_copy(update={"min_lift_pp": None}), lucky).passed


def test_low_coverage_of_images_that_are_proven_to_help_names_the_threshold_that_would_pass() -> None:
    few = changed(coverage=0.46)                     # as 100 images of MNIST reach, whose generator brings 1.2 points
    said = decide(GateConfig(), few).reasons
    assert len(said) == 1 and "--set gate.min_coverage=0.45" in said[0] and "+1.00 points" in said[0]
    assert decide(GateConfig(min_coverage=0.45), few).passed
    unproven = dataclasses.replace(with_lift(won=False), coverage=0.46)
    assert "--set" not in decide(GateConfig(min_lift_pp=None), unproven).reasons[0]


def test_all_reasons_are_given_and_a_gate_that_is_off_still_speaks() -> None:
    bad = changed(memorised=0.5, coverage=0.1)
    verdict = decide(STRICT.model_copy(update={"enabled": False}), bad)
    assert len(verdict.reasons) == 2
    assert (verdict.passed, verdict.enforced) == (False, False)

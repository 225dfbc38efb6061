"""The gate: thresholds decide whether the images may be published. Pure."""

import math

from pipeline.config import GateConfig
from pipeline.records import Scorecard, Verdict


def decide(gate: GateConfig, scorecard: Scorecard) -> Verdict:
    """Holds each figure against its threshold; a threshold of null asks nothing, a figure that is no number fails.

    Returns:
        The verdict: each reason names figure, value, threshold, and what to do about it.
    """
    s = scorecard
    class_name, diversity = min(s.diversity_per_class.items(), key=lambda item: item[1], default=("", math.nan))
    reasons = [
        _lift(gate.min_lift_pp, s),
        _at_most("memorised", s.memorised, gate.max_memorised, "max_memorised",
                 "samples come too near to training images: train for less long, with more images, or a smaller model, or have them drawn "
                 "again (sample.filter: {min_nearest_distance: 0.03})"),
        at_least("coverage", s.coverage, gate.min_coverage, "min_coverage", _for_coverage(s)),
        at_least("agreement", s.agreement, gate.min_agreement, "min_agreement",
                  "samples are not seen as the class they were made for: train longer, or set sample.filter"),
        at_least(f"diversity (class {class_name!r})" if class_name else "diversity", diversity, gate.min_diversity,
                  "min_diversity", "samples of that class are too much alike: train with another model or more images"),
        _at_most(f"fd_{s.features} over its floor", s.fd_ratio, gate.max_fd_ratio, "max_fd_ratio",
                 "samples differ too much from real images: train longer, or with another train.model"),
    ]
    failed = tuple(reason for reason in reasons if reason)
    return Verdict(passed=not failed, reasons=failed, enforced=gate.enabled)


def _for_coverage(s: Scorecard) -> str:
    """What to do about low coverage: of a few training images no generator learns all that there is, and yet they may help."""
    remedy = "real images are left out: train longer, or with another train.model"
    if s.lift is None or not s.lift.won or not s.coverage > 0:
        return remedy
    lower = math.floor(20 * s.coverage) / 20         # the next lower twentieth
    return f"{remedy}; that the images help a classifier is proven ({s.lift.lift_pp:+.2f} points), and if that is enough for you, " \
           f"--set gate.min_coverage={lower:g} publishes them"


def _lift(threshold: float | None, scorecard: Scorecard) -> str | None:
    """A threshold of 0 or more asks for a lift that is proven and at least so large; one below 0 only that the measured loss
    is no larger.

    None too where the config asks for no lift trial (`evaluate.lift: null`): then there is no figure at all.
    """
    figure = scorecard.lift
    if threshold is None or figure is None:
        return None
    said = figure.sentence.rstrip(".")
    if not figure.seeds:
        return f"{said}; gate.min_lift_pp {threshold:g} asks for a figure: give more images, or set gate.min_lift_pp: null to " \
               "publish unproven."
    if threshold >= 0 and not figure.won:
        return f"{said}; gate.min_lift_pp {threshold:g} asks for a lift that is proven: train longer, add real images, try more " \
               "evaluate.lift.seeds (what is trained is taken over), or set it below 0 to allow a loss of so many points, null to " \
               "publish unproven."
    return at_least("lift_pp", figure.lift_pp, threshold, "min_lift_pp",
                     "the images do not help a classifier: train longer, add real images, or set the threshold to null")


def at_least(name: str, value: float, threshold: float | None, key: str, remedy: str) -> str | None:
    if threshold is None or value >= threshold:
        return None
    return _reason(name, value, "below", threshold, key, remedy)


def _at_most(name: str, value: float, threshold: float | None, key: str, remedy: str) -> str | None:
    if threshold is None or value <= threshold:
        return None
    return _reason(name, value, "above", threshold, key, remedy)


def _reason(name: str, value: float, side: str, threshold: float, key: str, remedy: str) -> str:
    if not math.isfinite(value):
        return f"{name} could not be measured, but gate.{key} {threshold:g} asks for it: see the notes, or set it null."
    return f"{name} {_shown(value)} is {side} gate.{key} {threshold:g}: {remedy}."


def _shown(value: float) -> str:
    return f"{value:.4g}"

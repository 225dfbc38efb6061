"""What was measured of generators on the plane, and whether the gate lets their points out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gan.mixtures import mode_figures, summarise
from gan.plane import MixtureRun, figures_of, fresh_discriminator_loss
from pipeline.config import GateConfig
from pipeline.errors import TrainingFailed
from pipeline.gate import at_least
from pipeline.records import LiftFigure, Record, Verdict

FRESH_POINTS = 20_000        # half to fit a discriminator afresh, half to measure it


@dataclass(frozen=True)
class RunFigures(Record):
    """One training's generator, by as many points as PacGAN's tables rest on."""

    seed: int
    modes: int
    high_quality: float
    reverse_kl: float
    spread_lowest: float                             # deviation within a mode over the true one, least mode; 0 when one is missing
    spread_highest: float
    seconds: float


@dataclass(frozen=True)
class PlaneScorecard(Record):
    """Figures of the generator that is published, of the true mixture in its place, and of all trainings."""

    variant: str
    samples: int
    of: int                                          # modes of the mixture
    modes: int
    high_quality: float
    high_quality_real: float                         # of as many true points
    reverse_kl: float
    reverse_kl_real: float
    spread: tuple[float, ...]                        # of each mode, generated over true; 0 where a mode has no two points
    fresh_loss: float                                # summed loss of a D fitted afresh; log 4 where it can't tell
    fresh_loss_real: float                           # the same between two true sets
    value: float                                     # at the end of training; -log 4 at the optimum
    runs: tuple[RunFigures, ...] = ()
    summary: dict[str, tuple[float, float]] = field(default_factory=dict)     # mean and standard error over the runs
    seconds: float = 0.0
    as_drawn: dict[str, float] = field(default_factory=dict)     # the main figures of every draw; empty where none is rejected

    @property
    def lift(self) -> LiftFigure | None:
        """None: there is no classifier to be lifted."""
        return None

    @property
    def scores(self) -> dict[str, float]:
        """The figures that the manifest carries."""
        figures = {
            "modes": self.modes, "modes_of": self.of, "high_quality": self.high_quality, "reverse_kl": self.reverse_kl,
            "spread_lowest": min(self.spread), "spread_highest": max(self.spread),
            "fresh_discriminator_loss": self.fresh_loss, "fresh_discriminator_loss_real": self.fresh_loss_real,
            "value": self.value, "runs": len(self.runs),
        }
        return {name: round(float(number), 4) for name, number in figures.items()}


def measure(trained: Sequence[MixtureRun], samples: int, seconds: float) -> PlaneScorecard:
    """The scorecard of the first training's generator beside those of all."""
    run = trained[0]
    mixture = run.mixture
    got = figures_of(run, samples)
    real = mode_figures(_array(mixture.sample(samples, 1)), mixture)
    true = mixture.sample(FRESH_POINTS, 2)
    fresh = fresh_discriminator_loss(run.sample(FRESH_POINTS, 2 * run.seed + 3), true, mixture.deviation)
    floor = fresh_discriminator_loss(mixture.sample(FRESH_POINTS, 3), true, mixture.deviation)
    summary = summarise([r.figures for r in trained])
    errors = {name: (mean, error if math.isfinite(error) else 0.0) for name, (mean, error) in (
        ("modes", summary.modes), ("high_quality", summary.high_quality), ("reverse_kl", summary.reverse_kl))}
    return PlaneScorecard(
        variant=mixture.name, samples=samples, of=got.of, modes=got.modes, high_quality=got.high_quality,
        high_quality_real=real.high_quality, reverse_kl=got.reverse_kl, reverse_kl_real=real.reverse_kl,
        spread=_finite(got.spread_ratio), fresh_loss=fresh, fresh_loss_real=floor, value=run.curve[-1].value,
        runs=tuple(_row(r) for r in trained), summary=errors, seconds=seconds, as_drawn=_as_drawn(run),
    )


def _as_drawn(run: MixtureRun) -> dict[str, float]:
    if run.rule is None or run.as_drawn is None:
        return {}
    f = run.as_drawn
    return {"modes": float(f.modes), "high_quality": f.high_quality, "reverse_kl": f.reverse_kl, "narrowest": min(_finite(f.spread_ratio))}


def _row(run: MixtureRun) -> RunFigures:
    figures, spread = run.figures, _finite(run.figures.spread_ratio)
    return RunFigures(run.seed, figures.modes, figures.high_quality, figures.reverse_kl, min(spread), max(spread), run.seconds)


def _finite(ratios: Sequence[float]) -> tuple[float, ...]:
    return tuple(ratio if math.isfinite(ratio) else 0.0 for ratio in ratios)


def _array(points: Any) -> np.ndarray:
    values: np.ndarray = points.numpy().astype(np.float64)
    return values


def decide(gate: GateConfig, scorecard: PlaneScorecard) -> Verdict:
    """Holds the share of modes found against `min_coverage` and the narrowest mode against `min_diversity`.

    The other thresholds ask nothing: there is no classifier, no label to agree with, and true points are drawn anew at every
    step, so that none can be learnt by heart.
    """
    reasons = [
        at_least("coverage (share of modes found)", scorecard.modes / scorecard.of, gate.min_coverage, "min_coverage",
                 "modes are left out: train longer"),
        at_least("diversity (narrowest mode's deviation, generated over true)", min(scorecard.spread), gate.min_diversity,
                 "min_diversity", "a mode is missing or has shrunk towards a point: train longer"),
    ]
    failed = tuple(reason for reason in reasons if reason)
    return Verdict(passed=not failed, reasons=failed, enforced=gate.enabled)


def check_finite(scorecard: PlaneScorecard) -> None:
    """Refuses figures that are no numbers, which only a broken generator gives."""
    odd = [name for name, number in scorecard.scores.items() if not math.isfinite(number)]
    if odd:
        raise TrainingFailed(f"the generator's {', '.join(odd)} can't be measured: its points are not finite; train again "
                             "with another seed")




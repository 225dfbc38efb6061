"""Mixtures on the plane, ten trainings each: modes, high-quality share, reverse KL, spread, value function, a discriminator fitted
afresh. PacGAN's set-up: 2,500 generated points, here of those that D let pass (`as drawn`: of all); a point is of high
quality within three deviations of the nearest mean.

    python benchmarks/mixtures.py [--mixtures two,ring8,grid25] [--runs 10] [--kpoints 2048] [--set packing=2 …]

One thread: a training is some thousand small steps. The last line of a mixture says whether every run reached what is asked of it.
"""

import argparse
import math

import numpy as np
import torch
from machine import machine

from gan.mixtures import MIXTURES, Mixture, mode_figures, summarise
from gan.plane import PACGAN_POINTS, MixtureRecipe, MixtureRun, fresh_discriminator_loss, train_mixture
from gan.recipe import parse_settings

ASKED = {"high_quality": 0.95, "reverse_kl": 0.03}
FRESH_POINTS = 20_000


def row(run: MixtureRun) -> str:
    """One training."""
    f, ratios = run.figures, [r for r in run.figures.spread_ratio if math.isfinite(r)]
    fresh = fresh_discriminator_loss(run.sample(FRESH_POINTS, 2 * run.seed + 3), run.mixture.sample(FRESH_POINTS, 2), run.mixture.deviation)
    drawn = run.as_drawn or f
    narrow = min((r for r in drawn.spread_ratio if math.isfinite(r)), default=0.0)
    return (f"  seed {run.seed:2d}  modes {f.modes:2d}/{f.of}  high quality {f.high_quality:.4f}  reverse KL {f.reverse_kl:.4f}  "
            f"spread {min(ratios):.2f} … {max(ratios):.2f} (mean {np.mean(ratios):.2f})  value {run.curve[-1].value:+.3f}  "
            f"fresh D {fresh:.3f}  {run.seconds:4.0f} s;  as drawn: high quality {drawn.high_quality:.4f}  "
            f"reverse KL {drawn.reverse_kl:.4f}  narrowest {narrow:.2f}")


def table(mixture: Mixture, recipe: MixtureRecipe, runs: int) -> list[MixtureRun]:
    """Trains and prints one mixture's rows."""
    true = mode_figures(mixture.sample(PACGAN_POINTS, 1).numpy().astype(np.float64), mixture)
    floor = fresh_discriminator_loss(mixture.sample(FRESH_POINTS, 3), mixture.sample(FRESH_POINTS, 2), mixture.deviation)
    print(f"{mixture.name}: {recipe.steps:,} steps of {recipe.points_a_step} points; true points: high quality {true.high_quality:.4f}, "
          f"reverse KL {true.reverse_kl:.4f}, fresh D {floor:.3f} (log 4 = {math.log(4):.3f}), optimal value {-math.log(4):.3f}")
    done = []
    for seed in range(runs):
        done.append(train_mixture(mixture, recipe, seed))
        print(row(done[-1]), flush=True)
    s = summarise([run.figures for run in done])
    reached = [run.figures.modes == run.figures.of and run.figures.high_quality >= ASKED["high_quality"]
               and run.figures.reverse_kl <= ASKED["reverse_kl"] for run in done]
    print(f"  mean of {runs} ± standard error: modes {s.modes[0]:.2f} ± {s.modes[1]:.2f}, high quality {s.high_quality[0]:.4f} ± "
          f"{s.high_quality[1]:.4f}, reverse KL {s.reverse_kl[0]:.4f} ± {s.reverse_kl[1]:.4f}; every mode, high quality ≥ 95 % and "
          f"reverse KL ≤ 0.03 in {sum(reached)} of {runs} runs", flush=True)
    return done


def main() -> None:
    """Prints a table a mixture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixtures", default="two,ring8,grid25")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--kpoints", type=float, help="thousand true points shown; default: the recipe's own")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="of the recipe, e.g. packing=2")
    args = parser.parse_args()
    torch.set_num_threads(1)
    options = parse_settings(args.set)
    recipe = MixtureRecipe(**options)
    if args.kpoints is not None:
        recipe = MixtureRecipe(**{**options, "steps": round(1000 * args.kpoints / recipe.points_a_step)})
    print(machine())
    for name in args.mixtures.split(","):
        table(MIXTURES[name], recipe, args.runs)


if __name__ == "__main__":
    main()

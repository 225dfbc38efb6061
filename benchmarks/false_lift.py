"""How often chance alone would pass for a lift: paired differences without a true one, judged as a trial judges them.

    python benchmarks/false_lift.py [--trials 2000] [--seeds 3 6 8 10]

The differences are drawn from a normal distribution, and from one with heavy tails (Student's t of three degrees). Of so many trials it
says in how many the 95 % interval lies above zero, where 2.5 % is nominal, and in how many a win's other condition on the figure holds as
well, the sign-flip p. A win needs more: val's preference, and the same against the way without synthesis that is best on test.
"""

import argparse
from collections.abc import Callable

import numpy as np
from machine import machine

from pipeline.lift.statistics import LEAST_FOR_BOOTSTRAP, paired_interval, sign_flip_p
from pipeline.lift.verdict import why_no_win

Drawn = Callable[[np.random.Generator, int], np.ndarray]
CHANCE: dict[str, Drawn] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "heavy tails": lambda rng, n: rng.standard_t(3, size=n),
}


def shares(drawn: Drawn, seeds: int, trials: int) -> tuple[float, float]:
    """(share of trials whose interval is above zero, share that passes for a lift) of so many seeds each."""
    rng = np.random.default_rng(seeds)
    above = won = 0
    for _ in range(trials):
        differences = drawn(rng, seeds).tolist()
        interval = paired_interval(differences)
        above += interval[0] > 0
        p = sign_flip_p(differences) if seeds >= LEAST_FOR_BOOTSTRAP else 0.0
        won += why_no_win(interval, True, None, None, p=p) is None
    return above / trials, won / trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 6, 8, 10])
    args = parser.parse_args()
    print(machine())
    for name, drawn in CHANCE.items():
        for seeds in args.seeds:
            above, won = shares(drawn, seeds, args.trials)
            print(f"{name}, {seeds} seeds: interval above zero in {above:.1%}, a lift by interval and p in {won:.1%} "
                  f"of {args.trials:,} trials", flush=True)


if __name__ == "__main__":
    main()

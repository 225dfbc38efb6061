"""Few labels, as a user has them: `ganmill run` of an example with the default gate, once for each seed of split, GAN and trial.

    python benchmarks/few_labels.py --mnist FOLDER_OF_IDX_FILES [--seeds 1] [--first-seed 0]     # examples/few_labels.yaml
    python benchmarks/few_labels.py --example rare_digits [--seeds 1] [--first-seed 0]           # nothing to download

Prints the verdict's sentence, whether the gate published, the scores and the seconds of each.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import machine

from pipeline.errors import GateRefused

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(example: str, seed: int, folder: Path, mnist: Path | None) -> tuple[bool, float, dict[str, Any], dict[str, Any]]:
    """(whether it published, seconds, scorecard, verdict) of one run."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "flows.cli", "run", str(EXAMPLES / f"{example}.yaml"),
               "--set", f"seed={seed}", "--set", f"publish.url={folder}"]
    found = {"MNIST": str(mnist.resolve())} if mnist else {}
    done = subprocess.run(command, env={**os.environ, **found}, capture_output=True, text=True, check=False)
    if done.returncode not in (0, GateRefused.exit_status):
        raise SystemExit(done.stderr)
    took = time.perf_counter() - began
    scorecard, verdict = (json.loads(next(folder.glob(f"*/runs/*/{name}.json")).read_text())
                          for name in ("scorecard", "verdict"))
    return done.returncode == 0, took, scorecard, verdict


def show(seed: int, published: bool, took: float, scorecard: dict[str, Any], verdict: dict[str, Any]) -> None:
    """What came of it, and each classifier seed's accuracy without and with synthesis."""
    print(f"\nseed {seed}: {'published' if published else 'refused'} after {took:.0f} s; agreement {scorecard['agreement']:.3f}, "
          f"coverage {scorecard['coverage']:.2f}, near copies {scorecard['memorised']:.1%}\n{scorecard['lift']['sentence']}")
    print(" → ".join(", ".join(f"{value:.2f}" for value in scorecard["lift"][side]) for side in ("baseline", "synthetic")))
    print("".join(f"gate: {reason}\n" for reason in verdict["reasons"]), end="", flush=True)


def main() -> None:
    """Prints some lines a seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--example", choices=("few_labels", "rare_digits"), default="few_labels")
    parser.add_argument("--mnist", type=Path, help="folder with MNIST's IDX files, which few_labels needs")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for what the runs leave, to look at")
    arguments = parser.parse_args()
    if arguments.example == "few_labels" and arguments.mnist is None:
        parser.error("few_labels needs --mnist FOLDER_OF_IDX_FILES")
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            show(seed, *run(arguments.example, seed, (arguments.keep or Path(temporary)) / f"s{seed}", arguments.mnist))


if __name__ == "__main__":
    main()

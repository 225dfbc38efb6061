"""The scripts that print the figures of the README and of docs/, one after the other; see each for its options.

Not those that take hours and keep rows that they go on from: families.py, presets.py, long_tail.py, lift_settings.py; nor those that need a
GPU: gpu.py, resnet32_tail.py.

    python benchmarks/all.py [FOLDER_OF_MNIST_IDX_FILES] [--img2dataset PYTHON]
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Runs them; those that need MNIST only when its folder is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mnist", nargs="?", help="folder of MNIST's IDX files")
    parser.add_argument("--img2dataset", metavar="PYTHON", help="an interpreter that has it, for writers.py")
    arguments = parser.parse_args()
    mnist = [arguments.mnist] if arguments.mnist else []
    other = ["--img2dataset", arguments.img2dataset] if arguments.img2dataset else []
    scripts = [["startup.py", *(["--mnist", *mnist] if mnist else [])], ["ray_cost.py"], ["busy_neighbour.py"],
               ["worker_sums.py"], ["sampling.py"], ["scale.py"], ["writers.py", *other], ["crash_matrix.py"], ["orchestration.py"],
               ["first_night.py"], ["few_labels.py", "--example", "rare_digits"], ["mixtures.py"], ["cpu_speed.py"], ["smoke_verdict.py"],
               ["false_lift.py"], ["measuring.py", *(["--data", *mnist] if mnist else [])]]
    if mnist:
        scripts += [["mnist_equal_seconds.py", "--data", *mnist, "--seconds", "150"], ["truncation.py", "--mnist", *mnist],
                    ["few_labels.py", "--mnist", *mnist], ["snapshots.py", "--data", *mnist, "--seeds", "1"]]
    for name, *options in scripts:
        print(f"\n== {name} {' '.join(options)}", flush=True)
        subprocess.run([sys.executable, str(HERE / name), *options], check=True)
    if not mnist:
        print("\nleft out: mnist_equal_seconds.py, truncation.py, few_labels.py, snapshots.py, for want of MNIST's folder (MNIST=FOLDER)")


if __name__ == "__main__":
    main()

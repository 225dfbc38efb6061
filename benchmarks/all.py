"""Every script that prints a figure of the README, one after the other; see each for its options.

    python benchmarks/all.py [FOLDER_OF_MNIST_IDX_FILES]
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Runs them; those that need MNIST only when its folder is given."""
    mnist = sys.argv[1:2]
    scripts = [["startup.py", *(["--mnist", *mnist] if mnist else [])], ["ray_cost.py"], ["sampling.py"],
               ["scale.py"], ["writers.py"], ["crash_matrix.py"]]
    if mnist:
        scripts.append(["mnist_equal_seconds.py", "--data", *mnist, "--seconds", "150"])
    for name, *arguments in scripts:
        print(f"\n== {name} {' '.join(arguments)}", flush=True)
        subprocess.run([sys.executable, str(HERE / name), *arguments], check=True)
    if not mnist:
        print("\nleft out: mnist_equal_seconds.py, for want of MNIST's folder (make bench MNIST=FOLDER)")


if __name__ == "__main__":
    main()

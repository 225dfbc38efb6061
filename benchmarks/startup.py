"""What a user waits for: `--help`, `validate` on MNIST, the whole demo, and the demo's memory.

    python benchmarks/startup.py --mnist FOLDER_OF_IDX_FILES
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
from machine import machine


def seconds(command: list[str], repeats: int = 5) -> float:
    """Median wall-clock seconds of a command that must succeed."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def demo() -> tuple[float, float]:
    """(seconds, peak GiB over all processes of the demo, shared pages counted once)."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "flows.cli", "demo"], cwd=folder)
        peak = [0.0]

        def watch() -> None:
            root = psutil.Process(process.pid)
            while process.poll() is None:
                try:
                    family = [root, *root.children(recursive=True)]
                    peak[0] = max(peak[0], sum(_proportional(p) for p in family))
                except psutil.Error:
                    pass
                time.sleep(2)                        # the look itself takes time from the demo

        thread = threading.Thread(target=watch)
        thread.start()
        status = process.wait()
        thread.join()
        if status:
            raise SystemExit(f"the demo ended with status {status}")
        return time.perf_counter() - began, peak[0] / 2**30


def _proportional(process: psutil.Process) -> float:
    """Bytes of a process, pages that several share divided among them (PSS)."""
    try:
        return float(process.memory_full_info().pss)
    except psutil.Error:
        return 0.0


def main() -> None:
    """Prints a line a figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", type=Path, help="folder with MNIST's IDX files")
    arguments = parser.parse_args()
    print(machine())
    ganmill = [sys.executable, "-m", "flows.cli"]
    print(f"ganmill --help: {seconds([*ganmill, '--help']):.2f} s (limit 0.5)")
    if arguments.mnist is not None:
        with tempfile.TemporaryDirectory() as folder:
            config = Path(folder) / "mnist.yaml"
            config.write_text(f"name: mnist\nsource: {{format: idx, url: {arguments.mnist.resolve()}}}\n"
                              "sample: {target: {per_class: 1000}}\n")
            print(f"ganmill validate on MNIST: {seconds([*ganmill, 'validate', str(config)], 3):.2f} s (limit 5)")
    took, memory = demo()
    print(f"ganmill demo: {took:.0f} s (limit 240), {memory:.2f} GiB at its peak (limit 4)")


if __name__ == "__main__":
    main()

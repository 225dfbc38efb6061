"""The machine that a benchmark ran on, in one line; every script prints it first."""

import os
import platform
import time
from importlib import metadata
from pathlib import Path


def machine() -> str:
    """CPU, cores, memory, load and the versions that matter."""
    cpu = platform.processor() or "unknown CPU"
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = ", ".join(f"{name} {version}" for name in ("torch", "ray", "numpy") if (version := _version(name)))
    return (
        f"{_gpu()}{cpu}, {cores} cores, {memory:.0f} GiB, load {os.getloadavg()[0]:.2f}; Python {platform.python_version()}, "
        f"{versions}; {time.strftime('%Y-%m-%d')}"
    )


def _version(name: str) -> str | None:
    """Of an installed distribution; None where it isn't."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _gpu() -> str:
    """The first GPU's name, where torch sees one."""
    import torch

    return f"{torch.cuda.get_device_name(0)}; " if torch.cuda.is_available() else ""


if __name__ == "__main__":
    print(machine())

"""`ganmill doctor`: is everything there that a run needs, and if not, what to do about it.

Each check is one line: ok, warning (works, but …) or fault, with a remedy. Nothing is changed but a small object that is
written to the store and removed again, as every run does.
"""

import contextlib
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import GanmillError

MIN_MEMORY_GIB = 4.0
MIN_TEMP_GIB = 2.0
MIN_SHARED_MEMORY_GIB = 0.25
_SHOWN = ("torch", "ray", "prefect", "pyarrow", "fsspec")


class DoctorFound(GanmillError):
    """At least one check found a fault; the lines say which, with a remedy. `details` holds them for programs."""

    def __init__(self, message: str, checks: list[dict[str, Any]]):
        super().__init__(message)
        self.details = {"checks": checks}


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    what: str
    state: Literal["ok", "warning", "fault"]
    found: str
    remedy: str = ""

    def line(self) -> str:
        """For a person."""
        return f"{self.state:<8} {self.what:<10} {self.found}" + (f"; {self.remedy}" if self.remedy else "")


def examine(config_path: Path | None, overrides: list[str], *, start_ray: bool) -> dict[str, Any]:
    """Runs every check that applies.

    Args:
        config_path: a config whose source, store and cluster are tried too.
        start_ray: start a Ray of one's own (some seconds) where the config names no other.

    Raises:
        DoctorFound: there is a fault; its message is the whole report.
    """
    findings = [finding for check in (_python, _packages, _machine, _graphics, _temporary) for finding in check()]
    config = None
    if config_path is not None:
        config, finding = _config(config_path, overrides)
        findings.append(finding)
    if config is not None:
        findings += [_source(config), _store(config)]
    findings.append(_prefect())
    findings.append(_ray(config) if start_ray or (config is not None and config.cluster.address != "local") else _ray_installed())
    faults = [f for f in findings if f.state == "fault"]
    text, checks = "\n".join(f.line() for f in findings), [asdict(f) for f in findings]
    if faults:
        raise DoctorFound(f"{len(faults)} of {len(findings)} checks found a fault\n{text}", checks)
    return {"text": text, "checks": checks}


def _python() -> Iterator[Finding]:
    version = platform.python_version()
    good = (3, 11) <= sys.version_info[:2] < (3, 14)
    yield Finding("python", "ok" if good else "fault", f"{version} on {platform.system()} {platform.machine()}",
                  "" if good else "ganmill runs on Python 3.11 to 3.13: make a virtual environment with one of them")


def _packages() -> Iterator[Finding]:
    """Installed versions against what ganmill asks for, and against the lock file of a checkout."""
    from packaging.requirements import Requirement

    wrong = []
    for line in importlib.metadata.requires("ganmill") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} {installed} is not {requirement.specifier}")
    shown = ", ".join(f"{name} {_version(name)}" for name in _SHOWN)
    yield Finding("packages", "fault" if wrong else "ok", "; ".join(wrong) or f"ganmill {_version('ganmill')}, {shown}",
                  "pip install -r requirements.lock, or pip install --upgrade ganmill" if wrong else "")
    lock = Path(__file__).resolve().parent.parent / "requirements.lock"
    if lock.exists():
        pinned = dict(line.split("==") for line in lock.read_text().splitlines() if "==" in line)
        other = [f"{name} {_version(name)} (pinned {pinned[name]})" for name in _SHOWN
                 if name in pinned and _version(name).split("+")[0] != pinned[name]]
        if other:
            yield Finding("pins", "warning", ", ".join(other), "pip install -r requirements.lock for the versions that were tested")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _machine() -> Iterator[Finding]:
    from pipeline.cluster import local_cpus

    cpus, memory = local_cpus(), _memory_gib()
    load = os.getloadavg()[0]
    if load > 2 * cpus:
        yield Finding("cpu", "warning", f"{cpus} CPUs, load {load:.1f}", "other work is waiting for them too: a run will be slow")
    else:
        yield Finding("cpu", "ok", f"{cpus} CPUs, load {load:.1f}")
    if memory is not None:
        good = memory >= MIN_MEMORY_GIB
        yield Finding("memory", "ok" if good else "warning", f"{memory:.1f} GiB free",
                      "" if good else f"a run wants about {MIN_MEMORY_GIB:g} GiB: close other programs or lower train.batch_size")


def _memory_gib() -> float | None:
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    return next((int(line.split()[1]) / 2**20 for line in text.splitlines() if line.startswith("MemAvailable")), None)


def _graphics() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(f"{torch.cuda.get_device_name(i)} ({torch.cuda.get_device_properties(i).total_memory / 2**30:.0f} GiB)"
                          for i in range(torch.cuda.device_count()))
        yield Finding("gpu", "ok", names)
    elif shutil.which("nvidia-smi"):
        yield Finding("gpu", "warning", f"there is an NVIDIA driver, but torch {torch.__version__} sees no GPU",
                      "install a torch built for CUDA, and check the driver with nvidia-smi")
    else:
        yield Finding("gpu", "ok", f"none; torch {torch.__version__} uses {torch.get_num_threads()} threads (gpus_per_worker: 0)")


def _temporary() -> Iterator[Finding]:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free / 2**30
    good = free >= MIN_TEMP_GIB
    yield Finding("disk", "ok" if good else "fault", f"{free:.1f} GiB free in {folder}",
                  "" if good else f"Ray needs about {MIN_TEMP_GIB:g} GiB there: free some, or set TMPDIR")
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).total / 2**30
        good = size >= MIN_SHARED_MEMORY_GIB
        yield Finding("shm", "ok" if good else "warning", f"{size:.2f} GiB in /dev/shm",
                      "" if good else "Ray falls back to the disk: give the container --shm-size=1g (compose: shm_size)")


def _config(path: Path, overrides: list[str]) -> tuple[Any, Finding]:
    from pipeline.config import load_config

    try:
        config = load_config(path, overrides)
    except GanmillError as e:
        return None, Finding("config", "fault", " ".join(str(e).split()), "correct it; `ganmill validate` shows the whole")
    return config, Finding("config", "ok", f"{path}: {config.name}")


def _source(config: Any) -> Finding:
    def look() -> str:
        from pipeline.sources import open_source

        source = open_source(config.source, config.seed)
        return f"{config.source.format}: {source.census().total:,} items of {len(source.classes)} classes"

    return _tried("source", look)


def _store(config: Any) -> Finding:
    from pipeline.store import Store

    def probe() -> str:
        found = store.probe()
        notes.append(found.note)
        return f"{store.where()}: written, read back, removed; conditional puts {'held' if found.put_if_absent else 'ignored'}"

    notes: list[str] = []
    store = Store(config.dataset_url, config.publish.storage_options)
    finding = _tried("store", probe)
    return Finding("store", "warning", finding.found, notes[0]) if finding.state == "ok" and notes[0] else finding


def _prefect() -> Finding:
    from flows.single import quiet_prefect

    quiet_prefect()
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if not url:
        return Finding("prefect", "ok", "no server (PREFECT_API_URL is not set): runs go without one, `ganmill deploy` needs one")

    def ask() -> str:
        import httpx

        with httpx.Client(base_url=url, timeout=5) as client:
            client.get("/health").raise_for_status()
            server = client.get("/admin/version").json()
        ours = _version("prefect")
        if server.rpartition(".")[0] != ours.rpartition(".")[0]:
            raise GanmillError(f"{url} runs Prefect {server}, this is {ours}: install the same on both")
        return f"{url}, version {server}"

    return _tried("prefect", ask, "check PREFECT_API_URL; start a server with `prefect server start`")


def _ray_installed() -> Finding:
    return Finding("ray", "ok", f"version {_version('ray')}; --ray starts one to try it")


def _ray(config: Any) -> Finding:
    from pipeline.cluster import connected, describe_cluster, is_jobs_url
    from pipeline.config import parse_config

    def connect() -> str:
        if config is not None and is_jobs_url(config.cluster.address):
            from pipeline.cluster.jobs import jobs_version

            return f"{config.cluster.address}: takes jobs, Ray {jobs_version(config.cluster.address)}"
        wanted = config or parse_config({"name": "doctor", "source": {"format": "digits"}, "sample": {"workers": 1}})
        with connected(wanted):
            return f"{wanted.cluster.address}: {describe_cluster()}"

    return _tried("ray", connect, "see docs/troubleshooting.md")


def _tried(what: str, act: Callable[[], str], remedy: str = "") -> Finding:
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return Finding(what, "ok", act())
    except GanmillError as e:
        return Finding(what, "fault", " ".join(str(e).split()))      # says what to do itself
    except Exception as e:  # noqa: BLE001  whatever a driver raises is the finding
        return Finding(what, "fault", f"{type(e).__name__}: {' '.join(str(e).split())[:300]}", remedy)

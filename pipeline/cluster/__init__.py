"""Connecting to Ray: which cluster, and does it hold what the config asks.

A local cluster is started in a temporary folder of its own and leaves neither processes nor files behind. An existing
one is checked after connecting, because `address="auto"` may quietly start a local one instead.
"""

import contextlib
import importlib
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.cluster.nodes import check_software, copy_code
from pipeline.cluster.processes import below, inheriting, see_off
from pipeline.config import Config
from pipeline.errors import ClusterError, ConfigError
from pipeline.scheduling import giving_way, local_cpus, threads_asked
from pipeline.wording import counted

OBJECT_STORE_BYTES = 256 * 2**20                     # specs and receipts travel through it, images don't
CONNECT_TIMEOUT_S = 5.0
_temp_folders: set[Path] = set()                     # of clusters that this process has started

_WORKER_ENV = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",        # how often the controller polls: 2 s by default; costs 1 % of a core
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_worker_niceness": "0",                      # 15 by default: two threads that wait for each other then starve
    "PYTHONWARNINGS": "ignore",
}
# A cluster of our own lives as long as the run, has no dashboard and no spot machines: what serves those is switched off. Each
# of Ray's processes wakes a hundred times a second, and on two cores every time stops one of two threads that the other waits
# for. The user's own settings win.
_LOCAL_ENV = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_event_stats": "0",
    "RAY_metrics_report_interval_ms": "60000",
    "RAY_task_events_report_interval_ms": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
}
# Torch's threads meet some hundred times a step. One that sleeps meanwhile wakes too late on a machine that does anything
# else, so they wait awake for a tenth of a second (3 ms by default) before they sleep. Not for ever, as OMP_WAIT_POLICY=active
# would have it: an idle process would burn a core that another one needs. The user's own setting wins.
_THREAD_ENV = {"GOMP_SPINCOUNT": "10000000"}


def check_resources(config: Config) -> None:
    """Refuses a config whose address is none, or that asks a local cluster for more than this machine has. Takes milliseconds.

    Raises:
        ConfigError: names the key, what was asked, what is here and the remedy.
    """
    if config.cluster.address != "local":
        if config.cluster.address != "inline":       # sampling in this process, without Ray
            parse_address(config.cluster.address)
        return
    cpus = local_cpus()
    for key, workers in (("train.workers", config.train.workers), ("sample.workers", config.sample.workers)):
        if workers > cpus:
            raise ConfigError(
                f"{key}: {workers:,} workers, but this machine has {counted(cpus, 'CPU')}; set {key} to at most {cpus}, "
                "or give cluster.address of a larger cluster"
            )
    asked = {"train": config.train.gpus_per_worker, "sample": config.sample.gpus_per_worker}
    if any(asked.values()):
        gpus = local_gpus()
        for stage, workers in (("train", config.train.workers), ("sample", config.sample.workers)):
            if asked[stage] * workers > gpus:
                raise ConfigError(
                    f"{stage}.gpus_per_worker: {workers} × {asked[stage]:g} GPUs asked for, but this machine has {gpus}; "
                    f"set {stage}.gpus_per_worker: 0 to use CPUs, or give cluster.address of a cluster with GPUs"
                )


def local_gpus() -> int:
    """CUDA devices that torch sees."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


@contextlib.contextmanager
def connected(config: Config) -> Iterator[None]:
    """Ray, initialised for this config and shut down afterwards.

    Raises:
        ClusterError: the cluster can't be reached, or is smaller than the config asks.
    """
    import ray

    if ray.is_initialized():                         # the caller's cluster: use it, leave it
        _check_size(config)
        yield
        return
    _set_environment()
    local = config.cluster.address == "local"
    temp = _temp_folder() if local else None
    # torch leaves a cache folder in the temporary folder otherwise
    own = {**_LOCAL_ENV, "TORCHINDUCTOR_CACHE_DIR": str(temp / "torchinductor")} if temp is not None else {}
    try:
        with _environment(own):
            with _sigterm_as_it_was():
                _init(config.cluster.address, temp, config.cluster.ship_code)
            _check_size(config)
            if not local:
                check_software(config.cluster.address)
            yield
    finally:
        ours = below(str(temp)) if temp is not None else []
        if temp is not None and lost():              # its workers are orphans by now, and its own shutdown would wait for the dead
            see_off([*ours, *inheriting(str(temp))], patience_s=1.0)
        ray.shutdown()
        see_off(ours)
        if temp is not None:
            _remove(temp)


def leave_nothing() -> None:
    """For a process that must end at once: ends what it started of Ray, and removes its folders. Nothing works afterwards."""
    for temp in list(_temp_folders):
        see_off([*below(str(temp)), *inheriting(str(temp))], patience_s=1.0)
        _remove(temp)


def _remove(temp: Path) -> None:
    shutil.rmtree(temp, ignore_errors=True)
    _temp_folders.discard(temp)


@contextlib.contextmanager
def _sigterm_as_it_was() -> Iterator[None]:
    """What is inside may set another handler of SIGTERM: Ray's takes it for a crash, and aborts the process three seconds later."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """For work in this process without Ray: the folder in which torch would cache goes with it, and isn't left among temporary files."""
    with tempfile.TemporaryDirectory(prefix="gm-") as folder, _environment({"TORCHINDUCTOR_CACHE_DIR": folder}):
        yield


@contextlib.contextmanager
def importing_ahead() -> Iterator[None]:
    """While what is inside waits for another process, imports what training will need: five seconds of a core.

    Ends when both have, so that no two threads import at once afterwards.
    """
    _set_environment()                               # libgomp reads it when torch is loaded
    thread = threading.Thread(target=_import_what_training_needs, name="importing-ahead", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _import_what_training_needs() -> None:
    with contextlib.suppress(Exception):             # whoever needs it will say what is wrong
        for name in ("torch", "ray", "ray.train.torch", "gan.loop"):
            importlib.import_module(name)


def _set_environment() -> None:
    """What Ray's processes and torch's threads read when they start."""
    os.environ.update(_WORKER_ENV)
    for name, value in {**_THREAD_ENV, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets, for the time inside, those variables that the environment lacks."""
    lacking = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(lacking)
    try:
        yield
    finally:
        for name in lacking:
            os.environ.pop(name, None)


def _temp_folder() -> Path:
    """A new folder whose path is short enough for Ray's sockets (107 bytes, of which Ray needs 62)."""
    base = tempfile.gettempdir()
    temp = Path(tempfile.mkdtemp(prefix="gm-", dir=base if len(base) <= 33 else "/tmp"))
    _temp_folders.add(temp)
    return temp


def is_jobs_url(address: str) -> bool:
    """Is it the URL of a cluster's Jobs API, to which whole commands are submitted (`pipeline.cluster.jobs`)?"""
    return address.startswith(("http://", "https://"))


def parse_address(address: str) -> tuple[str, int] | None:
    """(host, port) of a Ray head, None for `local`, `auto` and a Jobs URL.

    Raises:
        ConfigError: it is none of these.
    """
    if address in ("local", "auto") or is_jobs_url(address):
        return None
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(
            f"cluster.address: {address!r} is none of local, auto, host:port of a Ray head node (e.g. 10.0.0.5:6379), or its Jobs URL "
            "(e.g. http://10.0.0.5:8265)"
        )
    return host.strip("[]"), int(port)


def _check_reachable(address: str) -> None:
    """A word in seconds where Ray itself would try for minutes."""
    where = parse_address(address)
    if where is None:
        return
    try:
        socket.create_connection(where, timeout=CONNECT_TIMEOUT_S).close()
    except OSError as e:
        raise ClusterError(
            f"cluster.address: {address}: nothing answers there ({e.strerror or e}); check host and port, and that the Ray "
            "head is running (`ray status`)"
        ) from e


def _init(address: str, temp: Path | None, ship_code: bool) -> None:
    import ray

    if is_jobs_url(address):
        raise ConfigError(f"cluster.address: {address}: a Jobs URL takes whole commands (ganmill run), not a part of one; give host:port")
    _check_reachable(address)

    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "namespace": f"ganmill-{os.getpid()}"}
    try:
        if temp is not None:
            with giving_way():
                ray.init(
                    num_cpus=local_cpus(), include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES,
                    _temp_dir=str(temp), _node_ip_address="127.0.0.1", **common,
                )
        else:
            with tempfile.TemporaryDirectory(prefix="ganmill-code-") as folder:
                if ship_code:
                    copy_code(Path(folder))
                    common["runtime_env"] = {"working_dir": folder}
                ray.init(address=address, **common)
            if _started_here():
                raise ClusterError(
                    f"cluster.address: {address}: no running Ray cluster was found; start one with `ray start --head`, "
                    "give its host:port, or set cluster.address: local"
                )
    except ClusterError:
        raise
    except Exception as e:                           # Ray raises a bare Exception when its own node does not come up
        if temp is not None:
            raise ClusterError(
                f"cluster.address: {address}: Ray did not start on this machine: {(str(e) or type(e).__name__).splitlines()[0]}; free "
                "some CPU, memory or /dev/shm and continue with the same command"
            ) from e
        raise ClusterError(
            f"cluster.address: {address}: can't connect to Ray: {' '.join(str(e).split())[:400]}; check the address and that the "
            "cluster runs the same Ray and Python versions"
        ) from e


def lost() -> bool:
    """Has a process of the cluster that was started here ended, as when all of a command get SIGTERM? Then nothing answers any more."""
    import ray

    node = ray._private.worker._global_node
    return bool(node is not None and node.is_head() and node.dead_processes())


def _started_here() -> bool:
    """Did `ray.init` start a cluster of its own instead of joining one?"""
    import ray

    node = ray._private.worker._global_node
    return bool(node is not None and node.is_head())


def _check_size(config: Config) -> None:
    import ray

    have = ray.cluster_resources()
    wants = {
        "CPU": float(max(config.train.fewest_workers, config.sample.workers)),
        "GPU": max(config.train.fewest_workers * config.train.gpus_per_worker, config.sample.workers * config.sample.gpus_per_worker),
    }
    for kind, want in wants.items():
        if have.get(kind, 0.0) < want:
            nodes = sum(bool(node["Alive"]) for node in ray.nodes())
            raise ClusterError(
                f"cluster.address: {config.cluster.address}: {want:g} {kind}s asked for, but its {nodes} nodes have "
                f"{have.get(kind, 0.0):g}; lower train.workers / sample.workers or gpus_per_worker, or add nodes"
            )


def describe_cluster() -> str:
    """`2 nodes, 8 CPUs, 2 GPUs` of the cluster that this process is connected to."""
    import ray

    have, nodes = ray.cluster_resources(), sum(bool(node["Alive"]) for node in ray.nodes())
    return f"{nodes} node{'s' if nodes != 1 else ''}, {have.get('CPU', 0):g} CPUs, {have.get('GPU', 0):g} GPUs"


def threads_per_worker(workers: int) -> int:
    """Threads that train in each of `workers`: one a CPU of its share, or fewer where the environment's OMP_NUM_THREADS says so.

    To be asked in the driver: Ray sets that variable for its workers. One thread is much the faster where another process keeps a
    CPU busy, because two wait for each other some hundred times a step.
    """
    cpus = cpus_per_worker(workers)
    return min(cpus, threads_asked() or cpus)


def cpus_per_worker(workers: int) -> int:
    """CPUs each of `workers` gets when they share the cluster evenly; at least 1."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)) // workers)

"""Runs started from the command line: the whole flow in this process, or one stage without Prefect."""

import contextlib
import ctypes
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from flows.errors import PrefectError
from flows.logs import name_run
from pipeline import keys, runs
from pipeline.config import Config, load_config, read_config
from pipeline.records import Checkpoint
from pipeline.redaction import hide_secrets
from pipeline.runs import Run

PR_SET_PDEATHSIG = 1         # <linux/prctl.h>
_STARTUP = "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"


def augment_here(path: Path, overrides: list[str], run_id: str | None, progress: Any) -> dict[str, Any]:
    """The flow in this process: against the Prefect server of `PREFECT_API_URL`, or without one.

    Returns:
        The outcome as plain values, `text` for a person.

    Raises:
        GanmillError: every failure that has a name.
    """
    from flows.metrics import measured

    settings = load_config(path, overrides)          # every fault of the config, before anything heavy is imported
    with measured(settings.name):
        return _augment_here(settings, path, overrides, run_id, progress)


def _augment_here(settings: Config, path: Path, overrides: list[str], run_id: str | None, progress: Any) -> dict[str, Any]:
    from pipeline.cluster import check_resources, is_jobs_url

    if is_jobs_url(settings.cluster.address):
        from flows.submission import submitted

        return submitted("run", settings, read_config(path, overrides), run_id, progress)
    check_resources(settings)
    progress.note("looking at the source")
    run = runs.describe_run(settings, run_id)
    manifest = runs.published_version(settings, run)
    if manifest is not None:                         # answered without Prefect: nothing is going to happen
        from flows.outcome import up_to_date

        return up_to_date(run, manifest).to_result()
    progress.note("starting Prefect" + ("" if os.environ.get("PREFECT_API_URL") else " and its own small server, some ten seconds"))
    quiet_prefect()
    from flows.augment import augment
    from flows.listening import command_line

    name_run(run.run_id)
    parameters, hidden = hide_secrets(read_config(path, overrides))
    os.environ.update(hidden)
    with command_line(progress), _named_trouble():
        _start_small_server()
        return augment(cast(Config, parameters), run.run_id).to_result()


def _start_small_server() -> None:
    """Starts Prefect's own small server where PREFECT_API_URL names none, in a session of its own.

    A terminal sends Ctrl-C to every process of the command, and `timeout` sends SIGTERM. With its server gone, Prefect asks it for a
    minute and more, again and again, before the run may end. At the run's end Prefect stops it; where the run is killed, Linux does.
    """
    if os.environ.get("PREFECT_API_URL"):
        return
    from prefect.client.orchestration import get_client
    from prefect.server.api import server

    from pipeline.cluster import importing_ahead

    start = functools.partial(subprocess.Popen, start_new_session=True, preexec_fn=_ends_with_this_thread())
    by_this_alone: Any = SimpleNamespace(Popen=start, TimeoutExpired=subprocess.TimeoutExpired)
    server.subprocess = by_this_alone                # it starts and ends its process
    with importing_ahead():
        get_client(sync_client=True)                 # none is started where Prefect's profile names one


def _ends_with_this_thread() -> Callable[[], object] | None:
    """What a new process calls to be killed once the thread that started it has gone; None where only Linux could."""
    if sys.platform != "linux":
        return None
    return functools.partial(ctypes.CDLL(None).prctl, PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def _named_trouble() -> Iterator[None]:
    """Prefect's own small server did not come up: the machine's trouble, not ganmill's."""
    try:
        yield
    except RuntimeError as e:
        if "ephemeral Prefect API" not in str(e):
            raise
        raise PrefectError(f"Prefect's own small server did not come up within {os.environ[_STARTUP]} s: this machine is busy with other "
                           f"work; start again, allow it more ({_STARTUP}), or give a server of yours as PREFECT_API_URL") from e


def quiet_prefect() -> None:
    """Prefect without a server must neither phone out nor print; the command line tells the story itself.

    To be called before Prefect is imported: it reads these settings then.
    """
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault(_STARTUP, "180")
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    if not os.environ.get("PREFECT_API_URL"):        # nobody would read them, and at the end some can't be sent any more
        os.environ.setdefault("PREFECT_LOGGING_TO_API_ENABLED", "false")


def stage_here(name: str, path: Path, overrides: list[str], run_id: str | None, progress: Any) -> dict[str, Any]:
    """One stage of a run, in this process or as a job of the cluster whose Jobs URL the config gives."""
    from pipeline.cluster import is_jobs_url

    config = load_config(path, overrides)
    if is_jobs_url(config.cluster.address):
        from flows.submission import submitted

        return submitted(name, config, read_config(path, overrides), run_id, progress)
    return run_stage(name, config, run_id, progress)


def run_stage(name: str, config: Config, run_id: str | None, progress: Any) -> dict[str, Any]:
    """One stage of a run as a plain call; what the stages before it left in the run folder is read from there.

    Args:
        name: train | evaluate | sample | report.
    """
    from pipeline import walk
    from pipeline.cluster import alone, check_resources

    check_resources(config)
    if config.source.format == "gaussians":
        from flows.points import run_stage as run_stage_of_points

        run = runs.describe_run(config, run_id)
        if name != "train":                          # before the run's folder is created or touched
            runs.recall(run, keys.TRAINED, Checkpoint, "train")
        with alone():
            return run_stage_of_points(name, config, walk.begin(config, run.run_id, progress), progress)
    if name == "train":
        return _train(config, walk.begin(config, run_id, progress), progress)
    run = runs.describe_run(config, run_id)
    name_run(run.run_id)
    facts = walk.recall_all(run, before=name)        # before the run's folder is created or touched
    run = walk.begin(config, run.run_id, progress)
    return {"evaluate": _evaluate, "sample": _sample, "report": _report}[name](config, run, facts, progress)


def _train(config: Config, run: Run, progress: Any) -> dict[str, Any]:
    from pipeline import walk
    from pipeline.cluster import connected

    snapshot = walk.prepare(config, run, progress)
    with connected(config):
        checkpoint = walk.train(config, snapshot, run, progress)
    text = f"trained {checkpoint.model}, {checkpoint.trained_kimg:,.0f} kimg; next: ganmill evaluate CONFIG --run-id {run.run_id}"
    return {"text": text, "run_id": run.run_id, **checkpoint.to_json()}


def _evaluate(config: Config, run: Run, facts: tuple[Any, ...], progress: Any) -> dict[str, Any]:
    from pipeline import walk
    from pipeline.cluster import connected

    snapshot, checkpoint = facts
    with connected(config):
        scorecard = walk.evaluate(config, snapshot, checkpoint, run, progress)
    walk.gate(config, snapshot, checkpoint, scorecard, run, progress)
    text = f"passed the gate; next: ganmill sample CONFIG --run-id {run.run_id}"
    return {"text": text, "run_id": run.run_id, **scorecard.scores}


def _sample(config: Config, run: Run, facts: tuple[Any, ...], progress: Any) -> dict[str, Any]:
    from flows.outcome import published
    from pipeline import walk
    from pipeline.cluster import connected

    snapshot, checkpoint, scorecard, verdict = facts
    planned = walk.plan(config, snapshot, checkpoint, run, progress)
    with connected(config):
        receipts = walk.sample(config, snapshot, checkpoint, planned, run, progress)
    version = walk.publish(config, snapshot, checkpoint, scorecard, verdict, planned, receipts, run, progress)
    return published(run, version).to_result()


def _report(config: Config, run: Run, facts: tuple[Any, ...], progress: Any) -> dict[str, Any]:
    from pipeline import walk

    snapshot, checkpoint, scorecard, verdict = facts
    url = walk.report(config, snapshot, checkpoint, scorecard, verdict, run, progress)
    return {"text": f"report: {url}", "run_id": run.run_id, "report_url": url}

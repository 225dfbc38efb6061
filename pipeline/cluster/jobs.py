"""A command of ganmill as a job of a Ray cluster, by its Jobs URL: submitted, followed to its end, stopped with its submitter.

The driver must sit on a node of the cluster, so the whole command runs there, on the head: what goes out is the config
(with `${NAME}` not yet replaced) and, if asked, ganmill's own code; what comes back are the command's JSON lines.
"""

import contextlib
import json
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.cluster import is_jobs_url
from pipeline.cluster.nodes import copy_code
from pipeline.errors import ClusterError, ConfigError
from pipeline.redaction import public_url, secrets_in_clear

POLL_S = 1.0
LONG_LOG_BYTES = 1_000_000                           # another second between two looks for each
STOP_PATIENCE_S = 60                                 # for a checkpoint, before the cluster kills the command
CONFIG = "config.yaml"

Hear = Callable[[dict[str, Any]], None]
"""Is given each JSON line of the command."""


def run_as_job(
    address: str, command: str, raw: Mapping[str, Any], run_id: str | None, hear: Hear, *, ship_code: bool = False
) -> dict[str, Any]:
    """Runs `ganmill <command> CONFIG` on the cluster; whatever interrupts this process stops the job too.

    Args:
        address: the Jobs URL, e.g. http://10.0.0.5:8265.
        raw: the config as read, `${NAME}` not yet replaced: the cluster's environment knows it.
        hear: is given each of the command's events as it comes.

    Returns:
        The command's result, as `--json` prints it.

    Raises:
        ConfigError: a secret written out, or a local path.
        ClusterError: nothing answers at the URL, or the job ended without a word.
    """
    content = _config_for_there(address, raw)
    client = _client(address)
    words = ["python", "-m", "flows.cli", command, CONFIG, "--json", *(["--run-id", run_id] if run_id else [])]
    with tempfile.TemporaryDirectory(prefix="ganmill-job-") as folder, _told_apart(address):
        (Path(folder) / CONFIG).write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        if ship_code:                                # beside the config, where the job's Python looks first
            copy_code(Path(folder))
        job = client.submit_job(
            entrypoint=" ".join(words), submission_id=f"ganmill-{content['name']}-{uuid.uuid4().hex[:12]}",
            runtime_env=_environment(folder), metadata={"ganmill": str(content["name"]), "command": command},
        )
    try:
        return _follow(client, job, address, hear)
    except BaseException:
        _stop(client, job)
        raise


def _config_for_there(address: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the address that the cluster has for itself."""
    clear = secrets_in_clear(dict(raw))
    if clear:
        raise ConfigError(f"{', '.join(clear)} would be kept by the Ray cluster for all its users to read; write ${{NAME}} there and "
                          "set NAME in the cluster's environment")
    for section in ("source", "publish"):
        url = (raw.get(section) or {}).get("url") or ("./out" if section == "publish" else None)
        if url and "://" not in url and not url.startswith("${"):
            raise ConfigError(f"{section}.url: {url} lies on this machine, and jobs of {public_url(address)} happen elsewhere; give a URL "
                              "that they reach, e.g. s3://bucket/prefix, or file:///… for a folder that all nodes share")
    return {**raw, "cluster": {"address": "auto"}}   # the code, if it is shipped, is the job's and so its workers' too


def _environment(folder: str) -> dict[str, Any]:
    """What the job takes along, and how it wants to be stopped."""
    stop = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_PATIENCE_S)}
    return {"working_dir": folder, "env_vars": stop}


def jobs_version(address: str) -> str:
    """The Ray version at a Jobs URL.

    Raises:
        ClusterError: nothing answers there.
    """
    client = _client(address)
    with _told_apart(address):
        told = client._do_request("GET", "/api/version").json()       # the public call gives the API's own number, 4
        return str(told["ray_version"])


def _client(address: str) -> Any:
    if not is_jobs_url(address):
        raise ConfigError(f"cluster.address: {address!r} is no Jobs URL like http://10.0.0.5:8265")
    from ray.job_submission import JobSubmissionClient

    with _told_apart(address):
        return JobSubmissionClient(address)


@contextlib.contextmanager
def _told_apart(address: str) -> Iterator[None]:
    """What the client raises, as one clear message."""
    from ray.exceptions import RayError

    try:
        yield
    except (RayError, ConnectionError, RuntimeError, OSError, ValueError) as e:
        reason = " ".join(str(e).split())[:300]
        raise ClusterError(f"cluster.address: {public_url(address)}: the Jobs API does not do as asked ({reason}); check that it is the "
                           "dashboard's URL (port 8265) and, with RAY_AUTH_MODE=token, RAY_AUTH_TOKEN") from e


def _follow(client: Any, job: str, address: str, hear: Hear) -> dict[str, Any]:
    """Listens until the job has ended."""
    seen, result, lost_since = 0, None, None
    while True:
        try:
            status, text = client.get_job_status(job), client.get_job_logs(job)
            lost_since = None
        except (ConnectionError, RuntimeError, OSError) as e:    # the head may be slow to answer for a while
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > STOP_PATIENCE_S:
                raise ClusterError(f"cluster.address: {public_url(address)}: lost sight of job {job}; it may go on: `ray job status "
                                   f"{job} --address {public_url(address)}`") from e
            time.sleep(POLL_S)
            continue
        whole = len(text) if status.is_terminal() else text.rfind("\n") + 1
        for event in _events(text[seen:whole]):
            if event["event"] == "result":
                result = event
            else:
                hear(event)
        seen = whole
        if status.is_terminal():
            return _ended(result, status, text, job)
        time.sleep(POLL_S + len(text) / LONG_LOG_BYTES)


def _events(text: str) -> Iterator[dict[str, Any]]:
    """The JSON lines among what the command said to people."""
    for line in text.splitlines():
        if line.startswith("{"):
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict) and "event" in event:
                    yield event


def _ended(result: dict[str, Any] | None, status: Any, text: str, job: str) -> dict[str, Any]:
    if result is not None:
        return result
    last = [line for line in text.splitlines() if line.strip()][-3:]
    raise ClusterError(f"job {job} ended ({status.value.lower()}) without a result: {' / '.join(last) or 'no output'}; is ganmill "
                       "installed on the cluster? cluster.ship_code: true takes this one along")


def _stop(client: Any, job: str) -> None:
    """Asks the job to stop and waits until its command has written what it has."""
    with contextlib.suppress(Exception):
        client.stop_job(job)
        deadline = time.monotonic() + STOP_PATIENCE_S
        while not client.get_job_status(job).is_terminal() and time.monotonic() < deadline:
            time.sleep(POLL_S / 4)

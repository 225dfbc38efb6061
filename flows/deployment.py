"""`ganmill deploy`: the flow on a Prefect server, with a schedule, for someone who need not know Prefect.

What the server keeps is the config with `${NAME}` in place of secrets; a secret written out is refused. Local paths are
made absolute, because a worker starts runs in a folder of its own.
"""

import copy
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from pydantic import ValidationError

from flows.errors import PrefectError
from pipeline.config import Config, read_config
from pipeline.config_faults import fault_lines
from pipeline.errors import ConfigError
from pipeline.redaction import secrets_in_clear
from pipeline.runs import SOFTWARE_VERSION

ENTRYPOINT = "flows.augment.augment"
DEFAULT_POOL = "ganmill"
START_A_SERVER = "start one with `prefect server start`, then `export PREFECT_API_URL=http://127.0.0.1:4200/api`"
_EVERY = re.compile(r"every\s+(\d+)\s*(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def deploy(
    path: Path, overrides: list[str], *, schedule: str | None, timezone: str | None, name: str | None, pool: str, paused: bool
) -> dict[str, Any]:
    """Creates or updates the deployment `ganmill/<name>`.

    Args:
        schedule: cron ("0 2 * * *") or "every 15m"; None for none: a schedule from before goes.
        timezone: IANA name in which the cron is meant; UTC by default.
        name: the deployment's; the dataset's by default.
        pool: work pool; made, of type process, where there is none of that name.
        paused: the schedule is there but switched off.

    Raises:
        ConfigError: config, schedule or time zone is wrong; nothing was sent.
        PrefectError: there is no server, or it said no.
    """
    parameters = _parameters(path, overrides)
    timing = _schedule(schedule, timezone)
    from flows.single import quiet_prefect

    quiet_prefect()
    with _Server() as client:
        kind = _open_pool(client, pool)
        if kind == "process":
            parameters = _with_absolute_paths(parameters)
        else:
            _refuse_local_paths(parameters, pool, kind)
        name = name or str(parameters["name"])
        deployment_id = _upsert(client, name, pool, parameters, timing, paused)
        online = _workers_online(client, pool)
    told = {"deployment": f"ganmill/{name}", "deployment_id": str(deployment_id), "pool": pool, "paused": paused,
            "schedule": schedule, "timezone": timezone or "UTC", "next": _next(timing), "workers_online": online}
    return {"text": _sentence(told, kind), **told}


def _parameters(path: Path, overrides: list[str]) -> dict[str, Any]:
    """The config as the server may keep it: checked as far as it can be without the environment of the run."""
    raw = read_config(path, overrides)
    clear = secrets_in_clear(raw)
    if clear:
        raise ConfigError(
            f"{path}: {', '.join(clear)} would be kept by the Prefect server for all its users to read; write ${{NAME}} there and "
            "set NAME in the worker's environment"
        )
    try:
        Config.model_validate(raw)
    except ValidationError as e:
        hint = "; ${NAME} can only stand for text here" if "${" in str(raw) else ""
        raise ConfigError(f"{path}: " + "; ".join(fault_lines(e, Config)) + hint) from None
    return raw


def _schedule(text: str | None, timezone: str | None) -> Any:
    """Prefect's schedule for `text`, None for none."""
    if text is None:
        if timezone is not None:
            raise ConfigError("--timezone without --schedule: give both, e.g. --schedule \"0 2 * * *\" --timezone Europe/Berlin")
        return None
    from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule

    zone = timezone or "UTC"
    try:
        ZoneInfo(zone)
    except (ValueError, KeyError, OSError) as e:     # zoneinfo raises a KeyError for a name that it doesn't know
        raise ConfigError(f"--timezone {zone!r}: no such time zone; give an IANA name, e.g. Europe/Berlin") from e
    every = _EVERY.fullmatch(text.strip())
    try:
        if every:
            interval = timedelta(seconds=int(every.group(1)) * _SECONDS[every.group(2)])
            return IntervalSchedule(interval=interval, anchor_date=datetime.now(UTC), timezone=zone)
        return CronSchedule(cron=text, timezone=zone)
    except ValidationError as e:
        raise ConfigError(
            f"--schedule {text!r}: {e.errors()[0]['msg'].removeprefix('Value error, ')}; give minute, hour, day, month and weekday "
            "(\"0 2 * * *\" is every night at two) or \"every 15m\""
        ) from None


class _Server:
    """A client to the server of PREFECT_API_URL (or of the active Prefect profile); its faults leave as `PrefectError`."""

    def __enter__(self) -> Any:
        from prefect.client.orchestration import get_client
        from prefect.settings import get_current_settings

        self._url = get_current_settings().api.url
        if not self._url:
            raise PrefectError(f"no Prefect server: PREFECT_API_URL is not set; {START_A_SERVER}")
        self._client = get_client(sync_client=True)
        client = self._client.__enter__()
        fault = client.api_healthcheck()
        if fault is not None:
            self._client.__exit__(None, None, None)
            raise PrefectError(f"no Prefect server answers at {self._url} ({str(fault).splitlines()[0]}); check PREFECT_API_URL, or "
                               f"{START_A_SERVER}")
        return client

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        import httpx
        from prefect.exceptions import PrefectException

        self._client.__exit__(kind, error, trace)
        if isinstance(error, (httpx.HTTPError, PrefectException)):
            raise PrefectError(f"the Prefect server at {self._url} said no: {' '.join(str(error).split())[:500]}") from error


def _open_pool(client: Any, pool: str) -> str:
    """The pool's type; makes a process pool where there is none."""
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound

    try:
        return str(client.read_work_pool(pool).type)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
        return "process"


def _upsert(client: Any, name: str, pool: str, parameters: dict[str, Any], timing: Any, paused: bool) -> Any:
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
    from prefect.utilities.callables import parameter_schema

    from flows.augment import augment

    schedules = [] if timing is None else [DeploymentScheduleCreate(schedule=timing, active=not paused)]
    return client.create_deployment(
        flow_id=client.create_flow(augment), name=name, version=SOFTWARE_VERSION, schedules=schedules,
        concurrency_limit=1, concurrency_options=ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
        parameters={"config": parameters}, description=_DESCRIPTION, work_pool_name=pool, tags=["ganmill", str(parameters["name"])],
        path=None, entrypoint=ENTRYPOINT, pull_steps=[], paused=False, job_variables={},
        parameter_openapi_schema=parameter_schema(augment).model_dump_for_openapi(), enforce_parameter_schema=True,
    )


_DESCRIPTION = (
    "Trains a GAN on the source, measures whether its images help a classifier, and publishes a new version if they do; does nothing "
    "when source, config and code are unchanged. One run at a time: a run that would begin while another goes on is cancelled."
)


def _workers_online(client: Any, pool: str) -> int:
    from prefect.client.schemas.objects import WorkerStatus

    return sum(worker.status == WorkerStatus.ONLINE for worker in client.read_workers_for_work_pool(pool))


def _with_absolute_paths(raw: dict[str, Any]) -> dict[str, Any]:
    made = copy.deepcopy(raw)
    for section in ("source", "publish"):
        content = made.get(section) or ({"url": "./out"} if section == "publish" else {})
        url = content.get("url")
        if url and "://" not in url and not url.startswith("${"):
            made[section] = {**content, "url": os.path.abspath(url)}  # noqa: PTH100  links stay
    return made


def _refuse_local_paths(raw: dict[str, Any], pool: str, kind: str) -> None:
    for section in ("source", "publish"):
        url = (raw.get(section) or {}).get("url") or ("./out" if section == "publish" else None)
        if url and "://" not in url and not url.startswith("${"):
            raise ConfigError(
                f"{section}.url: {url} lies on this machine, and runs of the pool {pool!r} ({kind}) happen elsewhere; "
                "give a URL that they reach, e.g. s3://bucket/prefix"
            )


def _next(timing: Any) -> str | None:
    """When it fires next, ISO with offset."""
    if timing is None:
        return None
    if hasattr(timing, "interval"):
        return (datetime.now(UTC) + timing.interval).isoformat(timespec="seconds")
    import asyncio

    from prefect.server.schemas.schedules import CronSchedule

    [first] = asyncio.run(CronSchedule(cron=timing.cron, timezone=timing.timezone).get_dates(n=1))
    return str(first.isoformat(timespec="seconds"))


def _sentence(told: dict[str, Any], kind: str) -> str:
    if told["schedule"] is None:
        when = "without a schedule"
    elif told["paused"]:
        when = f"{told['schedule']} ({told['timezone']}), switched off: switch it on in the UI or deploy again without --paused"
    else:
        when = f"{told['schedule']} ({told['timezone']}), next at {told['next']}"
    lines = [
        f"deployed {told['deployment']}: {when}",
        "one run at a time: a run that would begin while another goes on is cancelled, and the next one does the work",
        f"start one now: prefect deployment run {told['deployment']}",
    ]
    if not told["workers_online"]:
        lines.append(f"nobody does the work yet: keep `prefect worker start --pool {told['pool']} --type {kind}` running on the machine "
                     "that shall do it, with what the config names as ${NAME} in its environment")
    return "\n".join(lines)

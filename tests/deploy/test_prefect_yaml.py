"""deploy/prefect.yaml, read by Prefect's own models and checked against the flow that it names."""

from typing import Any

import pytest
from prefect.cli.deploy._models import ConcurrencyLimitSpec, PrefectYamlModel, RawScheduleConfig
from prefect.client.schemas.objects import ConcurrencyLimitStrategy
from prefect.flows import load_flow_from_entrypoint

from pipeline.config import Config, parse_config
from tests.deploy.files import DEPLOY, dockerfile, pins, prefect_yaml, work_pool

DEPLOYMENTS = prefect_yaml()["deployments"]


def names(deployment: dict[str, Any]) -> str:
    return str(deployment["name"])


def test_prefect_reads_it_and_is_the_pinned_one() -> None:
    model = PrefectYamlModel.model_validate(prefect_yaml())
    assert [d.name for d in model.deployments] == ["nightly", "nightly-docker", "nightly-kubernetes"]
    assert model.prefect_version == pins()["prefect"]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=names)
def test_nightly_paused_one_at_a_time(deployment: dict[str, Any]) -> None:
    [raw] = deployment["schedules"]
    schedule = RawScheduleConfig.model_validate(raw)
    assert schedule.cron == "0 2 * * *" and schedule.timezone == "Europe/Berlin" and schedule.active is False
    limit = ConcurrencyLimitSpec.model_validate(deployment["concurrency_limit"])
    assert limit.limit == 1 and ConcurrencyLimitStrategy(limit.collision_strategy) is ConcurrencyLimitStrategy.CANCEL_NEW
    assert deployment["enforce_parameter_schema"] is True


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=names)
def test_its_flow_can_be_loaded_and_takes_its_parameters(deployment: dict[str, Any]) -> None:
    from prefect.utilities.schema_tools import is_valid_schema, validate

    flow = load_flow_from_entrypoint(deployment["entrypoint"], use_placeholder_flow=False)
    schema = flow.parameters.model_dump_for_openapi()
    is_valid_schema(schema, preprocess=False)        # raises where it isn't
    validate(deployment["parameters"], schema, raise_on_error=True, preprocess=False)
    config = parse_config(deployment["parameters"]["config"])
    assert isinstance(config, Config) and config.publish.url.startswith("s3://ganmill/sets")


def test_job_variables_are_those_of_the_pools() -> None:
    import json
    from pathlib import Path

    import prefect.server.api.collections as collections

    file = Path(str(collections.__file__)).parent / "collections_data/views/aggregate-worker-metadata.json"
    pools = json.loads(file.read_text())
    templates = {
        "nightly": pools["prefect"]["process"]["default_base_job_configuration"],
        "nightly-docker": pools["prefect-docker"]["docker"]["default_base_job_configuration"],
        "nightly-kubernetes": work_pool(),
    }
    for deployment in DEPLOYMENTS:
        known = templates[deployment["name"]]["variables"]["properties"]
        assert set(deployment["work_pool"]["job_variables"]) <= set(known)
        image = deployment["work_pool"]["job_variables"].get("image")
        if image:
            assert f" AS {image.rpartition('-')[2]}\n" in dockerfile()


def test_a_gpu_run_in_kubernetes_asks_for_the_gpus_that_it_uses() -> None:
    [kubernetes] = [d for d in DEPLOYMENTS if d["name"] == "nightly-kubernetes"]
    config = parse_config(kubernetes["parameters"]["config"])
    gpus = kubernetes["work_pool"]["job_variables"]["gpus"]
    assert gpus == max(s.workers * s.gpus_per_worker for s in (config.train, config.sample))


def test_the_readme_of_deploy_names_every_file() -> None:
    text = (DEPLOY / "README.md").read_text()
    for file in DEPLOY.rglob("*"):
        if file.is_file() and file.name not in ("README.md", ".gitignore", ".env"):
            assert file.relative_to(DEPLOY).as_posix() in text, file

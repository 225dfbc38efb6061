"""The compose file against its schema, our image, our pins and the ports that the programs really use."""

import copy
import json
import re
import shlex
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import ray
import ray._private.ray_constants as ray_constants
from jsonschema.validators import validator_for

from flows import metrics
from tests.deploy.files import DEPLOY, compose, dockerfile

# variables that the images of others are documented to read
OF_OTHERS = {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD", "MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD"}

OF_THE_STORE = {"AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}


def schema_faults(content: dict[str, Any]) -> list[str]:
    schema = json.loads((resources.files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json").read_text())
    return [f"{list(e.absolute_path)}: {e.message}" for e in validator_for(schema)(schema).iter_errors(content)]


def ours() -> dict[str, dict[str, Any]]:
    """Service → definition, of those that run our image."""
    return {name: s for name, s in compose()["services"].items() if "GANMILL_IMAGE" in s["image"]}


def test_it_fits_the_compose_schema() -> None:
    assert schema_faults(compose()) == []


def test_the_schema_catches_a_planted_fault() -> None:
    broken = copy.deepcopy(compose())
    broken["services"]["ray-head"]["helthcheck"] = {}
    assert schema_faults(broken) != []


def test_every_service_is_pinned_checked_and_waited_for() -> None:
    services = compose()["services"]
    for name, service in services.items():
        assert ":" in service["image"] and "latest" not in service["image"], name
        assert "healthcheck" in service or name == "bucket-setup", name
        for other, how in service.get("depends_on", {}).items():
            wanted = how["condition"]
            assert wanted == ("service_completed_successfully" if other == "bucket-setup" else "service_healthy")
            assert wanted != "service_healthy" or "healthcheck" in services[other]
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} would listen to the world"


def test_every_environment_name_is_read_by_someone() -> None:
    known = prefect_setting_names()
    ray_sources = "".join((Path(str(ray.__file__)).parent / name).read_text() for name in (
        "exceptions.py", "_private/ray_constants.py", "_private/authentication/authentication_constants.py"))
    for name, service in compose()["services"].items():
        for variable in service.get("environment", {}):
            if variable.startswith("PREFECT_"):
                assert variable in known, f"{name}: Prefect has no {variable}"
            elif variable.startswith("RAY_"):
                assert variable in ray_sources, f"{name}: Ray has no {variable}"
            else:
                assert variable in OF_OTHERS | OF_THE_STORE | {metrics.PORT}


def prefect_setting_names() -> set[str]:
    """Every environment variable that Prefect's settings read."""
    from prefect.settings.models.root import Settings

    found: set[str] = set()

    def visit(model: Any, prefix: str) -> None:
        for field_name, field in model.model_fields.items():
            annotation = field.annotation
            if isinstance(annotation, type) and hasattr(annotation, "model_fields"):
                visit(annotation, annotation.model_config.get("env_prefix", f"{prefix}{field_name}_"))
            found.add(f"{prefix}{field_name}".upper())
            for alias in getattr(field.validation_alias, "choices", ()):
                found.add(str(alias).upper())

    visit(Settings, "PREFECT_")
    return found


def test_every_variable_asked_of_the_user_is_in_the_example() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    asked = set(re.findall(r"(?<!\$)\$\{([A-Z_]+):\?", text))
    example = {line.partition("=")[0]: line.partition("=")[2] for line in (DEPLOY / "env.example").read_text().splitlines()
               if "=" in line and not line.startswith("#")}
    assert set(example) == asked
    assert not any(example.values()), "an example of a password is the password of many"
    optional = set(re.findall(r"(?<!\$)\$\{([A-Z_]+):-", text))
    assert set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", text)) == asked | optional


def ray_start_options() -> set[str]:
    import ray.scripts.scripts as ray_scripts  # seconds, and each of the tests' processes reads this file

    return {o for p in ray_scripts.start.params for o in p.opts}


@pytest.mark.parametrize("service", ["ray-head", "ray-worker", "prefect-worker"])
def test_ray_start_knows_its_options_and_ports(service: str) -> None:
    command = compose()["services"][service]["command"]
    words = command if command[0] == "ray" else shlex.split(command[-1].splitlines()[0])
    assert words[:2] == ["ray", "start"]
    options = dict([*w.split("=", 1), ""][:2] for w in words[2:])
    assert set(options) <= ray_start_options()
    assert options.get("--port", str(ray_constants.DEFAULT_PORT)) == str(ray_constants.DEFAULT_PORT)
    if "--address" in options:
        assert options["--address"] == f"ray-head:{ray_constants.DEFAULT_PORT}"
    if "--dashboard-port" in options:
        assert options["--dashboard-port"] == str(ray_constants.DEFAULT_DASHBOARD_PORT)


def test_the_workers_command_is_one_that_prefect_knows_and_its_pool_the_one_deployed_to() -> None:
    import inspect

    import prefect.cli.worker as worker_cli

    from tests.deploy.files import prefect_yaml

    line = compose()["services"]["prefect-worker"]["command"][-1].splitlines()[1]
    words = shlex.split(line)
    assert words[:4] == ["exec", "prefect", "worker", "start"]
    source = inspect.getsource(worker_cli)
    assert all(f'"{w}"' in source for w in words if w.startswith("--"))
    pool = words[words.index("--pool") + 1]
    assert pool == prefect_yaml()["deployments"][0]["work_pool"]["name"]


def test_health_checks_ask_ports_that_the_services_open() -> None:
    asked = {name: re.findall(r"http://127\.0\.0\.1:(\d+)(/[\w/]+)", " ".join(s["healthcheck"]["test"]))
             for name, s in compose()["services"].items() if "healthcheck" in s}
    agent = str(ray_constants.DEFAULT_DASHBOARD_AGENT_LISTEN_PORT)
    assert asked["ray-head"] == asked["ray-worker"] == [(agent, "/api/healthz")]
    services = compose()["services"]
    assert asked["prefect-server"] == [(services["prefect-server"]["command"][-1], "/api/health")]
    assert asked["prefect-worker"] == [(services["prefect-worker"]["environment"]["PREFECT_WORKER_WEBSERVER_PORT"], "/health")]


def test_our_services_run_a_target_of_the_dockerfile_without_rights() -> None:
    assert set(ours()) == {"prefect-server", "ray-head", "ray-worker", "prefect-worker"}
    for service in ours().values():
        target = service["image"].rpartition("-")[2].rstrip("}")
        assert f" AS {target}\n" in dockerfile()
        assert service["cap_drop"] == ["ALL"] and service["init"] is True
    for name in ("ray-head", "ray-worker", "prefect-worker"):
        assert "shm_size" in ours()[name]


def test_the_bucket_and_policy_are_those_of_the_other_files() -> None:
    setup = compose()["services"]["bucket-setup"]
    script = setup["command"][0]
    for file in re.findall(r"/policies/(\S+)", script):
        assert (DEPLOY / "policies" / file).exists()
    [bucket] = re.findall(r"mc mb --ignore-existing store/(\S+)", script)
    assert f"arn:aws:s3:::{bucket}" in (DEPLOY / "policies/ganmill-writer.json").read_text()
    assert f"s3://{bucket}/" in (DEPLOY / "prefect.yaml").read_text()
    assert compose()["services"]["prefect-worker"]["environment"]["AWS_ENDPOINT_URL"] == "http://minio:9000"

"""Manifests against the schemas of Kubernetes and KubeRay, and against what our code and pins say. No cluster is asked."""

import copy
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import ray._private.ray_constants as ray_constants
from jsonschema import Draft7Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7

from pipeline.config import parse_config
from tests.deploy.files import DEPLOY, MANIFESTS, dockerfile, documents, manifests, pins, pod_specs, walk, work_pool

KUBERNETES = "1.33"                                  # the oldest that is still looked after
HERE = Path(__file__).resolve().parent


@cache
def kuberay() -> dict[str, Any]:
    """Kind → schema of KubeRay's custom resources."""
    return dict(json.loads((HERE / "kuberay-v1.7.0.json").read_text())["schemas"])


def strict(schema: Any) -> Any:
    """The schema with unknown keys refused, as `kubectl apply --validate=strict` does."""
    if isinstance(schema, list):
        return [strict(s) for s in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if isinstance(made.get("properties"), dict) and "additionalProperties" not in made:
        made["additionalProperties"] = made.get("x-kubernetes-preserve-unknown-fields", False)
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    return made


def custom_faults(manifest: dict[str, Any]) -> list[str]:
    """What KubeRay's schema finds wrong; pod templates are asked of Kubernetes' own."""
    cluster_spec = kuberay()["RayCluster"]["properties"]["spec"]
    template = {"type": "object", "properties": {"metadata": {"type": "object"}, "spec": {"type": "object"}}}
    registry: Registry[Any] = Registry().with_resources([
        ("raycluster-spec", Resource(contents=strict(cluster_spec), specification=DRAFT7)),
        ("podtemplatespec-v1", Resource(contents=template, specification=DRAFT7)),
    ])
    schema = strict(kuberay()[manifest["kind"]])
    schema["properties"]["metadata"] = {"type": "object"}
    faults = [f"{list(e.absolute_path)}: {e.message}" for e in Draft7Validator(schema, registry=registry).iter_errors(manifest)]
    for key, value in walk(manifest):
        if key in ("template", "submitterPodTemplate"):
            faults += kubernetes_faults({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": value["spec"]})
    return faults


def kubernetes_faults(manifest: dict[str, Any]) -> list[str]:
    """What Kubernetes' schema finds wrong, unknown keys included."""
    try:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as e:
        return [f"{list(e.path)}: {e.message}"]
    return []


def faults(manifest: dict[str, Any]) -> list[str]:
    return custom_faults(manifest) if manifest["apiVersion"].startswith("ray.io/") else kubernetes_faults(manifest)


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda f: f.name)
def test_manifests_fit_the_schemas(file: Path) -> None:
    found = documents(file)
    assert found
    assert [fault for manifest in found for fault in faults(manifest)] == []


def test_the_schemas_catch_planted_faults() -> None:
    by_kind = {m["kind"]: m for m in manifests()}
    for kind, plant in {
        "Deployment": lambda m: m["spec"]["template"]["spec"]["containers"][0].update(readynessProbe={}),
        "RayCluster": lambda m: m["spec"]["workerGroupSpecs"][0].update(replica=3),
        "RayJob": lambda m: m["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"].update(contianers=[]),
        "Role": lambda m: m["rules"][0].update(verbs="get"),
    }.items():
        broken = copy.deepcopy(by_kind[kind])
        plant(broken)
        assert faults(broken) != [], kind


def test_the_job_of_the_work_pool_is_a_job() -> None:
    template = work_pool()
    values = {name: p.get("default", "x") for name, p in template["variables"]["properties"].items()}
    values |= {"env": [{"name": "A", "value": "b"}], "labels": {}, "command": ["prefect", "flow-run", "execute"], "name": "run",
               "cpu_limit": "4", "gpus": 1}
    filled = json.loads(json.dumps(template["job_configuration"]["job_manifest"]))

    def fill(node: Any) -> Any:
        if isinstance(node, dict):
            return {k: fill(v) for k, v in node.items()}
        if isinstance(node, list):
            return [fill(v) for v in node]
        if isinstance(node, str) and node.startswith("{{ ") and node.endswith(" }}"):
            return values[node[3:-3]]
        return node

    job = fill(filled)
    job["metadata"]["generateName"] = "run-"
    assert kubernetes_faults(job) == []
    names = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert names <= set(template["variables"]["properties"]), "a placeholder that no variable fills"


def test_pods_are_neither_root_nor_privileged_and_ask_for_what_they_need() -> None:
    for where, spec in pod_specs():
        assert spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["runAsUser"] >= 1000, where
        for container in spec["containers"]:
            assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}, where
            resources = container["resources"]
            assert {"cpu", "memory"} <= set(resources["requests"]), where
            assert "memory" in resources["limits"], where
            if "nvidia.com/gpu" in resources["limits"]:
                assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in spec["tolerations"], where
            mounts = {m["name"] for m in container.get("volumeMounts", [])}
            assert mounts == {v["name"] for v in spec.get("volumes", [])}, where


def test_ray_pods_have_shared_memory_and_probes_on_the_agents_port() -> None:
    pods = [c for where, spec in pod_specs() for c in spec["containers"] if c["name"].startswith("ray-")]
    assert len(pods) == 4
    for container in pods:
        assert any(m["mountPath"] == "/dev/shm" for m in container["volumeMounts"])
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["httpGet"]["port"] == ray_constants.DEFAULT_DASHBOARD_AGENT_LISTEN_PORT
        for port in container.get("ports", []):
            assert port["containerPort"] == {"gcs-server": ray_constants.DEFAULT_PORT,
                                             "dashboard": ray_constants.DEFAULT_DASHBOARD_PORT}[port["name"]]


def test_probes_ask_paths_that_ray_and_prefect_serve() -> None:
    import prefect.workers.server
    import ray.dashboard.modules.reporter.healthz_agent as agent

    paths = {c[p]["httpGet"]["path"] for _, spec in pod_specs() for c in spec["containers"]
             for p in ("startupProbe", "readinessProbe", "livenessProbe") if p in c}
    served = Path(str(agent.__file__)).read_text() + Path(str(prefect.workers.server.__file__)).read_text()
    assert paths == {"/api/healthz", "/health"}
    assert all(f'"{path}"' in served for path in paths)


def test_versions_and_images_are_those_of_the_lock_file() -> None:
    for manifest in manifests():
        for key, value in walk(manifest):
            if key == "rayVersion":
                assert value == pins()["ray"]
    images = {c["image"] for where, spec in pod_specs() for c in spec["containers"] if where != "work pool"}
    images.add(work_pool()["variables"]["properties"]["image"]["default"])
    import tomllib

    version = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]["version"]
    ours = {i for i in images if i.startswith("ganmill:")}
    assert {i.rpartition("-")[0] for i in ours} == {f"ganmill:{version}"}
    for image in ours:
        assert f" AS {image.rpartition('-')[2]}\n" in dockerfile()
    assert images - ours == {f"prefecthq/prefect:{pins()['prefect']}-python3.11-kubernetes"}


def test_the_config_is_one_that_ganmill_takes_and_that_the_cluster_can_hold() -> None:
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for manifest in manifests():
        by_kind.setdefault(manifest["kind"], []).append(manifest)
    import yaml

    config = parse_config(yaml.safe_load(by_kind["ConfigMap"][0]["data"]["config.yaml"]))
    [job] = by_kind["RayJob"]
    [cluster] = by_kind["RayCluster"]
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]
    [group] = cluster["spec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    gpus, cpus = group["replicas"] * limits["nvidia.com/gpu"], group["replicas"] * int(limits["cpu"])
    for stage in (config.train, config.sample):
        assert stage.workers * stage.gpus_per_worker <= gpus and stage.workers <= cpus
    assert cluster["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_the_jobs_command_is_one_of_ours_and_its_config_is_mounted() -> None:
    import shlex

    from typer.main import get_command

    from flows.cli import app

    [job] = [m for m in manifests() if m["kind"] == "RayJob"]
    program, command, config, *options = shlex.split(job["spec"]["entrypoint"])
    assert program == "ganmill"
    known = get_command(app).commands[command]                                   # type: ignore[attr-defined]
    assert set(options[::2]) <= {o for p in known.params for o in p.opts}
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    [mount] = [m for m in head["containers"][0]["volumeMounts"] if m["name"] == "config"]
    [volume] = [v for v in head["volumes"] if v["name"] == "config"]
    [config_map] = [m for m in manifests() if m["kind"] == "ConfigMap"]
    assert volume["configMap"]["name"] == config_map["metadata"]["name"]
    assert config == f"{mount['mountPath']}/{next(iter(config_map['data']))}"


def test_no_secret_is_written_out() -> None:
    assert not [m for m in manifests() if m["kind"] == "Secret"]
    for file in (*MANIFESTS, DEPLOY / "prefect.yaml", DEPLOY / "kubernetes/work-pool.json"):
        for key, value in walk(documents(file)):
            if any(word in key.lower() for word in ("password", "secret_access", "auth_token")):
                pytest.fail(f"{file.name}: {key}: {value}")

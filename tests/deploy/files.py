"""What stands in deploy/, read: manifests, compose file, Dockerfile, and the pins they must agree with."""

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
ENV = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


@functools.cache
def pins() -> dict[str, str]:
    """Package (lower case) → version in requirements.lock."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return {name.lower(): version for name, _, version in (line.partition("==") for line in lines)}


def documents(file: Path) -> list[dict[str, Any]]:
    """The YAML documents of a file."""
    return [d for d in yaml.safe_load_all(file.read_text()) if d is not None]


def manifests() -> list[dict[str, Any]]:
    """All Kubernetes objects."""
    return [d for file in MANIFESTS for d in documents(file)]


def compose() -> dict[str, Any]:
    """The compose file, anchors merged."""
    return dict(yaml.safe_load((DEPLOY / "compose.yaml").read_text()))


def prefect_yaml() -> dict[str, Any]:
    """The deployments file, anchors merged."""
    return dict(yaml.safe_load((DEPLOY / "prefect.yaml").read_text()))


def work_pool() -> dict[str, Any]:
    """The Kubernetes pool's base job template."""
    return dict(json.loads((DEPLOY / "kubernetes/work-pool.json").read_text()))


def dockerfile() -> str:
    """The Dockerfile's text."""
    return (DEPLOY / "Dockerfile").read_text()


def walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Every (key, value) at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key), inner
            yield from walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner)


def pod_specs() -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, pod spec) of everything that Kubernetes will run for us."""
    for manifest in manifests():
        for _, value in walk(manifest):
            if isinstance(value, dict) and "containers" in value:
                yield manifest["kind"], value
    yield "work pool", work_pool()["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]

"""What runs on a cluster's nodes: the same ganmill, Ray and Python as here, or a word on the difference; and shipping it."""

import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import ClusterError
from pipeline.runs import SOFTWARE_VERSION, code_digest

PATIENCE_S = 120.0                                   # for the first process on a node; another one's work may be in its way
POLL_S = 0.2
_PACKAGES = ("gan", "pipeline", "flows")


def software() -> dict[str, str]:
    """Versions that must be the same on every node."""
    import ray

    return {"ganmill": f"{SOFTWARE_VERSION} (code {code_digest()})", "ray": ray.__version__, "python": platform.python_version()}


def check_software(address: str) -> None:
    """Asks every node that does work what it runs.

    Raises:
        ClusterError: a node runs something else, or has no ganmill; names node, what is there and what is here.
    """
    import ray

    working = [node for node in ray.nodes() if node["Alive"] and any(node["Resources"].get(kind, 0) for kind in ("CPU", "GPU"))]
    answers = _ask(working)
    faults = differences(software(), {node["NodeManagerAddress"]: answers.get(node["NodeID"]) for node in working})
    if faults:
        raise ClusterError(f"cluster.address: {address}: {'; '.join(faults)}. Take one image for all nodes and the driver, or "
                           "cluster.ship_code: true when ganmill alone differs")


def differences(here: Mapping[str, str], nodes: Mapping[str, Mapping[str, str] | str | None]) -> Sequence[str]:
    """A phrase for each difference, at most three nodes.

    Args:
        nodes: address → versions there, the reason why there are none, or None when it did not answer.
    """
    faults = []
    for address, there in nodes.items():
        if there is None:
            faults.append(f"node {address} did not answer within {PATIENCE_S:.0f} s")
        elif isinstance(there, str):
            faults.append(f"node {address} has no ganmill of this kind ({there})")
        else:
            faults += [f"node {address} runs {what} {there.get(what)}, this is {version}"
                       for what, version in here.items() if there.get(what) != version]
    return faults[:3] + ([f"and {len(faults) - 3} more"] if len(faults) > 3 else [])


def _ask(nodes: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, str] | str]:
    """Node id → what it runs, or why it can't say; short waits, so that a cancellation gets through."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    question: Any = ray.remote(software)
    asked = {question.options(num_cpus=0, max_retries=1, scheduling_strategy=NodeAffinitySchedulingStrategy(
        node["NodeID"], soft=False)).remote(): node["NodeID"] for node in nodes}
    answers: dict[str, Mapping[str, str] | str] = {}
    deadline = time.monotonic() + PATIENCE_S
    while len(answers) < len(asked) and time.monotonic() < deadline:
        ready, _ = ray.wait([ref for ref, node in asked.items() if node not in answers], timeout=POLL_S)
        for ref in ready:
            try:
                answers[asked[ref]] = ray.get(ref)
            except Exception as e:                   # noqa: BLE001  whatever keeps a node from answering is its answer
                lines = [line.strip() for line in str(e).splitlines() if line.strip()]
                answers[asked[ref]] = (lines[-1] if lines else type(e).__name__)[:200]
    return answers


def copy_code(folder: Path) -> None:
    """This ganmill's packages into `folder`, from where Ray takes them along as a working directory."""
    root = Path(__file__).resolve().parent.parent.parent
    for package in _PACKAGES:
        shutil.copytree(root / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))

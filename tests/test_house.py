"""The house rules that a machine can check: imports point down only, and each outside world has its rooms."""

import ast
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {"gan": 0, "pipeline": 1, "flows": 2}
OUTSIDE_OF_GAN = {"ray", "fsspec", "prefect", "pyarrow", "pydantic", "yaml", "PIL", "cv2", "sklearn", "typer", "rich", "scipy"}
RAY_ROOMS = {"pipeline/cluster/__init__.py", "pipeline/cluster/jobs.py", "pipeline/cluster/nodes.py", "pipeline/training/__init__.py",
             "pipeline/training/trainer.py", "pipeline/training/worker.py", "pipeline/fanout/pools.py", "pipeline/lift/remote.py",
             "pipeline/feed.py"}


def python_files(floor: str) -> list[Path]:
    return sorted((ROOT / floor).rglob("*.py"))


def imported_packages(file: Path) -> set[str]:
    """Top-level packages that a file imports anywhere, function bodies included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").split(".")[0])
    return found


def faults(floor: str, file: Path, imports: set[str]) -> list[str]:
    """What `file` on `floor` may not import."""
    name = file.relative_to(ROOT).as_posix()
    found = [f"{name} imports up: {other}" for other in imports if FLOORS.get(other, -1) > FLOORS[floor]]
    if floor == "gan":
        found += [f"{name} imports {other}: gan is plain torch" for other in imports & OUTSIDE_OF_GAN]
    if floor != "flows":
        found += [f"{name} imports prefect" for other in imports & {"prefect"}]
    if name not in RAY_ROOMS:
        found += [f"{name} imports ray" for other in imports & {"ray"}]
    if not name.startswith("pipeline/store/"):
        found += [f"{name} imports {other}" for other in imports & {"fsspec", "s3fs"}]
    return found


def modules() -> dict[str, Path]:
    """Dotted name → file, of all floors."""
    names = {file: ".".join(file.relative_to(ROOT).with_suffix("").parts) for floor in FLOORS for file in python_files(floor)}
    return {name.removesuffix(".__init__"): file for file, name in names.items()}


def imported_modules(file: Path, known: Iterable[str]) -> set[str]:
    """Those of `known` that a file imports anywhere, function bodies included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in known else node.module for alias in node.names}
    return found & set(known)


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_point_down_only(floor: str) -> None:
    files = python_files(floor)
    assert files, f"no file found on {floor}"
    assert [fault for file in files for fault in faults(floor, file, imported_packages(file))] == []


def test_no_files_import_each_other_in_a_circle() -> None:
    """Not within a floor either, and not by an import that a function body hides. Each file's room is above what it imports."""
    known = modules()
    above = {name: imported_modules(file, known) - {name} for name, file in known.items()}
    assert above["pipeline.walk"] >= {"pipeline.records", "pipeline.publication"}
    tuple(TopologicalSorter(above).static_order())   # a CycleError names the circle
    with pytest.raises(CycleError):
        tuple(TopologicalSorter(above | {"pipeline.records": {"pipeline.walk"}}).static_order())


def test_the_rule_catches_a_planted_fault() -> None:
    assert faults("gan", ROOT / "gan/x.py", {"torch", "pipeline"}) == ["gan/x.py imports up: pipeline"]
    assert faults("pipeline", ROOT / "pipeline/x.py", {"ray", "gan"}) == ["pipeline/x.py imports ray"]


def test_no_drawer_for_odds_and_ends() -> None:
    drawers = {"utils", "helpers", "common", "misc"}
    assert [f for floor in FLOORS for f in python_files(floor) if drawers & set(f.with_suffix("").parts)] == []


def test_functions_fit_a_screen() -> None:
    long = []
    for floor in FLOORS:
        for file in python_files(floor):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno > 70:
                    long.append(f"{file.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert long == []

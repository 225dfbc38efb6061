"""The main job as its user runs it: processes of their own, a real Ray, a real Prefect, a real object store."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.e2e.conftest import Command


def listing(folder: Path) -> dict[str, int]:
    return {f.relative_to(folder).as_posix(): f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file()}


def refused(command: Command) -> tuple[Path, Path, Path]:
    """Config, dataset folder and run folder of a run that its gate refused."""
    config = command.config(gate={"min_coverage": 1.0, "min_lift_pp": None, "max_memorised": None, "min_diversity": None})
    ended = command.run("run", str(config), "--json")
    assert ended.status == 3, ended.err
    assert "coverage" in ended.result["message"] and "Traceback" not in ended.err
    assert json.loads(ended.out.splitlines()[0])["message"] == "looking at the source"        # at once; Prefect alone takes ten seconds
    out = command.folder / "out" / "tiny"
    run, = (out / "runs").iterdir()
    assert not (out / "LATEST.json").exists() and not (out / "versions").exists()
    assert "coverage" in (run / "report.html").read_text()
    return config, out, run


def test_refused_then_published_by_another_gate_and_up_to_date(command: Command) -> None:
    config, out, run = refused(command)
    trained = (run / "checkpoint.json").stat().st_mtime_ns
    ended = command.run("run", str(config), "--set", "gate.min_coverage=null", "--json")        # judges the same work
    assert ended.status == 0, ended.err
    assert "Traceback" not in ended.err
    assert ended.result["status"] == "published"
    assert [r.name for r in (out / "runs").iterdir()] == [run.name]
    assert (run / "checkpoint.json").stat().st_mtime_ns == trained
    manifest = manifest_of(out)
    version = out / "versions" / manifest["version"]
    made = dict.fromkeys(manifest["classes"], 0)
    for shard in manifest["shards"]:
        for label in pq.read_table(version / shard["key"])["label"].to_pylist():
            made[manifest["classes"][label]] += 1
    real = manifest["source"]["rows_per_class"]
    assert {c: made[c] + real[c] for c in made} == dict.fromkeys(made, max(real.values()))   # balance
    for attachment in ("report.html", "README.md", "croissant.json"):
        assert (version / attachment).stat().st_size > 500
    assert command.left_processes() == []
    assert list(command.temp.iterdir()) == []

    before = listing(out)
    again = command.run("run", str(config), "--set", "gate.min_coverage=null", "--json")
    assert again.status == 0 and again.result["status"] == "up to date", again.err
    assert listing(out) == before

    for arguments in (["verify", str(out), "--deep"], ["show", str(out)]):
        assert command.run(*arguments).status == 0
    shard = version / manifest["shards"][0]["key"]
    shard.write_bytes(shard.read_bytes()[:-1])
    broken = command.run("verify", str(out))
    assert broken.status == 1 and manifest["shards"][0]["key"] in broken.err


def manifest_of(out: Path) -> dict[str, Any]:
    """Of the version that is published there."""
    pointer = json.loads((out / "LATEST.json").read_text())
    manifest: dict[str, Any] = json.loads((out / pointer["manifest"]).read_text())
    return manifest


@pytest.mark.slow
@pytest.mark.parametrize("stop", [
    lambda pid: os.killpg(pid, signal.SIGINT),       # as a terminal does: to Prefect's small server and Ray's processes too
    lambda pid: os.killpg(pid, signal.SIGTERM),      # as `timeout` and service managers do
    lambda pid: os.kill(pid, signal.SIGTERM),        # as a container's end does
], ids=["ctrl-c", "sigterm-to-all", "sigterm"])
def test_a_stop_leaves_nothing_and_the_printed_command_resumes(command: Command, stop: Callable[[int], None]) -> None:
    config = command.config(train={"model": "dcgan", "budget": {"kimg": 60}, "options": {"width": 8}})
    process = command.start("run", str(config), "--run-id", "stopped")
    metrics = command.folder / "out/tiny/runs/stopped/metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
    assert process.poll() is None, process.communicate()[1]
    stop(process.pid)
    _, err = process.communicate(timeout=45)         # Prefect would ask a server that is gone for a minute and more
    assert process.returncode == 1
    assert "Traceback" not in err
    assert f"ganmill run {config} --run-id stopped" in err
    assert command.left_processes() == []
    checkpoints = command.folder / "out/tiny/runs/stopped/checkpoints"
    reached = [json.loads(f.read_text())["kimg"] for f in checkpoints.glob("*.json")]
    assert reached and max(reached) < 60
    assert not (command.folder / "out/tiny/LATEST.json").exists()
    resumed = command.run("train", str(config), "--run-id", "stopped", timeout_s=280)
    assert resumed.status == 0, resumed.err
    assert "continuing from the checkpoint" in resumed.err
    last = json.loads(metrics.read_text().splitlines()[-1])
    assert last["kimg"] == pytest.approx(60, rel=0.01)          # the best checkpoint may be an earlier one


@pytest.mark.slow
def test_what_is_published_outlives_a_stricter_gate(command: Command) -> None:
    config, out, run = refused(command)
    trained = (run / "checkpoint.json").stat().st_mtime_ns
    alone = command.run("evaluate", str(config), "--run-id", run.name)                # the same word, without training again
    assert alone.status == 3 and "coverage" in alone.err
    assert command.run("run", str(config), "--set", "gate.min_coverage=null").status == 0
    published = (out / "LATEST.json").read_bytes()
    stricter = command.run("run", str(config))                                        # what is published stays
    assert stricter.status == 3 and (out / "LATEST.json").read_bytes() == published
    other = command.run("run", str(config), "--set", "gate.min_coverage=0.0", "--json")     # and is not published twice
    assert other.status == 0 and (out / "LATEST.json").read_bytes() == published, other.err
    assert (run / "checkpoint.json").stat().st_mtime_ns == trained


@pytest.mark.slow
def test_points_on_the_plane_from_a_name_to_published_and_up_to_date(command: Command) -> None:
    config = command.config(
        source={"format": "gaussians", "variant": "two"}, prepare={}, evaluate={"samples": 200}, sample={"target": {"total": 60}},
        train={"budget": {"kimg": 4}, "options": {"width": 16, "depth": 2, "batch_size": 64}},
    )
    ended = command.run("run", str(config), "--json")
    assert ended.status == 0 and "Traceback" not in ended.err, ended.err
    assert ended.result["status"] == "published" and ended.result["rows_per_class"] == {"two": 60}
    out = command.folder / "out" / "tiny"
    assert command.run("verify", str(out), "--deep").status == 0
    assert command.run("run", str(config), "--json").result["status"] == "up to date"
    assert command.left_processes() == [] and list(command.temp.iterdir()) == []

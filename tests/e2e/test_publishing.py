"""Appending, two drivers at once, a driver that is killed: by the command, as processes of their own."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.e2e.conftest import Command, Ended

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
MANY: dict[str, Any] = {"rows_per_shard": 10, "workers": 1, "target": {"per_class": 150}}


def latest(out: Path) -> dict[str, Any]:
    """The manifest in force."""
    return dict(json.loads((out / json.loads((out / "LATEST.json").read_text())["manifest"]).read_text()))


def uids(out: Path) -> list[str]:
    """Of all rows that a reader finds by a glob over the latest version's data, sorted."""
    folder = out / "versions" / latest(out)["version"] / "data"
    return sorted(uid for file in folder.glob("*.parquet") for uid in pq.read_table(file)["uid"].to_pylist())


def assert_one_whole_version(command: Command, rows: int) -> None:
    out = command.folder / "out" / "tiny"
    told = command.run("verify", str(out), "--deep", "--orphans", "--json")
    assert told.status == 0 and told.result["rows"] == rows and told.result["orphans"] == told.result["unpublished"] == [], told.err
    assert [folder.name for folder in (out / "versions").iterdir()] == [latest(out)["version"]]
    found = uids(out)
    assert len(found) == rows == len(set(found))
    assert set(latest(out)["rows_per_class"].values()) == {rows // 10}


def test_more_of_a_class_costs_only_what_is_more(command: Command) -> None:
    config = str(command.config(sample={"rows_per_shard": 10, "workers": 1, "target": {"per_class": 4}}))
    first = command.run("run", config, "--json")
    assert first.status == 0, first.err
    out = command.folder / "out" / "tiny"
    old, old_rows = latest(out), uids(out)
    more = command.run("run", config, "--set", "sample.target.per_class=6", "--json")
    assert more.status == 0 and "generator and evaluation are those of run" in more.err + more.out, more.err
    new = latest(out)
    assert new["version"] != old["version"] and new["rows_per_class"] == dict.fromkeys(old["classes"], 6)
    assert new["continues"]["version"] == old["version"] and new["continues"]["rows"] == 40
    assert [s["sha256"] for s in new["shards"]][:4] == [s["sha256"] for s in old["shards"]] and len(new["shards"]) == 6
    assert new["generator"]["digest"] == old["generator"]["digest"]
    before, after = ({p.name: json.loads(p.read_text()) for p in (out / "runs" / m["run_id"] / "receipts").iterdir()} for m in (old, new))
    assert [after[name]["seconds"] for name in sorted(before)] == [before[name]["seconds"] for name in sorted(before)]   # not made again
    weights = [next((out / "runs" / m["run_id"] / "checkpoints").glob("*.safetensors")) for m in (old, new)]
    assert weights[0].stat().st_ino == weights[1].stat().st_ino                       # the very same file: nothing was trained
    assert set(old_rows) < set(uids(out)) and len(set(uids(out))) == 60
    assert command.run("verify", str(out), "--deep", "--orphans").status == 0
    assert command.run("run", config, "--set", "sample.target.per_class=6", "--json").result["status"] == "up to date"


def evaluated(command: Command) -> str:
    """A config whose run `same` has a generator that passed; nothing is minted yet."""
    config = str(command.config(sample=MANY))
    for stage in ("train", "evaluate"):
        ended = command.run(stage, config, "--run-id", "same")
        assert ended.status == 0, ended.err
    return config


def test_two_drivers_with_one_run_id(command: Command) -> None:
    config = evaluated(command)
    drivers = [command.start("run", config, "--run-id", "same", "--json") for _ in range(2)]
    ended = [Ended(d.returncode, *told) for d, told in [(d, d.communicate(timeout=600)) for d in drivers]]
    assert [e.status for e in ended] == [0, 0], [e.err[-2000:] for e in ended]
    assert ended[0].result["version"] == ended[1].result["version"]
    assert_one_whole_version(command, 1500)
    assert command.left_processes() == []


def test_two_drivers_from_the_very_start(command: Command) -> None:
    """Both train. Either they made the same generator, or the slower one says why its plan is refused; never a mixture."""
    config = str(command.config(sample=MANY))
    drivers = [command.start("run", config, "--json") for _ in range(2)]
    ended = [Ended(d.returncode, *told) for d, told in [(d, d.communicate(timeout=900)) for d in drivers]]
    assert 0 in [e.status for e in ended], [e.err[-2000:] for e in ended]
    for e in ended:
        assert "Traceback" not in e.err
        assert e.status == 0 or "was made of another" in e.err, e.err[-2000:]
    assert_one_whole_version(command, 1500)


def test_a_killed_driver_and_a_second_one_at_once(command: Command) -> None:
    config = evaluated(command)
    driver = command.start("run", config, "--run-id", "same")
    receipts, deadline = command.folder / "out/tiny/runs/same/receipts", time.monotonic() + 300
    while len(list(receipts.glob("*.json"))) < 5 and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()                                    # not for the end of its output: Prefect's orphaned small server holds that open
    kept = {file.name: file.read_bytes() for file in receipts.glob("*.json")}
    assert 5 <= len(kept) < 150 and not (command.folder / "out/tiny/LATEST.json").exists()
    second = command.run("run", config, "--run-id", "same", "--json", timeout_s=600)
    assert second.status == 0 and second.result["status"] == "published", second.err
    assert {name: (receipts / name).read_bytes() for name in kept} == kept             # what was finished is kept, not made again
    assert_one_whole_version(command, 1500)
    try:
        os.killpg(driver.pid, signal.SIGKILL)            # Ray's processes of the killed one, should any be left
    except ProcessLookupError:
        pass

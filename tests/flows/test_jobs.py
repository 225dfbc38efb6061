"""Jobs and nodes, as far as it needs no cluster: what is refused, what goes out, what is heard."""

from pathlib import Path
from typing import Any

import pytest

from flows.submission import _error
from pipeline.cluster import is_jobs_url, parse_address
from pipeline.cluster.jobs import _config_for_there, _events, jobs_version
from pipeline.cluster.nodes import copy_code, differences, software
from pipeline.errors import ClusterError, ConfigError, GateRefused
from pipeline.runs import code_digest

URL = "http://10.0.0.5:8265"
RAW: dict[str, Any] = {"name": "x", "source": {"format": "digits"}, "publish": {"url": "s3://b/x"},
                       "cluster": {"address": URL, "ship_code": True}}


def test_a_jobs_url_is_told_from_the_others() -> None:
    assert is_jobs_url(URL) and is_jobs_url("https://ray.example.org") and not is_jobs_url("10.0.0.5:6379")
    assert parse_address(URL) is None
    with pytest.raises(ConfigError, match="Jobs URL"):
        parse_address("ray://10.0.0.5:10001")


@pytest.mark.parametrize(("change", "words"), [
    ({"publish": {"url": "./out"}}, "lies on this machine"), ({"publish": {}}, "./out lies on this machine"),
    ({"source": {"format": "imagefolder", "url": "images"}}, "source.url: images"),
    ({"publish": {"url": "s3://b/x", "storage_options": {"secret": "canary"}}}, "publish.storage_options.secret"),
])
def test_what_a_cluster_can_t_reach_or_must_not_know_stays_here(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refusal:
        _config_for_there(URL, {**RAW, **change})
    assert "canary" not in str(refusal.value)
    there = _config_for_there(URL, {**RAW, "publish": {"url": "${PLACE}"}})
    assert there["cluster"] == {"address": "auto"} and there["publish"] == {"url": "${PLACE}"}


def test_only_whole_events_are_heard() -> None:
    text = 'words\n{"event": "stage", "stage": "train"}\n{"no": "event"}\n{broken\n[1]\n{"event": "result", "status": "done"}\n'
    assert [e["event"] for e in _events(text)] == ["stage", "result"]


def test_an_error_of_the_job_has_its_own_name_here() -> None:
    assert isinstance(_error({"error": "GateRefused", "message": "no"}), GateRefused)
    assert _error({"error": "GateRefused", "message": "no"}).exit_status == 3
    for strange in ("ValueError", "annotations", "GanmillError.__init__"):
        assert isinstance(_error({"error": strange, "message": "x"}), ClusterError)


def test_nobody_at_the_url_is_one_clear_word() -> None:
    with pytest.raises(ClusterError, match="Jobs API"):
        jobs_version("http://127.0.0.1:9")


def test_each_difference_names_node_and_versions() -> None:
    here = software()
    assert code_digest() in here["ganmill"]
    assert differences(here, {"10.0.0.1": dict(here)}) == []
    told = differences(here, {"10.0.0.1": {**here, "ray": "2.0.0"}, "10.0.0.2": "No module named 'pipeline'", "10.0.0.3": None,
                              "10.0.0.4": {**here, "python": "3.9.0"}})
    assert len(told) == 4 and told[3] == "and 1 more"
    assert told[0] == f"node 10.0.0.1 runs ray 2.0.0, this is {here['ray']}"
    assert "No module named" in told[1] and "did not answer" in told[2]


def test_the_code_that_is_shipped_is_this_code(tmp_path: Path) -> None:
    import subprocess
    import sys

    copy_code(tmp_path)
    told = subprocess.run([sys.executable, "-c", "from pipeline.runs import code_digest; print(code_digest())"], cwd=tmp_path,
                          env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True).stdout.strip()
    assert told == code_digest() and not list(tmp_path.rglob("__pycache__/*.py"))

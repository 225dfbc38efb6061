"""Structured logs, and what may never be in them or in a flow's parameters."""

import io
import json
import logging

import pytest

from flows import logs
from flows.logs import JsonLines, StructuredProgress, json_wanted, name_run
from pipeline.config import parse_config
from pipeline.errors import ConfigError
from pipeline.redaction import hide_secrets, secrets_in_clear


@pytest.fixture(autouse=True)
def _no_run() -> None:
    name_run(None)


def test_every_line_is_json_with_run_and_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    out, now = io.StringIO(), [0.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
    progress = StructuredProgress(out)
    progress.stage("prepare")
    name_run("abc")
    progress.note('a "quoted"\nline')
    for second in range(12):
        now[0] = float(second)
        progress.update(second, 20, images_per_s=10.0)
    told = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [t["message"] for t in told] == ["stage prepare", 'a "quoted"\nline', "progress", "progress"]
    assert "run_id" not in told[0] and {t["run_id"] for t in told[1:]} == {"abc"} and {t["stage"] for t in told} == {"prepare"}
    assert told[2]["done"] == 5 and told[2]["images_per_s"] == 10.0 and told[0]["time"].endswith("Z")


def test_records_of_others_take_the_same_form() -> None:
    name_run("abc")
    try:
        raise ValueError("x")
    except ValueError:
        import sys

        record = logging.LogRecord("prefect.flow_runs", logging.ERROR, "f.py", 1, "went %s", ("wrong",), sys.exc_info())
    record.stage = "train"
    told = json.loads(JsonLines().format(record))
    assert (told["level"], told["message"], told["run_id"], told["stage"]) == ("ERROR", "went wrong", "abc", "train")
    assert "ValueError: x" in told["exception"]


def test_text_is_the_default_and_nonsense_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(logs.FORMAT, raising=False)
    assert not json_wanted()
    monkeypatch.setenv(logs.FORMAT, "json")
    assert json_wanted()
    monkeypatch.setenv(logs.FORMAT, "xml")
    with pytest.raises(ConfigError, match="text or json"):
        json_wanted()


SECRET = "canary-7f3a"
RAW = {
    "name": "x", "source": {"format": "parquet", "url": f"https://me:{SECRET}@host/a.parquet?sig={SECRET}",
                            "storage_options": {"headers": {"Authorization": SECRET}, "timeout": 5}},
    "publish": {"url": "s3://b/x", "storage_options": {"key": "AKIA", "secret": SECRET, "client_kwargs": {"region_name": "eu"}}},
}


def test_no_secret_that_was_written_out_is_handed_on_and_each_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    assert secrets_in_clear(RAW) == ["source.url", "source.storage_options.headers.Authorization", "publish.storage_options.key",
                                     "publish.storage_options.secret"]
    public, environment = hide_secrets(RAW)
    assert SECRET not in json.dumps(public) and "AKIA" not in json.dumps(public)
    assert public["publish"]["storage_options"]["client_kwargs"] == {"region_name": "eu"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert parse_config(public) == parse_config(RAW)
    assert secrets_in_clear(public) == [] and hide_secrets(public) == (public, {})


def test_a_secret_of_digits_stays_text(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = {"name": "x", "source": {"format": "digits"}, "publish": {"url": "s3://b/x", "storage_options": {"secret": "12345678"}}}
    public, environment = hide_secrets(raw)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert parse_config(public).publish.storage_options == {"secret": "12345678"}

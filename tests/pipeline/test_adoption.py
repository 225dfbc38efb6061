"""A new run goes on from another's generator when nothing that decides it has changed."""

import dataclasses
import uuid
from typing import Any

import pytest

from pipeline import keys, runs
from pipeline.adoption import adopt
from pipeline.config import parse_config
from pipeline.plan import open_plan
from pipeline.runs import Run
from tests.pipeline.crashing import Killed, Reaper, reaped
from tests.pipeline.small import CHECKPOINT, PASSED, SCORECARD, SNAPSHOT, WEIGHTS, SmallRun, commit, load_painter, sample

FINISHED = {
    "prepared/train.safetensors": b"t", "prepared/val.safetensors": b"v", "snapshot.json": b"{}", "quarantine.jsonl": b"",
    "checkpoints/y.safetensors": b"earlier", "checkpoints/y.json": b"{}", CHECKPOINT.key: WEIGHTS, "checkpoints/x.json": b"{}",
    "metrics.jsonl": b"m", "grids/kimg-1.png": b"g", "evaluation/filter.safetensors": b"f", "evaluation/lift/1.json": b"l",
    "scorecard.json": b"{}", "checkpoint.json": b'{"key": "%s"}' % CHECKPOINT.key.encode(),
}
TAKEN = {key: data for key, data in FINISHED.items() if not key.startswith("checkpoints/y")}


def opened(url: str, run_id: str | None = None, **sections: Any) -> tuple[Any, Run]:
    """A config and its run's folder."""
    config = parse_config({
        "name": "small", "source": {"format": "digits"}, "cluster": {"address": "inline"}, "publish": {"url": url},
        "sample": {"target": {"cat": 4}, "rows_per_shard": 3, "workers": 1}, **sections,
    })
    return config, runs.open_run(config, run_id)


def published(url: str) -> Run:
    """A run that came to its end."""
    from pipeline.progress import NullProgress

    config, run = opened(url, "first")
    for key, data in FINISHED.items():
        run.folder.put(key, data)
    snapshot = dataclasses.replace(SNAPSHOT, source_fingerprint=run.source_fingerprint)
    plan, record = open_plan(config, snapshot, CHECKPOINT, run.folder, run.dataset)
    receipts = sample(config, snapshot, CHECKPOINT, plan, run.folder, run.dataset, record.version, NullProgress(),
                      load=load_painter)
    commit(config, snapshot, CHECKPOINT, SCORECARD, PASSED, plan, receipts, run.dataset, run.run_id, record.version, {},
           software={"code_digest": run.code_digest})
    return run


def held(run: Run) -> dict[str, bytes]:
    """What lies in the run's folder beside its config."""
    return {info.key: run.folder.get(info.key) for info in run.folder.list() if info.key != keys.CONFIG}


def memory() -> str:
    return f"memory://{uuid.uuid4().hex}"


@pytest.mark.parametrize("sections", [
    {"sample": {"target": {"cat": 9}}}, {"sample": {"format": "png"}}, {"gate": {"min_lift_pp": None}},
    {"evaluate": {"samples": 50}}, {"train": {"max_failures": 1}},
])
def test_what_was_finished_is_taken_over(sections: dict[str, Any]) -> None:
    first = published(memory())
    config, run = opened(first.dataset.url.rpartition("/")[0], **sections)
    assert adopt(config, run) == "first" and held(run) == TAKEN
    assert adopt(config, run) is None                    # once is enough


@pytest.mark.parametrize("sections", [
    {"seed": 1}, {"train": {"budget": {"kimg": 1}}}, {"prepare": {"resolution": 16}},
    {"source": {"format": "digits", "subset": {"per_class": 9}}},
])
def test_another_generator_is_trained_anew(sections: dict[str, Any]) -> None:
    first = published(memory())
    config, run = opened(first.dataset.url.rpartition("/")[0], **sections)
    assert adopt(config, run) is None and held(run) == {}


@pytest.mark.parametrize("change", ["source_fingerprint", "code_digest"])
def test_other_data_or_other_code_train_anew(change: str) -> None:
    first = published(memory())
    config, run = opened(first.dataset.url.rpartition("/")[0], sample={"target": {"cat": 9}})
    assert adopt(config, dataclasses.replace(run, **{change: "another"})) is None and held(run) == {}


def test_nothing_published_nothing_taken() -> None:
    config, run = opened(memory())
    assert adopt(config, run) is None


def test_a_run_that_was_refused_serves_too_once_its_generator_is_trained() -> None:
    url = memory()
    _, refused = opened(url, "refused", seed=1)          # another generator, which looks finished
    for key, data in FINISHED.items():
        refused.folder.put(key, data)
    _, refused = opened(url, "other")
    config, run = opened(url, evaluate={"lift": {"seeds": 6}})
    assert adopt(config, run) is None                    # begun, but nothing trained yet
    for key, data in FINISHED.items():
        refused.folder.put(key, data)
    assert adopt(config, run) == "other" and held(run) == TAKEN
    config, run = opened(published(url).dataset.url.rpartition("/")[0], evaluate={"lift": {"seeds": 9}})
    assert adopt(config, run) == "first"                 # before any that isn't published


def test_a_cleared_run_is_no_harm() -> None:
    first = published(memory())
    first.dataset.delete_prefix(keys.RUNS)
    config, run = opened(first.dataset.url.rpartition("/")[0], sample={"target": {"cat": 9}})
    assert adopt(config, run) is None


def test_killed_at_every_copy() -> None:
    at, ended = 1, False
    while not ended:
        first = published(memory())
        config, run = opened(first.dataset.url.rpartition("/")[0], sample={"target": {"cat": 9}})
        with reaped(Reaper(at)):
            try:
                ended = adopt(config, run) == "first"
            except Killed:
                assert not run.folder.exists(keys.TRAINED)
        assert ended or adopt(config, run) == "first"
        assert held(run) == TAKEN
        at += 1
    assert at > 10


def test_taken_over_objects_are_no_longer_bound_to_the_other_run(tmp_path: Any) -> None:
    first = published(str(tmp_path))
    config, run = opened(str(tmp_path), sample={"target": {"cat": 9}})
    adopt(config, run)
    run.folder.put("scorecard.json", b"new")
    run.folder.delete_prefix("prepared")
    assert {key: first.folder.get(key) for key in FINISHED} == FINISHED
    assert SmallRun(config, run.run_id, run.dataset).folder.get("metrics.jsonl") == b"m"

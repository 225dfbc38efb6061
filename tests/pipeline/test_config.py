"""The config: what it accepts, what it refuses and in which words."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import config_faults
from pipeline.config import Config, load_config, parse_config
from pipeline.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def minimal(**sections: Any) -> dict[str, Any]:
    return {"name": "digits", "source": {"format": "digits"}, **sections}


def refusal(raw: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as e:
        parse_config(raw)
    assert e.value.exit_status == 2
    return str(e.value)


def test_every_example_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNIST", "/data/mnist")
    examples = sorted((ROOT / "examples").glob("*.yaml"))
    assert examples
    for example in examples:
        load_config(example)


def test_the_contract_s_example_is_valid() -> None:
    parse_config({
        "name": "digits", "seed": 0,
        "source": {"format": "digits", "url": None, "subset": {"per_class": 50}},
        "prepare": {"resolution": 32, "channels": "grey", "splits": {"val": 0.15, "test": 0.15}, "max_bad": 0.01},
        "train": {"model": "auto", "budget": {"kimg": 200}, "workers": 2, "gpus_per_worker": 0, "batch_size": 64},
        "evaluate": {"samples": 5000, "features": "domain", "lift": {"seeds": 3, "ratios": [0.5, 1.0]}},
        "gate": {"enabled": True, "min_lift_pp": 0.0, "max_memorised": 0.02, "min_coverage": 0.5},
        "sample": {"target": "balance", "format": "parquet", "rows_per_shard": 1000, "workers": 2, "gpus_per_worker": 0, "filter": {}},
        "publish": {"url": "./out"}, "cluster": {"address": "local"},
    })


@pytest.mark.parametrize(("change", "words"), [
    ({"trian": {}}, ["trian", "unknown key", "train"]),
    ({"train": {"modle": "r3"}}, ["train.modle", "unknown key", "model"]),
    ({"train": {"workers": "many"}}, ["train.workers", "integer", "'many'"]),
    ({"train": {"model": "biggan"}}, ["train.model", "'dcgan'", "'biggan'"]),
    ({"train": {"budget": {"kimg": 0}}}, ["train.budget.kimg", "greater than 0"]),
    ({"train": {"budget": {"kimg": 1, "minutes": 1}}}, ["train.budget", "exactly one of kimg, minutes"]),
    ({"train": {"batch_size": 63, "workers": 2}}, ["batch_size 63", "multiple of workers"]),
    ({"name": "a/b"}, ["name", "no slash", "'a/b'"]),
    ({"name": "../up"}, ["name", "'../up'"]),
    ({"prepare": {"resolution": 30}}, ["prepare.resolution", "28 or 32"]),
    ({"prepare": {"resolution": 512}}, ["prepare.resolution", "256"]),
    ({"prepare": {"channels": "cmyk"}}, ["prepare.channels", "'grey'", "'rgb'"]),
    ({"sample": {"target": {"3": 0}}}, ["sample.target", "0 images"]),
    ({"sample": {"target": {"3": -1}}}, ["sample.target", "'3': -1"]),
    ({"sample": {"target": {"3": True}}}, ["sample.target", "whole numbers"]),
    ({"sample": {"filter": {"sharpness": 1}}}, ["sample.filter", "sharpness", "min_confidence"]),
    ({"source": {"format": "idx"}}, ["format idx needs url"]),
    ({"source": {"format": "digits", "url": "x"}}, ["leave out url"]),
    ({"source": {"format": "digits", "subset": {}}}, ["source.subset", "per_class, longtail, classes"]),
    ({"publish": {"url": " "}}, ["publish.url", "s3://"]),
    ({"gate": {"min_coverage": float("nan")}}, ["gate.min_coverage"]),
    ({"evaluate": {"lift": {"ratios": [0.5, 0.5]}}}, ["evaluate.lift.ratios", "given twice"]),
    ({"evaluate": {"lift": {"ratios": [0.5, 1e9]}}}, ["evaluate.lift.ratios", "at most 100"]),
    ({"evaluate": {"lift": {"ratios": [float("nan")]}}}, ["evaluate.lift.ratios"]),
])
def test_a_wrong_value_is_refused_by_key_value_and_remedy(change: dict[str, Any], words: list[str]) -> None:
    message = refusal({**minimal(), **change})
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(("change", "meant"), [
    ({"train": {"modle": "r3"}}, "train.model"),
    ({"evaluate": {"lift": {"sedes": 6}}}, "evaluate.lift.seeds"),
    ({"publish": {"format": "png"}}, "source.format or sample.format"),
    ({"train": {"resolution": 64}}, "prepare.resolution"),
    ({"train": {"seed": 1}}, "seed"),
    ({"budget": {"kimg": 1}}, "train.budget"),
])
def test_what_an_unknown_key_was_meant_to_be(change: dict[str, Any], meant: str) -> None:
    assert f"unknown key; did you mean {meant}? allowed here:" in refusal({**minimal(), **change})


def test_nothing_is_guessed_where_nothing_is_near() -> None:
    assert "train.lr: unknown key; allowed here: model, budget" in refusal(minimal(train={"lr": 3}))


def test_every_key_is_found_by_its_misspelling() -> None:
    keys = list(config_faults.every_key(Config))
    assert {("name",), ("source", "subset", "longtail", "ratio"), ("evaluate", "lift", "seeds")} <= set(keys)
    for *above, key in keys:
        for wrong in (key[:-1], key + "s", key[0] + key):
            if (*above, wrong) not in keys:
                assert config_faults.probably_meant((*above, wrong), keys) == [".".join((*above, key))], wrong


def test_all_faults_are_told_at_once() -> None:
    message = refusal(minimal(name="A", trian=1, prepare={"resolution": 9}))
    assert all(word in message for word in ("name", "trian", "prepare.resolution"))


def test_environment_values_are_used_and_never_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKET", "s3://canary-4711/x")
    monkeypatch.setenv("SEEDS", "canary-4711")
    assert parse_config(minimal(publish={"url": "${BUCKET}/y"})).publish.url == "s3://canary-4711/x/y"
    message = refusal(minimal(train={"workers": "${SEEDS}"}))
    assert "canary" not in message and "train.workers" in message
    monkeypatch.setenv("WORKERS", "1")
    assert parse_config(minimal(train={"workers": "${WORKERS}"})).train.workers == 1


def test_an_unset_variable_is_named() -> None:
    assert "NOT_SET_HERE" in refusal(minimal(publish={"url": "${NOT_SET_HERE}"}))


@pytest.mark.parametrize(("text", "words"), [
    ("name: [", "not valid YAML"), ("- a", "keys and values"), ("", "keys and values"),
])
def test_a_file_that_is_no_config(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_config(file)
    with pytest.raises(ConfigError, match=r"can't read the config .*gone.yaml"):
        load_config(tmp_path / "gone.yaml")


def test_overrides(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("name: a\nsource: {format: digits}\ntrain: {budget: {kimg: 5}}\n")
    config = load_config(file, ["train.budget.minutes=2", "sample.target={per_class: 3}", "seed=7", "evaluate.lift=null"])
    assert config.train.budget.minutes == 2 and config.train.budget.kimg is None
    assert config.sample.target == {"per_class": 3} and config.seed == 7 and config.evaluate.lift is None
    for wrong in ("seed", "=3"):
        with pytest.raises(ConfigError, match="key=value"):
            load_config(file, [wrong])


def test_the_digest_is_of_what_decides_the_result() -> None:
    base = parse_config(minimal())
    same = [{"publish": {"url": "s3://elsewhere"}}, {"cluster": {"address": "auto"}}, {"sample": {"workers": 1}},
            {"publish": {"url": "./out", "storage_options": {"secret": "x"}}}]
    other = [{"seed": 1}, {"train": {"budget": {"kimg": 1}}}, {"sample": {"rows_per_shard": 9}}, {"prepare": {"channels": "rgb"}}]
    assert all(parse_config(minimal(**change)).digest() == base.digest() for change in same)
    assert all(parse_config(minimal(**change)).digest() != base.digest() for change in other)
    changed = parse_config(minimal(sample={"rows_per_shard": 9}))
    assert changed.digest("train", "prepare") == base.digest("train", "prepare")


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*Config.model_fields, "x"]), inner, max_size=3),
    max_leaves=8,
))
def test_whatever_comes_in_a_config_or_a_config_error_comes_out(raw: Any) -> None:
    if isinstance(raw, dict):
        try:
            assert isinstance(parse_config(raw), Config)
        except ConfigError as e:
            assert str(e)


@pytest.mark.parametrize(("prepare", "format_name", "asked", "rows"), [
    ({"resolution": 32, "channels": "grey"}, "parquet", 156_800, 100), ({"resolution": 64, "channels": "rgb"}, "parquet", 1_286_399, 99),
    ({"resolution": 256, "channels": "rgb"}, "webdataset", 1, 1),
])
def test_shards_sized_by_bytes(prepare: dict[str, Any], format_name: str, asked: int, rows: int) -> None:
    sized = parse_config({"name": "x", "source": {"format": "digits"}, "prepare": prepare,
                          "sample": {"bytes_per_shard": asked, "format": format_name}})
    assert sized.rows_per_shard == rows


@pytest.mark.parametrize(("sample", "message"), [
    ({"rows_per_shard": 10, "bytes_per_shard": 10}, "give rows_per_shard or bytes_per_shard, not both"),
    ({"rows_per_shard": 1_000_000}, r"sample\.rows_per_shard: shards could grow past 500 MiB; give at most 334,367"),
    ({"bytes_per_shard": 2**30}, r"sample\.bytes_per_shard: shards could grow past 500 MiB; give at most 524,288,000"),
])
def test_sizes_of_shards_that_are_refused(sample: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({"name": "x", "source": {"format": "digits"}, "sample": sample})


@pytest.mark.parametrize(("sections", "cpus", "asked", "workers"), [
    ({}, 2, None, 2), ({}, 16, None, 2), ({}, 1, None, 1), ({}, 2, 1, 1), ({}, 16, 4, 2),
    ({"train": {"workers": 1}}, 2, None, 1), ({"train": {"workers": 5}}, 2, None, 5), ({"train": {"min_workers": 1}}, 2, None, 1),
    ({"train": {"batch_size": None}}, 2, None, 2), ({"train": {"batch_size": 6}}, 2, None, 2), ({"train": {"batch_size": 7}}, 2, None, 1),
    ({"train": {"batch_size": 2}}, 2, None, 1), ({"train": {"gpus_per_worker": 1}}, 2, None, 1),
    ({"cluster": {"address": "10.0.0.5:6379"}}, 2, None, 1), ({"cluster": {"address": "local"}}, 2, None, 2),
    ({"source": {"format": "gaussians", "variant": "ring8"}}, 2, None, 1),
])
def test_two_workers_where_they_fit_and_nobody_said_otherwise(sections: dict[str, Any], cpus: int, asked: int | None, workers: int,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.config.local_cpus", lambda: cpus)
    monkeypatch.setattr("pipeline.config.threads_asked", lambda: asked)
    config = parse_config({**minimal(), **sections})
    assert config.train.workers == workers
    alone = {**sections, "train": {**sections.get("train", {}), "workers": 1}}
    assert config.digest() == parse_config({**minimal(), **alone}).digest()    # how many train changes nothing that is kept
    assert parse_config(config.model_dump()).train.workers == workers          # written down and read again, it stays


@pytest.mark.parametrize(("sections", "cpus", "workers"), [
    ({}, 1, 1), ({}, 2, 2), ({}, 16, 2), ({"sample": {"workers": 3}}, 1, 3), ({"cluster": {"address": "10.0.0.5:6379"}}, 1, 2),
])
def test_one_cpu_is_enough_for_the_default(sections: dict[str, Any], cpus: int, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.config.local_cpus", lambda: cpus)
    config = parse_config({**minimal(), **sections})
    assert config.sample.workers == workers and config.digest() == parse_config({**minimal(), "sample": {"workers": 7}}).digest()

"""Croissant: what mlcroissant, the reference reader, makes of it."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from published import HOSTILE, write_version

from pipeline.documents import croissant as room
from pipeline.documents.croissant import SYNTHETIC_MARK, croissant

mlc = pytest.importorskip("mlcroissant")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Unpacked tars go to the test's folder, not to the home folder."""
    from mlcroissant._src.core import constants

    monkeypatch.setattr(constants, "EXTRACT_PATH", constants.CROISSANT_CACHE.__class__(tmp_path / "unpacked"))


def version(folder: Path, format_name: str, classes: tuple[str, ...] = HOSTILE) -> tuple[dict, "mlc.Dataset"]:
    manifest = write_version(folder, format_name, classes)
    (folder / "croissant.json").write_text(json.dumps(croissant(manifest), ensure_ascii=False), encoding="utf-8")
    return manifest, mlc.Dataset(jsonld=str(folder / "croissant.json"))


def records(dataset, record_set: str) -> list[dict]:
    def plain(value):
        return value.decode() if isinstance(value, bytes) else value

    return [{k.rsplit("/", 1)[1]: plain(v) for k, v in r.items()} for r in dataset.records(record_set)]


@pytest.mark.parametrize("format_name", ["parquet", "png", "webdataset"])
def test_mlcroissant_accepts_it_without_a_warning_and_reads_every_record(tmp_path, format_name):
    manifest, dataset = version(tmp_path, format_name)
    issues = dataset.metadata.ctx.issues
    assert not issues.errors and not issues.warnings, issues.report()
    assert dataset.metadata.conforms_to == ["http://mlcommons.org/croissant/1.1"]
    rows = records(dataset, "images")
    assert len(rows) == manifest["rows"] and all(r["synthetic"] is True for r in rows)
    labels = {r["uid"]: r["label"] for r in (rows if format_name != "webdataset" else records(dataset, "labels"))}
    assert labels == {uid: int(uid[:4]) for uid in labels} and len(labels) == manifest["rows"]
    assert [r["name"] for r in records(dataset, "classes")] == list(HOSTILE)


def test_pixels_come_out_as_they_went_in(tmp_path):
    from published import digits

    _, dataset = version(tmp_path, "parquet", ("zero", "one"))
    images, labels = digits()
    for row in records(dataset, "images"):
        label, index = map(int, row["uid"].split("-"))
        np.testing.assert_array_equal(np.array(row["image"]), images[labels == label][index % 3][0])


def test_the_command_line_tool_accepts_it(tmp_path):
    version(tmp_path, "parquet")
    tool = Path(sys.executable).with_name("mlcroissant")
    done = subprocess.run([tool, "validate", "--jsonld", tmp_path / "croissant.json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr.lower() and "warning" not in done.stderr.lower(), done.stderr


def test_a_changed_tar_is_noticed(tmp_path):
    manifest, dataset = version(tmp_path, "webdataset", ("a", "b"))
    shard = tmp_path / manifest["shards"][1]["key"]
    shard.write_bytes(shard.read_bytes() + b"\0" * 512)
    with pytest.raises(mlc.GenerationError, match=r"Download\(file-00001\)"):
        list(dataset.records("images"))


@pytest.mark.parametrize("format_name", ["parquet", "png", "webdataset"])
def test_every_file_stands_there_with_its_sha256(tmp_path, format_name):
    manifest, _ = version(tmp_path, format_name, ("a b", "c/d"))
    files = [f for f in croissant(manifest)["distribution"] if f["@type"] == "cr:FileObject"]
    listed = {f["contentUrl"]: f["sha256"] for f in files}
    on_disk = {f.relative_to(tmp_path).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest()
               for f in (tmp_path / "data").rglob("*") if f.is_file()}
    assert listed == on_disk and on_disk


def test_where_it_comes_from_and_that_it_is_synthetic(tmp_path):
    manifest = write_version(tmp_path, "parquet", ("a", "b"))
    found = croissant(manifest)
    text = json.dumps(found)
    assert {"@id": SYNTHETIC_MARK} in found["digitalSourceType"]
    assert found["prov:wasDerivedFrom"]["identifier"] == manifest["source"]["fingerprint"]
    activity = found["prov:wasGeneratedBy"]
    assert activity["prov:used"][1]["identifier"] == manifest["generator"]["digest"]
    facts = {p["name"]: p["value"] for p in activity["additionalProperty"]}
    assert facts == {"config_digest": "abc", "seed": 7, "run_id": "2f6a1c09be11", "rejects": "confidence: 31"}
    agents = {a["prov:label"]: a["softwareVersion"] for a in activity["prov:wasAssociatedWith"]}
    assert agents == manifest["software"]
    assert "secret" not in text and "t0ken" not in text and "s3://bucket/real" in text


def test_addresses_under_a_base_are_whole_and_escaped(tmp_path):
    manifest = write_version(tmp_path, "png", ("a b", "ü"))
    listed = [f for f in croissant(manifest, "https://example.org/v/")["distribution"] if f["@type"] == "cr:FileObject"]
    assert all(f["contentUrl"].startswith("https://example.org/v/data/") for f in listed)
    assert all(f["contentUrl"].isascii() and " " not in f["contentUrl"] for f in listed)


@pytest.mark.parametrize("format_name", ["parquet", "png", "webdataset"])
def test_very_many_files_are_described_as_sets(tmp_path, monkeypatch, format_name):
    monkeypatch.setattr(room, "MAX_LISTED_FILES", 1)
    _, dataset = version(tmp_path, format_name, ("a", "b"))
    assert not dataset.metadata.ctx.issues.errors
    if format_name != "webdataset":                  # a reader of sets of tars is more than mlcroissant is
        assert len(records(dataset, "images")) == 6


def test_a_refused_gate_is_told(tmp_path):
    manifest = write_version(tmp_path, "parquet", ("a", "b"))
    manifest["verdict"] = {"passed": False, "reasons": ["coverage 0.1 is below 0.5"]}
    assert any("coverage 0.1" in limit for limit in croissant(manifest)["rai:dataLimitations"])

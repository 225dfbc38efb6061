"""From plan to version and back: what readers see, when they see it, and what `verify` catches."""

import dataclasses
import hashlib
import json
import shutil
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import keys, manifest
from pipeline.errors import CorruptShard, GateRefused, MissingObject, PublicationConflict, StoreError
from pipeline.publication import show, verify
from pipeline.records import Verdict
from pipeline.store import Store
from tests.pipeline.small import CLASSES, SOFTWARE, SmallRun, paint, small_run
from tests.servers import S3Server

FORMATS = ["parquet", "png", "webdataset"]
MADE = {"cat": 17, "größe/2": 0, "empty": 0, "dog": 9}   # what `balance` makes of the small run's counts


@pytest.fixture(params=["local", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, Any]]:
    """Somewhere to publish: URL and storage options."""
    if request.param == "local":
        return str(tmp_path / "out"), {}
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}", {}
    server: S3Server = request.getfixturevalue("s3_server")
    return f"s3://{server.new_bucket()}/sets", server.options


@pytest.mark.parametrize("format_name", FORMATS)
def test_from_plan_to_version(place: tuple[str, dict[str, Any]], format_name: str) -> None:
    url, options = place
    run = small_run(url, options=options, format=format_name)
    version = run.finish()
    assert version.rows_per_class == MADE and version.rows == 26
    pointer = run.dataset.get_json(keys.LATEST)
    assert pointer == {"version": version.name, "manifest": f"versions/{version.name}/manifest.json",
                       "manifest_sha256": version.manifest_sha256}
    data = run.dataset.get(pointer["manifest"])
    assert hashlib.sha256(data).hexdigest() == version.manifest_sha256
    told = json.loads(data)
    assert {"format_version": 1, "dataset": "small", "version": version.name, "run_id": "r1", "seed": 7, "rows": 26,
            "format": format_name, "classes": list(CLASSES), "rows_per_class": MADE, "software": SOFTWARE,
            "verdict": {"passed": True, "reasons": [], "enforced": True}, "rejects": {}}.items() <= told.items()
    assert told["scores"]["coverage"] == 0.75 and told["scores"]["memorised"] is None
    assert told["source"]["rows_per_class"]["cat"] == 3 and told["generator"]["trained_kimg"] == 1.5
    assert told["bytes"] == sum(shard["bytes"] for shard in told["shards"])
    folder = run.dataset.child(keys.version(version.name))
    assert folder.get("README.md") == b"# 26 rows\n"
    for shard in told["shards"]:
        content = folder.get(shard["key"])
        assert (len(content), hashlib.sha256(content).hexdigest()) == (shard["bytes"], shard["sha256"])
    summary = verify(run.dataset.url, deep=True, orphans=True, storage_options=options)
    assert summary["rows_per_class"] == MADE and summary["orphans"] == summary["unpublished"] == []
    assert verify(folder.url, storage_options=options)["shards"] == len(told["shards"])
    assert show(run.dataset.url, options)["latest"] == version.name


@pytest.mark.parametrize("format_name", FORMATS)
def test_content_follows_from_seed_and_plan_alone(tmp_path: Path, format_name: str) -> None:
    """Byte for byte the same files from one worker and from several, in whatever order."""
    def files(url: str, **section: Any) -> dict[str, bytes]:
        run = small_run(url, format=format_name, **section)
        folder = run.dataset.child(keys.version(run.finish().name))
        return {info.key: folder.get(info.key) for info in folder.list("data")}

    assert files(str(tmp_path / "a")) == files(str(tmp_path / "b"), workers=4) == files(f"memory://{uuid.uuid4().hex}")


def test_rows_do_not_depend_on_the_size_of_shards(tmp_path: Path) -> None:
    def rows(size: int) -> dict[str, tuple[int, int, bytes]]:
        import pyarrow.parquet as pq

        run = small_run(str(tmp_path / str(size)), rows_per_shard=size)
        table = pq.read_table(run.dataset.child(keys.version(run.finish().name)).url + "/data").to_pylist()
        return {row["uid"]: (row["label"], row["seed"], row["image"]["bytes"]) for row in table}

    assert rows(3) == rows(7) == rows(1000)


def test_publishing_again_is_the_same_version(tmp_path: Path) -> None:
    run = small_run(str(tmp_path))
    version = run.finish()
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert run.finish() == version
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before


def test_versions_stand_side_by_side(tmp_path: Path) -> None:
    first = small_run(str(tmp_path)).finish()
    second = small_run(str(tmp_path), "r2", target={"per_class": 5}).finish()
    assert first.name < second.name and second.name.startswith("v000002-")
    assert small_run(str(tmp_path)).finish() == first                  # the first run again: still its own version
    told = show(str(tmp_path / "small"))
    assert [v["version"] for v in told["versions"]] == [second.name, first.name] and told["latest"] == second.name
    assert told["versions"][0]["changes"]["rows_per_class"] == {"cat": -12, "größe/2": 5, "dog": -4}
    assert told["versions"][1]["changes"] is None
    assert [v["version"] for v in show(first.url)["versions"]] == [first.name]
    assert verify(first.url, deep=True)["version"] == first.name
    assert verify(str(tmp_path / "small"), deep=True, orphans=True)["orphans"] == []


def test_a_refused_run_publishes_nothing(tmp_path: Path) -> None:
    run = small_run(str(tmp_path))
    receipts = run.sample()
    with pytest.raises(GateRefused, match="coverage is low"):
        run.publish(receipts, Verdict(passed=False, reasons=("coverage is low.",)))
    assert not run.dataset.exists(keys.LATEST)
    run.publish(receipts, Verdict(passed=False, reasons=("coverage is low.",), enforced=False))
    assert show(run.dataset.url)["versions"][0]["verdict"]["passed"] is False


def test_leftovers_of_other_tries_are_removed_before_the_version_is_seen(tmp_path: Path) -> None:
    run = small_run(str(tmp_path))
    receipts = run.sample()
    folder = run.dataset.child(keys.version(run.plan()[1].version))
    folder.put("data/train-00000-of-00004-deadbeef.parquet", b"of a worker that was cut off")
    outside = run.dataset.child("versions/v000000-someone-else")
    outside.put("data/x.parquet", b"not ours")
    run.publish(receipts)
    data = [info.key for info in folder.list("data")]
    assert sorted(data) == sorted(receipt.key for receipt in receipts)
    assert outside.get("data/x.parquet") == b"not ours"
    assert verify(run.dataset.url, orphans=True)["orphans"] == ["versions/v000000-someone-else/data/x.parquet"]


@pytest.mark.parametrize("damage", ["missing", "short", "receipt gone", "foreign receipt"])
def test_an_incomplete_set_is_not_published(tmp_path: Path, damage: str) -> None:
    run = small_run(str(tmp_path))
    receipts = run.sample()
    folder = run.dataset.child(keys.version(run.plan()[1].version))
    if damage == "missing":
        folder.delete(receipts[2].key)
    elif damage == "short":
        folder.put(receipts[2].key, folder.get(receipts[2].key)[:-1])
    elif damage == "receipt gone":
        del receipts[2]
    else:
        receipts.append(dataclasses.replace(receipts[0], index=99))
    with pytest.raises(CorruptShard, match=r"shard 2|train-00002|\[99\]"):
        run.publish(receipts)
    assert not run.dataset.exists(keys.LATEST)
    if damage in ("missing", "short"):
        assert verify(run.finish().url, deep=True)["rows"] == 26       # the resume makes what is damaged anew


def test_a_later_version_makes_this_one_impossible_and_the_next_start_mints_anew(tmp_path: Path) -> None:
    slow, quick = small_run(str(tmp_path)), small_run(str(tmp_path), "r2", target={"per_class": 5})
    receipts = slow.sample()
    planned = slow.plan()
    doomed = planned[1].version
    newer = max((quick.finish().name, small_run(str(tmp_path), "r3", target={"per_class": 6}).finish().name))
    with pytest.raises(PublicationConflict, match=f"moved on to version {newer} while {doomed} was being made"):
        slow.publish(receipts, planned=planned)
    assert run_latest(slow) == newer
    again = slow.finish()
    assert again.name.startswith("v000003-") and run_latest(slow) == again.name
    assert not slow.dataset.list(keys.version(doomed)) and verify(slow.dataset.url, deep=True)["rows"] == 26
    assert len(show(slow.dataset.url)["versions"]) == 3


def run_latest(run: SmallRun) -> str:
    return str(run.dataset.get_json(keys.LATEST)["version"])


def test_two_committers_of_one_run_agree(place: tuple[str, dict[str, Any]]) -> None:
    url, options = place
    run = small_run(url, options=options)
    receipts = run.sample()
    with ThreadPoolExecutor(4) as threads:
        versions = list(threads.map(lambda _: run.publish(receipts), range(4)))
    assert len({(v.name, v.manifest_sha256) for v in versions}) == 1
    assert verify(run.dataset.url, deep=True, orphans=True, storage_options=options)["orphans"] == []


def test_two_runs_that_publish_at_once_leave_one_history(place: tuple[str, dict[str, Any]]) -> None:
    url, options = place
    runs = [small_run(url, f"r{i}", options, target={"per_class": i + 1}) for i in range(3)]
    receipts = [run.sample() for run in runs]
    planned = [run.plan() for run in runs]

    def publish(i: int) -> str | None:
        try:
            return runs[i].publish(receipts[i], planned=planned[i]).name
        except PublicationConflict:
            return None

    with ThreadPoolExecutor(3) as threads:
        names = [name for name in threads.map(publish, range(3)) if name]
    told = show(runs[0].dataset.url, options)
    assert [v["version"] for v in told["versions"]] == sorted(names, reverse=True) and names
    for name in names:
        verify(f"{runs[0].dataset.url}/versions/{name}", deep=True, storage_options=options)


def test_a_pointer_that_is_none_of_ours_is_not_overwritten(tmp_path: Path) -> None:
    run = small_run(str(tmp_path))
    run.dataset.put(keys.LATEST, b"hello")
    with pytest.raises(StoreError, match=r"LATEST\.json is"):
        run.finish()
    assert run.dataset.get(keys.LATEST) == b"hello"


def test_a_long_manifest_is_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "MAX_BYTES", 4000)
    run = small_run(str(tmp_path), format="png")
    version = run.finish()
    folder = run.dataset.child(keys.version(version.name))
    told = folder.get_json(keys.MANIFEST)
    assert told["shards"] == [] and len(told["parts"]) > 1 and version.shards == 26
    assert all(part["bytes"] <= 4000 for part in told["parts"])
    assert len(list(manifest.shards(told, folder))) == 26
    assert run.finish() == version and verify(version.url, deep=True, orphans=False)["shards"] == 26
    assert verify(run.dataset.url, orphans=True)["orphans"] == [] and show(version.url)["versions"][0]["shards"] == 26
    folder.put(told["parts"][0]["key"], b"{}")
    with pytest.raises(CorruptShard, match="sha256 differs"):
        verify(version.url)


# what verify catches


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1:]


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("fault", ["flipped", "shortened", "missing", "swapped"])
def test_verify_names_the_damaged_object(tmp_path: Path, format_name: str, fault: str) -> None:
    run = small_run(str(tmp_path), format=format_name)
    folder = run.dataset.child(keys.version(run.finish().name))
    told = folder.get_json(keys.MANIFEST)["shards"]
    key = told[3]["key"]
    data = folder.get(key)
    if fault == "missing":
        folder.delete(key)
    elif fault == "swapped":
        folder.put(key, folder.get(told[2]["key"]))
    else:
        folder.put(key, flip(data, len(data) // 2) if fault == "flipped" else data[:-1])
    with pytest.raises(CorruptShard, match=key.split("/")[-1]):
        verify(run.dataset.url)


def forged(run: SmallRun, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the manifest and lets the pointer agree."""
    name = run_latest(run)
    folder = run.dataset.child(keys.version(name))
    told = folder.get_json(keys.MANIFEST)
    change(told)
    folder.put_json(keys.MANIFEST, told)
    digest = hashlib.sha256(folder.get(keys.MANIFEST)).hexdigest()
    run.dataset.put(keys.LATEST, manifest.Pointer(name, f"versions/{name}/manifest.json", digest).data())


def test_verify_catches_a_changed_manifest(tmp_path: Path) -> None:
    run = small_run(str(tmp_path))
    name = run.finish().name
    key = f"versions/{name}/manifest.json"
    run.dataset.put(key, run.dataset.get(key) + b" ")
    with pytest.raises(CorruptShard, match=r"manifest\.json is not what LATEST\.json says"):
        verify(run.dataset.url)
    run.dataset.delete(key)
    with pytest.raises(CorruptShard, match="whose manifest is missing"):
        verify(run.dataset.url)


@pytest.mark.parametrize(("change", "message"), [
    (lambda m: m["rows_per_class"].update(cat=16), "don't add up to the totals"),
    (lambda m: m["shards"].pop(), "don't add up"),
    (lambda m: m["shards"].append(m["shards"][0]), "don't add up"),
    (lambda m: m["shards"][0].update(rows=6), "rows of .* don't add up"),
    (lambda m: m.update(bytes=1), "bytes don't add up"),
    (lambda m: m.update(format_version=2), "format 2; this ganmill reads 1"),
])
def test_verify_catches_contradictions(tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    run = small_run(str(tmp_path))
    run.finish()
    forged(run, change)
    with pytest.raises(CorruptShard, match=message):
        verify(run.dataset.url)


@pytest.mark.parametrize(("change", "message"), [
    (lambda m: m.update(seed=8), "row .* of class 'cat' is not in"),
    (lambda m: m.update(classes=["dog", "größe/2", "empty", "cat"]), "holds other rows per class"),
])
@pytest.mark.parametrize("format_name", FORMATS)
def test_deep_verify_reads_the_rows(tmp_path: Path, format_name: str, change: Any, message: str) -> None:
    run = small_run(str(tmp_path), format=format_name)
    run.finish()
    forged(run, change)
    verify(run.dataset.url)
    with pytest.raises(CorruptShard, match=message):
        verify(run.dataset.url, deep=True)


def test_orphans_are_listed_and_what_is_in_the_making_is_not(tmp_path: Path) -> None:
    run = small_run(str(tmp_path))
    version = run.finish()
    making = small_run(str(tmp_path), "r2", target={"per_class": 2})
    making.sample()
    run.dataset.put(f"versions/{version.name}/data/stray.parquet", b"x")
    told = verify(run.dataset.url, orphans=True)
    assert told["orphans"] == [f"versions/{version.name}/data/stray.parquet"]
    assert told["unpublished"] == [making.plan()[1].version]


def test_nothing_published_is_told(tmp_path: Path) -> None:
    for look in (show, verify):
        with pytest.raises(MissingObject, match="nothing is published at"):
            look(str(tmp_path / "none"))
        with pytest.raises(MissingObject):
            look(str(tmp_path / "none/versions/v000001-20260131T020000Z-1f3a9c2e"))


# what readers see


def test_hugging_face_reads_the_image_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    run = small_run(str(tmp_path / "out"), format="png", target={"per_class": 6})
    folder = Path(run.finish().url)
    read = datasets.load_dataset("imagefolder", data_dir=str(folder / "data"), split="train", cache_dir=str(tmp_path))
    assert Counter(read["label"]) == {0: 6, 1: 6, 3: 6} and set(read["synthetic"]) == {True}
    for row in read:
        expected = paint(np.array([row["label"]]), np.array([row["seed"]]))[0]
        assert (np.asarray(row["image"]).transpose(2, 0, 1) == expected).all()
    by_folder = Counter(path.parent.name for path in folder.glob("data/*/*.png"))     # as torchvision and Keras look
    assert by_folder == {"cat": 6, "größe%2F2": 6, "dog": 6}
    assert len(list(folder.glob("data/*"))) == 4
    assert sum(1 for p in folder.rglob("*.png") if Image.open(p).text["synthetic"] == "true") == 18  # type: ignore[attr-defined]


def test_a_torch_data_loader_with_workers_reads_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets, torch = pytest.importorskip("datasets"), pytest.importorskip("torch")
    run = small_run(str(tmp_path / "out"), target={"per_class": 40})
    files = f"{run.finish().url}/data/*.parquet"
    read = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
    loader = torch.utils.data.DataLoader(read.with_format("torch"), 8, num_workers=2, multiprocessing_context="fork")
    labels: Counter[int] = Counter()
    mixed = 0
    for batch in loader:
        assert batch["image"].shape[1:] == (3, 8, 8) and (batch["image"][:, 0, 0, 0] == batch["label"]).all()
        labels.update(batch["label"].tolist())
        mixed += len(set(batch["label"].tolist())) > 1
    assert labels == {0: 40, 1: 40, 3: 40} and mixed >= 13      # classes come mixed without any shuffling


def test_a_copied_dataset_is_whole(tmp_path: Path) -> None:
    """Nothing in a version names where it lies: a copy verifies and reads as well."""
    run = small_run(str(tmp_path / "a"), format="png")
    run.finish()
    shutil.copytree(tmp_path / "a" / "small", tmp_path / "b" / "other name")
    assert verify(str(tmp_path / "b" / "other name"), deep=True, orphans=True)["orphans"] == []
    assert Store(str(tmp_path / "b" / "other name")).get_json(keys.LATEST)["manifest"].startswith("versions/")

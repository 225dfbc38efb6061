"""Formats: read back by the tools that people use, pixel by pixel; the same rows give the same bytes."""

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from sklearn.datasets import load_digits

from pipeline import seeds
from pipeline.shards import ShardRows, encode
from pipeline.shards.parquet import file_bytes
from pipeline.shards.png import text_chunks, with_chunks
from pipeline.shards.png_encoding import encode_pngs
from tests.pipeline.small import paint

FORMATS = ["parquet", "png", "webdataset"]
CLASSES = ["cat", "größe/2", "dog"]


def some_rows(n: int = 23, channels: int = 3, scores: bool = True) -> ShardRows:
    """Rows with random labels."""
    latents = seeds.row_seeds(0, 0, 0, n)
    labels = latents % 3
    given = {"confidence": np.linspace(0.5, 1, n).astype(np.float32)} if scores else {}
    images = paint(labels, latents)[:, :channels]
    return ShardRows(images, labels, seeds.uids(0, 0, 0, n), latents, CLASSES, given, "ab" * 32)


def pixels(png: bytes) -> np.ndarray:
    """(C, H, W) as Pillow reads it."""
    image = np.asarray(Image.open(io.BytesIO(png)))
    return image[None] if image.ndim == 2 else image.transpose(2, 0, 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1, 8, 28, 256])
def test_png_is_lossless(channels: int, size: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, channels, size, size), dtype=np.uint8)
    ramp = np.arange(size * size * channels, dtype=np.uint64).reshape(1, channels, size, size).astype(np.uint8)
    images = np.concatenate([noise, ramp, np.zeros_like(ramp), np.full_like(ramp, 255), ramp.transpose(0, 1, 3, 2)])
    for image, png in zip(images, encode_pngs(images)):
        assert (pixels(png) == image).all()
        assert Image.open(io.BytesIO(png)).mode == ("L" if channels == 1 else "RGB")
        assert (pixels(with_chunks(png, text_chunks({"synthetic": "true"}))) == image).all()
        Image.open(io.BytesIO(png)).verify()


@given(arrays(np.uint8, st.tuples(st.integers(1, 3), st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9))))
def test_png_is_lossless_for_any_pixels_and_readers(images: np.ndarray) -> None:
    for image, png in zip(images, encode_pngs(images)):
        by_opencv = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
        by_opencv = by_opencv[None] if len(image) == 1 else by_opencv.transpose(2, 0, 1)[::-1]
        assert (by_opencv == image).all() and (pixels(png) == image).all()


def test_png_is_no_larger_than_opencvs() -> None:
    scenes = load_digits().images[:200] * 15.9
    images = np.stack([cv2.resize(s, (32, 32), interpolation=cv2.INTER_LINEAR).astype(np.uint8)[None] for s in scenes])
    ours = sum(map(len, encode_pngs(images)))
    theirs = sum(len(cv2.imencode(".png", image[0], [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]) for image in images)
    assert ours < 1.1 * theirs


def test_batches_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    images = some_rows(50).images
    whole = encode_pngs(images)
    monkeypatch.setattr("pipeline.shards.png_encoding._BATCH_BYTES", 7 * images[0].size)
    assert encode_pngs(images) == whole


@pytest.mark.parametrize("format_name", FORMATS)
def test_the_same_rows_give_the_same_bytes(format_name: str) -> None:
    assert encode(format_name, some_rows(), 3, 9) == encode(format_name, some_rows(), 3, 9)
    assert encode(format_name, some_rows(), 3, 9) != encode(format_name, some_rows(22), 3, 9)


def test_parquet_as_promised() -> None:
    rows = some_rows()
    [shard] = encode("parquet", rows, 3, 9).objects
    assert shard.key == f"data/train-00003-of-00009-{hashlib.sha256(shard.data).hexdigest()[:8]}.parquet"
    file = pq.ParquetFile(io.BytesIO(shard.data))
    assert file.schema_arrow.names == ["image", "label", "uid", "seed", "confidence", "synthetic"]
    assert str(file.schema_arrow.field("image").type) == "struct<bytes: binary, path: string>"
    group = file.metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    for name in ("image.bytes", "image.path"):
        assert columns[name].compression == "UNCOMPRESSED" and not columns[name].has_dictionary_page
        assert "PLAIN" in columns[name].encodings
    assert {columns[name].compression for name in ("label", "uid", "seed", "confidence", "synthetic")} == {"ZSTD"}
    assert all(column.has_column_index and column.has_offset_index for column in columns.values())
    table = file.read()
    assert table.column("uid").to_pylist() == rows.uids and table.column("seed").to_pylist() == rows.seeds.tolist()
    assert table.column("label").to_pylist() == rows.labels.tolist()
    assert set(table.column("synthetic").to_pylist()) == {True}
    assert np.allclose(table.column("confidence").to_numpy(), rows.scores["confidence"])
    for i, image in enumerate(table.column("image").to_pylist()):
        assert image["path"] == f"{rows.uids[i]}.png" and (pixels(image["bytes"]) == rows.images[i]).all()


def test_parquet_row_groups_stay_below_their_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.shards.parquet.MAX_ROW_GROUP_BYTES", 2000)
    metadata = pq.ParquetFile(io.BytesIO(file_bytes(some_rows(100)))).metadata
    assert metadata.num_row_groups > 5 and metadata.num_rows == 100


@pytest.mark.parametrize("channels", [1, 3])
def test_parquet_in_hugging_face_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    rows = some_rows(channels=channels)
    (tmp_path / "x.parquet").write_bytes(encode("parquet", rows, 0, 1).objects[0].data)
    files = str(tmp_path / "*.parquet")
    read = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
    assert read.features["label"].names == CLASSES and len(read) == len(rows)
    for i, row in enumerate(read):
        image = np.asarray(row["image"])
        assert ((image[None] if channels == 1 else image.transpose(2, 0, 1)) == rows.images[i]).all()
        assert (row["label"], row["uid"], row["seed"]) == (rows.labels[i], rows.uids[i], rows.seeds[i])


def test_parquet_in_polars_and_pandas() -> None:
    polars = pytest.importorskip("polars")
    rows = some_rows()
    data = encode("parquet", rows, 0, 1).objects[0].data
    frame = polars.read_parquet(io.BytesIO(data))
    assert (pixels(frame["image"][5]["bytes"]) == rows.images[5]).all()
    assert frame["label"].to_list() == rows.labels.tolist()
    table = pq.read_table(io.BytesIO(data)).to_pandas()
    assert (pixels(table["image"][5]["bytes"]) == rows.images[5]).all() and table["synthetic"].all()


def test_png_files_say_that_they_are_synthetic() -> None:
    rows = some_rows()
    encoded = encode("png", rows, 0, 1)
    lines = [json.loads(line) for line in encoded.metadata.decode().splitlines()]
    assert len(encoded.objects) == len(lines) == len(rows)
    for i, (file, line) in enumerate(zip(encoded.objects, lines)):
        assert file.key == f"data/{['cat', 'größe%2F2', 'dog'][rows.labels[i]]}/{rows.uids[i]}.png"
        assert f"data/{line.pop('file_name')}" == file.key
        assert line == {"label": rows.labels[i], "uid": rows.uids[i], "seed": rows.seeds[i], "synthetic": True,
                        "confidence": pytest.approx(rows.scores["confidence"][i])}
        Image.open(io.BytesIO(file.data)).verify()   # checksums of all chunks
        text = Image.open(io.BytesIO(file.data)).text  # type: ignore[attr-defined]
        assert text == {"synthetic": "true", "generator": f"ganmill {'ab' * 32}", "uid": rows.uids[i]}
        assert (pixels(file.data) == rows.images[i]).all()


def test_tar_is_a_plain_tar() -> None:
    rows = some_rows()
    [shard] = encode("webdataset", rows, 3, 9).objects
    assert shard.key == f"data/train-00003-{hashlib.sha256(shard.data).hexdigest()[:8]}.tar"
    with tarfile.open(fileobj=io.BytesIO(shard.data), mode="r:") as tar:
        members = tar.getmembers()
        assert [m.name for m in members] == [f"{u}.{kind}" for u in rows.uids for kind in ("png", "cls", "json")]
        assert {(m.mtime, m.uid, m.gid, m.mode, m.uname) for m in members} == {(0, 0, 0, 0o644, "")}
        content = {m.name: tar.extractfile(m).read() for m in members}      # type: ignore[union-attr]
    for i, uid in enumerate(rows.uids):
        assert (pixels(content[f"{uid}.png"]) == rows.images[i]).all()
        assert content[f"{uid}.cls"] == b"%d" % rows.labels[i]
        told: dict[str, Any] = json.loads(content[f"{uid}.json"])
        assert told["class_name"] == CLASSES[rows.labels[i]] and told["uid"] == uid and told["synthetic"] is True


def test_tar_in_webdataset(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    rows = some_rows()
    (tmp_path / "x.tar").write_bytes(encode("webdataset", rows, 0, 1).objects[0].data)
    tar = webdataset.WebDataset(str(tmp_path / "x.tar"), shardshuffle=False)
    read = list(tar.decode("pil").to_tuple("png", "cls", "json"))
    assert [(label, told["uid"]) for _, label, told in read] == list(zip(rows.labels.tolist(), rows.uids))
    assert all((np.asarray(image).transpose(2, 0, 1) == rows.images[i]).all() for i, (image, _, _) in enumerate(read))

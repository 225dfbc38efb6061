"""From a version's objects back to rows: what `verify --deep` and a training job's feed read with."""

import io
import itertools
import json
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np

Row = tuple[int, str, bytes | None]                  # label, uid, PNG (None: in a file of its own, or no image at all)


def rows_of(format_name: str, data: bytes) -> Iterator[Row]:
    """The rows of a Parquet shard, a tar shard, or (`png`) the lines of metadata.jsonl.

    Raises:
        ValueError, KeyError, TypeError, IndexError, OSError: the object is not what such a shard is.
    """
    return {"parquet": _parquet_rows, "webdataset": _tar_rows, "png": _metadata_rows}[format_name](data)


def decode(png: bytes, channels: int) -> np.ndarray:
    """A PNG as uint8 (C, H, W), C = 1 grey or 3 RGB.

    Raises:
        ValueError: it can't be decoded.
    """
    import cv2

    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise ValueError("no image that can be decoded")
    return image[None] if channels == 1 else np.ascontiguousarray(image.transpose(2, 0, 1))


def _parquet_rows(data: bytes) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Without Arrow's threads, which `read_table` would start: still there when the interpreter ends, they abort it at times.
    table = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False)
    if "image" in table.column_names:
        images: Iterator[bytes | None] = (value.as_py() for value in table.column("image").combine_chunks().field("bytes"))
    else:
        _check_points(table)
        images = itertools.repeat(None)
    if not all(value.as_py() for value in table.column("synthetic")):
        raise ValueError("a row is not marked synthetic")
    yield from zip(table.column("label").to_pylist(), table.column("uid").to_pylist(), images)


def _check_points(table: Any) -> None:
    """Rows without an image are points: two finite numbers each."""
    for name in ("x", "y"):
        if not np.isfinite(table.column(name).to_numpy()).all():
            raise ValueError(f"a point's {name} is not finite")


def _tar_rows(data: bytes) -> Iterator[Row]:
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    except tarfile.TarError as e:
        raise ValueError(str(e)) from e
    for name, content in members.items():
        if name.endswith(".json"):
            row = json.loads(content)
            uid = name.removesuffix(".json")
            if row["uid"] != uid or int(members[f"{uid}.cls"]) != row["label"] or row["synthetic"] is not True:
                raise ValueError(f"the parts of row {uid} contradict each other")
            yield row["label"], uid, members[f"{uid}.png"]


def _metadata_rows(data: bytes) -> Iterator[Row]:
    for line in data.decode().splitlines():
        row = json.loads(line)
        if not row["file_name"].endswith(f"/{row['uid']}.png") or row["synthetic"] is not True:
            raise ValueError(f"line of {row['file_name']} contradicts itself")
        yield row["label"], row["uid"], None

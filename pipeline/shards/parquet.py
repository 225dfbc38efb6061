"""Parquet that Hugging Face `datasets` reads as decoded images and class names, with no code of ours.

Points on the plane, rows of shape (2,), have columns x and y in the image's place.
"""

import hashlib
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import keys
from pipeline.shards import EncodedShard, ShardObject, ShardRows
from pipeline.shards.png_encoding import encode_pngs

MAX_ROW_GROUP_BYTES = 100 * 2**20
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def schema(rows: ShardRows) -> pa.Schema:
    """Columns of a shard, with Hugging Face's features in the metadata."""
    scores = [pa.field(name, pa.float32()) for name in rows.scores]
    points = rows.images.ndim == 2
    content = [pa.field("x", pa.float32()), pa.field("y", pa.float32())] if points else [pa.field("image", _IMAGE)]
    told_content: dict[str, Any] = {name: {"dtype": "float32", "_type": "Value"} for name in ("x", "y")} if points else {
        "image": {"_type": "Image"}}
    fields = [*content, pa.field("label", pa.int64()), pa.field("uid", pa.string()),
              pa.field("seed", pa.int64()), *scores, pa.field("synthetic", pa.bool_())]
    features: dict[str, Any] = {
        **told_content, "label": {"names": list(rows.classes), "_type": "ClassLabel"},
        "uid": {"dtype": "string", "_type": "Value"}, "seed": {"dtype": "int64", "_type": "Value"},
        **{name: {"dtype": "float32", "_type": "Value"} for name in rows.scores},
        "synthetic": {"dtype": "bool", "_type": "Value"},
    }
    told = {"huggingface": json.dumps({"info": {"features": features}}), "ganmill.synthetic": "true",
            "ganmill.generator": rows.generator}
    return pa.schema(fields, metadata=told)


def encode(rows: ShardRows, index: int, of: int) -> EncodedShard:
    """One Parquet file; its name ends in the first eight hex digits of its sha256."""
    data = file_bytes(rows)
    return EncodedShard((ShardObject(keys.parquet_shard(index, of, hashlib.sha256(data).hexdigest()), data),))


def file_bytes(rows: ShardRows) -> bytes:
    """The rows as a Parquet file.

    PNG doesn't shrink further, so the image column is plain: no compression, no dictionary; readers then map it.
    """
    content, size = _content(rows)
    columns: dict[str, Any] = {
        **content,
        "label": pa.array(rows.labels, pa.int64()), "uid": pa.array(rows.uids, pa.string()),
        "seed": pa.array(rows.seeds, pa.int64()),
        **{name: pa.array(values, pa.float32()) for name, values in rows.scores.items()},
        "synthetic": pa.repeat(True, len(rows)),
    }
    names = schema(rows)
    table = pa.Table.from_arrays([columns[name] for name in names.names], schema=names)
    zstd = {name: "zstd" for name in names.names if name != "image"}
    plain = {"image.bytes": "none", "image.path": "none"} if "image" in columns else {}
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, compression={**zstd, **plain}, use_dictionary=["label"],
        column_encoding=None, write_page_index=True,
        row_group_size=max(1, len(rows) * MAX_ROW_GROUP_BYTES // max(1, size)),
    )
    return sink.getvalue().to_pybytes()


def _content(rows: ShardRows) -> tuple[dict[str, Any], int]:
    """(columns that hold the images or points, their bytes)."""
    if rows.images.ndim == 2:
        return {"x": pa.array(rows.images[:, 0], pa.float32()), "y": pa.array(rows.images[:, 1], pa.float32())}, rows.images.nbytes
    pngs = encode_pngs(rows.images)
    images = pa.StructArray.from_arrays(
        [pa.array(pngs, pa.binary()), pa.array([f"{uid}.png" for uid in rows.uids])], fields=list(_IMAGE)
    )
    return {"image": images}, sum(map(len, pngs))

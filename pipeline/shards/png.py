"""Plain PNG files, a folder a class: readable by torchvision, Keras and Hugging Face as an image folder."""

import json

from pipeline import keys
from pipeline.shards import EncodedShard, ShardObject, ShardRows
from pipeline.shards.png_encoding import chunk, encode_pngs

_HEADER_BYTES = 33                                   # signature 8, then IHDR: length 4, name 4, content 13, CRC 4
_json = json.JSONEncoder(ensure_ascii=False).encode  # `json.dumps` would make an encoder a line


def encode(rows: ShardRows, index: int, of: int) -> EncodedShard:
    """One object an image, `data/<class>/<uid>.png`, and its line for `metadata.jsonl`."""
    objects, lines = [], []
    constant = text_chunks({"synthetic": "true", "generator": f"ganmill {rows.generator}"})
    for i, (uid, png) in enumerate(zip(rows.uids, encode_pngs(rows.images))):
        key = keys.image(rows.classes[int(rows.labels[i])], uid)
        objects.append(ShardObject(key, with_chunks(png, constant + text_chunks({"uid": uid}))))
        line = {"file_name": key.removeprefix(f"{keys.DATA}/"), **rows.record(i)}
        lines.append(_json(line) + "\n")
    return EncodedShard(tuple(objects), "".join(lines).encode())


def text_chunks(text: dict[str, str]) -> bytes:
    """tEXt chunks (PNG specification, section 11.3.4.3).

    Args:
        text: keyword (1 to 79 Latin-1 characters) → value (Latin-1).
    """
    return b"".join(chunk(b"tEXt", k.encode("latin-1") + b"\0" + v.encode("latin-1")) for k, v in text.items())


def with_chunks(png: bytes, chunks: bytes) -> bytes:
    """`png` with `chunks` behind its header; no pixel is touched."""
    return png[:_HEADER_BYTES] + chunks + png[_HEADER_BYTES:]

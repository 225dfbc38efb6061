"""Plain PNG files, a folder a class: readable by torchvision, Keras and Hugging Face as an image folder."""

import json

from pipeline import keys
from pipeline.shards import EncodedShard, ShardObject, ShardRows
from pipeline.shards.png_encoding import chunk, encode_pngs

_HEADER_BYTES = 33                                   # signature 8, then IHDR: length 4, name 4, content 13, CRC 4


def encode(rows: ShardRows, index: int, of: int) -> EncodedShard:
    """One object an image, `data/<class>/<uid>.png`, and its line for `metadata.jsonl`."""
    objects, lines = [], []
    for i, (uid, png) in enumerate(zip(rows.uids, encode_pngs(rows.images))):
        key = keys.image(rows.classes[int(rows.labels[i])], uid)
        text = {"synthetic": "true", "generator": f"ganmill {rows.generator}", "uid": uid}
        objects.append(ShardObject(key, with_text(png, text)))
        line = {"file_name": key.removeprefix(f"{keys.DATA}/"), **rows.record(i)}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    return EncodedShard(tuple(objects), "".join(lines).encode())


def with_text(png: bytes, text: dict[str, str]) -> bytes:
    """`png` with `text` as tEXt chunks behind its header (PNG specification, section 11.3.4.3); no pixel is touched.

    Args:
        text: keyword (1 to 79 Latin-1 characters) → value (Latin-1).
    """
    chunks = b"".join(chunk(b"tEXt", k.encode("latin-1") + b"\0" + v.encode("latin-1")) for k, v in text.items())
    return png[:_HEADER_BYTES] + chunks + png[_HEADER_BYTES:]

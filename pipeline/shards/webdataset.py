"""WebDataset tars: `uid.png`, `uid.cls`, `uid.json` a row."""

import hashlib
import json

from pipeline import keys
from pipeline.shards import EncodedShard, ShardObject, ShardRows, encode_png

_BLOCK = 512


def encode(rows: ShardRows, index: int, of: int) -> EncodedShard:
    """One tar."""
    parts = []
    for i, uid in enumerate(rows.uids):
        record = {"class_name": rows.classes[int(rows.labels[i])], **rows.record(i)}
        parts.append(_member(f"{uid}.png", encode_png(rows.images[i])))
        parts.append(_member(f"{uid}.cls", b"%d" % rows.labels[i]))
        parts.append(_member(f"{uid}.json", json.dumps(record).encode()))
    data = b"".join(parts) + b"\0" * (2 * _BLOCK)    # two empty blocks end a tar
    return EncodedShard((ShardObject(keys.tar_shard(index, hashlib.sha256(data).hexdigest()), data),))


def _member(name: str, content: bytes) -> bytes:
    """A regular file in ustar form (POSIX.1-1988): no owner, no time, so the same content gives the same bytes."""
    head = bytearray(_BLOCK)
    fields = {0: name.encode(), 100: b"0000644", 108: b"0000000", 116: b"0000000", 124: b"%011o" % len(content),
              136: b"00000000000", 148: b" " * 8, 156: b"0", 257: b"ustar\x0000"}
    for at, value in fields.items():
        head[at:at + len(value)] = value
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + content + b"\0" * (-len(content) % _BLOCK)

"""WebDataset tars: `uid.png`, `uid.cls`, `uid.json` a row."""

import hashlib
import json

from pipeline import keys
from pipeline.shards import EncodedShard, ShardObject, ShardRows
from pipeline.shards.png_encoding import encode_pngs

_BLOCK = 512
_OWNER = b"0000644\x000000000\x000000000\0"          # mode, user, group
_TIME = b"00000000000\0"
_REST = (b"0" + bytes(100) + b"ustar\x0000").ljust(_BLOCK - 156, b"\0")   # regular file, no link, version
_CONSTANT_SUM = sum(_OWNER) + sum(_TIME) + 8 * ord(" ") + sum(_REST)     # the checksum itself counts as spaces


def encode(rows: ShardRows, index: int, of: int) -> EncodedShard:
    """One tar."""
    parts = []
    for i, (uid, png) in enumerate(zip(rows.uids, encode_pngs(rows.images))):
        record = {"class_name": rows.classes[int(rows.labels[i])], **rows.record(i)}
        parts.append(_member(f"{uid}.png", png))
        parts.append(_member(f"{uid}.cls", b"%d" % rows.labels[i]))
        parts.append(_member(f"{uid}.json", json.dumps(record).encode()))
    data = b"".join(parts) + b"\0" * (2 * _BLOCK)    # two empty blocks end a tar
    return EncodedShard((ShardObject(keys.tar_shard(index, hashlib.sha256(data).hexdigest()), data),))


def _member(name: str, content: bytes) -> bytes:
    """A regular file in ustar form (POSIX.1-1988): no owner, no time, so the same content gives the same bytes."""
    title, size = name.encode(), b"%011o\0" % len(content)
    checksum = b"%06o\0 " % (_CONSTANT_SUM + sum(title) + sum(size))
    return b"".join((title.ljust(100, b"\0"), _OWNER, size, _TIME, checksum, _REST, content, bytes(-len(content) % _BLOCK)))

"""From a shard's rows to the objects that hold them: `parquet`, `png` files, `webdataset` tars.

Each format is one file with one function. The same rows give the same bytes. The mark that says "synthetic" is
metadata, never pixels: a mark in the pixels would be a shortcut for the classifier.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ShardRows:
    """The rows of one shard, in the order in which they are written."""

    images: np.ndarray                               # uint8 (n, C, H, W), C = 1 grey or 3 RGB; or points float32 (n, 2)
    labels: np.ndarray                               # int64 (n,)
    uids: Sequence[str]
    seeds: np.ndarray                                # int64 (n,), latent seed of the accepted draw
    classes: Sequence[str]                           # the source's names in the source's numbering
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)   # the filter's, float32 (n,) each
    generator: str = ""                              # sha256 of the checkpoint

    def __len__(self) -> int:
        return len(self.labels)

    def record(self, i: int) -> dict[str, Any]:
        """What is known of row `i` beside its pixels, in the order of the columns."""
        row: dict[str, Any] = {"label": int(self.labels[i]), "uid": self.uids[i], "seed": int(self.seeds[i])}
        row.update({name: float(values[i]) for name, values in self.scores.items()})
        row["synthetic"] = True
        return row


@dataclass(frozen=True)
class ShardObject:
    """One object to put, under a key in the version's folder."""

    key: str
    data: bytes


@dataclass(frozen=True)
class EncodedShard:
    """A shard as it goes to the store."""

    objects: tuple[ShardObject, ...]                 # one, or for `png` one an image
    metadata: bytes = b""                            # `png`: the shard's lines of metadata.jsonl


def encode(format_name: str, rows: ShardRows, index: int, of: int) -> EncodedShard:
    """Encodes shard `index` of `of`.

    Args:
        format_name: parquet | png | webdataset.
    """
    writer = importlib.import_module(f"pipeline.shards.{format_name}")
    encoded: EncodedShard = writer.encode(rows, index, of)
    return encoded

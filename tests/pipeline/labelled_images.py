"""Small labelled images on disk, in every format that a source can have."""

import gzip
import io
import json
import struct
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.config import Config, parse_config


def glyphs(
    count: int, classes: int = 3, size: int = 8, seed: int = 0, colour: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (count, size, size[, 3]) all different, and int64 labels 0, 1, …, 0, 1, …"""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, size, size, 3) if colour else (count, size, size), dtype=np.uint8)
    return images, np.arange(count, dtype=np.int64) % classes


def encode(image: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """One image as a file's content."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def config(source: Mapping[str, Any], seed: int = 0, **prepare: Any) -> Config:
    """A config with this source; 8 px grey unless said otherwise."""
    return parse_config({"name": "t", "seed": seed, "source": dict(source), "prepare": {"resolution": 8, **prepare}})


def write_folder(
    root: Path, images: np.ndarray, labels: np.ndarray, names: Sequence[str] = "abc", start: int = 0
) -> Path:
    """`<root>/<class>/<number>.png`."""
    for i, (image, label) in enumerate(zip(images, labels.tolist())):
        folder = root / names[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{start + i:04d}.png").write_bytes(encode(image))
    return root


def idx_bytes(array: np.ndarray) -> bytes:
    """uint8 (N,) or (N, H, W) as IDX."""
    return struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_idx(
    root: Path, images: np.ndarray, labels: np.ndarray, part: str = "train", dash: str = "-", gz: bool = False
) -> Path:
    """The pair of files that MNIST has."""
    root.mkdir(parents=True, exist_ok=True)
    for name, array in ((f"{part}-images{dash}idx3-ubyte", images), (f"{part}-labels{dash}idx1-ubyte", labels)):
        data = idx_bytes(array)
        (root / (name + (".gz" if gz else ""))).write_bytes(gzip.compress(data) if gz else data)
    return root


def write_parquet(
    file: Path,
    images: Sequence[bytes | None],
    labels: Sequence[Any],
    names: Sequence[str] | None = None,
    plain: bool = False,
    columns: tuple[str, str] = ("image", "label"),
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """As `datasets` writes it; `names` go into the schema's metadata, `plain` makes the image a binary column."""
    file.parent.mkdir(parents=True, exist_ok=True)
    column = (
        pa.array(images, pa.binary())
        if plain
        else pa.array(
            [None if image is None else {"bytes": image, "path": None} for image in images],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        )
    )
    kind = pa.string() if any(isinstance(label, str) for label in labels) else pa.int64()
    table = pa.table({columns[0]: column, columns[1]: pa.array(labels, kind), **(extra or {})})
    features: dict[str, Any] = {columns[0]: {"_type": "Image"}}
    if names is not None:
        features[columns[1]] = {"_type": "ClassLabel", "names": list(names)}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, file, row_group_size=7)
    return file


def write_tar(file: Path, samples: Sequence[tuple[str, Mapping[str, bytes]]]) -> Path:
    """(key, {extension: content}) in that order."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for key, members in samples:
            for extension, content in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return file


def folder_with(root: Path, counts: dict[str, int], at: str = "") -> dict[str, Any]:
    images, _ = glyphs(sum(counts.values()))
    first = 0
    for name, count in counts.items():
        (root / at / name).mkdir(parents=True, exist_ok=True)
        for i in range(first, first + count):
            (root / at / name / f"{i}.png").write_bytes(encode(images[i]))
        first += count
    return {"format": "imagefolder", "url": str(root)}

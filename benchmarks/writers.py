"""Our writers beside those that people use, on the same arrays, one thread each, in turn: images a second from array to disk.

    python benchmarks/writers.py [--rows 20000] [--img2dataset PYTHON] [--folder FOLDER]

PYTHON is the interpreter of a virtual environment that has img2dataset (`pip install img2dataset`; it pins other versions than
ganmill, so it gets an environment of its own). Its writers take encoded images; the encoder before them is the one that its
resizer uses, OpenCV, at level 1, the fastest. Ours put whole shards of 1,000 rows through the store, `fsync` included; nobody
else waits for the disk. The last line is what making a file costs here without any image in it: no writer of single files can be
faster. Nothing is deleted before the end, for the reason given in `sampling.py`.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from datasets.arrow_writer import ParquetWriter
from datasets.features import ClassLabel, Features, Value
from datasets.features import Image as ImageFeature
from machine import machine
from PIL import Image
from sklearn.datasets import load_digits

from pipeline import seeds
from pipeline.shards import ShardRows, encode
from pipeline.store import Store

CLASSES = tuple("0123456789")
SHARD = 1000
FORMATS = ("parquet", "webdataset", "png")
THEIRS = '''
import json, sys, time
import cv2, numpy as np, pyarrow as pa
cv2.setNumThreads(1)
from img2dataset import writer
arrays, labels, uids, folder, kind = np.load(sys.argv[1]), np.load(sys.argv[2]), json.load(open(sys.argv[3])), sys.argv[4], sys.argv[5]
make = {"parquet": writer.ParquetSampleWriter, "webdataset": writer.WebDatasetSampleWriter, "png": writer.FilesSampleWriter}[kind]
schema = pa.schema([("key", pa.string()), ("label", pa.int64()), ("uid", pa.string()), ("synthetic", pa.bool_())])
def write(first, end):
    out = make(first // 1000, folder, False, 5, schema, "png")
    for i in range(first, end):
        encoded = cv2.imencode(".png", arrays[i], [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
        out.write(encoded, "%09d" % i, None, {"key": "%09d" % i, "label": int(labels[i]), "uid": uids[i], "synthetic": True})
    out.close()
began = time.perf_counter()
for first in range(0, len(arrays), 1000):
    write(first, min(first + 1000, len(arrays)))
print(len(arrays) / (time.perf_counter() - began))
'''


def arrays(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (n, 32, 32) and labels: scanned digits, each with its own faint noise, so that they shrink as a GAN's images do."""
    digits = load_digits()
    which = np.arange(rows) % len(digits.images)
    scenes = np.stack([cv2.resize(image * 15.9, (32, 32)) for image in digits.images])
    noise = np.random.default_rng(0).normal(0, 2, (rows, 32, 32))
    return np.clip(scenes[which] + noise, 0, 255).astype(np.uint8), digits.target[which].astype(np.int64)


def ours(images: np.ndarray, labels: np.ndarray, uids: list[str], folder: Path, format_name: str) -> None:
    """As `pipeline.mint` encodes and puts."""
    store, latents = Store(str(folder)), np.arange(len(labels))
    for first in range(0, len(labels), SHARD):
        part = slice(first, first + SHARD)
        rows = ShardRows(images[part, None], labels[part], uids[part], latents[part], CLASSES)
        encoded = encode(format_name, rows, first // SHARD, -(-len(labels) // SHARD))
        if encoded.metadata:
            store.put_all_if_absent([(o.key, o.data) for o in encoded.objects])
            store.put(f"metadata/{first}.jsonl", encoded.metadata)
        else:
            store.put(encoded.objects[0].key, encoded.objects[0].data)


def hugging_face(images: np.ndarray, labels: np.ndarray, uids: list[str], folder: Path) -> None:
    """`datasets`' Parquet writer, a file a shard, given PIL images as its users give them."""
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=list(CLASSES)), "uid": Value("string"),
                         "synthetic": Value("bool")})
    for first in range(0, len(labels), SHARD):
        part = slice(first, first + SHARD)
        with ParquetWriter(features=features, path=str(folder / f"{first}.parquet")) as writer:
            writer.write_batch({"image": [Image.fromarray(image) for image in images[part]], "label": labels[part].tolist(),
                                "uid": uids[part], "synthetic": [True] * len(uids[part])})
            writer.finalize()


def naive(images: np.ndarray, labels: np.ndarray, uids: list[str], folder: Path) -> None:
    """What most scripts do: one `Image.save` after the other, a folder a class."""
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    for image, label, uid in zip(images, labels, uids):
        Image.fromarray(image).save(folder / CLASSES[label] / f"{uid}.png")


def img2dataset(python: str, kind: str) -> Callable[[np.ndarray, np.ndarray, list[str], Path], float]:
    """Its writer of this kind, in its own environment; start-up is left out."""
    def work(images: np.ndarray, labels: np.ndarray, uids: list[str], folder: Path) -> float:
        np.save(folder / "images.npy", images)
        np.save(folder / "labels.npy", labels)
        (folder / "uids.json").write_text(json.dumps(uids))
        (folder / "out").mkdir()
        call = [python, "-c", THEIRS, *(str(folder / n) for n in ("images.npy", "labels.npy", "uids.json", "out")), kind]
        environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
        return float(subprocess.run(call, check=True, capture_output=True, text=True, env=environment).stdout.split()[-1])

    return work


def files_alone(images: np.ndarray, labels: np.ndarray, uids: list[str], folder: Path) -> None:
    """A file an image, of an image's size, with nothing in it but zeros."""
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    content = bytes(750)
    for label, uid in zip(labels, uids):
        file = os.open(f"{folder}/{CLASSES[label]}/{uid}.png", os.O_WRONLY | os.O_CREAT)
        os.write(file, content)
        os.close(file)


def rate(
    work: Callable[..., float | None], images: np.ndarray, labels: np.ndarray, uids: list[str], everything: str
) -> float:
    """Images a second, into a new folder."""
    folder = Path(tempfile.mkdtemp(dir=everything))
    began = time.perf_counter()
    told = work(images, labels, uids, folder)
    return told if told is not None else len(labels) / (time.perf_counter() - began)


def measure(works: dict[str, Callable[..., float | None]], rows: int, rounds: int, folder: str | None) -> dict[str, list[float]]:
    """Name → images a second in each round, all in turn."""
    images, labels = arrays(rows)
    uids = seeds.uids(0, 0, 0, rows)
    rates: dict[str, list[float]] = {name: [] for name in works}
    with tempfile.TemporaryDirectory(dir=folder) as everything:
        for work in works.values():                  # imports, the disk's cache
            rate(work, images[:200], labels[:200], uids[:200], everything)
        for _ in range(rounds):
            for name, work in works.items():
                rates[name].append(rate(work, images, labels, uids, everything))
    return rates


def main() -> None:
    """Medians of rounds in turn, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--img2dataset", metavar="PYTHON", help="an interpreter that has it; left out when not given")
    parser.add_argument("--folder", help="on the disk to write to; the system's temporary folder by default")
    arguments = parser.parse_args()
    print(machine())
    cv2.setNumThreads(1)
    works: dict[str, Callable[..., float | None]] = {
        **{f"ganmill {name}": (lambda *a, name=name: ours(*a, name)) for name in FORMATS},
        "datasets parquet": hugging_face, "naive Pillow loop, png": naive, "files alone": files_alone,
    }
    if arguments.img2dataset:
        works |= {f"img2dataset {kind}": img2dataset(arguments.img2dataset, kind) for kind in FORMATS}
    else:
        print("img2dataset left out: give --img2dataset an interpreter that has it")
    rates = measure(works, arguments.rows, arguments.rounds, arguments.folder)
    for name, found in rates.items():
        print(f"{name:24} {statistics.median(found):9,.0f} images/s ({min(found):,.0f} … {max(found):,.0f})")
    for kind, other in (("parquet", "datasets parquet"), *((kind, "naive Pillow loop, png") for kind in FORMATS),
                        *((kind, f"img2dataset {kind}") for kind in FORMATS)):
        if other in rates:
            print(f"ganmill {kind} / {other}: {statistics.median(rates[f'ganmill {kind}']) / statistics.median(rates[other]):.2f}")


if __name__ == "__main__":
    main()

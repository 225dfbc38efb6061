"""How fast each source format is listed, inspected and prepared: rows/s and seconds, whole process and peak memory.

    python benchmarks/sources.py [--mnist FOLDER_OF_IDX_FILES] [--cifar FOLDER_OF_PARQUET] [--rows 20000]

Without folders, images of 28 px (grey) and 32 px (colour) are made up, smooth enough to be compressed like photographs.
"""

import argparse
import io
import json
import multiprocessing
import struct
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine
from PIL import Image


def images(rows: int, size: int, colour: bool) -> np.ndarray:
    """uint8 (rows, size, size[, 3]): coarse noise enlarged, all different."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (rows, 6, 6, 3) if colour else (rows, 6, 6), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(c).resize((size, size), Image.Resampling.BICUBIC)) for c in coarse])


def encoded(image: np.ndarray, kind: str) -> bytes:
    """The image as a file's content."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def write_idx(root: Path, rows: int) -> None:
    """MNIST's pair of files."""
    pixels, labels = images(rows, 28, False), np.arange(rows, dtype=np.uint8) % 10
    for name, array in (("images-idx3", pixels), ("labels-idx1", labels)):
        head = struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape)
        (root / f"train-{name}-ubyte").write_bytes(head + array.tobytes())


def write_folder(root: Path, rows: int) -> None:
    """PNG files in ten class folders."""
    for i, image in enumerate(images(rows, 32, True)):
        (root / str(i % 10)).mkdir(exist_ok=True)
        (root / str(i % 10) / f"{i}.png").write_bytes(encoded(image, "PNG"))


def write_photos(root: Path, rows: int) -> None:
    """JPEG files of 1024 x 768."""
    for i, image in enumerate(images(max(rows // 100, 30), 768, True)):
        (root / str(i % 10)).mkdir(exist_ok=True)
        wide = np.pad(image, ((0, 0), (128, 128), (0, 0)), "edge")
        (root / str(i % 10) / f"{i}.jpg").write_bytes(encoded(wide, "JPEG"))


def write_parquet(root: Path, rows: int) -> None:
    """JPEG in Hugging Face's columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = pa.array([{"bytes": encoded(i, "JPEG"), "path": None} for i in images(rows, 32, True)])
    table = pa.table({"image": column, "label": pa.array(np.arange(rows) % 10)})
    pq.write_table(table, root / "train.parquet", row_group_size=1000)


def write_tar(root: Path, rows: int) -> None:
    """PNG in webdataset's shards."""
    with tarfile.open(root / "train.tar", "w") as tar:
        for i, image in enumerate(images(rows, 32, True)):
            for name, content in ((f"{i:06d}.png", encoded(image, "PNG")), (f"{i:06d}.cls", b"%d" % (i % 10))):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def measure(source: dict[str, Any], channels: str, out: Any) -> None:
    """In a process of its own: seconds to inspect (imports included) and to prepare, CPU seconds of that, peak MiB."""
    began = time.perf_counter()
    from pipeline.config import parse_config
    from pipeline.prepare import inspect, prepare
    from pipeline.progress import NullProgress
    from pipeline.store import Store

    config = parse_config({"name": "bench", "source": source, "prepare": {"channels": channels, "max_bad": 0}})
    summary = inspect(config)
    inspected = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = Store(folder)
        busy = time.process_time()
        snapshot = prepare(config, run, NullProgress())
        done, busy = time.perf_counter(), time.process_time() - busy
        assert prepare(config, run, NullProgress()) == snapshot
        again = time.perf_counter()
    rows = sum(sum(counts.values()) for counts in summary.source_rows.values())
    status = Path("/proc/self/status").read_text()               # getrusage would count the parent's peak too
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024
    out.put((rows, inspected - began, summary.estimated_seconds, done - inspected, busy, again - done, peak))


def main() -> None:
    """Prints a table and the same as JSON."""
    parser = argparse.ArgumentParser(description="Rows per second of each source format.")
    parser.add_argument("--mnist", help="folder with MNIST's four IDX files")
    parser.add_argument("--cifar", help="folder with CIFAR-10 as Hugging Face Parquet")
    parser.add_argument("--rows", type=int, default=20_000, help="made-up images a format (default 20000)")
    options = parser.parse_args()
    print(machine())
    print(f"{'source':28} {'rows':>7} {'inspect s':>10} {'estimate s':>11} {'prepare s':>10} {'rows/s':>8} {'CPU s':>6} "
          f"{'again s':>8} {'MiB':>5}")
    made = [
        ("idx 28 px", "idx", write_idx, "grey"), ("imagefolder PNG 32 px", "imagefolder", write_folder, "rgb"),
        ("imagefolder JPEG 1024 x 768", "imagefolder", write_photos, "rgb"),
        ("parquet JPEG 32 px", "parquet", write_parquet, "rgb"), ("webdataset PNG 32 px", "webdataset", write_tar, "rgb"),
    ]
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        jobs: list[tuple[str, dict[str, Any], str]] = [("digits 8 px", {"format": "digits"}, "grey")]
        for number, (name, format, write, channels) in enumerate(made):
            root = Path(folder) / str(number)
            root.mkdir()
            write(root, options.rows)
            jobs.append((name, {"format": format, "url": str(root)}, channels))
        for name, format, url, count, channels in (("MNIST", "idx", options.mnist, 100, "grey"),
                                                   ("CIFAR-10", "parquet", options.cifar, 500, "rgb")):
            if url:
                source = {"format": format, "url": url}
                jobs.append((f"{name}, {format}", source, channels))
                jobs.append((f"{name}, {count} a class", {**source, "subset": {"per_class": count}}, channels))
        context = multiprocessing.get_context("spawn")
        for name, source, channels in jobs:
            out = context.Queue()
            process = context.Process(target=measure, args=(source, channels, out))
            process.start()
            rows, inspected, estimate, seconds, busy, again, peak = out.get()
            process.join()
            results[name] = {"rows": rows, "inspect_s": inspected, "prepare_s": seconds, "cpu_s": busy, "again_s": again,
                             "peak_mib": peak}
            print(f"{name:28} {rows:7,} {inspected:10.2f} {estimate:11.1f} {seconds:10.2f} {rows / seconds:8,.0f} {busy:6.2f} "
                  f"{again:8.3f} {peak:5.0f}")
    print(json.dumps(results))


if __name__ == "__main__":
    main()

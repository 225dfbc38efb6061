"""Published versions in the tools that people read them with: class names, counts and pixels are compared."""

import io
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import keys
from pipeline.cluster import connected
from pipeline.config import parse_config
from tests.pipeline.small import CLASSES, paint, small_run

EACH = {"cat": 12, "größe/2": 12, "dog": 12}


def published(folder: Path, format_name: str) -> Path:
    """The folder of a version with twelve rows a class."""
    return Path(small_run(str(folder / "out"), format=format_name, target={"per_class": 12}).finish().url)


def painted(label: int, seed: int) -> np.ndarray:
    """uint8 (8, 8, 3), as the row was made."""
    image: np.ndarray = paint(np.array([label]), np.array([seed]))[0].transpose(1, 2, 0)
    return image


def pixels(png: bytes) -> np.ndarray:
    """uint8 (8, 8, 3)."""
    return np.asarray(Image.open(io.BytesIO(png)))


def test_webdataset_in_a_data_loader_with_workers(tmp_path: Path) -> None:
    webdataset, torch = pytest.importorskip("webdataset"), pytest.importorskip("torch")
    tars = sorted(str(path) for path in published(tmp_path, "webdataset").glob("data/*.tar"))
    assert len(tars) == 6
    read = webdataset.WebDataset(tars, shardshuffle=False, workersplitter=webdataset.split_by_worker)
    rows = read.decode("rgb8").to_tuple("png", "cls", "json")
    loader = torch.utils.data.DataLoader(rows, batch_size=None, num_workers=2, multiprocessing_context="fork")
    seen: Counter[str] = Counter()
    for image, label, told in loader:
        assert (np.asarray(image) == painted(label, told["seed"])).all() and told["class_name"] == CLASSES[label]
        seen[told["class_name"]] += 1
    assert seen == EACH


def test_png_in_an_image_folder_reader(tmp_path: Path) -> None:
    """scikit-learn's, which like torchvision's and Keras' knows nothing but a folder a class."""
    load_files = pytest.importorskip("sklearn.datasets").load_files
    read = load_files(published(tmp_path, "png") / "data", shuffle=False)
    names = [keys.class_of_folder(name) for name in read.target_names]
    assert Counter(names[target] for target in read.target) == EACH
    for data, target in zip(read.data, read.target):
        assert pixels(data)[0, 0, 0] == CLASSES.index(names[target])


@pytest.mark.parametrize("format_name", ["parquet", "png", "webdataset"])
def test_ganmill_reads_its_own_datasets(tmp_path: Path, format_name: str) -> None:
    """A published dataset is a source like any other."""
    from pipeline.sources import open_source

    kind = {"png": "imagefolder"}.get(format_name, format_name)
    at = published(tmp_path, format_name) / "data"
    source = open_source(parse_config({"name": "x", "source": {"format": kind, "url": str(at)}}).source, 0)
    counts = sum(source.census().rows.values(), np.zeros(len(source.classes), np.int64))
    assert counts.sum() == 36 and sorted(counts[counts > 0].tolist()) == [12, 12, 12]


READ_IT = """
import os, sys, threading
from pathlib import Path
import pyarrow.parquet as pq
from pipeline.config import parse_config
from pipeline.shards.reading import rows_of
from pipeline.sources import open_source

threads = lambda: len(os.listdir("/proc/self/task")) - threading.active_count()     # those that are not Python's
at, way = Path(sys.argv[1]), sys.argv[2]
data = sorted(at.glob("*.parquet"))[0].read_bytes()
before = threads()
if way == "shard":
    list(rows_of("parquet", data))
elif way == "source":
    source = open_source(parse_config({"name": "x", "source": {"format": "parquet", "url": str(at)}}).source, 0)
    source.census()
    list(source.items())
else:
    pq.read_table(sorted(at.glob("*.parquet"))[0])
print(threads() - before, flush=True)
os._exit(0)                                          # the very fault that this looks for
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_reading_leaves_no_thread_to_arrow(tmp_path: Path) -> None:
    """Such a thread may abort the interpreter when it ends: `verify` printed "ok" and left with SIGABRT, once in thirty times."""
    at = published(tmp_path, "parquet") / "data"

    def started(way: str) -> int:
        return int(subprocess.run([sys.executable, "-c", READ_IT, str(at), way], check=True, capture_output=True, text=True).stdout)

    assert started("pyarrow's own way") > 0           # what to look for
    assert started("shard") == started("source") == 0


@pytest.fixture(scope="module")
def ray_data() -> Iterator[Any]:
    """Ray Data on a local cluster."""
    pytest.importorskip("ray.data")
    with connected(parse_config({"name": "x", "source": {"format": "digits"}})):
        import ray

        ray.data.DataContext.get_current().enable_progress_bars = False
        yield ray.data


@pytest.mark.slow
def test_parquet_in_ray_data(tmp_path: Path, ray_data: Any) -> None:
    rows = ray_data.read_parquet(str(published(tmp_path, "parquet") / "data")).take_all()
    assert Counter(CLASSES[row["label"]] for row in rows) == EACH and len({row["uid"] for row in rows}) == 36
    for row in rows:
        assert (pixels(row["image"]["bytes"]) == painted(row["label"], row["seed"])).all() and row["synthetic"]


@pytest.mark.slow
def test_png_in_ray_data(tmp_path: Path, ray_data: Any) -> None:
    folder = published(tmp_path, "png") / "data"
    rows = ray_data.read_images(str(folder), include_paths=True, file_extensions=["png"]).take_all()
    classes = [keys.class_of_folder(Path(row["path"]).parent.name) for row in rows]
    assert Counter(classes) == EACH
    for name, row in zip(classes, rows):
        assert row["image"].shape == (8, 8, 3) and row["image"][0, 0, 0] == CLASSES.index(name)


@pytest.mark.slow
def test_webdataset_in_ray_data(tmp_path: Path, ray_data: Any) -> None:
    tars = sorted(str(path) for path in published(tmp_path, "webdataset").glob("data/*.tar"))
    rows = ray_data.read_webdataset(tars, decoder=None).take_all()
    told = [json.loads(row["json"]) for row in rows]
    assert Counter(t["class_name"] for t in told) == EACH and len({row["__key__"] for row in rows}) == 36
    for row, t in zip(rows, told):
        assert int(row["cls"]) == t["label"] and t["uid"] == row["__key__"]
        assert (pixels(row["png"]) == painted(t["label"], t["seed"])).all()

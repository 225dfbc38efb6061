"""`sample.truncation` reaches every place that draws: what is evaluated, shown and published are the same images."""

import hashlib
import io
import uuid
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.numpy import save as save_tensors

from gan import checkpoint as checkpoints
from gan import loop
from gan.checkpoint import load_generator
from gan.networks import NetSpec
from gan.recipe import Recipe
from gan.sampling import generate
from pipeline import evaluation, fanout, keys
from pipeline.config import Config, parse_config
from pipeline.documents import gathering
from pipeline.errors import ConfigError
from pipeline.lift import Rows
from pipeline.plan import open_plan
from pipeline.progress import NullProgress
from pipeline.records import Checkpoint, Snapshot
from pipeline.seeds import row_seeds
from pipeline.store import Store
from tests.pipeline.small import SCORECARD

CLASSES = ("a", "b", "c")
EACH = 6


def drawing(psi: float, **sample: Any) -> Config:
    return parse_config({"name": "t", "seed": 3, "source": {"format": "digits"}, "cluster": {"address": "inline"},
                         "sample": {"target": {"per_class": EACH}, "workers": 1, "truncation": psi, **sample},
                         "publish": {"url": f"memory://{uuid.uuid4().hex}"}})


def prepared(run: Store) -> tuple[Snapshot, Checkpoint, Rows]:
    """An untrained generator whose images depend strongly on its latents, beside the images that it was made for."""
    images = torch.randint(0, 256, (30, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(30) % 3
    state = loop.new_state(images, labels, NetSpec("mlp", 8, 1, 3), Recipe(total_kimg=1.0), 0, torch.device("cpu"))
    data = checkpoints.save(state)[0]
    run.put("checkpoints/x.safetensors", data)
    run.put(keys.prepared("train"), save_tensors({"images": images.numpy(), "labels": labels.numpy()}))
    rows = {split: dict.fromkeys(CLASSES, 10) for split in ("train", "val", "test")}
    made = Checkpoint("checkpoints/x.safetensors", hashlib.sha256(data).hexdigest(), "mlp", "", {}, 1.0, 1.0, 1.0, "", "f")
    return Snapshot("f", "s", "digits", None, CLASSES, 8, 1, rows, False), made, Rows(images, labels)


def expected(run: Store, checkpoint: Checkpoint, label: int, psi: float, count: int = EACH) -> np.ndarray:
    net = load_generator(run.get(checkpoint.key)).net
    return generate(net, torch.full((count,), label), row_seeds(3, label, 0, count), truncation=psi).numpy()


@pytest.mark.parametrize("psi", [1.0, 0.5])
def test_all_that_draw_draw_alike(psi: float) -> None:
    config = drawing(psi)
    dataset = Store(config.dataset_url)
    run = dataset.child(keys.run("r"))
    snapshot, checkpoint, train = prepared(run)
    wanted = [expected(run, checkpoint, label, psi) for label in range(3)]
    assert not np.array_equal(wanted[0], expected(run, checkpoint, 0, 1.5 - psi))

    draw, _ = evaluation._generator(config, run, checkpoint, train)
    shown = gathering.real_beside_generated(config, snapshot, checkpoint, run)[1]
    for label in range(3):
        assert np.array_equal(draw(np.full(EACH, label), row_seeds(3, label, 0, EACH)).numpy(), wanted[label])
        assert np.array_equal(shown[label][:EACH], wanted[label])

    plan, record = open_plan(config, snapshot, checkpoint, run, dataset)
    receipts = list(fanout.sample(config, snapshot, checkpoint, plan, run, dataset, record.version, NullProgress()))
    table = pq.read_table(io.BytesIO(dataset.child(keys.version(record.version)).get(receipts[0].key))).to_pylist()
    published = sorted(np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))).tobytes() for row in table)
    assert published == sorted(image.tobytes() for images in wanted for image in images)


class KeepsAll:
    """A filter that has nothing against any image."""

    def judge(self, images: np.ndarray, labels: np.ndarray) -> tuple[dict[str, np.ndarray], list[str]]:
        """As `RowFilter.judge`."""
        return {}, [""] * len(images)


def test_what_the_report_shows_of_the_filter_is_drawn_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    config = drawing(0.5, filter={"min_confidence": 0.5})
    run = Store(config.dataset_url).child(keys.run("r"))
    snapshot, checkpoint, _ = prepared(run)
    run.put(keys.FILTER, b"")
    monkeypatch.setattr(gathering, "put_reference", lambda *_: None)
    monkeypatch.setattr(gathering, "load_filter", lambda *_: KeepsAll())
    shown = gathering.sieved(config, snapshot, checkpoint, SCORECARD, run)
    for label, row in enumerate(shown):
        assert np.array_equal(row.kept, expected(run, checkpoint, label, 0.5, row.drawn))
    assert [row.name for row in shown] == list(CLASSES)


def test_another_truncation_is_another_evaluation_and_another_version() -> None:
    first, other = drawing(1.0), drawing(0.9)
    snapshot, checkpoint, _ = prepared(Store(first.dataset_url).child(keys.run("r")))
    inputs = [evaluation._inputs(config, snapshot, checkpoint) for config in (first, other)]
    assert inputs[0] != inputs[1]
    assert first.work_digest() != other.work_digest()


@pytest.mark.parametrize("psi", [0, -0.5, 2.1, "much"])
def test_what_is_no_truncation_is_refused_by_name(psi: object) -> None:
    with pytest.raises(ConfigError, match=r"sample\.truncation"):
        parse_config({"name": "t", "source": {"format": "digits"}, "sample": {"truncation": psi}})


def test_points_have_no_latents_to_truncate() -> None:
    with pytest.raises(ConfigError, match=r"sample\.truncation: source\.format gaussians gives points"):
        parse_config({"name": "t", "source": {"format": "gaussians"}, "sample": {"truncation": 0.9}})

"""What a training job gets: which rows, in which mix, from which format."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from gan.classical import ClassicalAugment
from pipeline import keys
from pipeline.cluster import connected
from pipeline.config import parse_config
from pipeline.errors import ConfigError, CorruptShard, MissingObject
from pipeline.feed import Feed
from pipeline.lift.pool import Rows
from pipeline.records import LiftFigure
from pipeline.seeds import row_seeds
from tests.pipeline import small
from tests.pipeline.small import CHANNELS, CLASSES, COUNTS, SIZE, SmallRun, paint, small_run

ROOT = Path(__file__).resolve().parents[2]
LABELS = np.repeat(np.arange(len(CLASSES)), [COUNTS[name] for name in CLASSES])
REAL = np.random.default_rng(0).integers(0, 256, (len(LABELS), CHANNELS, SIZE, SIZE), np.uint8)


def published(folder: Path, format_name: str = "parquet") -> SmallRun:
    run = small_run(str(folder), format=format_name)
    run.folder.put(keys.prepared("train"), save({"images": REAL, "labels": LABELS}))
    run.finish()
    return run


def made(feed: Feed) -> Counter[str]:
    return Counter(CLASSES[label] for label in feed.synthetic.labels.tolist())


@pytest.mark.parametrize("format_name", ["parquet", "png", "webdataset"])
def test_the_mix_holds_the_real_rows_and_as_many_synthetic_ones_as_asked_scarcest_classes_first(
    tmp_path: Path, format_name: str
) -> None:
    run = published(tmp_path, format_name)
    feed = Feed.open(run.dataset.url, ratio=0.5)
    assert torch.equal(feed.real.images, torch.from_numpy(REAL)) and feed.classes == CLASSES
    assert feed.counted.tolist() == [13, 0, 0, 4]            # 3 → 16 and 11 → 15: 17 rows, 34 / 2
    assert made(feed) == {"cat": 17, "dog": 9}               # of these classes all that there is to draw from
    for label in (0, 3):                                     # pixel for pixel what was generated, no row twice
        drawn = paint(np.full(17, label), row_seeds(7, label, 0, 17))
        got = feed.synthetic.images[feed.synthetic.labels == label].numpy()
        rows = {image.tobytes() for image in got}
        assert len(rows) == len(got) and rows <= {image.tobytes() for image in drawn}


def test_a_ratio_of_ones_own_is_filled_evenly_where_the_version_holds_every_class(tmp_path: Path) -> None:
    run = small_run(str(tmp_path), target={"per_class": 40})
    run.folder.put(keys.prepared("train"), save({"images": REAL, "labels": LABELS}))
    run.finish()
    feed = Feed.open(run.dataset.url, ratio=0.5)             # as the trial fills it: see `makes_every_class`
    assert feed.counted.tolist() == [6, 6, 0, 5] and made(feed) == {"cat": 40, "größe/2": 40, "dog": 40}
    drawn = torch.cat([feed.order(epoch) for epoch in range(100)])
    labels = torch.cat([feed.real.labels, feed.synthetic.labels])
    for label in (0, 1, 3):
        rows = drawn[labels[drawn] == label]
        assert float((rows >= len(feed.real)).float().mean()) == pytest.approx(1 / 3, abs=0.04)
        assert len(rows) / len(drawn) == pytest.approx(1 / 3, abs=0.03)


def test_a_version_that_holds_less_than_asked_gives_all_it_has(tmp_path: Path) -> None:
    feed = Feed.open(published(tmp_path).dataset.url, ratio=2)
    assert made(feed) == {"cat": 17, "dog": 9} and feed.counted.tolist() == [17, 0, 0, 9]


def test_ratio_0_reads_no_shard(tmp_path: Path) -> None:
    run = published(tmp_path)
    for file in tmp_path.rglob("*.parquet"):
        file.unlink()
    feed = Feed.open(run.dataset.url, ratio=0)
    assert len(feed.synthetic) == 0 and len(feed) == 34
    assert len(list(feed.loader(10))) == 4
    with pytest.raises(MissingObject):
        Feed.open(run.dataset.url, ratio=0.5)


def test_without_advice_or_real_images_it_says_what_to_give(tmp_path: Path) -> None:
    run = published(tmp_path)
    with pytest.raises(ConfigError, match="give ratio="):
        Feed.open(run.dataset.url)                           # the small run had no lift trial
    for ratio in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="must be 0 or more"):
            Feed.open(run.dataset.url, ratio=ratio)
    run.folder.delete(keys.prepared("train"))
    with pytest.raises(MissingObject, match="no real training images"):
        Feed.open(run.dataset.url, ratio=1)


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    run = published(tmp_path)
    shard = next(tmp_path.rglob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(CorruptShard, match="can't be read as parquet"):
        Feed.open(run.dataset.url, ratio=2)


def test_the_readmes_example_trains(tmp_path: Path) -> None:
    text, = re.findall(r"```python\n(import torch\nfrom pipeline.feed.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    url = published(tmp_path).dataset.url
    text = text.replace('Feed.open("out/digits")', f'Feed.open({url!r}, ratio=1)')
    seen: dict[str, Any] = {}
    exec(text, seen)
    assert float(seen["loss"].detach()) < 1.0                         # guessing among four classes: 1.39


def example(real: int = 40, synthetic: int = 8) -> Feed:
    """Class 0 has nine real rows in ten; class 1 the rest and all synthetic ones."""
    def rows(n: int, labels: list[int]) -> Rows:
        return Rows(torch.arange(n).view(-1, 1, 1, 1).expand(n, 1, 8, 8).to(torch.uint8), torch.tensor(labels))

    few = real // 10
    return Feed(("many", "few"), rows(real, [0] * (real - few) + [1] * few), rows(synthetic, [1] * synthetic), 0.2)


def test_an_epoch_draws_classes_evenly_and_repeats_by_seed_and_number_alone() -> None:
    feed = example()
    order = feed.order(3)
    labels = torch.cat([feed.real.labels, feed.synthetic.labels])[order]
    assert torch.bincount(labels).tolist() == [24, 24]
    assert Counter(order[labels == 1].tolist()) == dict.fromkeys(range(36, 48), 2)   # each of the 4 + 8 twice
    assert torch.equal(order, example().order(3)) and not torch.equal(order, feed.order(4))
    assert int(feed.order(0, real_only=True).max()) < 40


def test_more_rows_to_draw_from_than_count_make_no_epoch_longer_and_change_no_share() -> None:
    few, many = example(), example(synthetic=160)                        # a fifth of 40 real rows counts: 8
    assert many.counted.tolist() == few.counted.tolist() == [0, 8]
    orders = [many.order(epoch) for epoch in range(100)]
    assert {len(order) for order in orders} == {48} == {len(many.sampler())} and len(many) == 200
    drawn = torch.cat(orders)
    assert float((drawn >= 36).float().mean()) == pytest.approx(0.5, abs=0.02)       # classes evenly, and of class 1 …
    assert float((drawn >= 40).float().mean()) == pytest.approx(8 / 12 / 2, abs=0.02)  # … 8 to 4, as with 8 rows
    assert len(drawn.unique()) == 200
    adjusted = [dataclasses.replace(feed, logit_adjustment=1.5).logit_offset.tolist() for feed in (few, many)]
    assert adjusted[0] == adjusted[1]


def test_the_loss_of_the_trial_is_plain_or_moved_by_the_classes_shares() -> None:
    assert example().logit_offset.tolist() == [0, 0]
    feed = dataclasses.replace(example(), logit_adjustment=1.5)          # 36 rows of class 0; 4 + 8 of class 1
    assert feed.logit_offset.tolist() == pytest.approx([1.5 * math.log(0.75), 1.5 * math.log(0.25)])


def test_images_are_distorted_as_the_trial_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how = ClassicalAugment.allowed(flip=True, color=True).scaled(1.5)
    mix = {"ratio": 0.5, "augmentation": dataclasses.asdict(how)}
    lift = LiftFigure((0,), 0.5, (0.5,), (1.0,), (1.0,), 0.0, (0.0, 0.0), {}, {}, "", mix=mix)
    monkeypatch.setattr(small, "SCORECARD", dataclasses.replace(small.SCORECARD, lift=lift))
    url = published(tmp_path).dataset.url
    for feed in (Feed.open(url), Feed.open(url, ratio=1)):
        images, _ = next(iter(feed.loader(batch_size=8)))
        before, seen = images.clone(), feed.augment(images, torch.Generator().manual_seed(5))
        expected = how(images * 2 - 1, torch.Generator().manual_seed(5)) / 2 + 0.5
        assert torch.allclose(seen, expected, atol=1e-6) and torch.equal(images, before)
        assert seen.min() >= 0 and seen.max() <= 1 and not torch.allclose(seen, images, atol=0.1)
        assert not torch.equal(feed.augment(images), feed.augment(images))
    plain = dataclasses.replace(feed, augmentation=None)
    assert plain.augment(images) is images


def test_the_manifests_mix_decides_the_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mix = {"ratio": 0.5, "class_weights": {"cat": 0.5, "größe/2": 0.25, "dog": 0.25}, "synthetic_weight": 0.5, "distinct": 1,
           "real_only_share": 0.2, "logit_adjustment": 1.0, "filter": {}, "arm": "x"}
    lift = LiftFigure((0,), 0.5, (0.5,), (1.0,), (1.0,), 0.0, (0.0, 0.0), {}, {}, "", mix=mix)
    monkeypatch.setattr(small, "SCORECARD", dataclasses.replace(small.SCORECARD, lift=lift))
    feed = Feed.open(published(tmp_path).dataset.url)
    assert (feed.ratio, feed.weights, feed.logit_adjustment) == (0.5, {0: 0.5, 1: 0.25, 3: 0.25}, 1.0)
    labels = torch.cat([feed.real.labels, feed.synthetic.labels])
    drawn = torch.cat([feed.order(epoch) for epoch in range(100)])
    share = torch.bincount(labels[drawn], minlength=4) / len(drawn)
    assert share.tolist() == pytest.approx([0.5, 0.25, 0, 0.25], abs=0.03)
    cats = drawn[labels[drawn] == 0]                         # 3 real ones, 13 synthetic at half their weight
    assert float((cats >= len(feed.real)).float().mean()) == pytest.approx(6.5 / 9.5, abs=0.04)
    real = torch.cat([feed.order(epoch, real_only=True) for epoch in range(100)])
    assert int(real.max()) < len(feed.real)
    assert float((labels[real] == 0).float().mean()) == pytest.approx(0.5, abs=0.03)
    sampler = feed.sampler(10)                               # a fifth of them on real rows alone, unless told otherwise
    seen = []
    for epoch in range(10):
        sampler.set_epoch(epoch)
        seen.append(max(sampler) >= len(feed.real))
    assert seen == [True] * 8 + [False] * 2
    overruled = Feed.open(published(tmp_path / "other").dataset.url, ratio=0.5)
    assert overruled.weights is None and overruled.synthetic_share is None    # of "größe/2" nothing was published: scarcest first


def test_an_even_mix_takes_as_many_of_each_class_and_its_share_of_the_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mix = {"ratio": 0.5, "class_weights": {"cat": 0.2, "größe/2": 0.5, "dog": 0.3}, "synthetic_share": 0.25, "logit_adjustment": 1.0}
    lift = LiftFigure((0,), 0.5, (0.5,), (1.0,), (1.0,), 0.0, (0.0, 0.0), {}, {}, "", mix=mix)
    monkeypatch.setattr(small, "SCORECARD", dataclasses.replace(small.SCORECARD, lift=lift))
    feed = Feed.open(published(tmp_path).dataset.url)
    assert made(feed) == {"cat": 9, "dog": 8}                # 17; of "größe/2" nothing was published
    labels = torch.cat([feed.real.labels, feed.synthetic.labels])
    drawn = torch.cat([feed.order(epoch) for epoch in range(200)])
    for label, share, synthetic in ((0, 0.2, 0.25), (1, 0.5, 0.0), (3, 0.3, 0.25)):
        rows = drawn[labels[drawn] == label]
        assert len(rows) / len(drawn) == pytest.approx(share, abs=0.03)
        assert float((rows >= len(feed.real)).float().mean()) == pytest.approx(synthetic, abs=0.04)
    real = torch.bincount(feed.real.labels, minlength=4) / len(feed.real)
    assert feed.logit_offset.exp().tolist() == pytest.approx(real.clamp_min(1e-8).tolist())


@pytest.mark.parametrize(("advised", "rows"), [({}, {"cat": 3}), ({"distinct": 1}, {"cat": 3}), ({"distinct": 4}, {"cat": 12})])
def test_there_are_as_many_rows_to_draw_from_as_the_manifest_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, advised: dict[str, int], rows: dict[str, int]
) -> None:
    lift = LiftFigure((0,), 0.1, (0.1,), (1.0,), (1.0,), 0.0, (0.0, 0.0), {}, {}, "", mix={"ratio": 0.1, **advised})
    monkeypatch.setattr(small, "SCORECARD", dataclasses.replace(small.SCORECARD, lift=lift))
    feed = Feed.open(published(tmp_path).dataset.url)
    assert made(feed) == rows and feed.counted.tolist() == [3, 0, 0, 0]


def test_the_last_epochs_see_real_rows_alone() -> None:
    feed = example()
    sampler = feed.sampler(5, real_only_last=2)
    seen = []
    for epoch in range(5):
        sampler.set_epoch(epoch)
        rows = list(sampler)
        assert len(rows) == len(sampler)
        seen.append(max(rows) >= 40)
    assert seen == [True, True, True, False, False]
    with pytest.raises(ConfigError, match="needs epochs"):
        feed.sampler(real_only_last=1)
    unbounded = feed.sampler()
    unbounded.set_epoch(1000)
    assert max(unbounded) >= 40


def test_torch_loader_with_workers_gives_the_epochs_rows_in_order() -> None:
    feed = example()
    batches = list(feed.loader(7, epoch=2, transform=lambda image: int(image[0, 0, 0]), num_workers=0))
    values = torch.cat([images for images, _ in batches])
    number = torch.cat([torch.arange(40), torch.arange(8)])
    assert torch.equal(values, number[feed.order(2)])
    images, labels = next(iter(feed.loader(48, num_workers=2)))
    assert images.shape == (48, 1, 8, 8) and images.dtype == torch.float32 and float(images.max()) <= 1
    assert labels.dtype == torch.int64 and not feed.dataset().is_synthetic(39) and feed.dataset().is_synthetic(40)


@pytest.fixture
def on_ray() -> Iterator[None]:
    with connected(parse_config({"name": "x", "source": {"format": "digits"}})):
        yield


def test_hugging_face_and_ray_get_the_same_rows(on_ray: None) -> None:
    feed = example()
    every = feed.huggingface(epoch=None)
    assert every.features["label"].names == ["many", "few"] and sum(every["synthetic"]) == 8
    assert np.array_equal(np.stack([np.asarray(image) for image in every["image"]]), torch.cat(
        [feed.real.images, feed.synthetic.images])[:, 0].numpy())
    assert feed.huggingface(epoch=1)["label"] == torch.cat([feed.real.labels, feed.synthetic.labels])[feed.order(1)].tolist()
    rows = feed.ray(epoch=None).take_all()
    assert [row["label"] for row in rows] == every["label"][:] and rows[5]["image"].shape == (1, 8, 8)
    assert [int(row["image"][0, 0, 0]) for row in rows] == [*range(40), *range(8)]
    mixed = [int(row["image"][0, 0, 0]) + 40 * row["synthetic"] for row in feed.ray().take_all()]
    assert mixed == feed.order(0).tolist()                   # by themselves both give the mix, not all that there is to draw from
    assert sum(feed.huggingface()["synthetic"]) == int((feed.order(0) >= 40).sum())

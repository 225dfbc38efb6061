"""The filter: each score sees what it is for, thresholds come from val, and nothing that saw held-out rows may judge."""

import dataclasses
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save
from small import CHECKPOINT
from test_lift import bench, noise, oracle, rows

from gan import checkpoint, loop
from gan.classifier import Classifier, save_classifier, train_classifier
from gan.networks import NetSpec
from gan.recipe import Recipe
from pipeline import keys
from pipeline.config import Config, parse_config
from pipeline.errors import ConfigError, Leakage, SamplingFailed
from pipeline.filtering import NO_FILTER, Filter, Screen, filter_loader, open_screen, score_columns
from pipeline.leakage import rows_digest
from pipeline.lift import screen
from pipeline.mint import Mint, MintJob
from pipeline.records import Checkpoint, Receipt, ShardPart, ShardSpec
from pipeline.store import Store

torch.set_num_threads(1)
DATA = bench([60, 60, 60])


@pytest.fixture(scope="module")
def net() -> Classifier:
    return train_classifier(DATA.train.images, DATA.train.labels, 3, steps=40, batch_size=32, width=8, seed=0)


@pytest.fixture(scope="module")
def sieve(net: Classifier) -> Screen:
    return screen(net, DATA)


def passed(sieve: Screen, images: torch.Tensor, labels: torch.Tensor, **wanted: float) -> float:
    keep = sieve.keep(Filter(**wanted))
    assert keep is not None
    return float(keep(images, labels).float().mean())


def test_each_threshold_lets_unseen_real_rows_through_as_far_as_it_says(sieve: Screen) -> None:
    """The quantiles are those of val; test rows are as new as val's."""
    val, test = DATA.val, DATA.test
    for wanted, share in (({"max_centroid_distance": 0.9}, 0.9), ({"max_nearest_distance": 0.9}, 0.9),
                          ({"min_nearest_distance": 0.1}, 0.9)):
        assert passed(sieve, val.images, val.labels, **wanted) == pytest.approx(share, abs=0.02), wanted
        assert passed(sieve, test.images, test.labels, **wanted) == pytest.approx(share, abs=0.12), wanted
    assert passed(sieve, test.images, test.labels, min_confidence=0.5) > 0.9
    assert sieve.keep(NO_FILTER) is None


def test_wrong_labels_copies_and_artefacts_are_each_rejected_with_their_reason(sieve: Screen) -> None:
    wrong = (DATA.test.labels + 1) % 3
    assert sieve.judge(Filter(min_confidence=0.5), DATA.test.images, wrong)[1].count("confidence") > 110
    assert passed(sieve, DATA.test.images, wrong, max_centroid_distance=0.9) < 0.2
    copies, artefacts = DATA.train.images[:50], 255 - DATA.test.images[:50]
    labels = DATA.train.labels[:50]
    near = Filter(min_nearest_distance=0.01, max_nearest_distance=0.99)
    scores, reasons = sieve.judge(near, copies, labels)
    assert set(reasons) == {"copy"}
    assert (scores["nearest_distance"] < 0.05).all()
    assert sieve.judge(near, artefacts, labels)[1].count("artefact") > 40
    everything = Filter(0.5, 0.9, 0.01, 0.99)
    assert sieve.judge(everything, copies, (labels + 1) % 3)[1] == ["confidence"] * 50      # the first reason counts


def test_the_scale_is_one_for_typical_unseen_rows_and_names_say_what_is_asked(sieve: Screen) -> None:
    scores = sieve.scores(DATA.val.images, DATA.val.labels)
    for c in range(3):
        assert float(scores["centroid_distance"][DATA.val.labels == c].median()) == pytest.approx(1.0, abs=0.02)
    assert float(scores["nearest_distance"].median()) == pytest.approx(1.0, abs=0.02)
    assert Filter(0.8, 0.95).name == "p0.8d0.95"
    assert Filter(min_nearest_distance=0.01, max_nearest_distance=0.99, min_discriminator=0.05).name == "n0.01f0.99c0.05"
    assert NO_FILTER.name == "none"
    assert NO_FILTER.asked == {}


class Plane(torch.nn.Module):
    """Two grey pixels are the two features."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(2, 2)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return (x.flatten(1) + 1) * 127.5


def test_a_copy_is_as_near_as_its_class_lies_thick() -> None:
    """Two steps from a training row: new where rows lie four apart, a copy where they lie thirty apart."""
    def lattice(start: int, step: int) -> torch.Tensor:
        return torch.cartesian_prod(*2 * [start + step * torch.arange(5)])

    def images(points: torch.Tensor) -> torch.Tensor:
        return points.to(torch.uint8).view(-1, 1, 1, 2)

    thick, thin = lattice(0, 4), lattice(100, 30)
    labels = torch.arange(2).repeat_interleave(25)
    val = torch.cat([thick + 1, thin + 8])                    # a quarter of the way to the next, each
    train = torch.cat([thick, thin])
    sieve, fresh = (Screen.fitted(Plane(), (images(train), labels), (images(val), labels), 2) for _ in range(2))  # type: ignore[arg-type]
    near = torch.cat([thick + torch.tensor([2, 0]), thin + torch.tensor([2, 0])])
    reasons = sieve.judge(Filter(min_nearest_distance=0.01), images(near), labels)[1]
    assert reasons == [""] * 25 + ["copy"] * 25
    scores = sieve.scores(images(near), labels)["nearest_distance"]
    assert float(scores[12]) == pytest.approx(2 / 2**0.5, rel=0.02)      # amid the thick ones, by the distance of val rows there: 1
    torch.testing.assert_close(fresh.scores(images(near[40:]), labels[40:])["nearest_distance"], scores[40:])    # whatever else was asked


class Brightness(torch.nn.Module):
    """A discriminator that takes bright images for real."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(5.0))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.gain * x.mean((1, 2, 3))


def test_the_discriminators_doubt_counts(net: Classifier) -> None:
    sieve = screen(net, DATA, Brightness())
    scores = sieve.scores(DATA.val.images, DATA.val.labels)["discriminator"]
    assert float(scores.median()) == pytest.approx(0, abs=0.1)
    assert passed(sieve, DATA.val.images, DATA.val.labels, min_discriminator=0.2) == pytest.approx(0.8, abs=0.02)
    dark = (DATA.val.images.float() * 0.5).to(torch.uint8)
    assert set(sieve.judge(Filter(min_discriminator=0.05), dark, DATA.val.labels)[1]) == {"discriminator"}
    with pytest.raises(SamplingFailed, match="without a discriminator"):
        screen(net, DATA).judge(Filter(min_discriminator=0.05), dark, DATA.val.labels)


def test_thresholds_without_any_val_row_are_refused(net: Classifier) -> None:
    empty = dataclasses.replace(DATA, val=rows([0, 0, 0], 0))
    with pytest.raises(SamplingFailed, match="no validation image"):
        passed(screen(net, empty), DATA.test.images, DATA.test.labels, max_centroid_distance=0.9)
    assert passed(screen(net, empty), DATA.test.images, DATA.test.labels, min_confidence=0.5) > 0.9


# ---- in a run's folder


def config(**thresholds: float) -> Config:
    return parse_config({"name": "t", "source": {"format": "digits"}, "sample": {"filter": thresholds}})


@pytest.fixture
def run(tmp_path: Path, net: Classifier) -> tuple[Store, Checkpoint]:
    """A run folder with prepared data, the filter's classifier and an untrained generator."""
    folder = Store(str(tmp_path))
    for name in ("train", "val", "test"):
        split = getattr(DATA, name)
        folder.put(keys.prepared(name), save({"images": split.images.numpy(), "labels": split.labels.numpy()}))
    folder.put(keys.FILTER, save_classifier(net, {"trained_on": rows_digest(DATA.train.images, DATA.train.labels)}))
    state = loop.new_state(DATA.train.images, DATA.train.labels, NetSpec("mlp", 8, 1, 3), Recipe(total_kimg=1.0), 0,
                           torch.device("cpu"))
    data, meta = checkpoint.save(state)
    folder.put(CHECKPOINT.key, data)
    return folder, dataclasses.replace(CHECKPOINT, sha256=meta["sha256"], model="mlp")


def test_a_worker_loads_what_the_driver_fitted_and_rows_carry_every_score(run: Any, net: Classifier) -> None:
    folder, trained = run
    asked = config(min_confidence=0.5, max_centroid_distance=0.9, min_nearest_distance=0.01)
    loader = filter_loader(asked, folder, trained, 3)
    assert loader is not None
    scores, reasons = loader(folder).judge(DATA.test.images.numpy(), DATA.test.labels.numpy())
    assert tuple(scores) == score_columns(asked, "mlp") == ("confidence", "centroid_distance", "nearest_distance", "discriminator")
    assert all(len(values) == 120 and np.isfinite(values).all() for values in scores.values())
    again, _ = loader(folder).judge(DATA.test.images.numpy(), DATA.test.labels.numpy())
    assert all(np.array_equal(scores[name], again[name]) for name in scores)
    here, expected = screen(net, DATA).judge(Filter(0.5, 0.9, 0.01), DATA.test.images, DATA.test.labels)
    assert reasons == expected
    assert np.allclose(scores["nearest_distance"], here["nearest_distance"], atol=1e-5)
    assert filter_loader(config(), folder, trained, 3) is None
    assert filter_loader(config(min_confidence=0.0), folder, trained, 3) is None
    assert score_columns(config(), "mlp") == ()
    assert score_columns(asked, "vae") == ("confidence", "centroid_distance", "nearest_distance")


@pytest.mark.parametrize("format_name", ["parquet", "png", "webdataset"])
def test_a_shard_is_the_same_whoever_makes_it_and_its_rows_passed(run: Any, tmp_path: Path, format_name: str) -> None:
    folder, trained = run
    asked = config(min_confidence=0.5, max_centroid_distance=0.6)
    loader = filter_loader(asked, folder, trained, 3)
    spec = ShardSpec(0, 1, (ShardPart(0, 0, 12), ShardPart(2, 0, 5)))
    made = []
    for name in ("one", "two"):
        other = Store(str(tmp_path / name))
        for key in (keys.FILTER, keys.FILTER_REFERENCE, CHECKPOINT.key):
            other.put(key, folder.get(key))
        job = MintJob(7, ("a", "b", "c"), format_name, trained.key, trained.sha256, other, Store(str(tmp_path / name / "v")),
                      lambda data: lambda labels, seeds: oracle(labels, seeds).numpy(), loader)
        made.append((Mint(job).make(spec), job))
    (first, job), (second, _) = made
    assert dataclasses.replace(first, seconds=0) == dataclasses.replace(second, seconds=0)
    assert set(first.rejects) <= {"confidence", "centroid"}
    assert first.rejects["centroid"] > 2
    rows = rows_in(job, first, format_name)
    assert len(rows) == 17
    limit = open_screen(folder, trained)._quantile("centroid_distance", 0.6)
    for row in rows:
        assert row["confidence"] >= 0.5
        assert row["centroid_distance"] <= limit + 1e-5
        assert {"nearest_distance", "discriminator", "seed", "uid"} <= set(row)


def rows_in(job: MintJob, receipt: Receipt, format_name: str) -> list[dict[str, Any]]:
    """What a shard says of its rows beside their pixels."""
    if format_name == "png":
        return [json.loads(line) for line in job.run.get(receipt.key).splitlines()]
    data = io.BytesIO(job.version.get(receipt.key))
    if format_name == "parquet":
        return pq.read_table(data).to_pylist()
    with tarfile.open(fileobj=data) as tar:
        return [json.loads(tar.extractfile(m).read()) for m in tar if m.name.endswith(".json")]  # type: ignore[union-attr]


def test_a_class_that_cannot_be_filled_ends_with_its_acceptance_rate(run: Any, tmp_path: Path) -> None:
    folder, trained = run
    loader = filter_loader(config(min_confidence=0.9), folder, trained, 3)
    job = MintJob(7, ("a", "b", "c"), "parquet", trained.key, trained.sha256, folder, Store(str(tmp_path / "v")),
                  lambda data: lambda labels, seeds: noise(labels, seeds).numpy(), loader)
    with pytest.raises(SamplingFailed, match=r"class 'a': the filter kept \d of \d+ draws \([\d.]+ %\).*rejected by: confidence"):
        Mint(job).make(ShardSpec(0, 1, (ShardPart(0, 0, 4),)))
    assert not folder.list(keys.RECEIPTS)


def test_the_reference_is_made_once_and_anew_for_another_classifier(run: Any) -> None:
    folder, trained = run
    filter_loader(config(max_centroid_distance=0.9), folder, trained, 3)
    first = folder.get(keys.FILTER_REFERENCE)
    test = folder.get(keys.prepared("train"))
    folder.put(keys.prepared("train"), b"not to be read again")
    filter_loader(config(min_confidence=0.5), folder, trained, 3)
    assert folder.get(keys.FILTER_REFERENCE) == first
    folder.put(keys.prepared("train"), test)
    other = train_classifier(DATA.train.images, DATA.train.labels, 3, steps=2, batch_size=32, width=8, seed=1)
    folder.put(keys.FILTER, save_classifier(other, {"trained_on": rows_digest(DATA.train.images, DATA.train.labels)}))
    filter_loader(config(min_confidence=0.5), folder, trained, 3)
    assert folder.get(keys.FILTER_REFERENCE) != first


def test_a_filter_that_saw_held_out_rows_is_caught(run: Any, net: Classifier) -> None:
    folder, trained = run
    leaky = DATA.train.joined(DATA.test)
    for digest in (rows_digest(leaky.images, leaky.labels), None):
        folder.put(keys.FILTER, save_classifier(net, {"trained_on": digest} if digest else {}))
        with pytest.raises(Leakage, match="the filter's classifier"):
            filter_loader(config(min_confidence=0.5), folder, trained, 3)


def test_the_filter_never_reads_test(run: Any) -> None:
    folder, trained = run
    folder.delete(keys.prepared("test"))
    loader = filter_loader(config(max_centroid_distance=0.9, min_discriminator=0.05), folder, trained, 3)
    assert loader is not None
    loader(folder).judge(DATA.val.images.numpy(), DATA.val.labels.numpy())


def test_what_cannot_be_filtered_is_said(run: Any) -> None:
    folder, trained = run
    with pytest.raises(ConfigError, match="vae has no discriminator"):
        filter_loader(config(min_discriminator=0.05), folder, dataclasses.replace(trained, model="vae"), 3)
    folder.delete(keys.FILTER)
    with pytest.raises(SamplingFailed, match="no filter model"):
        filter_loader(config(min_confidence=0.5), folder, trained, 3)


def test_a_wrong_generator_is_filtered_out(sieve: Screen) -> None:
    labels = np.repeat(np.arange(3), 40)
    seeds = np.arange(120)
    good = passed(sieve, oracle(labels, seeds), torch.from_numpy(labels), min_confidence=0.5, max_centroid_distance=0.95)
    bad = passed(sieve, noise(labels, seeds), torch.from_numpy(labels), min_confidence=0.5, max_centroid_distance=0.95)
    assert good > 0.8
    assert bad < 0.1

"""Evaluation on digits with generators whose worth is known: real images held back, copies, one image over and over."""

import dataclasses
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save

from gan.classifier import load_classifier, predict
from gan.metrics.frechet import Gaussian, frechet_distance
from gan.metrics.manifold import manifold
from pipeline import evaluation, keys
from pipeline.config import Config, parse_config
from pipeline.errors import ConfigError, CorruptShard, Leakage
from pipeline.evaluation import evaluate, scores
from pipeline.evaluation import networks as onlookers
from pipeline.evaluation.data import Seen, Splits, load
from pipeline.evaluation.networks import Networks, fid_network, train_networks
from pipeline.evaluation.samples import REDRAWS, look_at_samples, passing, sample_counts
from pipeline.evaluation.scores import coverage_per_class, matched_figures, real_figures
from pipeline.gate import decide
from pipeline.lift import Schedule
from pipeline.progress import NullProgress
from pipeline.records import Checkpoint, Scorecard, Snapshot
from pipeline.store import Store

torch.set_num_threads(1)
SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """uint8 (1797, 1, 16, 16), shuffled, and labels."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    images = np.kron(bunch.images[order] * 15.9, np.ones((1, 2, 2))).astype(np.uint8)[:, None]
    return images, bunch.target[order].astype(np.int64)


@pytest.fixture(autouse=True)
def _short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Schedule, "for_data", lambda rows, channels, steps=None, **_: Schedule(steps or 60, 48))


@dataclasses.dataclass
class Case:
    """A run folder with prepared data and something for a checkpoint."""

    config: Config
    snapshot: Snapshot
    checkpoint: Checkpoint
    run: Store
    data: dict[str, tuple[np.ndarray, np.ndarray]]

    def evaluate(self) -> Scorecard:
        return evaluate(self.config, self.snapshot, self.checkpoint, self.run, NullProgress())


def make_case(folder: Path, data: dict[str, tuple[np.ndarray, np.ndarray]], classes: tuple[str, ...], **evaluate: Any) -> Case:
    run = Store(str(folder))
    for split, (images, labels) in data.items():
        run.put(keys.prepared(split), save({"images": np.ascontiguousarray(images), "labels": labels}))
    run.put("checkpoints/x", b"weights")
    _, channels, resolution, _ = data["train"][0].shape
    rows = {s: {n: int((y == c).sum()) for c, n in enumerate(classes)} for s, (_, y) in data.items()}
    return Case(
        parse_config({"name": "t", "source": {"format": "digits"}, "evaluate": {"samples": 300, "lift": None, **evaluate}}),
        Snapshot("f", "s", "digits", None, classes, resolution, channels, rows, False),
        Checkpoint("checkpoints/x", hashlib.sha256(b"weights").hexdigest(), "dcgan", "", {}, 1.0, 1.0, 1.0, "", "f"), run, data,
    )


def split_digits(digits: tuple[np.ndarray, np.ndarray], train: int = 500) -> tuple[dict[str, Any], tuple[np.ndarray, ...]]:
    """(train, val, test of 250 each) and the rest, which nobody trains on."""
    cuts = np.cumsum([train, 250, 250])
    parts = [(digits[0][a:b], digits[1][a:b]) for a, b in zip([0, *cuts], [*cuts, len(digits[1])])]
    return dict(zip(SPLITS, parts)), parts[3]


def from_rows(images: np.ndarray, labels: np.ndarray) -> Any:
    """A generator that hands out these images, in an order that the seeds decide."""

    def generate(asked: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        chosen = [np.flatnonzero(labels == c) for c in range(10)]
        return images[[chosen[c][s % len(chosen[c])] for c, s in zip(asked.tolist(), seeds.tolist())]]

    return generate


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what the checkpoint draws."""

    def put(generate: Any) -> None:
        def draw(labels: np.ndarray, seeds: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(generate(labels, seeds)))

        monkeypatch.setattr(evaluation, "_generator", lambda *_: (draw, None))

    return put


def test_unseen_real_images_score_like_real_ones(tmp_path: Path, digits: Any, generator: Any) -> None:
    data, rest = split_digits(digits)
    case = make_case(tmp_path, data, tuple("0123456789"))
    generator(from_rows(*rest))
    card = case.evaluate()
    assert card.judge_accuracy > 0.93
    assert card.agreement > 0.93
    assert 0.6 < card.fd_ratio < 1.5
    assert card.coverage > 0.85
    assert card.memorised <= 0.02
    assert min(card.diversity_per_class.values()) > 0.7
    assert max(card.diversity_per_class.values()) < 1.4
    assert card.real["coverage"] == pytest.approx(card.coverage, abs=0.1)
    assert abs(card.kernel_distance or 0) < 200
    assert set(card.coverage_per_class) == set("0123456789")
    picture = Image.open(io.BytesIO(case.run.get(keys.NEAREST)))
    assert picture.width > 9 * 16
    net, _ = load_classifier(case.run.get(keys.FILTER))
    assert (predict(net, torch.from_numpy(data["test"][0])).argmax(1).numpy() == data["test"][1]).mean() > 0.9
    assert Scorecard.from_json(card.to_json()) == card


def test_the_figures_are_of_what_passes_the_filter(tmp_path: Path, digits: Any, generator: Any, monkeypatch: Any) -> None:
    """Three in ten draws are copies, two in ten bear a wrong label; the filter has them drawn again, in sampling as here."""
    data, rest = split_digits(digits)
    real, copies = from_rows(*rest), from_rows(*data["train"])

    def flawed(labels: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        kind = seeds // 7 % 10
        images = real(np.where(kind >= 8, (labels + 1) % 10, labels), seeds)
        images[kind < 3] = copies(labels[kind < 3], seeds[kind < 3])
        return images

    generator(flawed)
    plain = make_case(tmp_path / "plain", data, tuple("0123456789"))
    networks = train_networks(plain.config, load(plain.run, 10), 10)
    monkeypatch.setattr(evaluation, "train_networks", lambda *a: networks)
    before = plain.evaluate()
    assert before.memorised == pytest.approx(0.3, abs=0.06) and before.agreement == pytest.approx(0.8, abs=0.06)
    filtered = make_case(tmp_path / "filtered", data, tuple("0123456789"))
    wanted = {"min_nearest_distance": 0.02, "min_confidence": 0.5}
    filtered = dataclasses.replace(filtered, config=filtered.config.model_copy(
        update={"sample": filtered.config.sample.model_copy(update={"filter": wanted})}))
    after = filtered.evaluate()
    assert after.memorised <= 0.01 and after.agreement > 0.97


def test_a_rejected_sample_is_drawn_again_from_its_own_seed_alone() -> None:
    asked: list[int] = []

    def draw(labels: np.ndarray, latents: np.ndarray) -> torch.Tensor:
        asked.append(len(labels))
        return torch.from_numpy(latents % 200).to(torch.uint8).view(-1, 1, 1, 1)

    def bright(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return images[:, 0, 0, 0] >= 100 * (labels == 1)     # all of class 0, half of class 1

    labels, seeds = np.arange(400) % 2, np.arange(400, dtype=np.int64) ** 2
    images = passing(draw, bright)(labels, seeds)
    assert bool(bright(images, torch.from_numpy(labels)).all()) and asked[0] == 400 and asked[1] < 150
    assert torch.equal(images[labels == 0], draw(labels[labels == 0], seeds[labels == 0]))
    few = np.array([399, 3, 17])
    assert torch.equal(passing(draw, bright)(labels[few], seeds[few]), images[few])
    asked.clear()
    passing(draw, lambda images, labels: torch.zeros(len(labels), dtype=torch.bool))(labels[:5], seeds[:5])
    assert asked == [5] * (1 + REDRAWS)                      # then they stay
    assert passing(draw, None) is draw


def test_few_unseen_real_images_cover_as_a_generator_of_such_images_would() -> None:
    rng = torch.Generator().manual_seed(0)

    def seen(n: int) -> Seen:
        return Seen(torch.randn(n, 8, generator=rng), torch.arange(n) % 2)

    held_out, val, made = seen(1000), seen(60), seen(500)            # all of one distribution
    by_class = coverage_per_class(held_out, made, (), [])
    reference = real_figures(held_out, val, 500, [])["coverage"]
    assert reference == pytest.approx(sum(by_class.values()) / 2, abs=0.1)
    assert real_figures(held_out, val, 60, [])["coverage"] < reference / 2       # beside all thousand


@pytest.mark.parametrize(("held_out", "val", "samples", "beside"), [
    (1000, 60, 500, 120), (1000, 60, 60, 1000), (100, 60, 5000, 60),         # never fewer than the reference itself
    (1000, 0, 500, 500), (1000, 0, 5000, 500),                               # without val: halves of the held-out images
])
def test_the_reference_stands_to_held_out_images_as_the_samples_do(
    held_out: int, val: int, samples: int, beside: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(scores, "coverage_per_class", lambda real, made, *_: seen.append((len(real.labels), len(made.labels))) or {})
    sets = [Seen(torch.randn(n, 4), torch.zeros(n, dtype=torch.int64)) for n in (held_out, val)]
    real_figures(*sets, samples, [])
    assert seen == [(beside, val or held_out // 2)]


@pytest.mark.parametrize("few", [40, 150, 1000])
def test_samples_as_good_as_real_images_lie_as_far_as_these_however_few_there_are(few: int) -> None:
    def drawn(rows: int, shares: tuple[float, float], shift: float = 0.0) -> Seen:
        labels = torch.multinomial(torch.tensor(shares), rows, replacement=True, generator=noise)
        return Seen(torch.randn(rows, 32, generator=noise) + 2.0 * labels[:, None] + shift, labels)

    noise = torch.Generator().manual_seed(few)
    held_out, val = drawn(5000, (0.5, 0.5)), drawn(few, (0.8, 0.2))              # with other shares of the classes
    real, made = matched_figures(held_out, val, drawn(3000, (0.5, 0.5)))
    assert made["fd"] / real["fd"] == pytest.approx(1.0, abs=0.15)
    assert made["recall"] == pytest.approx(real["recall"], abs=0.1)
    same, poor = matched_figures(held_out, val, drawn(3000, (0.5, 0.5), shift=-1.0))
    assert same == real and poor["fd"] > 1.2 * real["fd"]
    real, made = matched_figures(held_out, drawn(3000, (0.5, 0.5)), drawn(few, (0.5, 0.5)))   # few samples, many real images
    assert made["fd"] / real["fd"] == pytest.approx(1.0, abs=0.15)


def test_distances_at_equal_numbers_are_those_of_the_rows_themselves() -> None:
    noise = torch.Generator().manual_seed(0)
    held_out, val = (Seen(torch.randn(n, 8, generator=noise), torch.arange(n) % 2) for n in (500, 60))
    real, same = matched_figures(held_out, val, val)
    assert real == same
    assert real["fd"] == pytest.approx(frechet_distance(Gaussian(held_out.features), Gaussian(val.features)), abs=1e-4)
    assert real["recall"] == manifold(held_out.features, val.features, 5).recall
    halves = matched_figures(held_out, val.take(torch.zeros(0, dtype=torch.int64)), val)
    assert all(0 < one["fd"] < 10 for one in halves)
    other_class = Seen(val.features, torch.full((60,), 5))
    assert matched_figures(held_out, val, other_class) == ({}, {})               # nothing to compare


def test_copies_collapse_and_wrong_labels_are_each_seen(tmp_path: Path, digits: Any, generator: Any, monkeypatch: Any) -> None:
    data, rest = split_digits(digits)
    case = make_case(tmp_path, data, tuple("0123456789"))
    networks = train_networks(case.config, load(case.run, 10), 10)
    monkeypatch.setattr(evaluation, "train_networks", lambda *a: networks)

    def card(generate: Any) -> Scorecard:
        generator(generate)
        case.run.delete(keys.SCORECARD)
        return case.evaluate()

    copies = card(from_rows(*data["train"]))
    assert copies.memorised > 0.9
    real = from_rows(*rest)

    def a_tenth_copied(labels: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        images = real(labels, seeds)
        copied = np.arange(len(labels)) % 10 == 0
        images[copied] = np.clip(from_rows(*data["train"])(labels[copied], seeds[copied]).astype(int) + 2, 0, 255)
        return images

    tenth = card(a_tenth_copied)
    assert tenth.memorised == pytest.approx(0.1, abs=0.03)
    assert any(reason.startswith("memorised") for reason in decide(case.config.gate, tenth).reasons)

    def collapsed(labels: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        return real(labels, np.where(labels == 4, 0, seeds))

    one_image = card(collapsed)
    assert min(one_image.diversity_per_class, key=lambda c: one_image.diversity_per_class[c]) == "4"
    assert one_image.diversity_per_class["4"] < 0.01
    assert one_image.coverage_per_class["4"] < 0.4
    wrong = card(lambda labels, seeds: real((labels + 1) % 10, seeds))
    assert wrong.agreement < 0.1
    blank = card(lambda labels, seeds: np.zeros((len(labels), 1, 16, 16), np.uint8))
    assert blank.fd_ratio > 10
    assert blank.coverage < 0.2


def test_a_finished_evaluation_is_kept_until_its_inputs_change(tmp_path: Path, digits: Any, generator: Any) -> None:
    data, rest = split_digits(digits, train=100)
    case = make_case(tmp_path, data, tuple("0123456789"), samples=60, lift={"seeds": 1, "ratios": [0.5], "steps": 3})
    generator(from_rows(*rest))
    first = case.evaluate()
    assert first.lift is not None
    assert first.lift.interval_pp == (-100, 100)
    assert case.run.get_json(keys.LIFT)["lift_pp"] == first.lift.lift_pp
    generator(lambda *a: pytest.fail("generated again"))
    assert case.evaluate() == first
    other = dataclasses.replace(case, config=parse_config({**case.config.model_dump(), "seed": 1}))
    with pytest.raises(pytest.fail.Exception):
        other.evaluate()


def test_the_trial_has_the_longer_schedule_and_the_judges_the_shorter(
    tmp_path: Path, digits: Any, generator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def schedule(rows: int, channels: int, steps: int | None = None, *, epochs: int = 10, least: int = 0) -> Schedule:
        asked.append(epochs)
        return Schedule(3, 48)

    monkeypatch.setattr(Schedule, "for_data", schedule)
    data, rest = split_digits(digits, train=100)
    case = make_case(tmp_path, data, tuple("0123456789"), samples=60, lift={"seeds": 1, "ratios": [0.5]})
    generator(from_rows(*rest))
    case.evaluate()
    assert sorted(asked) == [10] * (len(asked) - 1) + [40] and len(asked) > 1


def test_more_seeds_are_another_evaluation_of_the_same_rows(tmp_path: Path, digits: Any) -> None:
    case = make_case(tmp_path, split_digits(digits, train=100)[0], tuple("0123456789"), lift={"seeds": 3})

    def inputs(**lift: Any) -> tuple[str, str]:
        asked = case.config.evaluate.model_copy(update={"lift": case.config.evaluate.lift.model_copy(update=lift)})
        config = case.config.model_copy(update={"evaluate": asked})
        return (evaluation._inputs(config, case.snapshot, case.checkpoint), evaluation._row_inputs(config, case.snapshot, case.checkpoint))

    few, more, longer = inputs(), inputs(seeds=6), inputs(steps=7)
    assert few[0] != more[0] and few[1] == more[1] != longer[1]


def test_another_filter_is_another_evaluation(tmp_path: Path, digits: Any) -> None:
    """What is tried must be what will be published."""
    case = make_case(tmp_path, split_digits(digits, train=100)[0], tuple("0123456789"))

    def inputs(**thresholds: float) -> str:
        config = case.config.model_copy(update={"sample": case.config.sample.model_copy(update={"filter": thresholds})})
        return evaluation._inputs(config, case.snapshot, case.checkpoint)

    assert inputs() == inputs(min_confidence=0.0) != inputs(min_confidence=0.5)


def test_a_trial_asks_for_no_more_images_than_will_be_published_and_a_larger_target_changes_nothing_beyond(
    tmp_path: Path, digits: Any, generator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data, rest), real = split_digits(digits, train=100), evaluation.measure_lift
    case = make_case(tmp_path, data, tuple("0123456789"), lift={"seeds": 1, "ratios": [0.5, 1.0], "distinct": 3, "steps": 3})

    def of(**target: int) -> tuple[Any, str]:
        config = case.config.model_copy(update={"sample": case.config.sample.model_copy(update={"target": target})})
        return evaluation._planned(config, case.snapshot), evaluation._inputs(config, case.snapshot, case.checkpoint)

    assert of(per_class=4)[0] == (4,) * 10
    assert of(per_class=4)[1] != of(per_class=5)[1]
    most, inputs = of(per_class=1000)                        # evenly ten a class count, so thirty; the scarcest first is more for some
    assert all(30 <= n <= 60 for n in most) and of(per_class=2000) == (most, inputs)
    asked = []

    def measured(config: Any, bench: Any, *rest: Any, **named: Any) -> Any:
        asked.append(bench.planned)
        return real(config, bench, *rest, **named)

    monkeypatch.setattr(evaluation, "measure_lift", measured)
    generator(from_rows(*rest))
    few = case.config.model_copy(update={"sample": case.config.sample.model_copy(update={"target": {"per_class": 4}})})
    dataclasses.replace(case, config=few).evaluate()
    assert asked == [(4,) * 10]
    without = case.config.model_copy(update={"evaluate": case.config.evaluate.model_copy(update={"lift": None})})
    assert evaluation._planned(without, case.snapshot) is None


def test_tiny_and_missing_classes_get_figures_or_notes_never_nan(tmp_path: Path, digits: Any, generator: Any) -> None:
    """Test rows: class 0 one, class 1 two, class 2 three, class 3 none; class 4 has no training row at all."""
    data, rest = split_digits(digits, train=300)

    def keep(split: str, limits: dict[int, int]) -> tuple[np.ndarray, np.ndarray]:
        images, labels = data[split]
        rank = np.array([(labels[:i] == c).sum() for i, c in enumerate(labels)])
        mask = rank < np.array([limits.get(c, 10**6) for c in labels.tolist()])
        return images[mask], labels[mask]

    few = {"train": keep("train", {0: 1, 4: 0}), "val": keep("val", {0: 0}), "test": keep("test", {0: 1, 1: 2, 2: 3, 3: 0})}
    case = make_case(tmp_path, few, tuple("0123456789"), samples=100, lift={"seeds": 3, "ratios": [0.5], "steps": 3})
    generator(from_rows(*rest))
    card = case.evaluate()
    text = " ".join(card.notes)
    assert "Class '0' has 1 test image;" in text
    assert "Class '2' has 3 test images" in text
    assert "Without training images, and so left out: '4'" in text
    assert "4" not in card.coverage_per_class
    assert "0" not in card.coverage_per_class
    assert np.isfinite([card.fd, card.coverage, card.recall, card.memorised, *card.diversity_per_class.values(),
                        *card.coverage_per_class.values(), *card.agreement_per_class.values()]).all()
    assert card.lift is not None
    assert "can't be judged, because class '0' has no validation image" in card.lift.sentence


def test_one_class_is_evaluated_with_random_features(tmp_path: Path, digits: Any, generator: Any) -> None:
    images = digits[0][digits[1] == 3]
    zeros = np.zeros(len(images), np.int64)
    data = {s: (images[a:b], zeros[a:b]) for s, a, b in zip(SPLITS, (0, 100, 125), (100, 125, 150))}
    case = make_case(tmp_path, data, ("only",), samples=50, lift={"seeds": 3})
    generator(from_rows(images[150:], zeros[150:]))
    card = case.evaluate()
    assert card.features == "random"
    assert card.fd_ratio < 2.5
    assert not case.run.exists(keys.FILTER)
    assert "One class only" in " ".join(card.notes)
    assert card.lift is not None
    assert "two classes" in card.lift.sentence


def test_the_fid_network_serves_as_extractor(tmp_path: Path, digits: Any) -> None:
    import safetensors.torch

    from gan.inception import Inception

    safetensors.torch.save_file(Inception().state_dict(), tmp_path / "w.safetensors")
    _, (images, labels) = split_digits(digits, train=100)
    networks = Networks(fid_network(str(tmp_path / "w.safetensors")), None, None, "inception", None)
    draw = from_rows(images, labels)
    seen = look_at_samples(lambda y, z: torch.from_numpy(draw(y, z)), np.array([2, 1]), networks, 0)
    assert seen.seen.features.shape == (3, 2048)


def test_what_cannot_be_had_is_refused(tmp_path: Path, digits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = split_digits(digits, train=100)
    case = make_case(tmp_path, data, tuple("0123456789"), features="inception", inception_weights=str(tmp_path / "none.pth"))
    with pytest.raises(ConfigError, match=r"none.pth is not there.*features: domain"):
        case.evaluate()
    monkeypatch.setattr("gan.inception.fetch.__defaults__", ("file:///nowhere/weights.pth", 1.0))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(ConfigError, match=r"can't be fetched.*features: domain"):
        make_case(tmp_path, data, tuple("0123456789"), features="inception").evaluate()
    swapped = make_case(tmp_path, data, tuple("0123456789"))
    swapped.run.put("checkpoints/x", b"others")
    with pytest.raises(CorruptShard, match="not the checkpoint"):
        swapped.evaluate()


def real_checkpoint(case: Case, images: np.ndarray, labels: np.ndarray) -> Case:
    """The case with an untrained generator that says it was trained on these rows."""
    from gan import checkpoint, loop
    from gan.networks import NetSpec
    from gan.recipe import Recipe

    state = loop.new_state(torch.from_numpy(images), torch.from_numpy(labels), NetSpec("mlp", 16, 1, 10),
                           Recipe(total_kimg=1.0), 0, torch.device("cpu"))
    data, meta = checkpoint.save(state)
    case.run.put("checkpoints/x", data)
    return dataclasses.replace(case, checkpoint=dataclasses.replace(case.checkpoint, sha256=meta["sha256"]))


def test_an_untrained_generator_of_ours_goes_all_the_way_and_fails_the_gate(tmp_path: Path, digits: Any) -> None:
    data, _ = split_digits(digits, train=200)
    config = {"samples": 100, "lift": {"seeds": 1, "ratios": [0.5], "steps": 3}}
    case = real_checkpoint(make_case(tmp_path, data, tuple("0123456789"), **config), *data["train"])
    card = case.evaluate()
    assert card.agreement < 0.5
    assert not decide(case.config.gate, card).passed
    assert case.evaluate() == card


def test_a_generator_or_extractor_that_saw_held_out_rows_is_caught(tmp_path: Path, digits: Any, monkeypatch: Any) -> None:
    data, _ = split_digits(digits, train=100)
    with_test = [np.concatenate([a, b]) for a, b in zip(data["train"], data["test"])]
    leaky = real_checkpoint(make_case(tmp_path, data, tuple("0123456789")), *with_test)
    with pytest.raises(Leakage, match="the generator"):
        leaky.evaluate()
    clean = real_checkpoint(make_case(tmp_path, data, tuple("0123456789")), *data["train"])
    honest = train_networks

    def peeking(config: Config, splits: Splits, classes: int) -> Networks:
        return honest(config, dataclasses.replace(splits, train=splits.train.joined(splits.val)), classes)

    monkeypatch.setattr(evaluation, "train_networks", peeking)
    with pytest.raises(Leakage, match="the feature extractor"):
        clean.evaluate()
    assert not clean.run.exists(keys.SCORECARD)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=1, max_size=12), st.integers(10, 3000))
def test_samples_follow_the_test_images_and_leave_no_class_out(rows: list[tuple[int, int]], samples: int) -> None:
    train = np.array([r[0] for r in rows])
    test = np.where(train > 0, [r[1] for r in rows], 0)
    if not train.any():
        return
    prior, counts = sample_counts(test, train, samples)
    assert prior.sum() == samples
    share = test if test.any() else train
    assert (np.abs(prior - samples * share / share.sum()) <= 1).all()
    assert (counts[train > 0] >= min(2, samples)).all()
    assert (counts[train == 0] == 0).all()
    assert (counts >= prior).all()


def test_coverage_does_not_rise_with_the_number_of_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    zero = lambda n: torch.zeros(n, dtype=torch.int64)  # noqa: E731
    real = Seen(torch.randn(60, 4, generator=generator), zero(60))
    made = torch.randn(3000, 4, generator=generator) * 1.5 + 0.5
    few, many = (coverage_per_class(real, Seen(made[:n], zero(n)), ("x",), [])["x"] for n in (60, 3000))
    assert few == many


@pytest.mark.parametrize(("gpus_per_worker", "here", "cluster", "device"), [
    (1, 1, False, "cuda"), (0, 1, False, "cpu"), (1, 0, False, "cpu"), (1, 1, True, "cpu"),
])
def test_it_computes_on_a_gpu_where_the_training_was_given_one(gpus_per_worker: int, here: int, cluster: bool, device: str,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onlookers, "local_gpus", lambda: here)
    monkeypatch.setattr(onlookers, "cluster_is_larger", lambda: cluster)
    config = parse_config({"name": "t", "source": {"format": "digits"}, "train": {"gpus_per_worker": gpus_per_worker}})
    assert onlookers.device_of(config) == device

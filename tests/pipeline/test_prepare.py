"""From a source to the snapshot in the run folder: what decides the result, what doesn't, and what is refused."""

import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import keys
from pipeline.config import Config
from pipeline.errors import ConfigError, CorruptShard, MissingObject, RunMismatch, SourceError
from pipeline.inspection import inspect
from pipeline.prepare import LabelledImages, load_split, prepare
from pipeline.progress import NullProgress
from pipeline.records import Snapshot
from pipeline.store import Store
from tests.pipeline.labelled_images import config, encode, folder_with, glyphs, write_folder, write_idx, write_parquet, write_tar
from tests.pipeline.small import Notes

ROOT = Path(__file__).resolve().parents[2]
IMAGES, LABELS = glyphs(60)


def run_in(folder: Path) -> Store:
    return Store(str(folder))


def prepared(configured: Config, folder: Path, **keys_: Any) -> tuple[Snapshot, dict[str, LabelledImages]]:
    run = run_in(folder)
    snapshot = prepare(configured, run, NullProgress(), **keys_)
    return snapshot, {split: load_split(run, split) for split in ("train", "val", "test")}


def rows_of(splits: dict[str, LabelledImages]) -> dict[str, set[tuple[bytes, int]]]:
    return {
        name: {(image.tobytes(), int(label)) for image, label in zip(s.images, s.labels)} for name, s in splits.items()
    }


def refused(configured: Config, folder: Path, error: type[Exception] = SourceError) -> str:
    run = run_in(folder)
    with pytest.raises(error) as caught:
        prepare(configured, run, NullProgress())
    assert not run.exists(keys.SNAPSHOT) and "\n" not in str(caught.value)
    return str(caught.value)


# what comes out


def test_digits_end_to_end(tmp_path: Path) -> None:
    snapshot, splits = prepared(config({"format": "digits"}, resolution=32), tmp_path)
    assert snapshot.rows == {"train": 1259, "val": 269, "test": 269} and not snapshot.official_test
    assert snapshot.classes == tuple("0123456789") and snapshot.quarantined == {} and snapshot.channels == 1
    for name, split in splits.items():
        assert (
            split.images.dtype == np.uint8 and split.images.shape[1:] == (1, 32, 32) and split.labels.dtype == np.int64
        )
        assert (
            dict(zip(snapshot.classes, np.bincount(split.labels, minlength=10).tolist()))
            == snapshot.rows_per_class[name]
        )
        assert split.images.flags.writeable and 60 < split.images.mean() < 90
    assert not set.intersection(*rows_of(splits).values())
    assert snapshot == Snapshot.from_json(json.loads((tmp_path / keys.SNAPSHOT).read_text()))
    assert inspect(config({"format": "digits"}, resolution=32)).rows_per_class == snapshot.rows_per_class


def test_the_rows_are_the_sources_rows(tmp_path: Path) -> None:
    _, splits = prepared(
        config({"format": "idx", "url": str(write_idx(tmp_path / "in", IMAGES, LABELS))}), tmp_path / "run"
    )
    assert set.union(*rows_of(splits).values()) == {(i.tobytes(), int(label)) for i, label in zip(IMAGES, LABELS)}
    assert {name: len(rows) for name, rows in rows_of(splits).items()} == {"train": 42, "val": 9, "test": 9}


def test_the_snapshot_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put: list[str] = []
    original = Store.put
    monkeypatch.setattr(Store, "put", lambda self, key, data: (put.append(key), original(self, key, data))[1])
    prepare(config({"format": "digits"}), run_in(tmp_path), NullProgress())
    assert put[-1] == keys.SNAPSHOT and sorted(put[:-1]) == [
        "prepared/test.safetensors",
        "prepared/train.safetensors",
        "prepared/val.safetensors",
        keys.QUARANTINE,
    ]


def test_every_format_gives_the_same_snapshot(tmp_path: Path) -> None:
    pngs, names = [encode(image) for image in IMAGES], ("0", "1", "2")
    write_idx(tmp_path / "idx", IMAGES, LABELS)
    write_folder(tmp_path / "imagefolder", IMAGES, LABELS, names)
    write_parquet(tmp_path / "parquet" / "a.parquet", pngs, LABELS.tolist(), names)
    write_tar(
        tmp_path / "webdataset" / "a.tar",
        [(f"{i}", {"png": p, "cls": b"%d" % la}) for i, (p, la) in enumerate(zip(pngs, LABELS))],
    )
    found = {}
    for format in ("idx", "imagefolder", "parquet", "webdataset"):
        source = {"format": format, "url": str(tmp_path / format)}
        found[format] = prepared(config(source, resolution=12), tmp_path / f"run-{format}")[0].fingerprint
    assert len(set(found.values())) == 1, found


def test_grey_and_colour(tmp_path: Path) -> None:
    images, labels = glyphs(30, colour=True)
    source = {"format": "imagefolder", "url": str(write_folder(tmp_path / "in", images, labels))}
    grey, _ = prepared(config(source), tmp_path / "grey")
    colour, splits = prepared(config(source, channels="rgb"), tmp_path / "colour")
    assert grey.converted == {"colour to grey": 30} and grey.channels == 1
    assert colour.converted == {} and splits["train"].images.shape[1] == 3
    assert {i.transpose(1, 2, 0).tobytes() for s in splits.values() for i in s.images} == {i.tobytes() for i in images}


# what decides the result, and what doesn't


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.randoms(use_true_random=False), st.integers(1, 5), st.booleans())
def test_order_names_and_workers_do_not_matter(
    tmp_path_factory: pytest.TempPathFactory, random: Any, threads: int, official: bool
) -> None:
    images = np.concatenate([IMAGES, IMAGES[:9], IMAGES[3:5]])  # with copies under the same labels
    labels = np.concatenate([LABELS, LABELS[:9], LABELS[3:5]])
    found = []
    for attempt in range(2):
        root = tmp_path_factory.mktemp("in")
        order = random.sample(range(len(images)), len(images)) if attempt else list(range(len(images)))
        write_folder(root / "train", images[order], labels[order], start=attempt * 1000)
        if official:
            write_folder(root / "test", *glyphs(12, seed=7))
        (root / "train" / "a" / "broken.png").write_bytes(b"x")
        source = {"format": "imagefolder", "url": str(root), "subset": {"longtail": {"head": 15, "ratio": 3}}}
        snapshot, splits = prepared(
            config(source, max_bad=0.1), tmp_path_factory.mktemp("run"), threads=threads if attempt else None
        )
        found.append(
            (snapshot.fingerprint, snapshot.rows_per_class, snapshot.quarantined, snapshot.duplicates, rows_of(splits))
        )
    assert found[0] == found[1]


def test_the_seed_the_form_and_the_content_decide(tmp_path: Path) -> None:
    def fingerprint(
        name: str, images: np.ndarray = IMAGES, labels: np.ndarray = LABELS, seed: int = 0, **form: Any
    ) -> str:
        url = str(write_idx(tmp_path / name, images, labels))
        return prepared(config({"format": "idx", "url": url}, seed=seed, **form), tmp_path / f"{name}-run")[
            0
        ].fingerprint

    other = IMAGES.copy()
    other[0, 0, 0] ^= 1
    found = [
        fingerprint("one"),
        fingerprint("seed", seed=1),
        fingerprint("size", resolution=12),
        fingerprint("colour", channels="rgb"),
        fingerprint("pixel", other),
        fingerprint("one label", IMAGES, (LABELS + (np.arange(60) == 0)) % 3),
        fingerprint("all labels", IMAGES, (LABELS + 1) % 3),
        fingerprint("share", splits={"val": 0.3, "test": 0.15}),
    ]
    assert len(set(found)) == len(found)
    assert fingerprint("again") == found[0]


def test_different_seeds_hold_out_different_rows(tmp_path: Path) -> None:
    url = str(write_idx(tmp_path / "in", IMAGES, LABELS))
    tests = [
        rows_of(prepared(config({"format": "idx", "url": url}, seed=s), tmp_path / f"{s}")[1])["test"] for s in range(3)
    ]
    assert len(set.union(*tests)) > 15  # 9 each


# duplicates


def test_copies_never_cross_splits(tmp_path: Path) -> None:
    images, labels = np.repeat(IMAGES, 3, axis=0), np.repeat(LABELS, 3)
    snapshot, splits = prepared(
        config({"format": "idx", "url": str(write_idx(tmp_path / "in", images, labels))}), tmp_path / "run"
    )
    assert snapshot.duplicates == 180 and sum(snapshot.rows.values()) == 180
    rows = rows_of(splits)
    assert not rows["train"] & rows["test"] and not rows["train"] & rows["val"] and not rows["val"] & rows["test"]


def test_copies_that_only_the_prepared_form_shows(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", IMAGES, LABELS)
    for i in range(30):  # the same images in other files: colour, other compression
        colour = np.repeat(IMAGES[i][..., None], 3, axis=2)
        (tmp_path / "in" / "abc"[LABELS[i]] / f"copy{i}.bmp").write_bytes(encode(colour, "BMP"))
    snapshot, splits = prepared(config({"format": "imagefolder", "url": str(tmp_path / "in")}), tmp_path / "run")
    assert snapshot.duplicates == 60
    rows = rows_of(splits)
    assert not rows["train"] & rows["test"] and not rows["train"] & rows["val"] and not rows["val"] & rows["test"]


def test_an_official_test_split_stays_whole_and_its_copies_leave_train(tmp_path: Path) -> None:
    test_images, test_labels = glyphs(12, seed=5)
    train_images = np.concatenate([IMAGES, test_images[:5]])
    train_labels = np.concatenate([LABELS, test_labels[:3], (test_labels[3:5] + 1) % 3])  # two under another label
    write_idx(tmp_path / "in", train_images, train_labels)
    write_idx(tmp_path / "in", test_images, test_labels, "t10k")
    snapshot, splits = prepared(config({"format": "idx", "url": str(tmp_path / "in")}, max_bad=0), tmp_path / "run")
    assert snapshot.official_test and snapshot.quarantined == {"also in a held-out split": 5}
    rows = rows_of(splits)
    assert rows["test"] == {(i.tobytes(), int(label)) for i, label in zip(test_images, test_labels)}
    assert (
        rows["train"] | rows["val"] == {(i.tobytes(), int(label)) for i, label in zip(IMAGES, LABELS)}
        and len(rows["val"]) == 9
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / keys.QUARANTINE).read_text().splitlines()]
    assert {line["file"] for line in lines} == {f"train-images-idx3-ubyte[{i}]" for i in range(60, 65)}
    assert inspect(config({"format": "idx", "url": str(tmp_path / "in")})).official_test


def test_official_validation_and_test_splits(tmp_path: Path) -> None:
    for name, seed in (("train", 1), ("val", 2), ("test", 3)):
        write_folder(tmp_path / "in" / name, *glyphs(12, seed=seed))
    write_folder(tmp_path / "in" / "val", *glyphs(3, seed=3), start=900)  # three of them lie in test too
    snapshot, splits = prepared(config({"format": "imagefolder", "url": str(tmp_path / "in")}), tmp_path / "run")
    assert snapshot.rows == {"train": 12, "val": 12, "test": 12}
    for name, seed in (("train", 1), ("val", 2), ("test", 3)):
        assert {image for image, _ in rows_of(splits)[name]} == {image.tobytes() for image in glyphs(12, seed=seed)[0]}


def test_one_image_under_two_labels_is_left_out(tmp_path: Path) -> None:
    images = np.concatenate([IMAGES, IMAGES[:2]])
    labels = np.concatenate([LABELS, (LABELS[:2] + 1) % 3])
    source = {"format": "idx", "url": str(write_idx(tmp_path / "in", images, labels))}
    snapshot, splits = prepared(config(source, max_bad=0.1), tmp_path / "run")
    assert snapshot.quarantined == {"conflicting labels": 4} and sum(snapshot.rows.values()) == 58
    assert not {i.tobytes() for i in IMAGES[:2]} & {image for rows in rows_of(splits).values() for image, _ in rows}
    assert "4 x conflicting labels" in refused(config(source, max_bad=0.01), tmp_path / "strict")


# subsets


def test_a_subset_comes_from_the_train_split_alone(tmp_path: Path) -> None:
    write_idx(tmp_path / "in", IMAGES, LABELS)
    write_idx(tmp_path / "in", *glyphs(12, seed=5), "t10k")
    source = {"format": "idx", "url": str(tmp_path / "in"), "subset": {"per_class": 7}}
    snapshot, _ = prepared(config(source), tmp_path / "run")
    assert snapshot.rows_per_class == {
        "train": dict.fromkeys("012", 6),
        "val": dict.fromkeys("012", 1),
        "test": dict.fromkeys("012", 4),
    }
    assert inspect(config(source)).rows_per_class == snapshot.rows_per_class


def test_without_an_official_test_split_the_subset_leaves_the_test_share_whole(tmp_path: Path) -> None:
    source = {"format": "idx", "url": str(write_idx(tmp_path / "in", IMAGES, LABELS))}
    all_rows = rows_of(prepared(config(source), tmp_path / "all")[1])
    snapshot, splits = prepared(config({**source, "subset": {"per_class": 6}}), tmp_path / "some")
    assert rows_of(splits)["test"] == all_rows["test"]
    assert snapshot.rows_per_class["train"] == dict.fromkeys("012", 5) and snapshot.rows_per_class[
        "val"
    ] == dict.fromkeys("012", 1)
    assert inspect(config({**source, "subset": {"per_class": 6}})).rows_per_class == snapshot.rows_per_class


def test_a_smaller_subset_lies_in_a_larger_one(tmp_path: Path) -> None:
    url = str(write_idx(tmp_path / "in", IMAGES, LABELS))
    found = []
    for count in (5, 10):
        rows = rows_of(
            prepared(config({"format": "idx", "url": url, "subset": {"per_class": count}}), tmp_path / f"{count}")[1]
        )
        found.append(rows["train"] | rows["val"])
    assert len(found[0]) == 15 and found[0] < found[1]


def test_classes_keep_their_numbers_when_a_subset_lacks_some(tmp_path: Path) -> None:
    write_folder(tmp_path / "in" / "train", IMAGES, LABELS)
    write_folder(tmp_path / "in" / "test", *glyphs(12, seed=5))
    source = {"format": "imagefolder", "url": str(tmp_path / "in"), "subset": {"classes": ["a", "c"]}}
    snapshot, splits = prepared(config(source), tmp_path / "run")
    assert snapshot.classes == ("a", "b", "c") and all(set(s.labels.tolist()) == {0, 2} for s in splits.values())
    assert snapshot.rows_per_class["test"] == {"a": 4, "b": 0, "c": 4}
    assert inspect(config(source)).rows_per_class == snapshot.rows_per_class


def test_a_class_with_fewer_than_asked_gives_all_and_says_so(tmp_path: Path) -> None:
    write_folder(tmp_path / "in" / "train", IMAGES[:13], LABELS[:13])
    write_folder(tmp_path / "in" / "test", *glyphs(12, seed=5))
    listening = Notes()
    source = {"format": "imagefolder", "url": str(tmp_path / "in"), "subset": {"per_class": 5}}
    snapshot = prepare(config(source), run_in(tmp_path / "run"), listening)
    assert snapshot.rows["train"] + snapshot.rows["val"] == 13
    assert (
        [n for n in listening.notes if "'b' has 4 of the 5" in n]
        and len(listening.notes) == 2
        and snapshot.notes == tuple(listening.notes)
    )
    assert inspect(config(source)).notes == snapshot.notes


def test_a_draw_passes_over_what_it_does_not_need_and_replaces_what_is_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = glyphs(300)
    write_folder(tmp_path / "in" / "train", images, labels)
    write_folder(tmp_path / "in" / "test", *glyphs(12, seed=5))
    for i in range(0, 300, 10):  # every tenth is damaged
        (tmp_path / "in" / "train" / "abc"[labels[i]] / f"{i:04d}.png").write_bytes(encode(images[i])[:-50])
    from pipeline.sources import reading

    decoded: list[int] = []
    original = reading.decode
    monkeypatch.setattr(reading, "decode", lambda data, resolution: (decoded.append(1), original(data, resolution))[1])
    source = {"format": "imagefolder", "url": str(tmp_path / "in"), "subset": {"per_class": 10}}
    snapshot, splits = prepared(config(source, max_bad=0.5), tmp_path / "run")
    assert snapshot.rows["train"] + snapshot.rows["val"] == 30 and len(decoded) < 200
    # what would have been drawn, had all been decoded: the ten sound ones whose hash comes first, and the bad before them
    everything = reading.digests_of  # keyed hash of the files' bytes, as the draw sees them
    bad = 0
    for label in range(3):
        files = sorted((tmp_path / "in" / "train" / "abc"[label]).iterdir())
        order = sorted(
            files, key=lambda f: bytes(everything(np.frombuffer(f.read_bytes(), np.uint8)[None], 0, "draw")[0])
        )
        sound = 0
        for file in order:
            is_bad = int(file.stem) % 10 == 0
            bad, sound = bad + is_bad, sound + (not is_bad)
            if sound == 10:
                break
        drawn = {(images[int(f.stem)].tobytes(), label) for f in [f for f in order if int(f.stem) % 10][:10]}
        assert drawn <= rows_of(splits)["train"] | rows_of(splits)["val"]
    assert snapshot.quarantined == ({"truncated": bad} if bad else {})


# the run folder


def test_an_unchanged_source_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configured = config({"format": "idx", "url": str(write_idx(tmp_path / "in", IMAGES, LABELS))})
    first = prepare(configured, run_in(tmp_path / "run"), NullProgress())
    monkeypatch.setattr("pipeline.prepare.read_items", lambda *a, **k: pytest.fail("read again"))
    assert prepare(configured, run_in(tmp_path / "run"), NullProgress()) == first


def test_what_was_lost_is_made_again(tmp_path: Path) -> None:
    configured = config({"format": "idx", "url": str(write_idx(tmp_path / "in", IMAGES, LABELS))})
    first = prepare(configured, run_in(tmp_path / "run"), NullProgress())
    (tmp_path / "run" / keys.prepared("val")).unlink()
    assert prepare(configured, run_in(tmp_path / "run"), NullProgress()).fingerprint == first.fingerprint
    assert len(load_split(run_in(tmp_path / "run"), "val").labels) == first.rows["val"]


@pytest.mark.parametrize(
    "change, named",
    [
        ({"seed": 1}, "differs in: seed"),
        ({"resolution": 12}, "prepare.resolution"),
        ({"splits": {"val": 0.2, "test": 0.15}}, "prepare.splits.val"),
    ],
)
def test_another_config_is_refused_by_name(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    source = {"format": "idx", "url": str(write_idx(tmp_path / "in", IMAGES, LABELS))}
    prepare(config(source), run_in(tmp_path / "run"), NullProgress())
    with pytest.raises(RunMismatch, match=named):
        prepare(config(source, **change), run_in(tmp_path / "run"), NullProgress())
    other = {**source, "subset": {"per_class": 5}}
    with pytest.raises(RunMismatch, match=r"source\.subset"):
        prepare(config(other), run_in(tmp_path / "run"), NullProgress())


def test_another_state_of_the_source_is_refused(tmp_path: Path) -> None:
    configured = config({"format": "idx", "url": str(write_idx(tmp_path / "in", IMAGES, LABELS))})
    prepare(configured, run_in(tmp_path / "run"), NullProgress())
    write_idx(tmp_path / "in", *glyphs(60, seed=1))
    with pytest.raises(RunMismatch, match="another state of the source"):
        prepare(configured, run_in(tmp_path / "run"), NullProgress())


def test_no_secret_reaches_the_run_folder(tmp_path: Path) -> None:
    import fsspec

    root = write_idx(tmp_path / "in", IMAGES, LABELS)
    fs = fsspec.filesystem("memory")
    for file in root.iterdir():
        fs.pipe_file(f"/secrets/{file.name}", file.read_bytes())
    source = {"format": "idx", "url": "memory://secrets", "storage_options": {"token": "canary-token"}}
    prepare(config(source), run_in(tmp_path / "run"), NullProgress())
    assert all(b"canary" not in file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file())


def test_splits_that_are_not_there_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(MissingObject):
        load_split(run_in(tmp_path), "train")
    prepare(config({"format": "digits"}), run_in(tmp_path), NullProgress())
    for damage in (lambda data: data[:-1000], lambda data: b"hello", lambda data: b""):
        file = tmp_path / keys.prepared("train")
        file.write_bytes(damage(file.read_bytes()))
        with pytest.raises(CorruptShard, match=r"train\.safetensors is damaged"):
            load_split(run_in(tmp_path), "train")


# what is refused


@pytest.mark.parametrize("count, said", [(0, "has no image"), (1, "has 1 image in"), (2, "has 2 images in")])
def test_classes_too_small_to_split_are_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, said: str
) -> None:
    monkeypatch.setattr("pipeline.prepare.read_items", lambda *a, **k: pytest.fail("began to read"))
    source = folder_with(tmp_path / "in", {"cat": 5, "rare": count, "dog": 5})
    message = refused(config(source), tmp_path / "run")
    assert f"class 'rare' {said}" in message and "source.subset.classes: [cat, dog]" in message
    if count:
        assert "at least 3 are needed (train, val, test)" in message
    with pytest.raises(SourceError, match="class 'rare'"):
        inspect(config(source))


def test_the_remedy_works(tmp_path: Path) -> None:
    source = folder_with(tmp_path / "in", {"cat": 5, "rare": 1, "dog": 5})
    snapshot, _ = prepared(config({**source, "subset": {"classes": ["cat", "dog"]}}), tmp_path / "run")
    assert snapshot.classes == ("cat", "dog", "rare") and snapshot.rows == {"train": 6, "val": 2, "test": 2}


def test_a_class_of_three_is_enough(tmp_path: Path) -> None:
    snapshot, _ = prepared(config(folder_with(tmp_path / "in", {"cat": 3, "dog": 9})), tmp_path / "run")
    assert [snapshot.rows_per_class[split]["cat"] for split in ("train", "val", "test")] == [1, 1, 1]


def test_three_copies_of_one_image_are_not_enough(tmp_path: Path) -> None:
    images = np.concatenate([IMAGES[LABELS != 2][:20], IMAGES[[2, 2, 2, 2]]])
    labels = np.concatenate([LABELS[LABELS != 2][:20], [2, 2, 2, 2]])
    message = refused(
        config({"format": "idx", "url": str(write_idx(tmp_path / "in", images, labels))}), tmp_path / "run"
    )
    assert "class '2' has 1 different usable image in" in message


def test_a_class_that_the_official_test_split_lacks(tmp_path: Path) -> None:
    folder_with(tmp_path / "in", {"a": 5, "b": 5}, "train")
    source = folder_with(tmp_path / "in", {"a": 5}, "test")
    assert "class 'b' has no image in the official test split" in refused(config(source), tmp_path / "run")
    folder_with(tmp_path / "in", {"b": 1, "c": 4}, "test")
    assert "class 'c' has 0 images to train on in" in refused(config(source), tmp_path / "run")


@pytest.mark.parametrize(
    "subset, said",
    [
        ({"classes": ["x"]}, "no class 'x' in the source"),
        ({"per_class": 1}, "asks for 1 of class 'a'; at least 2 are needed"),
        ({"longtail": {"head": 10, "ratio": 100}}, "asks for 1 of class 'b'"),
    ],
)
def test_subsets_that_do_not_fit(tmp_path: Path, subset: dict[str, Any], said: str) -> None:
    source = folder_with(tmp_path / "in", {"a": 20, "b": 20})
    assert said in refused(config({**source, "subset": subset}), tmp_path / "run", ConfigError)


def test_a_source_of_nothing_but_unlabelled_rows(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "x.parquet", [encode(i) for i in IMAGES[:4]], [-1, -1, None, -1], names=("a",))
    assert "holds no labelled image (4 x label missing)" in refused(
        config({"format": "parquet", "url": str(file)}), tmp_path / "run"
    )


# damage


def damaged_folder(root: Path, **counts: int) -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("make_damaged_folder", ROOT / "examples" / "make_damaged_folder.py")
    assert spec and spec.loader
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    mixed: dict[str, str] = example.make(root, per_class=40, **counts)
    return mixed


KINDS_AND_REASONS = {
    "zero-bytes": "zero bytes",
    "text": "not an image",
    "html": "not an image",
    "cut-png": "truncated",
    "cut-jpeg": "truncated",
    "header-only": "truncated",
    "broken-middle": "corrupt",
    "bomb": "decompression bomb",
    "noise": "not an image",
    "nan": "unsupported pixels",
}


def test_fifty_damaged_files_among_digits(tmp_path: Path) -> None:
    mixed = damaged_folder(tmp_path / "in", damaged=50)
    source = {"format": "imagefolder", "url": str(tmp_path / "in")}
    snapshot, _ = prepared(config(source, max_bad=0.12), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / keys.QUARANTINE).read_text().splitlines()]
    assert {line["file"]: line["reason"] for line in lines} == {
        name: KINDS_AND_REASONS[kind] for name, kind in mixed.items()
    }
    assert all(line["detail"] and line["class"] == line["file"][0] and line["split"] == "train" for line in lines)
    assert snapshot.quarantined == dict(Counter(KINDS_AND_REASONS[kind] for kind in mixed.values()))
    assert sum(snapshot.rows.values()) == 400
    message = refused(config(source, max_bad=0.1), tmp_path / "strict")
    assert (
        message.startswith("50 of 450 items") and "(11.1%), more than prepare.max_bad allows (10.0%): 15 x" in message
    )
    assert (
        "0/damaged-000-zero-bytes.png: zero bytes" in message and str(tmp_path / "strict" / keys.QUARANTINE) in message
    )
    assert len((tmp_path / "strict" / keys.QUARANTINE).read_text().splitlines()) == 50


def test_odd_files_are_read_all_the_same(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    damaged_folder(tmp_path / "in", damaged=0, odd=20)
    source = {"format": "imagefolder", "url": str(tmp_path / "in")}
    snapshot, splits = prepared(config(source, max_bad=0), tmp_path / "run")
    assert sum(snapshot.rows.values()) == 420 and snapshot.quarantined == {}
    assert {k: v for k, v in snapshot.converted.items() if k != "colour to grey"} == {
        "16-bit to 8-bit": 2,
        "float to 8-bit": 2,
        "1-bit to 8-bit": 2,
        "palette to colour": 4,
        "CMYK to RGB": 2,
        "transparency over white": 2,
        "turned upright by EXIF": 2,
        "first frame of several": 2,
    }

    def shapes(images: np.ndarray) -> np.ndarray:
        flat = images.reshape(len(images), 64).astype(float)
        flat -= flat.mean(1, keepdims=True)
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)

    digits = shapes(load_digits().images)
    for split in splits.values():  # each still looks like a digit of its class, whatever its file was
        likeness = shapes(split.images) @ digits.T
        likeness[split.labels[:, None] != load_digits().target] = -1
        assert likeness.max(1).min() > 0.75


def test_damage_that_leaves_a_class_without_images_is_told_as_that(tmp_path: Path) -> None:
    source = folder_with(tmp_path / "in", {"a": 60, "b": 3})
    for file in (tmp_path / "in" / "b").iterdir():
        file.write_bytes(b"")
    assert "class 'b' has 0 different usable images" in refused(config(source, max_bad=0.5), tmp_path / "run")


def test_bad_labels_are_counted(tmp_path: Path) -> None:
    labels: list[int | None] = [i % 2 for i in range(40)]
    labels[3], labels[4], labels[5] = -1, None, 9
    images = [encode(image) for image in glyphs(40)[0]]
    file = write_parquet(tmp_path / "x.parquet", images, labels, names=("a", "b"))
    snapshot, _ = prepared(config({"format": "parquet", "url": str(file)}, max_bad=0.1), tmp_path / "run")
    assert snapshot.quarantined == {"label missing": 2, "label out of range": 1} and sum(snapshot.rows.values()) == 37
    lines = [json.loads(line) for line in (tmp_path / "run" / keys.QUARANTINE).read_text().splitlines()]
    assert [line["file"] for line in lines] == ["x.parquet[3]", "x.parquet[4]", "x.parquet[5]"] and lines[2][
        "label"
    ] == 9
    assert inspect(config({"format": "parquet", "url": str(file)})).quarantined == snapshot.quarantined

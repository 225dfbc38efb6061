"""Each format: what it reads, how it tells classes and splits, and what it says of what it can't read."""

import gzip
import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import ConfigError, SourceError
from pipeline.sources.files import assign_splits
from pipeline.sources.source import Reason, Split, Unreadable
from tests.pipeline.asking_sources import complaint, contents, open_, rows
from tests.pipeline.labelled_images import (
    encode,
    glyphs,
    idx_bytes,
    write_folder,
    write_idx,
    write_parquet,
    write_tar,
)

IMAGES, LABELS = glyphs(12)


# digits


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    source = open_("digits")
    part = source.parts()[0]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(part.images, np.rint(load_digits().images * 255 / 16).astype(np.uint8))
    np.testing.assert_array_equal(part.labels, load_digits().target)
    assert source.classes == tuple("0123456789") and source.census().total == 1797
    assert rows(source)["train"] == np.bincount(load_digits().target).tolist()


# imagefolder


def test_folders_are_classes_in_alphabetical_order(tmp_path: Path) -> None:
    write_folder(tmp_path, IMAGES, LABELS, names=("zebra", "ape", "mole"))
    (tmp_path / "ape" / "deeper").mkdir()
    (tmp_path / "ape" / "deeper" / "x.JPG").write_bytes(encode(IMAGES[0], "JPEG"))
    (tmp_path / "ape" / "notes.txt").write_text("not looked at")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.png").write_bytes(encode(IMAGES[0]))
    (tmp_path / "mole" / ".DS_Store").write_text("")
    source = open_("imagefolder", tmp_path)
    assert source.classes == ("ape", "mole", "zebra")
    assert rows(source) == {"train": [5, 4, 4]} and source.census().bad == {}
    assert any("notes.txt" in note for note in source.notes)
    found = contents(source)
    assert found["zebra/0000.png"] == (2, "train", IMAGES[0].tobytes()) and len(found) == 13


@pytest.mark.parametrize(
    "layout, expected",
    [
        (("train", "test"), {"train": [2, 2, 2], "test": [2, 2, 2]}),
        (("Training", "valid"), {"train": [2, 2, 2], "test": [2, 2, 2]}),  # the only one held out is the test split
        (("train", "val", "test"), {"train": [2, 2, 2], "val": [1, 1, 1], "test": [1, 1, 1]}),
        (("train",), {"train": [4, 4, 4]}),
    ],
)
def test_official_splits(tmp_path: Path, layout: tuple[str, ...], expected: dict[str, list[int]]) -> None:
    bounds = {1: [0, 12], 2: [0, 6, 12], 3: [0, 6, 9, 12]}[len(layout)]
    for name, first, end in zip(layout, bounds, bounds[1:]):
        write_folder(tmp_path / name, IMAGES[first:end], LABELS[first:end])
    source = open_("imagefolder", tmp_path)
    assert source.classes == ("a", "b", "c") and rows(source) == expected


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_folder(tmp_path, IMAGES, LABELS, names=("train", "plane", "test"))
    assert open_("imagefolder", tmp_path).classes == ("plane", "test", "train")
    write_folder(tmp_path / "two", IMAGES, LABELS % 2, names=("train", "test"))
    assert open_("imagefolder", tmp_path / "two").classes == ("test", "train")


def test_images_beside_the_class_folders_have_no_label(tmp_path: Path) -> None:
    write_folder(tmp_path, IMAGES, LABELS)
    (tmp_path / "astray.png").write_bytes(encode(IMAGES[0]))
    source = open_("imagefolder", tmp_path)
    assert source.census().bad == {Reason.NO_LABEL: 1} and contents(source)["astray.png"][0] is None


def test_symbolic_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    real = write_folder(tmp_path / "real", IMAGES, LABELS)
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in "ab":
        (linked / name).symlink_to(real / name)
    (linked / "c").mkdir()
    for file in (real / "c").iterdir():
        (linked / "c" / file.name).symlink_to(file)
    (linked / "c" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (real / "a" / "up").symlink_to(linked)
    os.mkfifo(linked / "c" / "pipe.png")
    source = open_("imagefolder", linked)
    assert rows(source) == {"train": [4, 4, 5]}
    unreadable = []
    for item in source.items():
        try:
            assert item.load()
        except Unreadable as e:
            unreadable.append((item.name, e.reason))
    assert unreadable == [("c/gone.png", Reason.UNREADABLE)]
    cache = tmp_path / "cache" / "train-0.parquet"  # as a model hub's cache has it
    cache.parent.mkdir()
    cache.symlink_to(write_parquet(tmp_path / "blobs" / "0f3a", [encode(i) for i in IMAGES], LABELS.tolist()))
    for url in (cache, cache.parent, f"{cache.parent}/*.parquet"):
        assert rows(open_("parquet", url)) == {"train": [4, 4, 4]}


def test_an_empty_class_folder_is_still_a_class(tmp_path: Path) -> None:
    write_folder(tmp_path, IMAGES, LABELS)
    (tmp_path / "bb").mkdir()
    source = open_("imagefolder", tmp_path)
    assert (
        source.classes == ("a", "b", "bb", "c") and rows(source) == {"train": [4, 4, 0, 4]} and source.declares_classes
    )


@pytest.mark.parametrize("bad", ["no folder", "empty", "no images", "no classes"])
def test_folders_that_are_no_source(tmp_path: Path, bad: str) -> None:
    if bad == "no images":
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "x.txt").write_text("")
    if bad == "no classes":
        (tmp_path / "x.png").write_bytes(encode(IMAGES[0]))
    message = complaint("imagefolder", tmp_path / "nowhere" if bad == "no folder" else tmp_path)
    assert str(tmp_path) in message and message.startswith("source.url: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    write_folder(tmp_path / "x", IMAGES, LABELS)
    (tmp_path / "x").chmod(0)
    try:
        assert "permission" in complaint("imagefolder", tmp_path / "x")
    finally:
        (tmp_path / "x").chmod(0o755)


# fingerprints


@pytest.mark.parametrize("format", ["imagefolder", "idx", "parquet", "webdataset"])
def test_fingerprints_follow_the_content_not_the_place(tmp_path: Path, format: str) -> None:
    def write(root: Path, images: np.ndarray) -> Path:
        if format == "imagefolder":
            return write_folder(root, images, LABELS)
        if format == "idx":
            return write_idx(root, images, LABELS)
        if format == "parquet":
            return write_parquet(root / "a.parquet", [encode(i) for i in images], LABELS.tolist()).parent
        return write_tar(
            root / "a.tar", [(str(i), {"png": encode(im), "cls": b"0"}) for i, im in enumerate(images)]
        ).parent

    one, two = write(tmp_path / "one", IMAGES), write(tmp_path / "two", IMAGES)
    before = open_(format, one).fingerprint()
    assert (
        before
        == open_(format, one).fingerprint()
        == open_(format, f"file://{one}/").fingerprint()
        == open_(format, two).fingerprint()
    )
    for file in two.rglob("*.*"):
        os.utime(file, (1, 1))  # touched, not changed
    assert open_(format, two).fingerprint() == before
    other = IMAGES.copy()
    other[5, 0, 0] ^= 1
    assert open_(format, write(tmp_path / "three", other)).fingerprint() != before


def test_a_large_folder_is_known_by_sizes_and_times(tmp_path: Path) -> None:
    images, labels = glyphs(40)
    write_folder(tmp_path, images, labels)
    before = open_("imagefolder", tmp_path).fingerprint()
    assert open_("imagefolder", tmp_path).fingerprint() == before
    os.utime(tmp_path / "a" / "0000.png", (1, 1))
    changed = open_("imagefolder", tmp_path).fingerprint()
    (tmp_path / "d").mkdir()
    assert len({before, changed, open_("imagefolder", tmp_path).fingerprint()}) == 3


# idx


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("dash", ["-", "."])
def test_idx_by_all_its_names(tmp_path: Path, dash: str, gz: bool) -> None:
    write_idx(tmp_path, IMAGES[:9], LABELS[:9], "train", dash, gz)
    write_idx(tmp_path, IMAGES[9:], LABELS[9:], "t10k", dash, gz)
    source = open_("idx", tmp_path)
    assert source.classes == ("0", "1", "2") and rows(source) == {"train": [3, 3, 3], "test": [1, 1, 1]}
    parts = {part.split: part for part in source.parts()}  # type: ignore[attr-defined]
    np.testing.assert_array_equal(parts[Split.TRAIN].images, IMAGES[:9])
    np.testing.assert_array_equal(parts[Split.TEST].labels, LABELS[9:])


def test_idx_by_its_images_file_alone(tmp_path: Path) -> None:
    write_idx(tmp_path, IMAGES[:9], LABELS[:9], "train", gz=True)
    write_idx(tmp_path, IMAGES[9:], LABELS[9:], "t10k")
    assert rows(open_("idx", tmp_path / "t10k-images-idx3-ubyte")) == {"train": [1, 1, 1]}
    assert rows(open_("idx", tmp_path / "train-images-idx3-ubyte.gz")) == {"train": [3, 3, 3]}


def test_numbers_without_images_are_no_declared_classes(tmp_path: Path) -> None:
    source = open_("idx", write_idx(tmp_path, IMAGES, LABELS + 1))
    assert (
        source.classes == ("0", "1", "2", "3") and not source.declares_classes and rows(source)["train"] == [0, 4, 4, 4]
    )


def damage_idx(root: Path, what: str) -> str:
    """Breaks a set and returns the file that is to blame."""
    images, labels = root / "train-images-idx3-ubyte.gz", root / "train-labels-idx1-ubyte.gz"
    data = idx_bytes(IMAGES)
    if what == "cut gzip":
        images.write_bytes(images.read_bytes()[:-30])
    elif what == "cut gzip of labels":
        labels.write_bytes(labels.read_bytes()[:-9])
        return labels.name
    elif what == "flipped gzip":
        broken = bytearray(images.read_bytes())
        broken[200] ^= 0xFF
        images.write_bytes(broken)
    elif what == "cut inside":
        images.write_bytes(gzip.compress(data[:-1]))
    elif what == "too long":
        images.write_bytes(gzip.compress(data + b"x"))
    elif what == "wrong magic":
        images.write_bytes(gzip.compress(b"\0\0\x09\x03" + data[4:]))
    elif what == "labels for images":
        images.write_bytes(labels.read_bytes())
    elif what == "other count":
        images.write_bytes(gzip.compress(idx_bytes(IMAGES[:-2])))
    elif what == "claims the moon":
        images.write_bytes(gzip.compress(data[:4] + b"\xff" * 12 + data[16:]))
    elif what == "no header":
        images.write_bytes(b"\0\0")
    elif what == "empty":
        images.write_bytes(b"")
    elif what == "no labels":
        labels.unlink()
    return images.name


@pytest.mark.parametrize(
    "what, said",
    [
        ("cut gzip", "gzip"),
        ("cut gzip of labels", "gzip"),
        ("flipped gzip", ""),
        ("cut inside", "truncated"),
        ("too long", "after its end"),
        ("wrong magic", "0x00000903 instead of 0x00000803"),
        ("labels for images", "0x00000801 instead of 0x00000803"),
        ("other count", "10 images, but .* 12 labels"),
        ("claims the moon", ""),
        ("no header", "truncated"),
        ("empty", "truncated"),
        ("no labels", "no labels"),
    ],
)
def test_damaged_idx_names_the_file(tmp_path: Path, what: str, said: str) -> None:
    write_idx(tmp_path, IMAGES, LABELS, gz=True)
    file = damage_idx(tmp_path, what)
    message = complaint("idx", tmp_path)
    assert file in message
    assert re.search(said, message)


def test_two_sets_in_one_folder(tmp_path: Path) -> None:
    for name in ("emnist-letters-train", "emnist-digits-train"):
        write_idx(tmp_path, IMAGES, LABELS, name)
    assert "more than one train set" in complaint("idx", tmp_path)
    assert rows(open_("idx", tmp_path / "emnist-digits-train-images-idx3-ubyte")) == {"train": [4, 4, 4]}


# parquet

PNGS = [encode(image) for image in IMAGES]


def test_parquet_as_hugging_face_writes_it(tmp_path: Path) -> None:
    names = ("cat", "dog", "eel")
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", PNGS[:5], LABELS[:5].tolist(), names)
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", PNGS[5:9], LABELS[5:9].tolist(), names)
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", PNGS[9:], LABELS[9:].tolist(), names)
    source = open_("parquet", tmp_path)
    assert source.classes == names and rows(source) == {"train": [3, 3, 3], "test": [1, 1, 1]}
    found = contents(source)
    assert found["data/train-00001-of-00002.parquet[1]"] == (0, "train", IMAGES[6].tobytes())
    assert found["data/test-00000-of-00001.parquet[2]"] == (2, "test", IMAGES[11].tobytes())
    assert rows(open_("parquet", f"{tmp_path}/data/train-*.parquet")) == {"train": [3, 3, 3]}
    assert rows(open_("parquet", f"{tmp_path}/data/test-00000-of-00001.parquet")) == {"train": [1, 1, 1]}


def test_what_datasets_writes_is_read(tmp_path: Path) -> None:
    import datasets
    from PIL import Image

    features = datasets.Features({"img": datasets.Image(), "fine": datasets.ClassLabel(names=["x", "y", "z"])})
    table = datasets.Dataset.from_dict(
        {"img": [Image.fromarray(i) for i in IMAGES], "fine": LABELS.tolist()}, features=features
    )
    table.to_parquet(tmp_path / "t.parquet")
    source = open_("parquet", tmp_path)
    assert source.classes == ("x", "y", "z")
    assert [v[2] for v in contents(source).values()] == [i.tobytes() for i in IMAGES]


@pytest.mark.parametrize("plain", [False, True])
def test_text_labels(tmp_path: Path, plain: bool) -> None:
    labels = [("dog", "cat", None, "")[i % 4] for i in range(12)]
    file = write_parquet(tmp_path / "x.parquet", PNGS, labels, plain=plain, columns=("png", "kind"))
    source = open_("parquet", file)
    assert source.classes == ("cat", "dog") and source.declares_classes
    assert rows(source) == {"train": [3, 3]} and source.census().bad == {Reason.NO_LABEL: 6}
    assert [v[0] for v in contents(source).values()][:4] == [1, 0, None, None]


def test_labels_that_are_missing_or_out_of_range(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "x.parquet", PNGS, [0, 1, -1, None, 7, 0, 1, 0, 1, 0, 1, 0], names=("a", "b"))
    source = open_("parquet", file)
    assert source.census().bad == {Reason.NO_LABEL: 2, Reason.LABEL_RANGE: 1} and source.census().total == 12


def test_rows_without_an_image_are_empty_items(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "x.parquet", [None, b"", *PNGS[2:]], LABELS.tolist())
    payloads = [item.load() for item in open_("parquet", file).items()]
    assert payloads[0] == payloads[1] == b"" and payloads[2:] == PNGS[2:]


def test_a_test_split_with_secret_labels_is_left_out(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", PNGS[:6], LABELS[:6].tolist(), names=("a", "b", "c"))
    write_parquet(tmp_path / "validation-0.parquet", PNGS[6:9], LABELS[6:9].tolist(), names=("a", "b", "c"))
    write_parquet(tmp_path / "test-0.parquet", PNGS[9:], [-1] * 3, names=("a", "b", "c"))
    source = open_("parquet", tmp_path)
    assert rows(source) == {"train": [2, 2, 2], "test": [1, 1, 1]} and source.census().bad == {}
    assert any("test-0.parquet" in note for note in source.notes) and len(contents(source)) == 9


def test_columns_that_could_all_be_it(tmp_path: Path) -> None:
    extra = {"coarse": pa.array(LABELS // 2), "second": pa.array(PNGS, pa.binary())}
    file = write_parquet(tmp_path / "x.parquet", PNGS, LABELS.tolist(), columns=("front", "fine"), extra=extra)
    message = complaint("parquet", file)
    assert "source.image_column" in message and "front (struct" in message and "second (binary)" in message
    message = complaint("parquet", file, image_column="front")
    assert "source.label_column" in message and "fine, coarse" in message
    assert len(contents(open_("parquet", file, image_column="second", label_column="fine"))) == 12
    assert "no column 'nope'" in complaint("parquet", file, image_column="nope", label_column="fine")
    assert "not encoded images" in complaint("parquet", file, image_column="coarse", label_column="fine")


@pytest.mark.parametrize("bad", ["cut", "text", "ids", "floats", "other columns", "other names", "no parquet"])
def test_parquet_that_is_no_source(tmp_path: Path, bad: str) -> None:
    file = write_parquet(tmp_path / "train-0.parquet", PNGS, LABELS.tolist(), names=("a", "b", "c"))
    blamed, said = file.name, ""
    if bad == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif bad == "text":
        file.write_text("hello")
    elif bad == "ids":
        write_parquet(file, PNGS, [10**9 + i for i in range(12)])
        blamed, said = "label", "no classes"
    elif bad == "floats":
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"image": pa.array(PNGS, pa.binary()), "label": pa.array([0.5] * 12)}), file)
        blamed, said = "label", "no column can be it"
    elif bad == "other columns":
        write_parquet(tmp_path / "train-1.parquet", PNGS, LABELS.tolist(), columns=("img", "label"))
        blamed, said = "train-1.parquet", "other columns"
    elif bad == "other names":
        write_parquet(tmp_path / "train-1.parquet", PNGS, LABELS.tolist(), names=("a", "b", "d"))
        blamed, said = "label", "different classes"
    elif bad == "no parquet":
        file.rename(tmp_path / "a.csv")
        (tmp_path / "b.csv").write_text("")
        blamed, said = "a.csv", "no .parquet file"
    message = complaint("parquet", tmp_path)
    assert blamed in message and said in message


def test_damage_in_the_middle_of_a_parquet_file_never_escapes(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "x.parquet", PNGS, LABELS.tolist())
    whole = file.read_bytes()
    for at in range(4, len(whole), 97):
        file.write_bytes(whole[:at] + bytes(b ^ 0x55 for b in whole[at : at + 8]) + whole[at + 8 :])
        try:
            source = open_("parquet", file)
            source.census()
            list(source.items())
        except (SourceError, ConfigError):
            pass


# webdataset


def test_tars_with_numbers_texts_and_json(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "train-000.tar", [(f"{i:03d}", {"png": PNGS[i], "cls": str(LABELS[i]).encode()}) for i in range(9)]
    )
    write_tar(
        tmp_path / "test-000.tar",
        [(f"x/{i:03d}", {"json": b'{"label": %d}' % LABELS[i], "png": PNGS[i]}) for i in range(9, 12)],
    )
    source = open_("webdataset", tmp_path)
    assert source.classes == ("0", "1", "2") and rows(source) == {"train": [3, 3, 3], "test": [1, 1, 1]}
    assert contents(source)["test-000.tar/x/010"] == (1, "test", IMAGES[10].tobytes())
    texts = write_tar(
        tmp_path / "t" / "a.tar",
        [
            ("1", {"png": PNGS[1], "cls": b"dog\n"}),
            ("2", {"png": PNGS[2], "cls": b"cat"}),
            ("3", {"png": PNGS[3]}),
            ("4", {"txt": b"no image"}),
        ],
    )
    source = open_("webdataset", texts)
    assert source.classes == ("cat", "dog") and source.census().bad == {Reason.NO_LABEL: 1}
    assert [v[0] for v in contents(source).values()] == [1, 0, None]


@pytest.mark.parametrize("cut", [100, 700, 3000])
def test_a_truncated_tar_names_the_file(tmp_path: Path, cut: int) -> None:
    file = write_tar(tmp_path / "a.tar", [(str(i), {"png": PNGS[i] * 3, "cls": b"0"}) for i in range(12)])
    file.write_bytes(file.read_bytes()[:cut])
    assert "a.tar" in complaint("webdataset", file)


def test_what_webdataset_writes_is_read(tmp_path: Path) -> None:
    import webdataset

    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for i in range(12):
            writer.write({"__key__": f"s{i:02d}", "png": PNGS[i], "cls": int(LABELS[i])})
    assert [v[2] for v in contents(open_("webdataset", tmp_path)).values()] == [i.tobytes() for i in IMAGES]


# splits by name


@pytest.mark.parametrize(
    "names, expected",
    [
        ("train-0 test-0", "train test"),
        ("data/train/0 data/validation/0", "train test"),
        ("a b", "train train"),
        ("test-0 test-1", "train train"),
        ("train val test", "train val test"),
        ("a test_1", "train test"),
        ("contest latest", "train train"),
        ("test/train-0 test/test-0", "train test"),
        ("train-images t10k-images", "train test"),
    ],
)
def test_splits_by_names(names: str, expected: str) -> None:
    assert [str(split) for split in assign_splits(names.split()).values()] == expected.split()


def test_gaussians_are_not_pretended() -> None:
    with pytest.raises(ConfigError, match=r"source\.format"):
        open_("gaussians", variant="two")

"""What `validate` says of a source before any work."""

from pathlib import Path

import pytest

from pipeline.inspection import inspect
from tests.pipeline.labelled_images import config, folder_with, glyphs, write_folder

IMAGES, LABELS = glyphs(60)


def test_inspection_says_what_the_images_are(tmp_path: Path) -> None:
    images, labels = glyphs(12, size=28)
    summary = inspect(
        config({"format": "imagefolder", "url": str(write_folder(tmp_path, images, labels))}, resolution=32)
    )
    assert summary.image == "28 x 28 grey, padded to 32 x 32 by their border" and summary.estimated_seconds > 0
    assert summary.source_rows == {"train": {"a": 4, "b": 4, "c": 4}} and not summary.official_test
    (tmp_path / "a" / "0000.png").write_bytes(b"text")
    assert any(
        "a/0000.png can't be used: not an image" in note
        for note in inspect(config({"format": "imagefolder", "url": str(tmp_path)})).notes
    )


def test_inspection_decodes_only_a_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder_with(tmp_path / "in", {"a": 40, "b": 40})
    looked: list[int] = []
    from pipeline import inspection

    original = inspection.decode
    monkeypatch.setattr(
        inspection, "decode", lambda data, resolution: (looked.append(1), original(data, resolution))[1]
    )
    inspect(config(source))
    assert 1 <= len(looked) <= 8

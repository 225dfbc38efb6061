"""A disk that is really full: a file system of some kilobytes, made for the test."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import keys
from pipeline.errors import StoreError
from pipeline.publication import verify
from tests.pipeline.small import small_run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A mounted file system of 256 KiB."""
    at = tmp_path / "disk"
    at.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(at)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount")
    yield at
    subprocess.run(["umount", "-l", str(at)], check=True)


@pytest.mark.parametrize("free", [0, 1, 3, 5, 8, 12], ids=lambda pages: f"{pages} pages free")
@pytest.mark.parametrize("format_name", ["parquet", "png", "webdataset"])
def test_a_full_disk_ends_the_run_in_one_clear_message(small_disk: Path, free: int, format_name: str) -> None:
    run = small_run(str(small_disk), format=format_name)
    run.plan()
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"), filler.open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    with filler.open("r+b") as file:
        file.truncate(filler.stat().st_size // 4096 * 4096 - free * 4096)
    with pytest.raises(StoreError, match=r"the disk is full.*free some space and continue with the same --run-id"):
        run.finish()
    assert not run.dataset.exists(keys.LATEST)
    assert [p for p in small_disk.rglob("*") if p.is_file() and p.name != "filler" and not p.stat().st_size] == []
    filler.unlink()
    run.finish()
    assert verify(run.dataset.url, deep=True, orphans=True)["orphans"] == []
    assert verify(run.dataset.url)["rows"] == 26
    assert list(small_disk.rglob("*.ganmill-tmp")) == []

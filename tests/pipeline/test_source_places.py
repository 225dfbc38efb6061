"""Where a source may lie, and what happens when the place stumbles."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.errors import SourceError
from pipeline.sources.source import Reason, Unreadable
from tests.pipeline.asking_sources import complaint, contents, open_, rows
from tests.pipeline.labelled_images import (
    encode,
    glyphs,
    write_folder,
    write_idx,
    write_parquet,
    write_tar,
)
from tests.servers import S3Server, faulty

IMAGES, LABELS = glyphs(12)
PNGS = [encode(image) for image in IMAGES]


class Moody(MemoryFileSystem):
    """An object store in memory that fails as it is told to."""

    protocol = "moody"
    faults: list[Exception] = []  # noqa: RUF012  raised one after another by reads
    calls = 0
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("moody:/"))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        type(self).calls += 1
        if self.faults:
            raise self.faults.pop(0)
        return super().cat_file(path, start, end, **kwargs)


@pytest.fixture
def moody(tmp_path: Path) -> Iterator[type[Moody]]:
    fsspec.register_implementation("moody", Moody, clobber=True)
    Moody.faults, Moody.calls = [], 0
    fs = Moody()
    for name, data in (("x/a/1.png", PNGS[0]), ("x/a/2.png", PNGS[1]), ("x/b/1.png", PNGS[2])):
        fs.pipe_file(f"/{name}", data)
    yield Moody
    fs.rm("/x", recursive=True)


def test_transient_faults_are_tried_again(moody: type[Moody], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.files.BACKOFF_S", 0.001)
    moody.faults = [TimeoutError("slow"), ConnectionResetError("cut")]
    assert len(contents(open_("imagefolder", "moody://x"))) == 3 and moody.calls == 5
    moody.faults = [TimeoutError("slow")] * 50
    source = open_("imagefolder", "moody://x")
    with pytest.raises(SourceError, match=r"moody://x/a/1.png.*slow"):
        next(source.items()).load()


def test_a_source_that_may_not_be_listed(moody: type[Moody], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Moody, path: str, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(moody, "info", refuse)
    message = complaint("imagefolder", "moody://x")
    assert message.startswith("source.url: can't list moody://x: no permission") and "grant" in message


@pytest.mark.parametrize("fault", [PermissionError(13, "Access Denied"), FileNotFoundError(2, "gone")])
def test_one_file_that_may_not_be_read_is_one_bad_item(moody: type[Moody], fault: Exception) -> None:
    items = list(open_("imagefolder", "moody://x").items())
    moody.faults = [fault]
    with pytest.raises(Unreadable) as caught:
        items[0].load()
    assert caught.value.reason is Reason.UNREADABLE and caught.value.detail == fault.args[1]
    assert items[1].load() == PNGS[1]


def test_from_memory_by_glob() -> None:
    fs = fsspec.filesystem("memory")
    for name, data in (("train-0.tar", b""), ("notes.txt", b"x")):
        fs.pipe_file(f"/src-glob/{name}", data)
    assert "notes.txt" in complaint("parquet", "memory://src-glob/*.txt")


@pytest.mark.parametrize(
    "url, said",
    [
        ("nope://x/y", "unknown protocol"),
        ("/nonexistent/folder", "nothing at"),
        ("memory://nothing/here", "nothing"),
        ("s3://bucket/x", "can't list s3://bucket/x"),
    ],
)
@pytest.mark.parametrize("format", ["imagefolder", "idx", "parquet", "webdataset"])
def test_urls_that_lead_nowhere_are_told_in_seconds(format: str, url: str, said: str) -> None:
    began = time.monotonic()
    options = (
        {"endpoint_url": "http://127.0.0.1:9", "key": "k", "secret": "canary-secret"} if url.startswith("s3") else {}
    )
    message = complaint(format, url, storage_options=options)
    assert said in message and message.startswith("source.url: ") and "canary" not in message
    assert time.monotonic() - began < 60         # a hang, not a slow machine


def upload(server: S3Server, root: Path) -> str:
    bucket = server.new_bucket()
    fs = fsspec.filesystem("s3", **server.options, skip_instance_cache=True)
    fs.put(f"{root}/", f"{bucket}/in/", recursive=True)
    return f"s3://{bucket}/in"


@pytest.mark.parametrize("format", ["imagefolder", "idx", "parquet", "webdataset"])
def test_the_same_from_an_object_store(s3_server: S3Server, tmp_path: Path, format: str) -> None:
    if format == "imagefolder":
        write_folder(tmp_path, IMAGES, LABELS)
    elif format == "idx":
        write_idx(tmp_path, IMAGES, LABELS, gz=True)
    elif format == "parquet":
        write_parquet(tmp_path / "train-0.parquet", PNGS, LABELS.tolist())
    else:
        write_tar(
            tmp_path / "train-0.tar", [(str(i), {"png": PNGS[i], "cls": str(LABELS[i]).encode()}) for i in range(12)]
        )
    url = upload(s3_server, tmp_path)
    there, here = open_(format, url, storage_options=s3_server.options), open_(format, tmp_path)
    assert contents(there) == contents(here) and rows(there) == rows(here) and not there.is_local
    assert there.fingerprint() == open_(format, url, storage_options=s3_server.options).fingerprint()


def test_an_object_store_that_stumbles_or_refuses(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.sources.files.BACKOFF_S", 0.01)
    url = upload(s3_server, write_idx(tmp_path, IMAGES, LABELS))
    with faulty(s3_server, lambda n, method, path: "503" if n % 3 == 2 and method == "GET" else None) as proxy:
        assert len(contents(open_("idx", url, storage_options=proxy.server.options))) == 12 and proxy.faults
    for fault, said in (("denied", "permission"), ("no bucket", "bucket does not exist")):
        with faulty(s3_server, lambda n, method, path, fault=fault: fault) as proxy:
            message = complaint("idx", url, storage_options=proxy.server.options)
            assert said in message and "canary" not in message

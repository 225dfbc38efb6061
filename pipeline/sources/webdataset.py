"""Tar shards as webdataset writes them: `uid.png` (or .jpg, …) beside `uid.cls`, or `uid.json` with a label in it."""

import contextlib
import functools
import io
import json
import re
import tarfile
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.config import SourceConfig
from pipeline.errors import SourceError
from pipeline.sources.files import SourceFile, SourceFiles, assign_splits
from pipeline.sources.imagefolder import EXTENSIONS
from pipeline.sources.source import MAX_CLASSES, Census, RawItem, Source

MAX_IMAGE_BYTES = 256 << 20
_MAX_LABEL_BYTES = 1 << 20
_READ_WHOLE_BYTES = 256 << 20                        # smaller shards are fetched in one piece
_NAME = re.compile(r"(?P<key>(?:.*/)?[^/.]+)\.(?P<extension>[^/]+)")
_LABEL_KEYS = ("label", "cls", "class", "class_name")            # in uid.json, the first that is there
_Label = int | str | None


@dataclass
class _Sample:
    """The members of a tar that share a key."""

    key: str
    image: bytes | None = None                       # empty when images are not wanted
    label: _Label = None


class WebDatasetSource(Source):
    """Samples of one or more tar shards."""

    def __init__(self, files: SourceFiles, listed: list[SourceFile]):
        self._files = files
        self._listed = listed
        self._splits = assign_splits(file.name for file in listed)

    @property
    def classes(self) -> tuple[str, ...]:
        """See `Source.classes`; numbers as they are, texts in alphabetical order."""
        return self._labels[0]

    @property
    def declares_classes(self) -> bool:
        """Bare numbers declare nothing."""
        return self._labels[1]

    @property
    def is_local(self) -> bool:
        """See `Source.is_local`."""
        return self._files.is_local

    def fingerprint(self) -> str:
        """See `Source.fingerprint`."""
        return self._files.fingerprint(self._listed)

    def census(self) -> Census:
        """See `Source.census`; reads the shards' tables and labels."""
        names, _, of_file = self._labels
        return Census.of_files(((self._splits[name], numbers) for name, numbers in of_file.items()), len(names))

    def items(self) -> Generator[RawItem]:
        """See `Source.items`."""
        for file in self._listed:
            numbers = self._labels[2][file.name].tolist()
            with self._shard(file) as tar:
                for number, sample in zip(numbers, _samples(tar, images=True)):
                    label = None if number < 0 else number
                    yield RawItem(f"{file.name}/{sample.key}", label, sample.image or b"", self._splits[file.name])

    @functools.cached_property
    def _labels(self) -> tuple[tuple[str, ...], bool, dict[str, np.ndarray]]:
        """(class names, whether the source names them, file → int64 labels with −1 for none)."""
        found: dict[str, list[_Label]] = {}
        for file in self._listed:
            with self._shard(file) as tar:
                found[file.name] = [sample.label for sample in _samples(tar, images=False)]
        values = {label for labels in found.values() for label in labels if label is not None}
        numeric = all(isinstance(value, int) for value in values)
        most = max((v for v in values if isinstance(v, int)), default=-1) if numeric else len(values)
        if most >= MAX_CLASSES:
            raise SourceError(f"source.url: the labels in {self._files.where} are no classes: there are {most:,}, at "
                              f"most {MAX_CLASSES:,} can be told apart")
        names = tuple(map(str, range(most + 1))) if numeric else tuple(sorted(map(str, values)))
        place = {name: number for number, name in enumerate(names)}
        return names, not numeric, {
            name: np.array([-1 if v is None or str(v) not in place else place[str(v)] for v in labels], np.int64)
            for name, labels in found.items()
        }

    @contextlib.contextmanager
    def _shard(self, file: SourceFile) -> Iterator[tarfile.TarFile]:
        where = self._files.show(file)
        whole = file.size <= _READ_WHOLE_BYTES and not self._files.is_local
        opened = io.BytesIO(self._files.read(file)) if whole else self._files.open(file)
        try:
            with self._files.reading(file), opened, tarfile.open(fileobj=opened, mode="r:*") as tar:
                yield tar
        except (tarfile.TarError, EOFError, zlib.error) as e:
            what = (str(e) or type(e).__name__).splitlines()[0]
            raise SourceError(f"{where} is no readable tar file ({what}); fetch it again") from e


def open_webdataset(config: SourceConfig) -> WebDatasetSource:
    """Lists the tar shards under the URL: a folder, a file, or a glob.

    Raises:
        SourceError: nothing there, or no tar file.
    """
    files = SourceFiles(config)
    listed = files.listing()[0]
    chosen = [file for file in listed if file.name.endswith((".tar", ".tar.gz", ".tgz"))]
    if len(listed) == 1:
        chosen = listed                              # named by the URL, whatever its extension
    if not chosen:
        raise SourceError(f"source.url: no .tar file in {files.where}, but there is: "
                          + ", ".join(file.name for file in listed[:5]))
    return WebDatasetSource(files, chosen)


def _samples(tar: tarfile.TarFile, images: bool) -> Iterator[_Sample]:
    """The samples of a shard; members of one sample lie beside each other. Those without an image are left out."""
    current: _Sample | None = None
    for member in tar:
        match = _NAME.fullmatch(member.name)
        if not member.isfile() or not match or match["key"].rpartition("/")[2].startswith("."):
            continue
        if current is None or match["key"] != current.key:
            if current is not None and current.image is not None:
                yield current
            current = _Sample(match["key"])
        extension = match["extension"].lower()
        if extension in EXTENSIONS:
            current.image = _read(tar, member, MAX_IMAGE_BYTES) if images else b""
        elif extension == "cls":
            label = _as_label(_read(tar, member, _MAX_LABEL_BYTES).decode("utf-8", "replace").strip())
            current.label = label if label is not None else current.label
        elif extension == "json" and current.label is None:
            current.label = _label_in_json(_read(tar, member, _MAX_LABEL_BYTES))
    if current is not None and current.image is not None:
        yield current


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo, most: int) -> bytes:
    opened = tar.extractfile(member) if member.size <= most else None
    if opened is None:
        return b""
    data = opened.read()
    if len(data) != member.size:
        raise tarfile.ReadError(f"unexpected end of data in {member.name}")
    return data


def _as_label(text: str) -> _Label:
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        return text


def _label_in_json(data: bytes) -> _Label:
    try:
        content = json.loads(data)
    except ValueError:
        return None
    if not isinstance(content, dict):
        return None
    for key in _LABEL_KEYS:
        value = content.get(key)
        if isinstance(value, (int, str)) and not isinstance(value, bool):
            return value if value != "" else None
    return None

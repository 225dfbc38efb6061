"""The files of a source, through `pipeline.store.open_filesystem`: listed, told apart by split, read with patience."""

import contextlib
import hashlib
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, TypeVar

from pipeline import faults
from pipeline.config import SourceConfig
from pipeline.errors import MissingObject, SourceError, StoreError
from pipeline.redaction import public_url
from pipeline.sources.source import Reason, Split, Unreadable
from pipeline.store import S3_TIMEOUTS_S, clear_errors, open_filesystem

TRIES = 4
LISTING_TRIES = 2                                    # a wrong address should be told in seconds
BACKOFF_S = 0.3                                      # doubled each time, times 0.5 … 1 by chance
_HASH_WHOLE_BYTES = 64 << 20                         # local sources up to this size are fingerprinted by content
_HASH_WHOLE_FILES = 16
_SPLIT_WORDS = {
    "train": Split.TRAIN, "training": Split.TRAIN,
    "test": Split.TEST, "testing": Split.TEST, "t10k": Split.TEST,
    "val": Split.VAL, "valid": Split.VAL, "validation": Split.VAL, "dev": Split.VAL,
}
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a source."""

    name: str                                        # below the source's URL, with slashes
    path: str                                        # for the file system
    size: int                                        # bytes
    stamp: str                                       # ETag or time of the last change, whatever the store keeps


class SourceFiles:
    """What lies under a source's URL: a folder, one file, or what a glob matches.

    Raises (all methods):
        SourceError: unreachable, no permission, nothing there: what happened, where, what to do.
    """

    def __init__(self, config: SourceConfig):
        self.url = config.url or ""
        self.where = faults.scrub(public_url(self.url) or "", frozenset())
        self._options = config.storage_options
        self._opened: tuple[Any, str] | None = None

    @property
    def is_local(self) -> bool:
        """On a disk of this machine, where reading costs little more than listing."""
        return "file" in _protocols(self._filesystem()[0])

    def listing(self) -> tuple[list[SourceFile], list[str]]:
        """(files by name, folders by name), hidden ones left out."""
        found = self._reading("list", self.where, self._list, LISTING_TRIES)
        if not found[0] and not found[1]:
            raise SourceError(f"source.url: there is nothing in {self.where}; check the URL")
        return found

    def read(self, file: SourceFile) -> bytes:
        """The whole file."""
        fs, _ = self._filesystem()
        data: bytes = self._reading("read", self.show(file), lambda: fs.cat_file(file.path))
        return data

    def read_item(self, file: SourceFile) -> bytes:
        """The whole file, which is one item of many.

        Raises:
            Unreadable: it vanished or may not be read; an unreachable store is still a `SourceError`.
        """
        fs, _ = self._filesystem()

        def act() -> bytes:
            try:
                data: bytes = fs.cat_file(file.path)
            except (FileNotFoundError, PermissionError, IsADirectoryError) as e:
                raise Unreadable(Reason.UNREADABLE, e.strerror or type(e).__name__) from e
            return data

        return self._reading("read", self.show(file), act)

    def look(self, file: SourceFile, act: Callable[[IO[bytes]], _T]) -> _T:
        """What `act` finds in the opened file, of which only parts are fetched. It may be called again."""
        fs, _ = self._filesystem()

        def open_and_act() -> _T:
            with fs.open(file.path, "rb") as opened:
                return act(opened)

        return self._reading("read", self.show(file), open_and_act)

    def open(self, file: SourceFile) -> IO[bytes]:
        """The file, to be read in pieces inside `reading`."""
        fs, _ = self._filesystem()
        opened: IO[bytes] = self._reading("open", self.show(file), lambda: fs.open(file.path, "rb"))
        return opened

    def reading(self, file: SourceFile) -> contextlib.AbstractContextManager[None]:
        """Context in which a fault of the store while reading `file` leaves as a `SourceError`."""
        return _clear("read", self.show(file), self._options)

    def show(self, file: SourceFile) -> str:
        """The file's address, fit to be printed."""
        if not file.name or self.where.endswith(file.name):
            return self.where
        return f"{re.split(r'[^/]*[*?[]', self.where)[0].rstrip('/')}/{file.name}"

    def fingerprint(self, files: Sequence[SourceFile], folders: Sequence[str] = ()) -> str:
        """sha256 over names and sizes, and over the content of a small local source, else over the time stamps.

        Content where it is cheap: copying or touching a file changes its time, and should not start a run anew.
        """
        whole = self.is_local and len(files) <= _HASH_WHOLE_FILES and sum(f.size for f in files) <= _HASH_WHOLE_BYTES
        digest = hashlib.sha256()
        for folder in sorted(folders):
            digest.update(f"{folder}/\0".encode("utf-8", "surrogatepass"))
        for file in sorted(files, key=lambda f: f.name):
            mark = hashlib.sha256(self.read(file)).hexdigest() if whole else file.stamp
            digest.update(f"{file.name}\0{file.size}\0{mark}\0".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def _filesystem(self) -> tuple[Any, str]:
        if self._opened is None:
            try:
                self._opened = open_filesystem(self.url, self._patient_options())
            except StoreError as e:
                raise SourceError(f"source.url: {e}") from e
        return self._opened

    def _patient_options(self) -> dict[str, Any]:
        """S3's own client tries for most of a minute before it gives up; tries are counted here instead."""
        if not self.url.startswith(("s3://", "s3a://")):
            return self._options
        config = {**S3_TIMEOUTS_S, "retries": {"total_max_attempts": 1}, **self._options.get("config_kwargs", {})}
        return {**self._options, "config_kwargs": config}

    def _list(self) -> tuple[list[SourceFile], list[str]]:
        fs, path = self._filesystem()
        fs.invalidate_cache()                        # a listing kept from an earlier run would hide a change
        root = path.rstrip("/")
        if re.search(r"[*?[]", path) and not fs.exists(path):
            found = fs.glob(path, detail=True)
            root = re.split(r"[^/]*[*?[]", path)[0].rstrip("/")
        elif (info := fs.info(path))["type"] == "file":
            found, root = {path: info}, path.rpartition("/")[0]
        else:
            found = fs.find(path, withdirs=True, detail=True)
        if self.is_local:
            found = _followed(fs, found, {os.path.realpath(path)})
        files, folders = [], []
        for at, info in found.items():
            name = at.rstrip("/").removeprefix(root).lstrip("/")
            if not name or any(part.startswith(".") for part in name.split("/")):
                continue                             # hidden: .DS_Store, .git, .ipynb_checkpoints
            if info["type"] == "directory":
                folders.append(name)
            elif info["type"] == "file":             # a pipe or a socket would block the reader
                files.append(SourceFile(name, at, int(info.get("size") or 0), _stamp(info)))
        return sorted(files, key=lambda f: f.name), sorted(folders)

    def _reading(self, doing: str, where: str, act: Callable[[], _T], tries: int = TRIES) -> _T:
        with _clear(doing, where, self._options):
            for attempt in range(1, tries + 1):
                try:
                    return act()
                except Exception as e:  # only a transient fault is worth another try, all else goes on
                    if attempt == tries or not faults.is_transient(e):
                        raise
                    time.sleep(BACKOFF_S * 2 ** (attempt - 1) * random.uniform(0.5, 1))
        raise AssertionError("unreachable: the last try returns or raises")


@contextlib.contextmanager
def _clear(doing: str, where: str, options: dict[str, Any]) -> Iterator[None]:
    """Turns what a store raises inside into one `SourceError`."""
    try:
        with clear_errors(doing, where, options):
            yield
    except MissingObject as e:
        raise SourceError(f"source.url: there is nothing at {where}; check the URL") from e
    except StoreError as e:
        raise SourceError(f"source.url: {e}") from e


def _followed(fs: Any, found: dict[str, Any], seen: set[str]) -> dict[str, Any]:
    """A local listing with what symbolic links lead to, which fsspec leaves out (model hubs' caches are made of them).

    Args:
        seen: folders on the way here, so that a link back up ends.
    """
    whole = {}
    for at, info in found.items():
        if not info.get("islink"):
            whole[at] = info
            continue
        try:
            info = fs.info(at)
        except OSError:                              # leads nowhere or in a circle: a file that can't be read
            info = {**info, "type": "file"}
        target = os.path.realpath(at)
        if info["type"] != "directory":
            whole[at] = info
        elif target not in seen:
            whole[at] = info
            whole |= _followed(fs, fs.find(at, withdirs=True, detail=True), seen | {target})
    return whole


def assign_splits(names: Iterable[str]) -> dict[str, Split]:
    """Which official split each name belongs to, by the words in it (`train-00000.parquet`, `data/test/0.tar`).

    A name with none of the words is train. Without a test split, the validation split is the one held out and takes its
    place; without a train split there is nothing to tell apart and all are train.
    """
    found = {name: _split_of(name) for name in names}
    present = set(found.values())
    if Split.TRAIN not in present:
        return dict.fromkeys(found, Split.TRAIN)
    if Split.TEST not in present:
        return {name: Split.TEST if split is Split.VAL else split for name, split in found.items()}
    return found


def split_word(folder: str) -> Split | None:
    """The split that a folder of this name holds, None when it is no such folder."""
    return _SPLIT_WORDS.get(folder.lower())


def _split_of(name: str) -> Split:
    for part in reversed(name.split("/")):           # the file's own name says more than a folder above it
        for word in re.split(r"[^a-z0-9]+", part.lower()):
            if word in _SPLIT_WORDS:
                return _SPLIT_WORDS[word]
    return Split.TRAIN


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _stamp(info: dict[str, Any]) -> str:
    for key in ("ETag", "etag", "content_hash", "md5Hash", "mtime", "LastModified", "last_modified", "created"):
        if info.get(key):
            return str(info[key])
    return ""

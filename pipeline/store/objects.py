"""A folder of objects under one URL: whole or absent, once or not, every fault in plain words."""

import json
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from pipeline import faults
from pipeline.errors import StoreError
from pipeline.store import opening, troubles
from pipeline.store.addresses import LOCAL, checked, root_of
from pipeline.store.backend import Backend
from pipeline.store.json_text import json_bytes
from pipeline.store.local import LocalDisk
from pipeline.store.reading import raise_clean

PUTS_AT_A_TIME = 16
MAX_TRIES = 6
BACKOFF_S = 0.2                                      # doubled each time up to the next line, times 0.5 … 1 by chance
MAX_BACKOFF_S = 5.0

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object of a listing; `key` is relative to the store that listed it."""

    key: str
    size: int                                        # bytes
    modified: float | None = field(default=None, compare=False)   # Unix time of the last write, where the store says so


@dataclass(frozen=True)
class Capabilities:
    """What a store was seen to do."""

    put_if_absent: bool                              # refuses a conditional put onto an object that is there
    swap: bool                                       # refuses a put whose If-Match does not hold
    deletes: bool
    note: str = ""                                   # a sentence for the user when something is lacking


class Store:
    """A folder of objects under one URL. Holds no connection: it can be pickled, and opens at the first use.

    Args:
        url: local path or fsspec URL.
        storage_options: handed to fsspec (`endpoint_url`, `key`, `secret`, …); for S3 the AWS_* variables count too.

    Raises (all methods):
        StoreError: what happened, where, and what to do; `MissingObject` when there is no such object.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None):
        self._root, self._protocol = root_of(url)
        self.url = self._root if self._protocol in LOCAL else f"{self._protocol}://{self._root.lstrip('/')}"
        self._options = dict(storage_options or {})
        self._conditional = True                     # False once the store was seen to ignore conditions

    def __repr__(self) -> str:
        return f"Store({faults.scrub(self.url, frozenset())!r})"

    @property
    def is_local(self) -> bool:
        """On a file system of this machine (or one mounted here)."""
        return self._protocol in LOCAL

    @property
    def is_process_local(self) -> bool:
        """In this process's memory: other processes see nothing of it."""
        return self._protocol == "memory"

    @property
    def storage_options(self) -> dict[str, Any]:
        """As given; may hold secrets."""
        return dict(self._options)

    def child(self, prefix: str) -> "Store":
        """The store below `prefix`."""
        below = Store.__new__(Store)
        below.__dict__.update(self.__dict__)
        below._root = f"{self._root.rstrip('/')}/{checked(prefix)}"
        below.url = f"{self.url.rstrip('/')}/{prefix}"
        return below

    def where(self, key: str = "") -> str:
        """URL of an object or of the store, fit to be printed."""
        return faults.scrub(f"{self.url.rstrip('/')}/{key}" if key else self.url, frozenset())

    # reading

    def get(self, key: str) -> bytes:
        """The whole object."""
        return self._call("read", key, lambda b, path: b.get(path))[0]

    def get_json(self, key: str) -> Any:
        """The object as JSON."""
        return self._json(key, self.get(key))

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        """The object and a token of its content's version for `swap`."""
        return self._call("read", key, lambda b, path: b.get(path))

    def size(self, key: str) -> int:
        """Bytes."""
        return self._call("look at", key, lambda b, path: b.size(path))

    def exists(self, key: str) -> bool:
        """Whether there is an object under `key`."""
        def look(backend: Backend, path: str) -> bool:
            try:
                backend.size(path)
            except Exception as e:  # only a store's own "no such object" is an answer, all else goes on
                if faults.is_missing(e):
                    return False
                raise
            return True

        return self._call("look at", key, look)

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """All objects in the folder `prefix` and below, by key; none when there is no such folder."""
        return sorted(self.walk(prefix), key=lambda o: o.key)

    def walk(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """As `list`, in any order and page by page, so that a folder of millions need not be held."""
        prefix = prefix.rstrip("/")
        start, token = f"{prefix}/" if prefix else "", None
        while True:
            found, token = self._call("list", prefix, lambda b, path, at=token: b.page(path, at))  # type: ignore[misc]
            yield from (ObjectInfo(start + name, size, modified) for name, size, modified in found)
            if token is None:
                return

    def folders(self, prefix: str = "") -> Sequence[str]:
        """Names of the folders right in the folder `prefix`, sorted; one request, however much lies in them."""
        return sorted(self._call("list", prefix, lambda b, path: b.folders(path)))

    # writing

    def put(self, key: str, data: bytes) -> None:
        """Puts the whole object, over what is there."""
        self._call("write", key, lambda b, path: b.put(path, data))

    def put_json(self, key: str, value: Any) -> None:
        """Puts `value` as JSON, the same bytes for the same value."""
        self.put(key, json_bytes(value))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Puts the object unless there is one. True: what lies there is `data`.

        Who must know that it was this very call, and not another with the same bytes, puts an id into them.
        """
        return self._conditional_put(key, data, None)

    def put_all_if_absent(self, objects: Sequence[tuple[str, bytes]]) -> Sequence[bytes]:
        """Puts each object unless there is one under its key; what lies there now, in the same order.

        Much faster than one after the other: 16 requests at a time, or on a local disk one `fsync` of each folder.
        """
        if self.is_local and self._conditional:
            paths = [(self._path(key), data) for key, data in objects]
            made = self._call("write", "", lambda b, path: cast(LocalDisk, b).create_all(paths))
        else:
            with ThreadPoolExecutor(PUTS_AT_A_TIME) as threads:
                made = list(threads.map(lambda o: self.put_if_absent(*o), objects))
        return [data if new else self.get(key) for new, (key, data) in zip(made, objects)]

    def copy(self, source: str, key: str) -> None:
        """Copies the object `source` to `key`, over what is there, within the store: its bytes don't come here.

        On a local disk that is a second name for the same file.

        Raises:
            MissingObject: there is no `source`.
        """
        at = self._path(source)
        self._call("copy", key, lambda b, path: b.copy(at, path), where=self.where(source))

    def copy_all(self, pairs: Sequence[tuple[str, str]]) -> None:
        """`copy` for many (source, key), 16 at a time, or on a local disk with one `fsync` of each folder."""
        if self.is_local:
            paths = [(self._path(source), self._path(key)) for source, key in pairs]
            self._call("copy", "", lambda b, path: cast(LocalDisk, b).copy_all(paths))
            return
        with ThreadPoolExecutor(PUTS_AT_A_TIME) as threads:
            list(threads.map(lambda pair: self.copy(*pair), pairs))

    def swap(self, key: str, data: bytes, token: str | None) -> bool:
        """Puts `data` if the object still is at `token` (None: absent). False: it isn't, and other bytes lie there."""
        return self._conditional_put(key, data, token)

    def delete(self, key: str) -> None:
        """Removes an object; none being there is fine."""
        def remove(backend: Backend, path: str) -> None:
            try:
                backend.delete(path)
            except Exception as e:  # as in `exists`
                if not faults.is_missing(e):
                    raise

        self._call("delete", key, remove)

    def delete_prefix(self, prefix: str) -> None:
        """Removes the folder `prefix` and all below it."""
        if not prefix:
            raise StoreError(f"refused to delete the whole of {self.where()}: name a folder in it")
        self._call("delete", prefix, lambda b, path: b.delete_all(path))

    def sweep(self, prefix: str, older_than_s: float = 3600.0) -> None:
        """Removes what killed writers left half-written in the folder `prefix`. Only a local disk has such files."""
        self._call("tidy", prefix, lambda b, path: b.sweep(path, time.time() - older_than_s))

    def probe(self) -> Capabilities:
        """Writes, rewrites under conditions, reads back and removes a small object.

        Afterwards this store and its later children know whether conditions can be relied on; when not, `put_if_absent`
        and `swap` look before they write, which is right as long as one process commits.
        """
        key, data = f".probe-{uuid.uuid4().hex}", uuid.uuid4().hex.encode()
        if not self._conditional_put(key, data, None, tries=3, where=self.where()):
            raise StoreError(f"can't write {self.where()}: a new object was refused as present; check the URL")
        back, token = self.get_versioned(key)
        if back != data:
            raise StoreError(f"{self.where()} gave back other bytes than were put; check the URL")
        backend = self._backend()
        absent = backend.conditions and not self._conditional_put(key, b"second", None)
        swapped = absent and not self._conditional_put(key, b"third", token[::-1] + "0")
        deletes = True
        try:
            self.delete(key)
        except StoreError:
            deletes = False
        self._conditional = absent and swapped
        return Capabilities(absent, swapped, deletes, self._note(absent, swapped, deletes))

    def _note(self, absent: bool, swapped: bool, deletes: bool) -> str:
        notes = []
        if not (absent and swapped):
            notes.append(f"{self.where()} ignores conditional puts (If-None-Match, If-Match), so nothing stops two "
                         "runs from publishing there at the same time: let one run at a time publish")
        if not deletes:
            notes.append(f"{self.where()} does not let objects be deleted: leftovers of interrupted runs stay there")
        return "; ".join(notes)

    def _conditional_put(
        self, key: str, data: bytes, token: str | None, tries: int = MAX_TRIES, where: str = ""
    ) -> bool:
        def attempt(backend: Backend, path: str) -> bool:
            try:
                if not self._conditional:
                    return self._look_then_put(backend, path, data, token)
                if token is None:
                    backend.create(path, data)
                else:
                    backend.swap(path, data, token)
                return True
            except Exception as e:                   # a condition that did not hold is an answer, all else goes on
                if token is not None and faults.is_missing(e):
                    return False
                if not faults.is_precondition(e):
                    raise
                # It may be our own write that is in the way: its reply was lost, and the driver tried again unasked
                # (aiohttp does so when a kept connection breaks). So what lies there decides.
                return backend.get(path)[0] == data

        return self._call("write", key, attempt, tries, where)

    @staticmethod
    def _look_then_put(backend: Backend, path: str, data: bytes, token: str | None) -> bool:
        try:
            there, now = backend.get(path)
        except Exception as e:  # as in `exists`
            if not faults.is_missing(e):
                raise
            there, now = b"", None
        if now != token:
            return now is not None and there == data
        backend.put(path, data)
        return True

    def _call(
        self, doing: str, key: str, act: Callable[[Backend, str], _T], tries: int = MAX_TRIES, where: str = ""
    ) -> _T:
        """Acts on the backend, again after transient faults; every fault leaves as a `StoreError` without secrets."""
        path = self._path(key) if key else self._root
        for attempt in range(1, tries + 1):
            try:
                return act(self._backend(), path)
            except Exception as e:  # noqa: BLE001  the boundary to fsspec: each kind of fault is named in `faults`
                if not faults.is_missing(e):         # "there is none" is an answer
                    troubles.add()
                if attempt < tries and faults.is_transient(e):
                    time.sleep(min(BACKOFF_S * 2 ** (attempt - 1), MAX_BACKOFF_S) * random.uniform(0.5, 1))
                    continue
                raise_clean(e, doing, where or self.where(key), self._options, self.url, attempt)
        raise AssertionError("unreachable: the last try returns or raises")

    def _path(self, key: str) -> str:
        return f"{self._root.rstrip('/')}/{checked(key)}"

    def _backend(self) -> Backend:
        return opening.backend(self._protocol, json.dumps(self._options, sort_keys=True, default=str), self._options, self.url)

    def _json(self, key: str, data: bytes) -> Any:
        try:
            return json.loads(data)
        except ValueError as e:
            raise StoreError(f"{self.where(key)} is not valid JSON ({e}): not written by ganmill, or damaged") from e

"""The one room that opens and writes objects: on a local disk, in memory, on S3 and whatever else fsspec speaks.

Every write is whole or absent. Locally that is a temporary file in the same folder, `fsync`, then `os.replace`; on an
object store one put. Puts that must happen once use the store's own conditions (If-None-Match, If-Match); a store that
ignores them is found out by `Store.probe` and said so. Transient faults are tried again a bounded number of times, a
reply that was lost is read back, and every other fault leaves as one `StoreError`.
"""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import random
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar, cast

import fsspec
from fsspec.asyn import sync
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractFileSystem
from fsspec.utils import get_protocol

from pipeline import faults
from pipeline.errors import StoreError

PUTS_AT_A_TIME = 16
SYNC_TOGETHER = 32                                   # from so many files on, the whole file system is synced instead
FILES_AT_A_TIME = 500                                # held open; a process may have 1,024
MAX_TRIES = 6
BACKOFF_S = 0.2                                      # doubled each time up to the next line, times 0.5 … 1 by chance
MAX_BACKOFF_S = 5.0
S3_TIMEOUTS_S = {"connect_timeout": 10, "read_timeout": 60}

_T = TypeVar("_T")
_LOCAL = ("file", "local")
_S3 = ("s3", "s3a")
_TEMPORARY, _LOCK = ".ganmill-tmp", ".ganmill-lock"


@dataclass(frozen=True)
class ObjectInfo:
    """One object of a listing; `key` is relative to the store that listed it."""

    key: str
    size: int                                        # bytes


@dataclass(frozen=True)
class Capabilities:
    """What a store was seen to do."""

    put_if_absent: bool                              # refuses a conditional put onto an object that is there
    swap: bool                                       # refuses a put whose If-Match does not hold
    deletes: bool
    note: str = ""                                   # a sentence for the user when something is lacking


class _Backend(Protocol):
    """What a kind of store must do; paths are absolute within it, errors are its own."""

    conditions: bool                                 # whether `create` and `swap` are atomic in the store itself

    def get(self, path: str) -> tuple[bytes, str]: ...                         # content, token
    def size(self, path: str) -> int: ...
    def put(self, path: str, data: bytes) -> None: ...
    def create(self, path: str, data: bytes) -> None: ...                      # FileExistsError or a 412
    def swap(self, path: str, data: bytes, token: str) -> None: ...            # the same
    def list(self, folder: str) -> Iterator[tuple[str, int]]: ...              # path below folder, bytes
    def delete(self, path: str) -> None: ...
    def delete_all(self, folder: str) -> None: ...
    def sweep(self, folder: str, before: float) -> None: ...                   # Unix time


class Store:
    """A folder of objects under one URL. Holds no connection: it can be pickled, and opens at the first use.

    Args:
        url: local path or fsspec URL.
        storage_options: handed to fsspec (`endpoint_url`, `key`, `secret`, …); for S3 the AWS_* variables count too.

    Raises (all methods):
        StoreError: what happened, where, and what to do; `MissingObject` when there is no such object.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None):
        self._root, self._protocol = _root_of(url)
        self.url = self._root if self._protocol in _LOCAL else f"{self._protocol}://{self._root.lstrip('/')}"
        self._options = dict(storage_options or {})
        self._conditional = True                     # False once the store was seen to ignore conditions

    def __repr__(self) -> str:
        return f"Store({faults.scrub(self.url, frozenset())!r})"

    @property
    def is_local(self) -> bool:
        """On a file system of this machine (or one mounted here)."""
        return self._protocol in _LOCAL

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
        below._root = f"{self._root.rstrip('/')}/{_checked(prefix)}"
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
        def look(backend: _Backend, path: str) -> bool:
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
        prefix = prefix.rstrip("/")
        found = self._call("list", prefix, lambda b, path: list(b.list(path)))
        start = f"{prefix}/" if prefix else ""
        return sorted((ObjectInfo(start + name, size) for name, size in found), key=lambda o: o.key)

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
            paths = [(f"{self._root}/{_checked(key)}", data) for key, data in objects]
            made = self._call("write", "", lambda b, path: cast(_Local, b).create_all(paths))
        else:
            with ThreadPoolExecutor(PUTS_AT_A_TIME) as threads:
                made = list(threads.map(lambda o: self.put_if_absent(*o), objects))
        return [data if new else self.get(key) for new, (key, data) in zip(made, objects)]

    def swap(self, key: str, data: bytes, token: str | None) -> bool:
        """Puts `data` if the object still is at `token` (None: absent). False: it isn't, and other bytes lie there."""
        return self._conditional_put(key, data, token)

    def delete(self, key: str) -> None:
        """Removes an object; none being there is fine."""
        def remove(backend: _Backend, path: str) -> None:
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
        def attempt(backend: _Backend, path: str) -> bool:
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
    def _look_then_put(backend: _Backend, path: str, data: bytes, token: str | None) -> bool:
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
        self, doing: str, key: str, act: Callable[[_Backend, str], _T], tries: int = MAX_TRIES, where: str = ""
    ) -> _T:
        """Acts on the backend, again after transient faults; every fault leaves as a `StoreError` without secrets."""
        path = f"{self._root.rstrip('/')}/{_checked(key)}" if key else self._root
        for attempt in range(1, tries + 1):
            try:
                return act(self._backend(), path)
            except Exception as e:  # noqa: BLE001  the boundary to fsspec: each kind of fault is named in `faults`
                if attempt < tries and faults.is_transient(e):
                    time.sleep(min(BACKOFF_S * 2 ** (attempt - 1), MAX_BACKOFF_S) * random.uniform(0.5, 1))
                    continue
                _raise_clean(e, doing, where or self.where(key), self._options, self.url, attempt)
        raise AssertionError("unreachable: the last try returns or raises")

    def _backend(self) -> _Backend:
        return _backend(self._protocol, json.dumps(self._options, sort_keys=True, default=str), self._options, self.url)

    def _json(self, key: str, data: bytes) -> Any:
        try:
            return json.loads(data)
        except ValueError as e:
            raise StoreError(f"{self.where(key)} is not valid JSON ({e}): not written by ganmill, or damaged") from e


def json_bytes(value: Any) -> bytes:
    """`value` as UTF-8 JSON: the same bytes for the same value."""
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        return text.encode()
    except UnicodeEncodeError:                       # a class named by a folder whose name is no UTF-8
        return (json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def compact_json(value: Any) -> bytes:
    """As `json_bytes`, on one line: ten times as fast, for what machines alone read by the thousand."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def open_filesystem(url: str, storage_options: Mapping[str, Any] | None = None) -> tuple[AbstractFileSystem, str]:
    """The fsspec file system of a source's URL and the path in it. Read inside `clear_errors`.

    Raises:
        StoreError: unknown protocol, or its driver is not installed.
    """
    with clear_errors("open", url, storage_options):
        _class_of(url)
        return fsspec.core.url_to_fs(url, **dict(storage_options or {}))


@contextlib.contextmanager
def clear_errors(doing: str, url: str, storage_options: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Whatever fsspec, botocore or the operating system raises inside leaves as a `StoreError` without secrets."""
    try:
        yield
    except (OSError, ValueError, ImportError, NotImplementedError, StoreError) as e:
        _raise_clean(e, doing, faults.scrub(url, frozenset()), storage_options or {}, url, 1)
    except Exception as e:  # botocore's own classes derive from Exception alone
        if not type(e).__module__.startswith(("botocore", "aiobotocore", "aiohttp", "fsspec", "s3fs")):
            raise
        _raise_clean(e, doing, faults.scrub(url, frozenset()), storage_options or {}, url, 1)


def _raise_clean(e: Exception, doing: str, where: str, options: Mapping[str, Any], url: str, tries: int) -> None:
    """Raises the `StoreError` for `e`; the cause is chained only when it holds no secret."""
    fault = faults.explain(e, doing, where, tries)
    secrets = faults.secrets_of(options, url)
    clean = type(fault)(faults.scrub(str(fault), secrets))
    told = all(faults.scrub(repr(cause), secrets) == repr(cause) for cause in faults.causes(e))
    raise clean from (e if told else None)


def _class_of(url: str) -> Any:
    try:
        return fsspec.get_filesystem_class(get_protocol(url))
    except (ImportError, ValueError) as e:
        raise faults.missing_protocol(faults.scrub(url, frozenset()), e) from e


def _root_of(url: str) -> tuple[str, str]:
    """(path in the store without trailing slash, protocol)."""
    protocol = get_protocol(url)
    if protocol in _LOCAL:
        return os.path.abspath(str(LocalFileSystem._strip_protocol(url))), "file"  # noqa: PTH100  links stay
    path = url.partition("://")[2].strip("/")
    if protocol in _S3 and not path:
        raise StoreError(f"{url} names no bucket; give s3://bucket/prefix")
    return (f"/{path}" if protocol == "memory" else path), protocol


def _checked(key: str) -> str:
    """`key`, if it can't lead out of the store.

    Raises:
        StoreError: it is absolute, empty, or holds `..`, `.`, an empty part, a backslash or a control character.
    """
    if any(part in ("", ".", "..") for part in key.split("/")) or "\\" in key or any(ord(c) < 32 for c in key):
        raise StoreError(f"{key!r} is no key: parts between slashes must not be empty, '.' or '..'")
    return key


# kinds of store

_BACKENDS: dict[tuple[int, str, str], _Backend] = {}
_OPENING = threading.Lock()


def _backend(protocol: str, options_key: str, options: Mapping[str, Any], url: str) -> _Backend:
    """One open backend per process, protocol and options; a forked child opens its own."""
    at = (os.getpid(), protocol, url.partition("://")[2].partition("/")[0] + options_key)
    with _OPENING:
        if at not in _BACKENDS:
            _BACKENDS[at] = _open_backend(protocol, options, url)
        return _BACKENDS[at]


def _open_backend(protocol: str, options: Mapping[str, Any], url: str) -> _Backend:
    if protocol in _LOCAL:
        return _Local()
    if protocol == "memory":
        return _Memory()
    cls = _class_of(url)
    if protocol in _S3:
        config = {**S3_TIMEOUTS_S, "retries": {"total_max_attempts": 1}, **options.get("config_kwargs", {})}
        fs = cls(**{**options, "config_kwargs": config, "use_listings_cache": False, "skip_instance_cache": True})
        fs.retries = 1                               # tries are counted in one place, `Store._call`
        return _S3Store(fs, protocol)
    return _AnyStore(cls(**{**cls._get_kwargs_from_urls(url), **options, "use_listings_cache": False}), protocol)


class _Local:
    """A folder of a mounted file system."""

    conditions = True

    def get(self, path: str) -> tuple[bytes, str]:
        data = Path(path).read_bytes()
        return data, hashlib.sha256(data).hexdigest()

    def size(self, path: str) -> int:
        if not Path(path).is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return Path(path).stat().st_size

    def put(self, path: str, data: bytes) -> None:
        with self._staged(path, data) as temporary:
            temporary.replace(path)
        self._sync_folder(path)

    def create(self, path: str, data: bytes) -> None:
        if os.path.lexists(path):
            raise FileExistsError(path)
        with self._staged(path, data) as temporary:
            if not self._link(str(temporary), path):
                raise FileExistsError(path)
        self._sync_folder(path)

    def _link(self, temporary: str, path: str) -> bool:
        """Gives a file its final name; False when that is taken."""
        try:
            os.link(temporary, path)                 # the one exclusive call
        except FileExistsError:
            return False
        except OSError as e:
            if e.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise
            with self._locked(path):                 # a file system without hard links
                if os.path.lexists(path):
                    return False
                Path(temporary).replace(path)
        return True

    def create_all(self, objects: Sequence[tuple[str, bytes]]) -> Sequence[bool]:
        """`create` for many, False where there was one; each folder goes to disk once."""
        groups = (objects[i:i + FILES_AT_A_TIME] for i in range(0, len(objects), FILES_AT_A_TIME))
        made = [new for group in groups for new in self._create_some(group)]
        for folder in {os.path.split(path)[0] for path, _ in objects}:
            self._sync_folder(f"{folder}/")
        return made

    def _create_some(self, objects: Sequence[tuple[str, bytes]]) -> Sequence[bool]:
        for folder in {os.path.split(path)[0] for path, _ in objects}:
            Path(folder).mkdir(parents=True, exist_ok=True)
        staged = []
        made = []
        try:
            for path, data in objects:
                temporary = self._temporary(path)
                file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
                staged.append((temporary, file))
                written = os.write(file, data)
                while written < len(data):
                    written += os.write(file, data[written:])
            _to_disk([file for _, file in staged])
            for (path, _), (temporary, _) in zip(objects, staged):
                made.append(self._link(temporary, path))
        finally:
            for temporary, file in staged:
                os.close(file)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary)  # noqa: PTH108  a Path a file costs as much as the call
        return made

    def swap(self, path: str, data: bytes, token: str) -> None:
        with self._staged(path, data) as temporary, self._locked(path):
            if self.get(path)[1] != token:
                raise FileExistsError(path)
            temporary.replace(path)
        self._sync_folder(path)

    def list(self, folder: str) -> Iterator[tuple[str, int]]:
        pending = [folder]
        while pending:
            try:
                entries = list(os.scandir(pending.pop()))
            except FileNotFoundError:                # never there, or removed meanwhile
                continue
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif not entry.name.endswith((_TEMPORARY, _LOCK)):
                    with contextlib.suppress(FileNotFoundError):
                        yield entry.path[len(folder.rstrip("/")) + 1:], entry.stat().st_size

    def delete(self, path: str) -> None:
        Path(path).unlink()
        with contextlib.suppress(OSError):           # an object store has no empty folders either
            Path(path).parent.rmdir()

    def delete_all(self, folder: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)

    def sweep(self, folder: str, before: float) -> None:
        for left in Path(folder).rglob(f".*{_TEMPORARY}"):
            with contextlib.suppress(FileNotFoundError):
                if left.stat().st_mtime < before:
                    left.unlink()

    @contextlib.contextmanager
    def _staged(self, path: str, data: bytes) -> Iterator[Path]:
        """A temporary file beside `path` that holds `data`, on disk; gone afterwards if not renamed."""
        temporary = Path(self._temporary(path))
        try:
            with self._opened(temporary) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    @staticmethod
    def _temporary(path: str) -> str:
        folder, name = os.path.split(path)
        return f"{folder}/.{name[:40]}.{uuid.uuid4().hex}{_TEMPORARY}"

    @staticmethod
    def _opened(path: Path) -> BinaryIO:
        for _ in range(3):                           # somebody may remove the empty folder between the two calls
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                return path.open("wb")
        return path.open("wb")

    @staticmethod
    def _sync_folder(path: str) -> None:
        """The new name itself on disk, so that no receipt outlives its shard when the power fails."""
        descriptor = os.open(os.path.split(path)[0], os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @staticmethod
    @contextlib.contextmanager
    def _locked(path: str) -> Iterator[None]:
        """Alone in the folder of `path`, among the processes of this machine."""
        folder = Path(path).parent
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:                              # NFS locks no folder: take a file in it
            os.close(descriptor)
            descriptor = os.open(folder / f".{Path(path).name}{_LOCK}", os.O_RDWR | os.O_CREAT)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            os.close(descriptor)


def _to_disk(files: Sequence[int]) -> None:
    """What was written to these descriptors, all on one file system, is on disk: many at once by `syncfs` on Linux.

    A thousand times `fsync` took 0.3 s on an idle disk and 3 s on a busy one, one `syncfs` 0.07 s.
    """
    synced = -1
    if len(files) >= SYNC_TOGETHER:
        with contextlib.suppress(AttributeError):    # no Linux
            synced = ctypes.CDLL(None, use_errno=True).syncfs(files[0])
    if synced != 0:
        for file in files:
            os.fsync(file)


class _Memory:
    """fsspec's memory:// of this process."""

    conditions = True
    _lock = threading.RLock()

    def __init__(self) -> None:
        self._fs = MemoryFileSystem()

    def get(self, path: str) -> tuple[bytes, str]:
        with self._lock:
            data = self._fs.cat_file(path)
        return data, hashlib.sha256(data).hexdigest()

    def size(self, path: str) -> int:
        with self._lock:
            if not self._fs.isfile(path):
                raise FileNotFoundError(path)
            return int(self._fs.size(path))

    def put(self, path: str, data: bytes) -> None:
        with self._lock:
            self._fs.makedirs(path.rpartition("/")[0] or "/", exist_ok=True)
            self._fs.pipe_file(path, bytes(data))

    def create(self, path: str, data: bytes) -> None:
        with self._lock:
            if self._fs.exists(path):
                raise FileExistsError(path)
            self.put(path, data)

    def swap(self, path: str, data: bytes, token: str) -> None:
        with self._lock:
            if self.get(path)[1] != token:
                raise FileExistsError(path)
            self.put(path, data)

    def list(self, folder: str) -> Iterator[tuple[str, int]]:
        with self._lock:
            found = self._fs.find(folder, detail=True) if self._fs.exists(folder) else {}
            inside = [(name, info["size"]) for name, info in found.items()]
        start = folder.rstrip("/") + "/"
        return iter([(name[len(start):], size) for name, size in inside if name.startswith(start)])

    def delete(self, path: str) -> None:
        with self._lock:
            self._fs.rm_file(path)

    def delete_all(self, folder: str) -> None:
        with self._lock:
            if self._fs.exists(folder):
                self._fs.rm(folder, recursive=True)

    def sweep(self, folder: str, before: float) -> None:
        pass                                         # a put is one step


class _AnyStore:
    """Any other fsspec file system. Its conditions are looked at, then written: right for one committer at a time."""

    conditions = False

    def __init__(self, fs: Any, protocol: str):
        self._fs, self._protocol = fs, protocol

    def _at(self, path: str) -> str:
        return str(self._fs._strip_protocol(f"{self._protocol}://{path}"))

    def get(self, path: str) -> tuple[bytes, str]:
        data = self._fs.cat_file(self._at(path))
        return data, hashlib.sha256(data).hexdigest()

    def size(self, path: str) -> int:
        return int(self._fs.size(self._at(path)))

    def put(self, path: str, data: bytes) -> None:
        self._fs.pipe_file(self._at(path), data)

    def create(self, path: str, data: bytes) -> None:
        self._fs.pipe_file(self._at(path), data, mode="create")

    def swap(self, path: str, data: bytes, token: str) -> None:
        if self.get(path)[1] != token:
            raise FileExistsError(path)
        self.put(path, data)

    def list(self, folder: str) -> Iterator[tuple[str, int]]:
        start = self._at(folder).rstrip("/") + "/"
        try:
            found = self._fs.find(self._at(folder), detail=True)
        except FileNotFoundError as e:
            if faults.is_missing_bucket(e):
                raise
            return
        for name, info in found.items():
            if name.startswith(start) and not name.endswith("/"):
                yield name[len(start):], int(info["size"] or 0)

    def delete(self, path: str) -> None:
        self._fs.rm_file(self._at(path))

    def delete_all(self, folder: str) -> None:
        for name, _ in list(self.list(folder)):
            self.delete(f"{folder}/{name}")

    def sweep(self, folder: str, before: float) -> None:
        pass                                         # a put is one step


class _S3Store(_AnyStore):
    """S3 and what speaks its protocol, by s3fs, with the store's own conditions."""

    conditions = True

    def get(self, path: str) -> tuple[bytes, str]:
        return sync(self._fs.loop, self._get, path)

    async def _get(self, path: str) -> tuple[bytes, str]:
        bucket, key, _ = self._fs.split_path(path)
        reply = await self._fs._call_s3("get_object", Bucket=bucket, Key=key)
        try:
            return await reply["Body"].read(), reply["ETag"]
        finally:
            reply["Body"].close()

    def size(self, path: str) -> int:
        bucket, key, _ = self._fs.split_path(path)
        try:
            return int(self._fs.call_s3("head_object", Bucket=bucket, Key=key)["ContentLength"])
        except Exception as e:
            if not faults.is_missing(e) and not faults.is_transient(e):      # a refused HEAD has no body to say why
                self._fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1)
            raise

    def swap(self, path: str, data: bytes, token: str) -> None:
        self._fs.pipe_file(path, data, IfMatch=token)

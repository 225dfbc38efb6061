"""fsspec's `memory://`: in this process alone."""

import hashlib
import threading
from collections.abc import Iterator, Sequence

from fsspec.implementations.memory import MemoryFileSystem

from pipeline.store.backend import Listed, Page, modified


class Memory:
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

    def copy(self, source: str, path: str) -> None:
        with self._lock:
            self.put(path, self.get(source)[0])

    def folders(self, folder: str) -> Sequence[str]:
        return list({name.split("/")[0] for name, *_ in self.list(folder) if "/" in name})

    def list(self, folder: str) -> Iterator[Listed]:
        with self._lock:
            found = self._fs.find(folder, detail=True) if self._fs.exists(folder) else {}
            inside = [(name, info["size"], modified(info)) for name, info in found.items()]
        start = folder.rstrip("/") + "/"
        return iter([(name[len(start):], size, at) for name, size, at in inside if name.startswith(start)])

    def page(self, folder: str, token: str | None) -> Page:
        return list(self.list(folder)), None

    def delete(self, path: str) -> None:
        with self._lock:
            self._fs.rm_file(path)

    def delete_all(self, folder: str) -> None:
        with self._lock:
            if self._fs.exists(folder):
                self._fs.rm(folder, recursive=True)

    def sweep(self, folder: str, before: float) -> None:
        pass                                         # a put is one step

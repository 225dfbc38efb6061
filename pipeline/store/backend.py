"""What a kind of store must do."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

Listed = tuple[str, int, float | None]               # path below the folder, bytes, Unix time of the last write
Page = tuple[Iterable[Listed], str | None]


class Backend(Protocol):
    """What a kind of store must do; paths are absolute within it, errors are its own."""

    conditions: bool                                 # whether `create` and `swap` are atomic in the store itself

    def get(self, path: str) -> tuple[bytes, str]: ...                         # content, token
    def size(self, path: str) -> int: ...
    def put(self, path: str, data: bytes) -> None: ...
    def create(self, path: str, data: bytes) -> None: ...                      # FileExistsError or a 412
    def swap(self, path: str, data: bytes, token: str) -> None: ...            # the same
    def copy(self, source: str, path: str) -> None: ...                        # over what is there, whole or not at all
    def folders(self, folder: str) -> Sequence[str]: ...                           # names right below it; any order
    def list(self, folder: str) -> Iterator["Listed"]: ...
    def page(self, folder: str, token: str | None) -> "Page": ...              # the next part of that, and where to go on
    def delete(self, path: str) -> None: ...
    def delete_all(self, folder: str) -> None: ...
    def sweep(self, folder: str, before: float) -> None: ...                   # Unix time


def modified(info: Mapping[str, Any]) -> float | None:
    """Unix time of an object's last write, under whichever name its file system gives it."""
    for name in ("LastModified", "mtime", "last_modified", "updated", "created"):
        value = info.get(name)
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return None

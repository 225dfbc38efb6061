"""A local disk, or one mounted here: a temporary file in the same folder, `fsync`, then its final name."""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from pipeline.store.backend import Listed, Page

SYNC_TOGETHER = 32                                   # from so many files on, the whole file system is synced instead
FILES_AT_A_TIME = 500                                # held open; a process may have 1,024
_TEMPORARY, _LOCK = ".ganmill-tmp", ".ganmill-lock"
_HAS_UNNAMED = hasattr(os, "O_TMPFILE") and Path("/proc/self/fd").is_dir()      # Linux


class LocalDisk:
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
            if not self._link(str(temporary), path, data):
                raise FileExistsError(path)
        self._sync_folder(path)

    def _link(self, staged: str | int, path: str, data: bytes) -> bool:
        """Gives a file, known by name or descriptor, its final name; False when that is taken."""
        try:
            if isinstance(staged, str):
                os.link(staged, path)                # the one exclusive call
            else:                                    # a descriptor as folder makes Python follow the link to the file
                os.link(f"/proc/self/fd/{staged}", path, src_dir_fd=staged, follow_symlinks=True)
        except FileExistsError:
            return False
        except OSError as e:
            if e.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise
            with self._locked(path):                 # a file system without hard links
                if os.path.lexists(path):
                    return False
                self.put(path, data)
        return True

    def create_all(self, objects: Sequence[tuple[str, bytes]]) -> Sequence[bool]:
        """`create` for many, False where there was one; each folder goes to disk once."""
        groups = (objects[i:i + FILES_AT_A_TIME] for i in range(0, len(objects), FILES_AT_A_TIME))
        made = [new for group in groups for new in self._create_some(group)]
        for folder in {path.rpartition("/")[0] for path, _ in objects}:
            self._sync_folder(f"{folder}/")
        return made

    def _create_some(self, objects: Sequence[tuple[str, bytes]]) -> Sequence[bool]:
        folders = [path.rpartition("/")[0] for path, _ in objects]
        for folder in set(folders):
            Path(folder).mkdir(parents=True, exist_ok=True)
        staged: list[tuple[int, str]] = []           # descriptor, name or ""
        made, ours = [], uuid.uuid4().hex
        try:
            for i, (folder, (_, data)) in enumerate(zip(folders, objects)):
                file, name = _unnamed(folder), ""
                if file is None:
                    name = f"{folder}/.{i}.{ours}{_TEMPORARY}"
                    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
                staged.append((file, name))
                written = os.write(file, data)
                while written < len(data):
                    written += os.write(file, data[written:])
            _to_disk([file for file, _ in staged])
            for (path, data), (file, name) in zip(objects, staged):
                made.append(self._link(name or file, path, data))
        finally:
            for file, name in staged:
                os.close(file)
                if name:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(name)  # noqa: PTH108  a Path a file costs as much as the call
        return made

    def swap(self, path: str, data: bytes, token: str) -> None:
        with self._staged(path, data) as temporary, self._locked(path):
            if self.get(path)[1] != token:
                raise FileExistsError(path)
            temporary.replace(path)
        self._sync_folder(path)

    def copy(self, source: str, path: str) -> None:
        """A second name for the same file where the file system has that: files are replaced, never written into."""
        self.copy_all([(source, path)])

    def copy_all(self, pairs: Sequence[tuple[str, str]]) -> None:
        """`copy` for many (source, path); each folder goes to disk once."""
        for source, path in pairs:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            temporary = self._temporary(path)
            try:
                os.link(source, temporary)
                Path(temporary).replace(path)
            except OSError as e:
                if e.errno not in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                    raise
                self.put(path, self.get(source)[0])
            finally:                                 # a rename onto another name of the same file does nothing
                Path(temporary).unlink(missing_ok=True)
        for folder in {os.path.split(path)[0] for _, path in pairs}:
            self._sync_folder(f"{folder}/")

    def folders(self, folder: str) -> Sequence[str]:
        try:
            return [entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return []

    def list(self, folder: str) -> Iterator[Listed]:
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
                        facts = entry.stat()
                        yield entry.path[len(folder.rstrip("/")) + 1:], facts.st_size, facts.st_mtime

    def page(self, folder: str, token: str | None) -> Page:
        return list(self.list(folder)), None

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


def _unnamed(folder: str) -> int | None:
    """A file in `folder` without a name so far, gone by itself if it gets none; None where there are no such files.

    Giving it its name takes two thirds of the time of a temporary name, a link and the removal of the former.
    """
    if not _HAS_UNNAMED:
        return None
    try:
        return os.open(folder, os.O_WRONLY | os.O_TMPFILE, 0o666)
    except OSError as e:
        if e.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
        return None


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

"""Object stores, through their fsspec drivers: one put an object, the store's own conditions where it has them."""

import errno
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from fsspec.asyn import sync

from pipeline import faults
from pipeline.store.backend import Listed, Page, modified

DELETES_AT_A_TIME = 1000                             # S3's own limit for one request


class AnyFileSystem:
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

    def copy(self, source: str, path: str) -> None:
        try:
            self._fs.cp_file(self._at(source), self._at(path))
        except NotImplementedError:
            self.put(path, self.get(source)[0])

    def folders(self, folder: str) -> Sequence[str]:
        at = self._at(folder).rstrip("/")
        try:
            found = self._fs.ls(at, detail=True)
        except FileNotFoundError as e:
            if faults.is_missing_bucket(e):
                raise
            return []
        names = [info["name"].rstrip("/") for info in found if info["type"] == "directory"]
        return [name.rpartition("/")[2] for name in names if name != at]

    def list(self, folder: str) -> Iterator[Listed]:
        start = self._at(folder).rstrip("/") + "/"
        try:
            found = self._fs.find(self._at(folder), detail=True)
        except FileNotFoundError as e:
            if faults.is_missing_bucket(e):
                raise
            return
        for name, info in found.items():
            if name.startswith(start) and not name.endswith("/"):
                yield name[len(start):], int(info["size"] or 0), modified(info)

    def page(self, folder: str, token: str | None) -> Page:
        return list(self.list(folder)), None

    def delete(self, path: str) -> None:
        self._fs.rm_file(self._at(path))

    def delete_all(self, folder: str) -> None:
        for name, *_ in list(self.list(folder)):
            self.delete(f"{folder}/{name}")

    def sweep(self, folder: str, before: float) -> None:
        pass                                         # a put is one step


class S3(AnyFileSystem):
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

    def list(self, folder: str) -> Iterator[Listed]:
        token: str | None = None
        while True:
            found, token = self.page(folder, token)
            yield from found
            if token is None:
                return

    def page(self, folder: str, token: str | None) -> Page:
        bucket, key, _ = self._fs.split_path(folder)
        prefix = f"{key.rstrip('/')}/" if key else ""
        go_on = {"ContinuationToken": token} if token else {}
        reply = self._fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **go_on)
        found = [(item["Key"][len(prefix):], int(item["Size"]), modified(item)) for item in reply.get("Contents", ())]
        more = reply.get("NextContinuationToken") if reply.get("IsTruncated") else None
        return [row for row in found if row[0] and not row[0].endswith("/")], more

    def delete_all(self, folder: str) -> None:
        bucket, prefix, _ = self._fs.split_path(folder)
        names = [name for name, *_ in self.list(folder)]
        for first in range(0, len(names), DELETES_AT_A_TIME):
            objects = [{"Key": f"{prefix}/{name}"} for name in names[first:first + DELETES_AT_A_TIME]]
            reply = self._fs.call_s3("delete_objects", Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
            for refused in reply.get("Errors", ()):
                told = f"{refused.get('Key')}: {refused.get('Code')} {refused.get('Message', '')}"
                if refused.get("Code") == "AccessDenied":
                    raise PermissionError(told)
                if refused.get("Code") != "NoSuchKey":
                    raise OSError(errno.EAGAIN, told)

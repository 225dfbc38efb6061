"""URLs and keys: which kind of store, which place in it, and that no key leads out of it."""

import os
import re
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import get_protocol

from pipeline import faults
from pipeline.errors import StoreError

LOCAL = ("file", "local")
S3_PROTOCOLS = ("s3", "s3a")
_NO_KEY = re.compile(r"[\\\x00-\x1f]|(?:^|/)\.{0,2}(?:/|$)")


def class_of(url: str) -> Any:
    """The fsspec class for a URL; a `StoreError` that says what to install when there is none."""
    try:
        return fsspec.get_filesystem_class(get_protocol(url))
    except (ImportError, ValueError) as e:
        raise faults.missing_protocol(faults.scrub(url, frozenset()), e) from e


def root_of(url: str) -> tuple[str, str]:
    """(path in the store without trailing slash, protocol)."""
    protocol = get_protocol(url)
    if protocol in LOCAL:
        return os.path.abspath(str(LocalFileSystem._strip_protocol(url))), "file"  # noqa: PTH100  links stay
    path = url.partition("://")[2].strip("/")
    if protocol in S3_PROTOCOLS and not path:
        raise StoreError(f"{url} names no bucket; give s3://bucket/prefix")
    return (f"/{path}" if protocol == "memory" else path), protocol


def checked(key: str) -> str:
    """`key`, if it can't lead out of the store.

    Raises:
        StoreError: it is absolute, empty, or holds `..`, `.`, an empty part, a backslash or a control character.
    """
    if _NO_KEY.search(key):
        raise StoreError(f"{key!r} is no key: parts between slashes must not be empty, '.' or '..'")
    return key

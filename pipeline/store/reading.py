"""Reading what is not ours: the file system of a source's URL, with every fault in plain words."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import fsspec
from fsspec.spec import AbstractFileSystem

from pipeline import faults
from pipeline.errors import StoreError
from pipeline.store.addresses import class_of


def open_filesystem(url: str, storage_options: Mapping[str, Any] | None = None) -> tuple[AbstractFileSystem, str]:
    """The fsspec file system of a source's URL and the path in it. Read inside `clear_errors`.

    Raises:
        StoreError: unknown protocol, or its driver is not installed.
    """
    with clear_errors("open", url, storage_options):
        class_of(url)
        return fsspec.core.url_to_fs(url, **dict(storage_options or {}))


@contextlib.contextmanager
def clear_errors(doing: str, url: str, storage_options: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Whatever fsspec, botocore or the operating system raises inside leaves as a `StoreError` without secrets."""
    try:
        yield
    except (OSError, ValueError, ImportError, NotImplementedError, StoreError) as e:
        raise_clean(e, doing, faults.scrub(url, frozenset()), storage_options or {}, url, 1)
    except Exception as e:  # botocore's own classes derive from Exception alone
        if not type(e).__module__.startswith(("botocore", "aiobotocore", "aiohttp", "fsspec", "s3fs")):
            raise
        raise_clean(e, doing, faults.scrub(url, frozenset()), storage_options or {}, url, 1)


def raise_clean(e: Exception, doing: str, where: str, options: Mapping[str, Any], url: str, tries: int) -> None:
    """Raises the `StoreError` for `e`; the cause is chained only when it holds no secret."""
    fault = faults.explain(e, doing, where, tries)
    secrets = faults.secrets_of(options, url)
    clean = type(fault)(faults.scrub(str(fault), secrets))
    told = all(faults.scrub(repr(cause), secrets) == repr(cause) for cause in faults.causes(e))
    raise clean from (e if told else None)

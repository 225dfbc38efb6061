"""One open backend per process, protocol and options."""

import os
import threading
from collections.abc import Mapping
from typing import Any

from pipeline.store.addresses import LOCAL, S3_PROTOCOLS, class_of
from pipeline.store.backend import Backend
from pipeline.store.local import LocalDisk
from pipeline.store.memory import Memory
from pipeline.store.remote import S3, AnyFileSystem

S3_TIMEOUTS_S = {"connect_timeout": 10, "read_timeout": 60}

_BACKENDS: dict[tuple[int, str, str], Backend] = {}
_OPENING = threading.Lock()


def backend(protocol: str, options_key: str, options: Mapping[str, Any], url: str) -> Backend:
    """One open backend per process, protocol and options; a forked child opens its own."""
    at = (os.getpid(), protocol, url.partition("://")[2].partition("/")[0] + options_key)
    with _OPENING:
        if at not in _BACKENDS:
            _BACKENDS[at] = _opened(protocol, options, url)
        return _BACKENDS[at]


def _opened(protocol: str, options: Mapping[str, Any], url: str) -> Backend:
    if protocol in LOCAL:
        return LocalDisk()
    if protocol == "memory":
        return Memory()
    cls = class_of(url)
    if protocol in S3_PROTOCOLS:
        config = {**S3_TIMEOUTS_S, "retries": {"total_max_attempts": 1}, **options.get("config_kwargs", {})}
        fs = cls(**{**options, "config_kwargs": config, "use_listings_cache": False, "skip_instance_cache": True})
        fs.retries = 1                               # tries are counted in one place, `Store._call`
        return S3(fs, protocol)
    return AnyFileSystem(cls(**{**cls._get_kwargs_from_urls(url), **options, "use_listings_cache": False}), protocol)

"""Questions that tests put to a source."""

from typing import Any

import pytest

from pipeline.config import SourceConfig
from pipeline.errors import SourceError
from pipeline.sources import open_source
from pipeline.sources.decoding import decode
from pipeline.sources.source import Source


def open_(format: str, url: Any = None, **keys: Any) -> Source:
    return open_source(SourceConfig(format=format, url=None if url is None else str(url), **keys), 0)


def contents(source: Source) -> dict[str, tuple[int | None, str, bytes]]:
    """name → (label, split, pixels)."""
    found = {}
    for item in source.items():
        payload = item.load()
        pixels = decode(payload, 10**6)[0] if isinstance(payload, bytes) else payload
        found[item.name] = (item.label, str(item.split), pixels.tobytes())
    return found


def rows(source: Source) -> dict[str, list[int]]:
    return {str(split): counts.tolist() for split, counts in source.census().rows.items()}


def complaint(*arguments: Any, **keys: Any) -> str:
    """What the source says when it is looked at."""
    with pytest.raises(SourceError) as caught:
        source = open_(*arguments, **keys)
        source.census()
        source.fingerprint()
        for item in source.items():
            item.load()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message

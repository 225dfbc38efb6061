"""JSON as it lies in the store."""

import json
from typing import Any


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

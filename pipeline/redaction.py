"""What may be shown to anyone: addresses without credentials, the config without secrets."""

import re
from typing import Any

from pipeline.config import Config

# user[:password]@; a password may hold slashes, while `host:9000/a@b` and `bucket/a@b` are no passwords
_USERINFO = re.compile(r"(?<=//)(?:[^/@\s\[]*:(?!\d{1,5}/)[^@\s]*|[^/@\s]*)@")
_QUERY = re.compile(r"[?#].*", re.DOTALL)


def public_url(url: str | None) -> str | None:
    """`url` without user, password and query: the places where people put keys and signed tokens.

    Chained fsspec addresses (`simplecache::s3://…`) keep their form. Only an address with `://` loses what follows
    `?` or `#`; in a plain path these are ordinary characters.
    """
    if url is None or "://" not in url:
        return url
    return _QUERY.sub("", _USERINFO.sub("", url))


def public_config(config: Config) -> dict[str, Any]:
    """The config as plain values, without storage options and with public addresses only."""
    content = config.model_dump(mode="json")
    for section in ("source", "publish"):
        content[section].pop("storage_options")
        content[section]["url"] = public_url(content[section]["url"])
    return content

"""What may be shown to anyone: addresses without credentials, the config without secrets."""

import re
from collections.abc import Callable
from typing import Any

from pipeline.config import Config
from pipeline.faults import NAMES_OF_SECRETS

# user[:password]@; a password may hold slashes, while `host:9000/a@b` and `bucket/a@b` are no passwords
_USERINFO = re.compile(r"(?<=//)(?:[^/@\s\[]*:(?!\d{1,5}/)[^@\s]*|[^/@\s]*)@")
_HIDDEN = "GANMILL_HIDDEN_"
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


def secrets_in_clear(raw: dict[str, Any]) -> list[str]:
    """Keys of a config (as read, `${NAME}` not replaced) whose values hold a secret written out."""
    found: list[str] = []

    def note(key: str, value: str) -> str:
        found.append(key)
        return value

    _visit(raw, note)
    return found


def hide_secrets(raw: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The config with every secret that was written out replaced by `${NAME}`, and the environment that gives it back.

    So that who hands the config on (to a Prefect server, say) hands on no secret.
    """
    environment: dict[str, str] = {}

    def hide(key: str, value: str) -> str:
        name = f"{_HIDDEN}{len(environment)}"
        environment[name] = value
        return f"${{{name}}}${{{_HIDDEN}END}}"       # two references: a lone one would be read as number or truth value

    public = _visit(raw, hide)
    return public, {**environment, f"{_HIDDEN}END": ""} if environment else {}


def _visit(raw: dict[str, Any], act: Callable[[str, str], str]) -> Any:
    """`raw` with `act(key, value)` in place of each secret."""

    def walk(value: Any, key: str, in_options: bool) -> Any:
        if isinstance(value, dict):
            return {k: walk(v, f"{key}.{k}" if key else str(k), in_options or k == "storage_options") for k, v in value.items()}
        if isinstance(value, list):
            return [walk(v, f"{key}[{i}]", in_options) for i, v in enumerate(value)]
        if not isinstance(value, str) or "${" in value:
            return value
        leaf = key.rsplit(".", 1)[-1]
        secret = NAMES_OF_SECRETS.search(leaf) if in_options else leaf == "url" and public_url(value) != value
        return act(key, value) if secret else value

    return walk(raw, "", False)

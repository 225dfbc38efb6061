"""What is wrong with a config, in words: key, fault, and what was probably meant."""

import difflib
from collections.abc import Collection, Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

_UNSPOKEN = ("literal['balance']", "dict[str,int]")  # pydantic's names for the choices of a union, no keys of ours
_MOST = 3                                            # places to name where a key stands in several sections


def fault_lines(error: ValidationError, config: type[BaseModel], secret_values: Collection[str] = frozenset()) -> list[str]:
    """A line for each fault: key, what is wrong, and the value unless it came from the environment.

    Args:
        config: the model of the whole config.
        secret_values: what the environment held.
    """
    return [_fault(err, config, secret_values) for err in error.errors()]


def _fault(err: Any, config: type[BaseModel], secret_values: Collection[str]) -> str:
    loc = tuple(str(part) for part in err["loc"] if str(part) not in _UNSPOKEN)
    key = ".".join(loc) or "config"
    if err["type"] == "extra_forbidden":
        return _unknown(loc, config)
    if err["type"] == "missing":
        return f"{key}: missing"
    message = err["msg"].removeprefix("Value error, ").removeprefix("Input ")
    value = err["input"]
    shown = "…" if isinstance(value, str) and any(s and s in value for s in secret_values) else repr(value)
    return f"{key}: {message}" + (f" (got {shown})" if not isinstance(value, dict) else "")


def _unknown(loc: tuple[str, ...], config: type[BaseModel]) -> str:
    keys = list(every_key(config))
    allowed = [key[-1] for key in keys if key[:-1] == loc[:-1]]
    meant = probably_meant(loc, keys)
    hint = f"did you mean {' or '.join(meant)}? " if meant else ""
    return f"{'.'.join(loc)}: unknown key; {hint}allowed here: {', '.join(allowed)}"


def probably_meant(loc: tuple[str, ...], keys: Collection[tuple[str, ...]]) -> list[str]:
    """The keys nearest to one that doesn't exist: of its own section by spelling, else of the same name in other sections."""
    beside = [key[-1] for key in keys if key[:-1] == loc[:-1]]
    if close := difflib.get_close_matches(loc[-1], beside, n=1, cutoff=0.75):
        return [".".join((*loc[:-1], close[0]))]
    elsewhere = [".".join(key) for key in keys if key[-1] == loc[-1]]
    return elsewhere if len(elsewhere) <= _MOST else []


def every_key(model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key of the config, sections too, as the parts of its name."""
    for name, field in model.model_fields.items():
        yield (*above, name)
        for choice in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(choice, type) and issubclass(choice, BaseModel):
                yield from every_key(choice, (*above, name))

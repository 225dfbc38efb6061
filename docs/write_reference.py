"""Writes what the documentation says of keys and functions, from the code itself.

    python docs/write_reference.py           # rewrites docs/configuration.md (its table) and docs/api.md
    python docs/write_reference.py --check   # exit 1 where they are stale

The prose of configuration.md, outside the two marks, is written by hand.
"""

import argparse
import dataclasses
import importlib
import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))                 # this checkout's code, whatever is installed

from pipeline.config import Config, Section  # noqa: E402

BEGIN, END = "<!-- keys: written by docs/write_reference.py -->", "<!-- end of keys -->"
API = {
    "Feeding a training job": ("pipeline.feed", ["Feed", "MixedImages", "EpochSampler", "to_float"]),
    "Training": ("gan.loop", ["train", "Hooks"]),
    "Networks": ("gan.networks", ["build", "check", "NetSpec"]),
    "Recipes and presets": ("gan.presets", ["choose", "Budget"]),
    "Hyper-parameters": ("gan.recipe", ["Recipe"]),
    "Checkpoints": ("gan.checkpoint", ["save", "load_generator", "LoadedGenerator", "restore"]),
    "Sampling": ("gan.sampling", ["generate", "latents", "to_uint8"]),
    "Rejection": ("gan.rejection", ["fit", "sift", "Rejection"]),
    "Augmentation of the discriminator": ("gan.augment", ["Augmentation", "draw", "apply"]),
    "Classifiers": ("gan.classifier", ["train_classifier", "predict", "embed", "save_classifier", "load_classifier"]),
    "Metrics: distance": ("gan.metrics.frechet", ["frechet_distance", "Gaussian"]),
    "Metrics: kernel": ("gan.metrics.kernel", ["kernel_distance"]),
    "Metrics: precision, recall, density, coverage": ("gan.metrics.manifold", ["manifold", "Manifold"]),
    "Metrics: labels": ("gan.metrics.agreement", ["agreement", "balanced_accuracy"]),
    "Metrics: diversity": ("gan.metrics.diversity", ["diversity", "spread"]),
    "Metrics: memorisation": ("gan.metrics.memorisation", ["memorisation", "Memorisation"]),
    "Points on the plane": ("gan.plane", ["train_mixture", "MixtureRecipe"]),
}


# the config


def rows(model: type[Section], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """(key, values, default, meaning) of every key, sections within sections in place."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        inner = section_of(field.annotation)
        if inner is None:
            yield key, values(field), default(field), field.description or ""
            continue
        if field.description:
            yield key, "keys below" + (", or null" if type(None) in typing.get_args(field.annotation) else ""), default(field), \
                field.description
        yield from rows(inner, f"{key}.")


def section_of(annotation: Any) -> type[Section] | None:
    """The section that a key holds, if it holds one."""
    for candidate in (annotation, *typing.get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def values(field: FieldInfo) -> str:
    """What may stand there: type, bounds, words."""
    bounds = []
    for meta in field.metadata:
        for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
            if getattr(meta, name, None) is not None:
                bounds.append(f"{sign} {getattr(meta, name):,}")
    word, null, _ = kind(field.annotation).partition(", or null")
    return " ".join([word, *bounds]) + null


def kind(annotation: Any) -> str:
    """A type in the words of YAML."""
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{word}`" for word in inside)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(kind(i) for i in inside if i is not type(None)) + (", or null" if type(None) in inside else "")
    if origin is list:
        return f"list of {kind(inside[0])}"
    if origin is dict:
        return f"map to {kind(inside[1])}"
    return {int: "whole number", float: "number", bool: "true or false", str: "text", Any: "anything"}.get(annotation, str(annotation))


def default(field: FieldInfo) -> str:
    """The default as YAML in one line; that of a section without its null keys."""
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or value is None:
        return "null"
    if isinstance(value, Section):
        value = {k: v for k, v in value.model_dump().items() if v is not None}
    return f"`{json.dumps(value)}`".replace('"', "") if not isinstance(value, str) else f"`{value}`"


def keys_table() -> str:
    """The whole table."""
    lines = ["| key | values | default | meaning |", "|---|---|---|---|"]
    for key, allowed, fallback, meaning in rows(Config):
        told = " ".join(meaning.split())
        lines.append(" | ".join(["", f"`{key}`", allowed.replace("|", r"\|"), fallback, told.replace("|", r"\|"), ""]).strip())
    return "\n".join(lines)


def configuration(text: str) -> str:
    """configuration.md with its table as the models have it now."""
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"docs/configuration.md has lost its marks {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{keys_table()}\n\n{END}{after}"


# the Python API


def api() -> str:
    """api.md."""
    parts = ["# Python API", "",
             "What programs may rely on, from the docstrings (`python docs/write_reference.py` writes this page). `gan` needs torch and",
             "numpy alone; `python -m gan --help` is its command line. Shapes: n images, C channels, H × W pixels."]
    for title, (module, names) in API.items():
        parts += ["", f"## {title}: `{module}`"]
        for name in names:
            parts += documented(getattr(importlib.import_module(module), name), f"{module}.{name}")
    return "\n".join(parts) + "\n"


def documented(thing: Any, name: str) -> list[str]:
    """A function or class with its public methods."""
    if not inspect.getdoc(thing):
        raise SystemExit(f"{name} has no docstring")
    made = ["", f"### `{name}`", "", *code(signature(thing, name.rpartition(".")[2])), "", *prose(thing)]
    if inspect.isclass(thing):
        for attribute, member in vars(thing).items():
            function = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
            if attribute.startswith("_") or not inspect.isfunction(function) or not inspect.getdoc(function):
                continue
            made += ["", *code(signature(function, f"{thing.__name__}.{attribute}")), "", *prose(function)]
    return made


def signature(thing: Any, name: str) -> str:
    """As it is called; annotations as they are written."""
    if inspect.isclass(thing) and dataclasses.is_dataclass(thing):
        fields = [f"    {f.name}: {written(f.type)}" + (f" = {f.default!r}" if f.default is not dataclasses.MISSING else "") + ","
                  for f in dataclasses.fields(thing) if not f.name.startswith("_")]
        return "\n".join([f"{name}(", *fields, ")"])
    parameters = inspect.signature(thing)
    shown = [str(p.replace(annotation=inspect.Parameter.empty)) + (f": {written(p.annotation)}" if p.annotation is not p.empty else "")
             for p in parameters.parameters.values() if p.name not in ("self", "cls")]
    starred, positional = [], True
    for text, parameter in zip(shown, (p for p in parameters.parameters.values() if p.name not in ("self", "cls"))):
        if parameter.kind is parameter.KEYWORD_ONLY and positional:
            starred.append("*")
            positional = False
        fallback, _, hint = text.partition(": ")
        word, _, value = fallback.partition("=")
        value = re.sub(r"<function (\w+) at \w+>", r"\1", value)
        starred.append(word + (f": {hint}" if hint else "") + (f" = {value}" if value else ""))
    ends = parameters.return_annotation
    arrow = "" if ends is inspect.Signature.empty or inspect.isclass(thing) else f" -> {written(ends)}"
    line = f"{name}({', '.join(starred)}){arrow}"
    return line if len(line) < 110 else f"{name}(\n    " + ",\n    ".join(starred) + f",\n){arrow}"


def written(annotation: Any) -> str:
    """A type without the modules that it comes from."""
    if isinstance(annotation, str):
        return annotation
    text = annotation.__name__ if isinstance(annotation, type) and not typing.get_args(annotation) else str(annotation)
    for prefix in ("collections.abc.", "typing.", "torch.utils.data.dataloader.", "torch.", "numpy.", "gan.", "pipeline."):
        text = text.replace(prefix, "")
    return text


def code(text: str) -> list[str]:
    """A block of Python."""
    return ["```python", *text.splitlines(), "```"]


def prose(thing: Any) -> list[str]:
    """A docstring; sections like Args as lists, code as code."""
    made: list[str] = []
    for line in (inspect.getdoc(thing) or "").splitlines():
        bare = line.strip()
        if bare in ("Args:", "Returns:", "Raises:", "Attributes:"):
            made += ["", f"**{bare}**", ""] if made and made[-1] else [f"**{bare}**", ""]
        elif line.startswith("        "):
            made.append(f"  {bare}")
        elif line.startswith("    "):
            made.append(f"- {bare}")
        else:
            made.append(line)
    return made


def pages() -> dict[Path, str]:
    """Every page that is written from the code, as it should be."""
    configuration_page = HERE / "configuration.md"
    return {configuration_page: configuration(configuration_page.read_text(encoding="utf-8")), HERE / "api.md": api()}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a page is stale")
    options = parser.parse_args()
    stale = [page for page, text in pages().items() if not page.exists() or page.read_text(encoding="utf-8") != text]
    for page in stale:
        if options.check:
            sys.stderr.write(f"{page.name} is stale: run python docs/write_reference.py\n")
        else:
            page.write_text(pages()[page], encoding="utf-8")
            sys.stdout.write(f"wrote docs/{page.name}\n")
    return 1 if stale and options.check else 0


if __name__ == "__main__":
    raise SystemExit(main())

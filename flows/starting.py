"""`ganmill init`: looks at the images, asks what it can't know, writes a commented config."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.config import parse_config
from pipeline.errors import ConfigError

Ask = Callable[[str, str], str]                      # question, proposed answer → answer


def init(
    url: str, out: Path, *, source_format: str | None, publish: str | None, yes: bool, force: bool, ask: Ask
) -> dict[str, Any]:
    """Writes a config for the images at `url` and says what a run of it would do.

    Args:
        out: the file to write; one that is there is kept unless `force`.
        publish: where versions go; asked, or ./out, when not given.
        yes: ask nothing.
        ask: puts a question to the user.

    Raises:
        ConfigError: the file is there, or nobody can be asked.
        SourceError: no labelled images at `url`.
    """
    from pipeline.cluster import local_gpus
    from pipeline.guess import SOURCE_VARIABLE, guess_source, write_config

    if out.exists() and not force:
        raise ConfigError(f"{out} is there already; give another name with --out, or --force to replace it")
    if not yes and not sys.stdin.isatty():
        raise ConfigError("there is no terminal to ask questions on; give --yes to take what is guessed")
    if "://" in url and "@" in url.split("/")[2]:
        raise ConfigError(f"the URL holds a password: put it into the environment as {SOURCE_VARIABLE}, write a config by hand with "
                          f"url: ${{{SOURCE_VARIABLE}}}")
    guess = guess_source(url, source_format)
    gpus = 1 if local_gpus() else 0
    if not yes:
        guess = replace(
            guess, name=ask("name of the dataset (a-z, 0-9, -)", guess.name),
            resolution=int(ask("resolution in pixels (a multiple of 4)", str(guess.resolution))),
            channels=ask("channels: grey or rgb", guess.channels),
        )
        publish = publish or ask("publish to (folder or s3://bucket/prefix)", "./out")
    text = write_config(guess, publish or "./out", gpus)
    import yaml

    parse_config(yaml.safe_load(text), where="answers")
    out.write_text(text, encoding="utf-8")
    shown = sorted(guess.rows_per_class.items(), key=lambda item: -item[1])
    classes = ", ".join(f"{name} {count:,}" for name, count in shown[:8]) + (f", … {len(shown) - 8} more" if len(shown) > 8 else "")
    lines = [
        f"{guess.format}: {sum(guess.rows_per_class.values()):,} images of {len(shown)} classes ({classes})",
        *([f"left out, too few images: {', '.join(guess.left_out)}"] if guess.left_out else []),
        f"wrote {out}; next: ganmill validate {out}, then ganmill run {out}",
    ]
    return {"text": "\n".join(lines), "config": str(out), "format": guess.format, "rows_per_class": guess.rows_per_class,
            "resolution": guess.resolution, "channels": guess.channels, "imbalance": round(guess.imbalance, 3)}

"""The documentation against the code: messages that exist, commands that exist, links that lead somewhere."""

import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from flows.cli import app

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "deploy/README.md"]
OF_PREFECT = {"Deployment concurrency limit reached"}


def commands(page: Path) -> list[str]:
    """The lines that begin with $ in its console blocks, without comments."""
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL)
    return [re.split(r"\s{2,}#", line[2:])[0].strip() for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def sources() -> str:
    """All string literals of the code in one text, pieces of a message joined as Python joins them."""
    text = "".join(f.read_text() for floor in ("gan", "pipeline", "flows") for f in sorted((ROOT / floor).rglob("*.py")))
    joined = re.sub(r'"\s*\n\s*f?"', "", text)
    return joined.replace("{{", "{").replace("}}", "}")


def test_every_message_in_troubleshooting_is_one_of_ours() -> None:
    quoted = re.findall(r"\*\*`([^`]+)`\*\*", (ROOT / "docs/troubleshooting.md").read_text())
    assert len(quoted) > 25
    code = sources()
    for message in quoted:
        parts = [p for p in re.split(r"NAME(?!\})|at least \d are", message) if p.strip()]
        assert message in OF_PREFECT or all(part in code for part in parts), message


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_ganmill_command_in_the_docs_exists(page: Path) -> None:
    known: Any = get_command(app)
    inline = re.findall(r"`(ganmill [a-z][^`]*)`", page.read_text())
    for line in [*commands(page), *inline]:
        for part in re.split(r"&&|\|", line):
            words = shlex.split(part)
            if words[:1] != ["ganmill"] or len(words) < 2 or not words[1].isalpha():
                continue
            assert words[1] in known.commands, line
            options = {o for p in known.commands[words[1]].params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
            assert {w.split("=")[0] for w in words[2:] if w.startswith("--")} <= options, line


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_benchmark_is_called_as_the_slow_test_of_commands_knows_it(page: Path) -> None:
    """Which takes any other line for one to run, in a folder without the script."""
    assert not [c for c in commands(page) if "benchmarks/" in c and not c.startswith("python benchmarks/")]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text()):
        if "://" in target:
            continue
        other = page.parent / target if target else page
        assert other.exists(), target
        assert not anchor or anchor in anchors(other), f"{target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """What the page's headings are called in links: lower case, without punctuation, spaces as hyphens."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_script_whose_figures_are_quoted_is_run_by_bench_or_named_as_one_that_is_not() -> None:
    quoted = {name for page in PAGES for name in re.findall(r"`(?:python )?(?:benchmarks/)?(\w+\.py)\b", page.read_text())
              if (ROOT / "benchmarks" / name).exists()}
    assert len(quoted) > 12
    of_bench = (ROOT / "benchmarks/all.py").read_text()
    assert not {name for name in quoted if name not in of_bench}


def test_what_is_written_from_the_code_is_as_the_code_is_now() -> None:
    """docs/configuration.md's table and docs/api.md."""
    import subprocess
    import sys

    checked = subprocess.run([sys.executable, "docs/write_reference.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False,
                             env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert checked.returncode == 0, checked.stderr


def test_every_key_of_the_config_is_explained() -> None:
    table = (ROOT / "docs/configuration.md").read_text()
    told = re.findall(r"^\| `([\w.]+)` \| (.+?) \| (.+?) \| (.*?) \|$", table, re.MULTILINE)
    assert len(told) > 50 and not [key for key, _, _, meaning in told if len(meaning) < 3]
    for key, value in {"prepare.resolution": "≥ 8 ≤ 256", "source.format": "`imagefolder`", "train.min_workers": "or null"}.items():
        assert value in {k: v for k, v, _, _ in told}[key]

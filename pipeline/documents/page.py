"""What all HTML pages of ours are made with: templates, the style sheet, the filters that write numbers."""

from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

TEMPLATES = Path(__file__).resolve().parent / "templates"


def render_page(template: str, **facts: Any) -> str:
    """A page from a template of `templates/`; what comes from data is escaped.

    Raises:
        jinja2.UndefinedError: the template asks for a fact that wasn't given.
    """
    css = Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))
    return _environment().get_template(template).render(css=css, **facts)


@cache
def _environment() -> jinja2.Environment:
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )
    env.filters.update(thousands=lambda v: f"{v:,}", duration=duration)
    return env


def duration(seconds: float) -> str:
    """0.4 s, 12 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"

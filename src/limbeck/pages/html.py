"""Renders the templates of this room: autoescaping always on, undefined names are errors, style sheet inline.

`style_digest` is what a server puts into its Content-Security-Policy so that the inline style sheet, and no other
style, is allowed.
"""

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from limbeck.pages.palette import custom_properties


def render(template: str, **values: object) -> str:
    """Render one of the shipped templates to a whole page."""
    policy = f"default-src 'none'; style-src '{style_digest()}'; img-src data:; base-uri 'none'; form-action 'none'"
    return _environment().get_template(template).render(style=Markup(style_sheet()), policy=policy, **values)


@cache
def style_sheet() -> str:
    """Return the style sheet, with the palette's custom properties for both modes in front."""
    rules = (files("limbeck.pages") / "templates" / "style.css").read_text(encoding="utf-8")
    return (
        f":root {{ color-scheme: light dark; {custom_properties('light')} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {custom_properties('dark')} }} }}\n{rules}"
    )


@cache
def style_digest() -> str:
    """Return the style sheet's CSP source, `sha256-…`, without the quotes around it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(style_sheet().encode()).digest()).decode()


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("limbeck.pages", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters: dict[str, Any] = {"inline": inline, "drawing": Markup}
    environment.filters.update(filters)
    return environment


def inline(text: str) -> Markup:
    """Return running text with `code` and **strong** marked up and everything else escaped."""
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    marked = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", marked)
    return Markup(marked)

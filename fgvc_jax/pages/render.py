"""Templates to HTML."""

import functools
import re
from typing import Any

import jinja2
from markupsafe import Markup, escape

from fgvc_jax.pages import charts

NO_BREAK = "\N{NO-BREAK SPACE}"


@functools.cache
def _environment() -> jinja2.Environment:
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("fgvc_jax", "pages/templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["percent"] = _percent
    found.filters["chance"] = _chance
    found.filters["told"] = lambda text: text.replace(" %", NO_BREAK + "%")
    found.filters["soft"] = _soft
    found.filters["svg"] = Markup  # of `charts`, which escape what they are given
    found.globals["chart_style"] = Markup(charts.STYLE)
    return found


def _percent(x: float | None) -> str:
    return "–" if x is None or x != x else f"{100 * x:.1f}{NO_BREAK}%"


def _chance(x: float | None) -> str:
    """Of a probability, which is never quite 0."""
    return f"<{NO_BREAK}0.1{NO_BREAK}%" if x is not None and x < 5e-4 else _percent(x)


def _soft(text: str) -> Markup:
    """A name or path that a line may break behind the parts that it is made of."""
    return Markup(re.sub(r"([_/])(?=\w)", r"\1<wbr>", str(escape(text))))


def render(template: str, **content: Any) -> str:
    """A template of `fgvc_jax/pages/templates`, filled."""
    return _environment().get_template(template).render(**content)

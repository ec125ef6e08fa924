"""Templates to HTML."""

import functools
from typing import Any

import jinja2
from markupsafe import Markup

from fgvc_jax.pages import charts


@functools.cache
def _environment() -> jinja2.Environment:
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("fgvc_jax", "pages/templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["percent"] = lambda x: (
        "–" if x is None or x != x else f"{100 * x:.1f}\N{NO-BREAK SPACE}%"
    )
    found.filters["svg"] = Markup  # of `charts`, which escape what they are given
    found.globals["chart_style"] = Markup(charts.STYLE)
    return found


def render(template: str, **content: Any) -> str:
    """A template of `fgvc_jax/pages/templates`, filled."""
    return _environment().get_template(template).render(**content)

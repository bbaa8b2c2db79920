"""HTML pages: a template with its style, script and chart library, as one file that loads nothing."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, page: Mapping[str, Any], *, has_charts: bool) -> str:
    """Return a page as one HTML text.

    Args:
        template: The name of a file in `templates`.
        page: The values that it shows; texts of users are escaped.
        has_charts: Whether the library that draws charts is needed.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(
        page=page,
        style=_asset("page.css"),
        script=_asset("page.js"),
        vega=_vega() if has_charts else "",
    )


def _asset(name: str) -> Markup:
    return Markup((_TEMPLATES / name).read_text("utf-8"))  # noqa: S704 (our own file, not a user's text)


@cache
def _vega() -> Markup:
    # `</script` inside a string of the library would end the element.
    script: str = cast("Any", vl_convert).javascript_bundle()
    return Markup(script.replace("</script", "<\\/script"))  # noqa: S704 (a library's code)

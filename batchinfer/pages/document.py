"""A page from its template: texts are escaped, and a name that the template does not know is an error."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import batchinfer
from batchinfer.accounting.money import money


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("batchinfer", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"money": money, "figure": _figure}
    return made


def page(template: str, title: str, **values: Any) -> bytes:
    """The page of the template with these values."""
    made_at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    text = (
        _environment()
        .get_template(template)
        .render(title=title, version=batchinfer.__version__, made_at=made_at, **values)
    )
    return text.encode(errors="replace")


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:,.4g}"

"""The text of a value of the data: what a template prints, what an answer is compared with."""

from __future__ import annotations

import json
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID


class Map(list[tuple[Any, Any]]):
    """A map of the data: a list of its pairs whose values are also found by their keys, and printed as an object."""

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return super().__getitem__(key)
        return dict(self)[key]

    def items(self) -> list[tuple[Any, Any]]:
        """The pairs, as of an object."""
        return list(self)


def printed(value: Any) -> str:
    """The text of a value of the data: never Python's picture of it, which reads `True`, `None` and `['a']`."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, timedelta):
        return _duration(value)
    if isinstance(value, dict | list | tuple):
        try:
            return json.dumps(as_json(value), ensure_ascii=False)
        except TypeError:
            return str(value)
    return str(value)


def as_json(value: Any) -> Any:
    """The value as `json` takes it; raises TypeError for what is no data."""
    if isinstance(value, Map):
        return {printed(key): as_json(inner) for key, inner in value}
    if isinstance(value, dict):
        return {printed(key): as_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(inner) for inner in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Decimal | date | time | timedelta | UUID):
        return printed(value)
    raise TypeError(type(value).__name__)


def _duration(value: timedelta) -> str:
    """Hours, minutes and seconds, as in 26:03:04.5."""
    micros = abs(value) // timedelta(microseconds=1)
    hours, rest = divmod(micros, 3_600_000_000)
    minutes, rest = divmod(rest, 60_000_000)
    seconds = f"{rest // 1_000_000:02}" + (f".{rest % 1_000_000:06}".rstrip("0") if rest % 1_000_000 else "")
    return f"{'-' if value < timedelta(0) else ''}{hours:02}:{minutes:02}:{seconds}"

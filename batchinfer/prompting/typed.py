"""JSON answers as values of Arrow types: `output.as: struct` and `columns`.

A value that its type cannot hold (an integer beyond 64 bits, the 30th of February) is an error of its row.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa

from batchinfer.jobspec import OutputSpec
from batchinfer.jobspec.answer_types import Kind, json_parts

_SIMPLE = {
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "string": pa.string(),
    "enum": pa.dictionary(pa.int32(), pa.string()),
    "date": pa.date32(),
    "time": pa.timestamp("us", tz="UTC"),
    "json": pa.string(),
}
_INT64 = range(-(2**63), 2**63)
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(\.\d+)?([Zz]|[+-]\d\d:\d\d)?")


class Untypable(ValueError):
    """A value that its column cannot hold; says which and why."""


def arrow_type(kind: Kind) -> pa.DataType:
    """The Arrow type of a kind."""
    if kind.name == "struct":
        return pa.struct([pa.field(name, arrow_type(inner)) for name, inner in kind.fields])
    if kind.name == "list":
        assert kind.item is not None
        return pa.list_(arrow_type(kind.item))
    return _SIMPLE[kind.name]


def type_lines(output: OutputSpec) -> list[str]:
    """What a person is told of the types of the answers before a run: none where answers are kept as text."""
    kind = output.kind
    if kind is None:
        return []
    of = {"columns": kind.fields}.get(output.as_, ((output.column, kind),))
    lines = [f"answers are stored as {', '.join(f'{name} {arrow_type(one)}' for name, one in of)}"]
    kept = [f"{path or 'the answer'} ({why})" for path, why in json_parts(kind)]
    return [*lines, f"kept as JSON text: {', '.join(kept)}"] if kept else lines


def converter(kind: Kind, path: str = "$") -> Callable[[Any], Any]:
    """What makes a value of parsed JSON into one that `pa.array` takes as `arrow_type(kind)`. Raises Untypable."""
    convert = _nested(kind, path) if kind.name in ("struct", "list") else _CONVERTERS[kind.name]

    def converted(value: Any) -> Any:
        if value is None:
            return None
        try:
            return convert(value)
        except Untypable:
            raise
        except (ValueError, OverflowError, UnicodeError, RecursionError) as error:
            raise Untypable(f"{value!r:.100} at {path} is no {_WORDS.get(kind.name, kind.name)}: {error}") from None

    return converted


_WORDS = {"integer": "integer of 64 bits", "number": "number of 64 bits", "time": "instant"}


def _nested(kind: Kind, path: str) -> Callable[[Any], Any]:
    if kind.item is not None:
        item = converter(kind.item, f"{path}[*]")
        return lambda value: [item(one) for one in value]
    fields = {name: converter(inner, f"{path}.{name}") for name, inner in kind.fields}

    def struct(value: dict[str, Any]) -> dict[str, Any]:
        extra = next((key for key in value if key not in fields), None)
        if extra is not None:
            raise Untypable(f"the key {extra!r:.100} at {path} has no column: the schema does not name it")
        return {name: convert(value.get(name)) for name, convert in fields.items()}

    return struct


def _integer(value: Any) -> int:
    whole = int(value)
    if whole not in _INT64:
        raise ValueError("it is too large")
    return whole


def _number(value: Any) -> float:
    number = float(value)
    if math.isinf(number):
        raise ValueError("it is too large")
    return number


def _string(value: Any) -> str:
    text = str(value)
    if not text.isascii():
        # Half of a surrogate pair, as in "\ud800", is valid JSON and no text.
        text.encode()
    return text


def _date(value: Any) -> date:
    if not _DATE.fullmatch(value):
        raise ValueError("a date is written YYYY-MM-DD")
    return date.fromisoformat(value)


def _time(value: Any) -> datetime:
    """RFC 3339; without a zone it is UTC. Digits beyond microseconds are left out."""
    parts = _TIME.fullmatch(value)
    if parts is None:
        raise ValueError("it is written as 2026-01-31T23:59:59Z")
    day, clock, fraction, zone = parts.groups()
    told = f"{day}T{clock}{(fraction or '')[:7].ljust(7, '0') if fraction else ''}"
    offset = "+00:00" if zone is None or zone in "Zz" else zone
    return datetime.fromisoformat(f"{told}{offset}").astimezone(UTC)


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    try:
        return _string(text)
    except UnicodeError:
        return json.dumps(value)


_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "integer": _integer,
    "number": _number,
    "boolean": bool,
    "string": _string,
    "enum": _string,
    "date": _date,
    "time": _time,
    "json": _json,
}

"""The types of JSON values: of a column over many lines, and of one value in a type that is given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from batchinfer.errors import InputError
from batchinfer.input.bad_rows import BadRow
from batchinfer.input.column_types import JSON, PARSED, Misfit, common, fitted
from batchinfer.input.formats import first_line

_DEEPEST = 60
"""Levels of nested lists and objects that Arrow can send between processes. Deeper values are kept as JSON text."""


_EXACT = 2**53
"""A double holds every integer up to this one exactly."""


_TOO_BIG = "has more than 64 bits"


def problem_of(value: Any, kind: pa.DataType | None) -> str | None:
    """Why the value cannot be read as `kind`, or as any type (None); None if it can."""
    if value is None:
        return None
    try:
        json_text(value).encode()
        if kind is not None:
            values_as([value], kind)
    except UnicodeError:
        return "holds half of a surrogate pair, which is not a character"
    except OverflowError:
        return _TOO_BIG
    except (pa.ArrowException, TypeError) as error:
        return f"does not fit {kind}: {first_line(error)[:200]}"
    return _TOO_BIG if kind is None and type(value) is int and not -(2**63) <= value < 2**64 else None


def values_as(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Values of JSON in the type `kind`; raises exceptions of several types if one does not fit."""
    if kind == JSON:
        texts = [None if value is None else json_text(value) for value in values]
        return pa.ExtensionArray.from_storage(JSON, pa.array(texts, pa.string()))
    try:
        return pa.array(values, kind)
    except (pa.ArrowException, OverflowError, TypeError):
        if pa.types.is_string(kind):
            return pa.array([v if v is None or isinstance(v, str) else json_text(v) for v in values], kind)
        return fitted(pa.array(values), kind)


def json_text(value: Any) -> str:
    """The value as JSON text, without escapes for letters that are not ASCII."""
    return json.dumps(value, ensure_ascii=False)


class JsonColumn:
    """Infers the type of a column from stretches of lines.

    A column whose objects all have the same keys is a struct. A column whose objects differ in keys, or that mixes
    objects, lists and plain values, is JSON text: a struct would add keys of other rows.
    """

    def __init__(self, name: str, cast_to: pa.DataType | None) -> None:
        self.big = self.negative = False
        self._name = name
        self._cast = cast_to
        self._kind: pa.DataType = pa.null()
        self._keys: dict[tuple[str, ...], frozenset[str]] = {}

    def field(self, uri: str) -> pa.Field:
        """The inferred field. Raises InputError for numbers that no single type holds."""
        if self._cast is not None:
            return pa.field(self._name, self._cast)
        require_exact(uri, self._name, self._kind, self.big, self.negative)
        return pa.field(self._name, self._kind, metadata=PARSED if self._kind == JSON else None)

    def add(self, values: list[Any], numbers: Sequence[int], uri: str) -> None:
        """Extend the type by `values`; `numbers` are their line numbers. Raises InputError."""
        try:
            if self._cast is not None:
                values_as(values, self._cast)
                return
            self._kind = self._with(values)
        except (pa.ArrowException, OverflowError, UnicodeError, Misfit, TypeError) as error:
            raise self._misfit(values, numbers, uri, error) from None

    def add_most(self, rows: list[dict[str, Any]], numbers: Sequence[int], uri: str) -> None:
        """As `add`, but a row whose value no type holds, or not the one of `input.cast`, becomes a BadRow."""
        before = self.big, self.negative
        try:
            self.add([row.get(self._name) for row in rows], numbers, uri)
            return
        except InputError:
            self.big, self.negative = before
        for place, row in enumerate(rows):
            problem = problem_of(row.get(self._name), self._cast)
            if problem is not None:
                rows[place] = BadRow.of(row, self._name, problem)
        self.add([row.get(self._name) for row in rows], numbers, uri)

    def _with(self, values: list[Any]) -> pa.DataType:
        kinds = set(map(type, values))
        kinds.discard(type(None))
        nested = bool(kinds & {dict, list})
        if nested or self._kind == JSON:
            for value in values:
                json_text(value).encode()
        if self._kind == JSON or (nested and not (kinds <= {dict} or kinds <= {list})):
            return JSON
        if nested:
            try:
                seen = pa.array(values).type if self._same_keys(values, ()) else JSON
            except (pa.ArrowException, OverflowError):
                seen = JSON
            if not _holds(seen):
                seen = JSON
        else:
            seen = self._plain(values, kinds)
        try:
            return whole_numbers(self._kind, seen) or common(self._kind, seen, objects=True)
        except Misfit:
            if nested or pa.types.is_nested(self._kind):
                return JSON
            raise

    def _plain(self, values: list[Any], kinds: set[type]) -> pa.DataType:
        if int in kinds:
            integers = [value for value in values if type(value) is int]
            least, most = min(integers), max(integers)
            self.negative |= least < 0
            self.big |= max(most, -least) > _EXACT
            if most >= 2**63 and kinds == {int} and least >= 0:
                return pa.array(values, pa.uint64()).type
        return pa.array(values).type

    def _same_keys(self, values: Sequence[Any], path: tuple[str, ...]) -> bool:
        """Do all objects at the same place have the same keys?"""
        objects = [value for value in values if isinstance(value, dict)]
        if objects:
            keys = self._keys.setdefault(path, frozenset(objects[0]))
            if any(value.keys() != keys for value in objects):
                return False
            if not all(self._same_keys([value[key] for value in objects], (*path, key)) for key in keys):
                return False
        inner = [one for value in values if isinstance(value, list) for one in value]
        return not inner or self._same_keys(inner, (*path, "[]"))

    def _misfit(self, values: list[Any], numbers: Sequence[int], uri: str, error: Exception) -> InputError:
        """The error for the first line whose value does not fit the lines before it."""
        before = self._kind
        for value, number in zip(values, numbers, strict=True):
            if value is None:
                continue
            try:
                json_text(value).encode()
                if self._cast is not None:
                    values_as([value], self._cast)
                    continue
                seen = JsonColumn("", None)._with([value])
                before = whole_numbers(before, seen) or common(before, seen, objects=True)
            except UnicodeError:
                return InputError(
                    f"{uri}:{number}: column {self._name!r} holds half of a surrogate pair, which is not a character",
                    "mend or drop that line",
                )
            except (pa.ArrowException, OverflowError, Misfit, TypeError) as why:
                told = f"does not fit the type {self._cast or before} of the lines before"
                if isinstance(why, OverflowError) or (isinstance(value, int) and not -(2**63) <= value < 2**64):
                    told = _TOO_BIG
                elif self._cast is not None:
                    told = f"is not of the type that input.cast names: {first_line(why)}"
                return InputError(
                    f"{uri}:{number}: column {self._name!r} holds values that do not fit one type: "
                    f"{json_text(value):.60} {told}",
                    f"write it as the others are, or set input.cast: {{{self._name}: string}}",
                )
        return InputError(
            f"{uri}:{numbers[0]}: column {self._name!r} holds values that do not fit one type: {first_line(error)}",
            f"give the column one type in every line, or set input.cast: {{{self._name}: string}}",
        )


def whole_numbers(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """uint64 if one type is int64 and the other uint64: `require_exact` refuses negative numbers later."""
    return pa.uint64() if {one, other} == {pa.int64(), pa.uint64()} else None


def require_exact(uri: str, name: str, kind: pa.DataType, big: bool, negative: bool) -> None:
    """Raise InputError if integers of a JSON column do not fit `kind`, the column's type in the whole input."""
    if (pa.types.is_floating(kind) and big) or (kind == pa.uint64() and negative):
        held = "whole numbers beyond 2^53" if pa.types.is_floating(kind) else "numbers below 0"
        other = "fractions" if pa.types.is_floating(kind) else "numbers beyond 2^63"
        raise InputError(
            f"{uri}: column {name!r} holds {held}, and {other} as well: no type holds both without loss",
            f"set input.cast: {{{name}: string}}",
        )


def _holds(kind: pa.DataType, depth: int = 0) -> bool:
    """Can Parquet store the type, and Arrow send it? Not if an object has no keys or the type is nested too deeply."""
    if depth > _DEEPEST or (pa.types.is_struct(kind) and not kind.num_fields):
        return False
    if not pa.types.is_nested(kind):
        return True
    return all(_holds(kind.field(i).type, depth + 1) for i in range(kind.num_fields))

"""Which types the answers of a JSON Schema have as columns: a tree of kinds, computed from the schema alone. Pure.

All shards of a run have the same types, whatever their rows answered. What has no type of its own, such as a value that
may be a number or a text, is kept as JSON text, and `json_parts` says why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from referencing import Registry
from referencing.jsonschema import DRAFT202012

MAX_PARTS = 2_000
"""Columns, fields and items of one schema. References to references multiply: ten lines can stand for millions."""

_INT64 = range(-(2**63), 2**63)
_NARROWS = {"required", "title", "description", "default", "examples", "minProperties", "maxProperties"}
"""Keys of a branch that leave open which type its values have."""

KindName = Literal["integer", "number", "boolean", "string", "enum", "date", "time", "struct", "list", "json"]


@dataclass(frozen=True, slots=True)
class Kind:
    """The type of a value. Every kind may be null: an optional key that an answer leaves out is null."""

    name: KindName
    fields: tuple[tuple[str, Kind], ...] = ()
    """The keys of a `struct`."""
    item: Kind | None = None
    """What a `list` holds."""
    why: str = ""
    """Why a value is kept as JSON text."""


def answer_kind(schema: Mapping[str, Any]) -> Kind:
    """The kind of the answers that fit the schema. Raises ValueError beyond MAX_PARTS."""
    return _SchemaReader(schema).kind(schema, ("#",))


def json_parts(kind: Kind, path: str = "") -> Iterator[tuple[str, str]]:
    """The parts that are kept as JSON text, each with the reason. The path of the whole is empty."""
    if kind.name == "json":
        yield path, kind.why
    for name, inner in kind.fields:
        yield from json_parts(inner, f"{path}.{name}" if path else name)
    if kind.item is not None:
        yield from json_parts(kind.item, f"{path}[]")


def _json(why: str) -> Kind:
    return Kind("json", why=why)


class _SchemaReader:
    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._resolver = Registry().with_resource("", DRAFT202012.create_resource(dict(schema))).resolver()
        self._parts = 0

    def kind(self, schema: Any, inside: tuple[str, ...]) -> Kind:
        """`inside`: the references that led here."""
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise ValueError(f"stands for more than {MAX_PARTS:,} columns and fields: leave output.as out")
        if not isinstance(schema, Mapping):
            return _json("it may be any value")
        if isinstance(schema.get("$ref"), str):
            reference = schema["$ref"]
            if reference in inside:
                return _json("it refers to itself")
            return self.kind(self._resolver.lookup(reference).contents, (*inside, reference))
        if "const" in schema:
            return _of_values([schema["const"]])
        if isinstance(schema.get("enum"), list):
            return _of_values(schema["enum"])
        if "type" in schema:
            narrow = all(_NARROWS.issuperset(branch) for branch in _branches(schema))
            return self._typed(schema, inside) if narrow else _json("it has branches beside its type")
        for key in ("anyOf", "oneOf", "allOf"):
            if isinstance(schema.get(key), list):
                return self._any(key, schema[key], inside)
        return _json("it may be any value")

    def _any(self, key: str, branches: list[Any], inside: tuple[str, ...]) -> Kind:
        others = [branch for branch in branches if not _is_null(branch)]
        if key == "allOf" and len(branches) > 1:
            return _json("allOf joins several schemas")
        kinds = {self.kind(branch, inside) for branch in others}
        if len(kinds) == 1:
            return kinds.pop()
        if kinds and {kind.name for kind in kinds} == {"integer", "number"}:
            return Kind("number")
        return _json(f"{key} has branches of several types" if kinds else "it is always null")

    def _typed(self, schema: Mapping[str, Any], inside: tuple[str, ...]) -> Kind:
        named = schema["type"]
        names = {named} if isinstance(named, str) else set(named) - {"null"}
        if names == {"integer", "number"}:
            return Kind("number")
        if len(names) != 1:
            return _json("it may have several types")
        name = names.pop()
        if name == "object":
            return self._object(schema, inside)
        if name == "array":
            return self._list(schema, inside)
        if name == "string":
            return Kind({"date": "date", "date-time": "time"}.get(str(schema.get("format")), "string"))  # type: ignore[arg-type]
        simple: dict[str, KindName] = {"integer": "integer", "number": "number", "boolean": "boolean"}
        return Kind(simple[name]) if name in simple else _json("it is always null")

    def _object(self, schema: Mapping[str, Any], inside: tuple[str, ...]) -> Kind:
        open_keys = any(
            schema.get(key, False) is not False for key in ("additionalProperties", "unevaluatedProperties")
        )
        if open_keys or schema.get("patternProperties") or not schema.get("properties"):
            return _json("it may have keys of any name")
        return Kind("struct", tuple((name, self.kind(part, inside)) for name, part in schema["properties"].items()))

    def _list(self, schema: Mapping[str, Any], inside: tuple[str, ...]) -> Kind:
        if schema.get("prefixItems"):
            return _json("the places of the list have types of their own")
        if not isinstance(schema.get("items"), Mapping):
            return _json("the list may hold any value")
        return Kind("list", item=self.kind(schema["items"], inside))


def _branches(schema: Mapping[str, Any]) -> list[Any]:
    return [branch for key in ("anyOf", "oneOf", "allOf") for branch in schema.get(key) or ()]


def _is_null(schema: Any) -> bool:
    return isinstance(schema, Mapping) and (
        schema.get("type") == "null" or schema.get("enum") == [None] or schema.get("const", 0) is None
    )


def _of_values(values: list[Any]) -> Kind:
    types = {type(value) for value in values if value is not None}
    if types == {str}:
        return Kind("enum")
    if types == {bool}:
        return Kind("boolean")
    if types == {int} and all(value is None or value in _INT64 for value in values):
        return Kind("integer")
    if types and types <= {int, float}:
        return Kind("number")
    return _json("its values are of several types" if len(types) > 1 else "its values have no column type")

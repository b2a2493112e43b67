"""The type of a column in the whole input, and the conversion of values to that type without loss. Pure.

Files may store one column in several types. Types with a lossless common type become that type. Others are refused,
unless `input.cast` names the type.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

JSON = pa.json_(pa.string())
"""The type of a JSON column whose objects differ in their keys: each value is stored as JSON text."""

PARSED = {b"batchinfer.json": b"object"}
"""Metadata of such a column: prompts read its values as objects. A column that a file declares as JSON stays text."""

CASTS: Mapping[str, pa.DataType] = {
    "string": pa.string(),
    "int64": pa.int64(),
    "double": pa.float64(),
    "boolean": pa.bool_(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", "UTC"),
    "binary": pa.binary(),
}
"""The types of `input.cast`."""

_INT_DIGITS = {8: 3, 16: 5, 32: 10, 64: 19}
_UINT64_DIGITS = 20
_EXACT_BITS = {16: 11, 32: 24, 64: 53}
"""By the bits of a float: the bits of the largest integers that the float holds exactly."""

_UNITS = ("s", "ms", "us", "ns")
_UTC = {"UTC", "Etc/UTC", "+00:00", "Z"}
"""Names that writers give to the one zone."""


class Misfit(Exception):
    """Two types have no lossless common type."""


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def common(one: pa.DataType, other: pa.DataType, objects: bool = False) -> pa.DataType:
    """The narrowest type that holds the values of both without loss. Raises Misfit.

    `objects`: both come from JSON. Objects with different keys have no common struct there, and become JSON text.
    """
    if one.equals(other) or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if objects and _nested(one) and _nested(other):
        try:
            return _common(one, other, objects)
        except Misfit:
            return JSON
    return _common(one, other, objects)


def _nested(kind: pa.DataType) -> bool:
    return bool(pa.types.is_nested(kind)) or kind == JSON


def _common(one: pa.DataType, other: pa.DataType, objects: bool) -> pa.DataType:
    if one.equals(other) or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_dictionary(one) or pa.types.is_dictionary(other):
        values = _common(_value_type(one), _value_type(other), objects)
        both = pa.types.is_dictionary(one) and pa.types.is_dictionary(other)
        return pa.dictionary(pa.int32(), values) if both else values
    found = _texts(one, other) or _numbers(one, other) or _times(one, other) or _lists(one, other, objects)
    if found is not None:
        return found
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        return _structs(one, other, objects)
    if pa.types.is_map(one) and pa.types.is_map(other):
        return pa.map_(_common(one.key_type, other.key_type, objects), _common(one.item_type, other.item_type, objects))
    raise Misfit(f"{one} and {other}")


def _texts(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The common type of texts, bytes and JSON: text if one of the two is text or JSON, bytes if both are bytes."""
    kinds = pa.types
    pair = [pa.string() if kind == JSON else kind for kind in (one, other)]

    def all_are(*tests: str) -> bool:
        return all(any(getattr(kinds, test)(kind) for test in tests) for kind in pair)

    text = ("is_string", "is_large_string")
    large = any(kinds.is_large_string(kind) or kinds.is_large_binary(kind) for kind in pair)
    if all_are(*text, "is_binary", "is_large_binary") and not all_are("is_binary", "is_large_binary"):
        return pa.large_string() if large else pa.string()
    if all_are("is_binary", "is_large_binary", "is_fixed_size_binary"):
        return pa.large_binary() if large else pa.binary()
    return None


def _numbers(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    kinds = pa.types
    pair = (one, other)
    if all(kinds.is_integer(kind) for kind in pair):
        if kinds.is_signed_integer(one) == kinds.is_signed_integer(other):
            return max(pair, key=lambda kind: kind.bit_width)
        unsigned = one if kinds.is_unsigned_integer(one) else other
        signed = other if unsigned is one else one
        wide = max(signed.bit_width, min(64, 2 * unsigned.bit_width))
        return {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[wide]
    if all(kinds.is_floating(kind) for kind in pair):
        return max(pair, key=lambda kind: kind.bit_width)
    if all(kinds.is_floating(kind) or kinds.is_integer(kind) for kind in pair):
        return pa.float64()
    if all(kinds.is_decimal(kind) or kinds.is_integer(kind) for kind in pair):
        scale = max(kind.scale if kinds.is_decimal(kind) else 0 for kind in pair)
        before = max(kind.precision - kind.scale if kinds.is_decimal(kind) else _digits(kind) for kind in pair)
        if scale + before > 76:
            raise Misfit(f"{one} and {other} need {scale + before} digits, and 76 is the most")
        make = pa.decimal128 if scale + before <= 38 else pa.decimal256
        return make(scale + before, scale)
    return None


def _digits(kind: pa.DataType) -> int:
    return _UINT64_DIGITS if kind == pa.uint64() else _INT_DIGITS[kind.bit_width]


def _times(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    kinds = pa.types
    if kinds.is_date(one) and kinds.is_date(other):
        return pa.date32()
    if kinds.is_timestamp(one) and kinds.is_timestamp(other) and (one.tz == other.tz or {one.tz, other.tz} <= _UTC):
        return pa.timestamp(_finer(one, other), one.tz if one.tz == other.tz else "UTC")
    if kinds.is_duration(one) and kinds.is_duration(other):
        return pa.duration(_finer(one, other))
    if kinds.is_time(one) and kinds.is_time(other):
        finer = _finer(one, other)
        return pa.time32(finer) if finer in ("s", "ms") else pa.time64(finer)
    return None


def _finer(one: pa.DataType, other: pa.DataType) -> str:
    return _UNITS[max(_UNITS.index(one.unit), _UNITS.index(other.unit))]


def _lists(one: pa.DataType, other: pa.DataType, objects: bool) -> pa.DataType | None:
    kinds = pa.types
    pair = (one, other)
    if not all(kinds.is_list(k) or kinds.is_large_list(k) or kinds.is_fixed_size_list(k) for k in pair):
        return None
    inner = _common(one.value_type, other.value_type, objects)
    if all(kinds.is_fixed_size_list(k) for k in pair) and one.list_size == other.list_size:
        return pa.list_(inner, one.list_size)
    return pa.large_list(inner) if any(kinds.is_large_list(k) for k in pair) else pa.list_(inner)


def _structs(one: pa.DataType, other: pa.DataType, objects: bool) -> pa.DataType:
    names = [field.name for field in one]
    others = [field.name for field in other]
    if len(set(names)) < len(names) or len(set(others)) < len(others):
        raise Misfit(f"{one} and {other}")
    if objects and set(names) != set(others):
        raise Misfit("objects with other keys")
    fields = []
    for name in dict.fromkeys(names + others):
        kinds = [kind.field(name).type for kind, has in ((one, names), (other, others)) if name in has]
        fields.append(pa.field(name, kinds[0] if len(kinds) == 1 else _common(kinds[0], kinds[1], objects)))
    return pa.struct(fields)


def may_lose(stored: pa.DataType, wanted: pa.DataType) -> bool:
    """May a value of the type `stored` not fit `wanted`? If so, each value must be tried before a run begins."""
    kinds = pa.types
    stored, wanted = _value_type(stored), _value_type(wanted)
    if stored.equals(wanted) or kinds.is_null(stored):
        return False
    if kinds.is_string(wanted) or kinds.is_large_string(wanted):
        return bool(kinds.is_nested(stored))
    if kinds.is_integer(stored) and kinds.is_floating(wanted):
        return bool(stored.bit_width > _EXACT_BITS[wanted.bit_width])
    if kinds.is_integer(stored) and kinds.is_integer(wanted):
        return bool(wanted.bit_width <= stored.bit_width or kinds.is_unsigned_integer(wanted))
    if kinds.is_integer(stored) and kinds.is_decimal(wanted):
        return bool(wanted.precision - wanted.scale < _digits(stored))
    if kinds.is_floating(stored) and kinds.is_floating(wanted):
        return bool(stored.bit_width > wanted.bit_width)
    binary = ("is_binary", "is_large_binary", "is_fixed_size_binary")
    return not all(any(getattr(kinds, test)(kind) for test in binary) for kind in (stored, wanted))


def fitted(column: pa.ChunkedArray | pa.Array, wanted: pa.DataType) -> pa.ChunkedArray | pa.Array:
    """The values in the type `wanted`; raises pa.ArrowException if one does not fit.

    Bytes become text without a check for UTF-8: a bad value then fails its row only, when its prompt is made.
    """
    kinds = pa.types
    stored = column.type
    if stored.equals(wanted):
        return column
    if isinstance(stored, pa.BaseExtensionType) and not isinstance(wanted, pa.BaseExtensionType):
        column = column.cast(stored.storage_type)
        if stored == pa.uuid() and (kinds.is_string(wanted) or kinds.is_large_string(wanted)):
            return _uuid_texts(column, wanted)
        return fitted(column, wanted)
    if isinstance(wanted, pa.BaseExtensionType) and not isinstance(stored, pa.BaseExtensionType):
        return _wrapped(fitted(column, wanted.storage_type), wanted)
    if kinds.is_string(wanted) or kinds.is_large_string(wanted):
        if kinds.is_fixed_size_binary(stored):
            column = column.cast(pa.binary())
        if kinds.is_nested(stored):
            raise pa.ArrowInvalid(f"{stored} has no text")
        return column.cast(wanted, safe=False)
    if kinds.is_timestamp(wanted) and kinds.is_timestamp(stored) and stored.tz is None and wanted.tz is not None:
        column = column.cast(pa.timestamp(stored.unit, "UTC"))
    if (
        kinds.is_timestamp(wanted)
        and wanted.tz is not None
        and (kinds.is_string(stored) or kinds.is_large_string(stored))
    ):
        column = _with_zone(column)
    if kinds.is_timestamp(wanted) and kinds.is_date(stored):
        column = column.cast(pa.timestamp(wanted.unit))
    return column.cast(wanted)


def _with_zone(texts: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Texts of times, those without a zone in UTC."""
    texts = pc.replace_substring_regex(texts, r"^(\d{4}-\d\d-\d\d)$", r"\1 00:00:00Z")
    return pc.replace_substring_regex(texts, r"^([^:]*:\d\d(:[\d.]+)?)$", r"\1Z")


def _uuid_texts(column: pa.ChunkedArray | pa.Array, wanted: pa.DataType) -> pa.Array:
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    texts = [
        None if value is None else f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"
        for chunk in chunks
        for value in chunk.to_pylist()
        for h in [value.hex() if value is not None else ""]
    ]
    return pa.array(texts, wanted)


def _wrapped(column: pa.ChunkedArray | pa.Array, wanted: pa.DataType) -> pa.ChunkedArray | pa.Array:
    if isinstance(column, pa.ChunkedArray):
        return pa.chunked_array([pa.ExtensionArray.from_storage(wanted, chunk) for chunk in column.chunks], wanted)
    return pa.ExtensionArray.from_storage(wanted, column)


def same_text(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """The values as texts; equal values have equal texts. Raises pa.ArrowException for values without a text."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        # 0.0 and -0.0 are equal, but their texts are not; adding 0.0 turns -0.0 into 0.0.
        column = pc.add(column.cast(pa.float64()), pa.scalar(0.0))
    return fitted(column, pa.large_string())

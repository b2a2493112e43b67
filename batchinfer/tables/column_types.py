"""The types of results in a table: what Delta and Iceberg can hold, and whether an existing table takes them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from batchinfer.errors import OutputError

_SIGNED = {8: pa.int16(), 16: pa.int32(), 32: pa.int64(), 64: pa.decimal128(20, 0)}
"""By the bits of an unsigned integer: the signed type that holds its values. Neither format has unsigned ones."""


class NoType(ValueError):
    """A type that the format does not have; says which."""


def stored_type(kind: pa.DataType, to: str) -> pa.DataType:
    """The type that a new column of the table gets for values of the type `kind`. Raises NoType.

    Delta and Iceberg have signed integers, float, double, decimal, text, bytes, dates, timestamps of microseconds,
    lists, structs and maps. Delta also has integers of 8 and 16 bits, Iceberg also times of day.
    """
    t = pa.types
    if t.is_dictionary(kind):
        return stored_type(kind.value_type, to)
    if t.is_null(kind) or t.is_string(kind) or t.is_large_string(kind) or t.is_string_view(kind):
        return pa.string()
    if t.is_binary(kind) or t.is_large_binary(kind) or t.is_fixed_size_binary(kind) or t.is_binary_view(kind):
        return pa.binary()
    if t.is_unsigned_integer(kind):
        return stored_type(_SIGNED[kind.bit_width], to)
    if t.is_signed_integer(kind):
        return kind if to == "delta" or kind.bit_width >= 32 else pa.int32()
    if t.is_float16(kind):
        return pa.float32()
    if t.is_floating(kind) or t.is_boolean(kind) or t.is_decimal128(kind):
        return kind
    if t.is_date(kind):
        return pa.date32()
    if t.is_timestamp(kind):
        return pa.timestamp("us", "UTC" if kind.tz else None)
    if t.is_time(kind) and to == "iceberg":
        return pa.time64("us")
    if t.is_struct(kind):
        return pa.struct([pa.field(field.name, stored_type(field.type, to)) for field in kind])
    if t.is_map(kind):
        return pa.map_(stored_type(kind.key_type, to), stored_type(kind.item_type, to))
    if t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind):
        return pa.list_(stored_type(kind.value_type, to))
    raise NoType(str(kind))


def takes(table: pa.DataType, kind: pa.DataType) -> bool:
    """Does a column of the type `table` hold every value of the (stored) type `kind` unchanged?"""
    t = pa.types
    if t.is_signed_integer(kind):
        return bool(t.is_signed_integer(table) and table.bit_width >= kind.bit_width)
    if t.is_floating(kind):
        return bool(t.is_floating(table) and table.bit_width >= kind.bit_width)
    if t.is_decimal(kind):
        whole = kind.precision - kind.scale
        return bool(t.is_decimal(table) and table.scale >= kind.scale and table.precision - table.scale >= whole)
    if t.is_string(kind):
        return bool(t.is_string(table) or t.is_large_string(table))
    if t.is_binary(kind):
        return bool(t.is_binary(table) or t.is_large_binary(table))
    if t.is_timestamp(kind):
        return bool(t.is_timestamp(table) and (table.tz is None) == (kind.tz is None) and table.unit == "us")
    if t.is_struct(kind):
        same = t.is_struct(table) and [f.name for f in table] == [f.name for f in kind]
        return bool(same and all(takes(table.field(f.name).type, f.type) for f in kind))
    if t.is_map(kind):
        return bool(t.is_map(table) and takes(table.key_type, kind.key_type) and takes(table.item_type, kind.item_type))
    if t.is_list(kind):
        return bool((t.is_list(table) or t.is_large_list(table)) and takes(table.value_type, kind.value_type))
    return bool(table == kind)


@dataclass(frozen=True, slots=True)
class Fitted:
    """`written`: the columns that a commit writes, with the types that they have in the table. `added`: those of them
    that the table lacks so far."""

    written: pa.Schema
    added: tuple[str, ...] = ()


def fit(results: pa.Schema, table: pa.Schema | None, to: str, name: str, additive: bool) -> Fitted:
    """How columns of results go into the table; `table` is None if it does not exist. Raises OutputError."""
    fields, added, wrong = [], [], []
    for field in results:
        try:
            kind = stored_type(field.type, to)
        except NoType as error:
            raise OutputError(
                f"output.publish: {to} has no type for column {field.name!r}, which has {error} values",
                "leave the column out: name the others in output.publish.columns",
            ) from None
        if table is None:
            fields.append(pa.field(field.name, kind))
        elif field.name not in table.names:
            added.append(field.name)
            fields.append(pa.field(field.name, kind))
        elif takes(table.field(field.name).type, kind):
            fields.append(pa.field(field.name, table.field(field.name).type))
        else:
            wrong.append(f"{field.name!r} is {table.field(field.name).type} in the table, {kind} in the results")
    if wrong:
        raise OutputError(
            f"output.publish: the types of {name} differ from those of the results: column " + "; column ".join(wrong),
            "write another column name (output.column), or leave the column out with output.publish.columns",
        )
    if added and not additive:
        raise OutputError(
            f"output.publish: {name} has no column {_names(added)}",
            "set output.publish.schema_evolution: additive to add them, or choose columns of the table with "
            f"output.publish.columns; its columns are: {_names([] if table is None else table.names)}",
        )
    needed = [field.name for field in table or () if not field.nullable and field.name not in results.names]
    if needed:
        raise OutputError(
            f"output.publish: {name} needs a value in column {_names(needed)}, which the results lack",
            "copy it from the input with input.columns, or let the table have nulls there",
        )
    return Fitted(pa.schema(fields), tuple(added))


def _names(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:20]) + (", ..." if len(names) > 20 else "")

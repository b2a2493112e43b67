"""`input.where`, `input.limit` and `input.sample`: which rows of the files run. Decided once, when the input is cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from batchinfer.errors import InputError
from batchinfer.input.formats import Inspected
from batchinfer.input.row_bits import BitsWriter, Mask, RowBits, all_rows, limited, sampled
from batchinfer.input.scan import Scan
from batchinfer.input.table_files import TableEntry
from batchinfer.jobspec import InputSpec
from batchinfer.jobspec.where import ROWS_TABLE, sandbox, selected, told, where_columns

if TYPE_CHECKING:
    import duckdb


def kept_rows(found: Sequence[Inspected]) -> list[RowBits] | None:
    """The rows of each file that its table has not deleted; None if no table deleted any. Raises InputError."""
    masks = [one.file.entry.kept if isinstance(one.file.entry, TableEntry) else None for one in found]
    if all(mask is None for mask in masks):
        return None
    kept = []
    for one, mask in zip(found, masks, strict=True):
        if mask is not None and len(mask) > one.file.rows:
            raise InputError(
                f"{one.file.entry.uri} has {one.file.rows:,} rows, and its table deletes row {len(mask):,}",
                "the table is damaged: restore the file",
            )
        # Rows behind the end of the vector are not deleted.
        rest = np.ones(one.file.rows - (0 if mask is None else len(mask)), dtype=bool)
        kept.append(RowBits(np.packbits(rest if mask is None else np.concatenate([mask, rest])), one.file.rows))
    return kept


def select_rows(
    given: InputSpec,
    scan: Scan,
    found: Sequence[Inspected],
    whole: pa.Schema,
    kept: list[RowBits] | None = None,
) -> list[RowBits] | None:
    """The rows to run of each file; None for all rows of all files. `kept`: see `kept_rows`. Raises InputError."""
    if not given.selects:
        return kept
    if given.where is None:
        chosen = kept or [all_rows(one.file.rows) for one in found]
    else:
        chosen = _where(given.where, scan, found, whole, given.limit if kept is None else None)
        chosen = chosen if kept is None else [_both(a, b) for a, b in zip(chosen, kept, strict=True)]
    if given.sample is not None:
        chosen = sampled(chosen, given.sample.rows, given.sample.seed)
    return chosen if given.limit is None else limited(chosen, given.limit)


def _both(one: RowBits, other: RowBits) -> RowBits:
    return RowBits(np.packbits(one.mask(0, one.rows) & other.mask(0, one.rows)), one.rows)


def _where(
    expression: str, scan: Scan, found: Sequence[Inspected], whole: pa.Schema, limit: int | None
) -> list[RowBits]:
    """The rows for which the expression is true; of the first `limit` of them at least."""
    schema = pa.schema([whole.field(name) for name in where_columns(expression)])
    with _Condition(expression, schema) as condition:
        writers = {id(one): BitsWriter() for one in found}
        count = 0
        for one, table in scan.tables(found, schema):
            writer = writers[id(one)]
            mask = condition.mask(table, one.file.entry.uri, writer.rows)
            writer.add(mask)
            count += int(mask.sum())
            if limit is not None and count >= limit:
                break
    return [writers[id(one)].done(one.file.rows) for one in found]


class _Condition:
    """An expression of SQL over the columns of `schema`, evaluated by DuckDB on one table after the other."""

    def __init__(self, expression: str, schema: pa.Schema) -> None:
        self._expression = expression
        self._connection: duckdb.DuckDBPyConnection = sandbox()
        try:
            self._require_boolean(schema)
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> _Condition:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def _require_boolean(self, schema: pa.Schema) -> None:
        """Raise InputError for an expression that is not true or false of a row of these columns."""
        names = [name.lower() for name in schema.names]
        twice = next((name for i, name in enumerate(schema.names) if name.lower() in names[:i]), None)
        if twice is not None:
            raise InputError(
                f"input.where: {schema.names[names.index(twice.lower())]!r} and {twice!r} are one name in SQL",
                "rename one of them in the input, or use only one",
            )
        try:
            self._connection.register(ROWS_TABLE, schema.empty_table())
            query = self._connection.execute(f"DESCRIBE {selected(self._expression)}")
            kind = str(query.fetchall()[0][1])
            rows = self._connection.execute(selected(self._expression)).fetchall()
        except Exception as error:
            raise InputError(f"input.where: {told(error)}", _remedy(schema)) from None
        if rows:
            raise InputError(
                "input.where: an aggregate such as count or sum looks at more than one row",
                "write a condition on the columns of a row",
            )
        if kind != "BOOLEAN":
            raise InputError(
                f"input.where is {kind.lower()}, neither true nor false", "compare it with something, as in n > 0"
            )

    def mask(self, table: pa.Table, uri: str, row: int) -> Mask:
        """For each row of `table`, whether the expression is true. `row`: where it begins in the file at `uri`."""
        try:
            return self._evaluated(table)
        except Exception as error:
            at, why = self._failing(table, error)
            raise InputError(
                f"input.where fails on row {row + at} of {uri}: {told(why)}",
                "write TRY_CAST for CAST, or rule such rows out first: CASE WHEN ... THEN ... END",
            ) from None

    def _evaluated(self, table: pa.Table) -> Mask:
        self._connection.register(ROWS_TABLE, table)
        (values,) = self._connection.execute(selected(self._expression)).fetchnumpy().values()
        if len(values) != table.num_rows:
            raise AssertionError(f"{len(values)} answers for {table.num_rows} rows")
        filled: Mask = np.ma.filled(values, False).astype(bool)
        return filled

    def _failing(self, table: pa.Table, error: Exception) -> tuple[int, Exception]:
        """The first row of the table that the expression fails on, and how."""
        first, rows = 0, table.num_rows
        while rows > 1:
            half = rows // 2
            try:
                self._evaluated(table.slice(first, half))
            except Exception as why:
                error, rows = why, half
            else:
                first, rows = first + half, rows - half
        return first, error


def _remedy(schema: pa.Schema) -> str:
    shown = ", ".join(f"{field.name} ({field.type})" for field in schema)
    return f"the columns that it reads are {shown:.300}; cast them in SQL, or set input.cast"

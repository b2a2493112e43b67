"""Columns of the whole input in input order, before a run: for the selection of rows, the ids and the groups."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchinfer.input.arrow import arrow_columns
from batchinfer.input.csv import csv_columns
from batchinfer.input.files import entry_values
from batchinfer.input.formats import Inspected, fit
from batchinfer.input.jsonl import jsonl_columns
from batchinfer.input.parquet import parquet_columns
from batchinfer.input.row_bits import RowBits, all_rows
from batchinfer.jobspec import JobSpec
from batchinfer.storage import REQUESTS_AHEAD

_READ_AT_ONCE = 2**22
"""Bytes. Smaller files are read whole and ahead, about REQUESTS_AHEAD at a time; a larger limit needs more memory."""

_ROWS = 2**16
"""Rows of a table of columns that no file has: of nulls, or of values from the file's path."""


class Scan:
    """Reads columns in their common types; small files are read ahead of time."""

    def __init__(self, spec: JobSpec, partitions: pa.Schema, pool: ThreadPoolExecutor) -> None:
        self._spec = spec
        self._partitions = frozenset(partitions.names)
        self._pool = pool

    def column(
        self, found: Sequence[Inspected], field: pa.Field, selected: Sequence[RowBits] | None
    ) -> Iterator[tuple[str, pa.Array]]:
        """(file, values) of one column, of the selected rows alone."""
        wanted = [one for i, one in enumerate(found) if selected is None or selected[i].count]
        bits = {} if selected is None else {id(one): selected[i] for i, one in enumerate(found)}
        row, before = 0, None
        for one, table in self.tables(wanted, pa.schema([field])):
            row = row if one is before else 0
            before = one
            for values in table.column(0).chunks:
                mask = bits[id(one)].mask(row, row + len(values)) if bits else None
                row += len(values)
                yield one.file.entry.uri, values if mask is None or mask.all() else values.filter(pa.array(mask))

    def rows(
        self, found: Sequence[Inspected], schema: pa.Schema, selected: Sequence[RowBits] | None
    ) -> Iterator[tuple[npt.NDArray[np.int64], pa.Table]]:
        """(numbers in the whole input, rows) of the selected rows."""
        wanted, place = [], 0
        for i, one in enumerate(found):
            bits = all_rows(one.file.rows) if selected is None else selected[i]
            if bits.count:
                wanted.append((one, place, bits))
            place += one.file.rows
        tables = self.tables([one for one, _, _ in wanted], schema)
        of_file = itertools.groupby(tables, key=lambda pair: id(pair[0]))
        for (_, place, bits), (_, pairs) in zip(wanted, of_file, strict=True):
            row = 0
            for _, table in pairs:
                mask = bits.mask(row, row + table.num_rows)
                yield place + row + np.flatnonzero(mask), table if mask.all() else table.filter(pa.array(mask))
                row += table.num_rows

    def tables(self, found: Sequence[Inspected], schema: pa.Schema) -> Iterator[tuple[Inspected, pa.Table]]:
        """(file, rows) of all rows of the files."""

        def whole(one: Inspected) -> list[pa.Table]:
            return list(self._tables_of(one, schema))

        waiting: deque[tuple[Inspected, Future[list[pa.Table]] | None]] = deque()

        def first() -> Iterator[tuple[Inspected, pa.Table]]:
            one, future = waiting.popleft()
            for table in self._tables_of(one, schema) if future is None else future.result():
                yield one, table

        for one in found:
            small = one.file.entry.size <= _READ_AT_ONCE and not _all_held(one, schema) and self._unpacks_little(one)
            waiting.append((one, self._pool.submit(whole, one) if small else None))
            if len(waiting) > REQUESTS_AHEAD:
                yield from first()
        while waiting:
            yield from first()

    def _unpacks_little(self, one: Inspected) -> bool:
        """A few kilobytes of packed text may be gigabytes. The groups of Parquet hold sizes of single columns."""
        return self._spec.input.is_parquet or sum(g.size for g in one.file.groups) <= 4 * _READ_AT_ONCE

    def _tables_of(self, one: Inspected, schema: pa.Schema) -> Iterator[pa.Table]:
        uri = one.file.entry.uri
        for stored in self._stored(one, schema):
            columns = []
            for field in schema:
                if field.name in stored.column_names:
                    column: pa.Array | pa.ChunkedArray = stored.column(field.name)
                elif field.name in self._partitions:
                    value = entry_values(self._spec.input.uri, one.file.entry)[field.name]
                    column = pa.repeat(pa.scalar(value, pa.string()), stored.num_rows)
                else:
                    column = pa.nulls(stored.num_rows, field.type)
                columns.append(fit(column, field, uri))
            yield pa.Table.from_arrays(columns, schema=schema)

    def _stored(self, one: Inspected, schema: pa.Schema) -> Iterable[pa.Table]:
        """The columns that the file has, as it has them."""
        own = [field.name for field in schema if field.name in one.names]
        if not own:
            return (pa.table({"": pa.nulls(min(_ROWS, one.file.rows - row))}) for row in range(0, one.file.rows, _ROWS))
        if _all_held(one, schema):
            return [pa.table({name: one.held[name] for name in own})]
        if self._spec.input.is_parquet:
            return parquet_columns(one.file.entry, own, self._spec.storage)
        if self._spec.input.format == "csv":
            return csv_columns(one.file.entry, own, self._spec.input.csv, self._spec.storage)
        if self._spec.input.format == "arrow":
            return arrow_columns(one.file.entry, own, self._spec.storage)
        fields = pa.schema([field for field in schema if field.name in own])
        return jsonl_columns(one.file.entry, fields, self._spec.storage, self._spec.input.sets_aside)


def _all_held(one: Inspected, schema: pa.Schema) -> bool:
    return all(field.name in one.held for field in schema if field.name in one.names)

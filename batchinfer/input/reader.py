"""Reads the rows of shards as tables with the manifest's schema."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from batchinfer.input.arrow import ArrowRows
from batchinfer.input.csv import CsvRows
from batchinfer.input.files import entry_values
from batchinfer.input.formats import Rows, fit
from batchinfer.input.jsonl import JsonlRows
from batchinfer.input.manifest import Segment, Shard
from batchinfer.input.parquet import ParquetRows
from batchinfer.jobspec import InputSpec
from batchinfer.storage import Entry, Stores, input_changed, storage_for


def read_shards(
    shards: Sequence[Shard],
    schema: pa.Schema,
    partitions: Sequence[str],
    given: InputSpec,
    stores: Stores | None = None,
) -> Iterator[tuple[Shard, pa.Table]]:
    """Each shard with its rows, in order. `shards` must be in input order (see `manifest.read_together`), and cut from
    the input `given`.

    Raises InputError if a file has changed since the manifest was cut, or cannot be read.
    """
    reader = _Reader(schema, partitions, given, stores or {})
    try:
        for shard in shards:
            yield shard, pa.concat_tables([reader.rows(segment) for segment in shard.segments])
    finally:
        reader.close()


class _Reader:
    """Keeps the last file open, because the next segment usually lies in the same file."""

    def __init__(self, schema: pa.Schema, partitions: Sequence[str], given: InputSpec, stores: Stores) -> None:
        self._schema = schema
        self._stored = pa.schema([field for field in schema if field.name not in partitions])
        self._partitions = tuple(partitions)
        self._given = given
        self._stores = stores
        self._open: tuple[Entry, Rows] | None = None

    def rows(self, segment: Segment) -> pa.Table:
        if self._open is None or self._open[0] != segment.entry:
            self.close()
            self._open = (segment.entry, self._open_file(segment.entry))
        try:
            stored = self._open[1].take(segment)
        finally:
            # A file that was overwritten during the read may have produced wrong rows or the error.
            self._require_unchanged(segment.entry)
        values = entry_values(self._given.uri, segment.entry) if self._partitions else {}
        columns = []
        for field in self._schema:
            if field.name in stored.column_names:
                column: pa.Array | pa.ChunkedArray = fit(stored.column(field.name), field, segment.entry.uri)
            elif field.name in self._partitions:
                value = pa.scalar(values[field.name], pa.string())
                column = fit(pa.repeat(value, segment.rows), field, segment.entry.uri)
            else:
                column = pa.nulls(segment.rows, field.type)
            columns.append(column)
        return pa.Table.from_arrays(columns, schema=self._schema)

    def _open_file(self, entry: Entry) -> Rows:
        # A missing or replaced file is reported as changed, not as an error of the format. `rows` checks again.
        self._require_unchanged(entry)
        if self._given.is_parquet:
            # Reads partition columns too: a file's column overrides its folder's name.
            return ParquetRows(entry, self._schema.names, self._stores)
        if self._given.format == "csv":
            return CsvRows(entry, self._schema.names, self._given.csv, self._stores)
        if self._given.format == "arrow":
            return ArrowRows(entry, self._stored.names, self._stores)
        return JsonlRows(entry, self._stored, self._stores)

    def _require_unchanged(self, entry: Entry) -> None:
        now = storage_for(entry.uri, self._stores).stat(entry.uri)
        if now is None or now.tag != entry.tag:
            raise input_changed(entry.uri, now is None)

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

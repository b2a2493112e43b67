"""Parquet and JSON lines: what a file holds, its ids, and rows of it front to back."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer.errors import BatchinferError, InputError
from batchinfer.input.manifest import InputFile, RowGroup, Segment
from batchinfer.storage import Entry, Stores, storage_for

LINES_PER_GROUP = 64
"""JSON lines have no row groups: an offset is noted every so many lines."""

_BATCH_ROWS = 8192

_BATCH_BYTES = 2**25
"""Rows are decoded this much at a time, and lines gathered: a row may be 10 MB."""


def inspect_parquet(entry: Entry, columns: Sequence[str], stores: Stores) -> tuple[InputFile, pa.Schema]:
    """The file's row groups (bytes of `columns` only) and its schema; raises InputError."""
    if entry.size == 0:
        raise InputError(f"{entry.uri} is empty (zero bytes), not a Parquet file", "write it again, or move it away")
    with storage_for(entry.uri, stores).open(entry.uri, entry.tag) as file:
        try:
            metadata = pq.read_metadata(file)
            schema = metadata.schema.to_arrow_schema()
            wanted = set(columns)
            chunks = [
                i
                for i in range(metadata.num_columns)
                if not wanted.isdisjoint(_names_in(metadata.schema.column(i).path))
            ]
            groups = []
            for number in range(metadata.num_row_groups):
                group = metadata.row_group(number)
                size = sum(group.column(i).total_uncompressed_size for i in chunks)
                groups.append(RowGroup(group.num_rows, max(0, size)))
        except Exception as error:
            # What a damaged footer makes Arrow raise goes from OSError to UnicodeDecodeError.
            raise InputError(
                f"{entry.uri} is not a readable Parquet file: {first_line(error)}",
                "it may be cut off or another format: write it again, or move it away",
            ) from None
    return InputFile(entry, tuple(groups)), schema


def _names_in(path: str) -> list[str]:
    """The columns that a leaf's path may belong to: `a.b` is a field of `a`, or a column of that name."""
    parts = path.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def parquet_column(entry: Entry, column: str, stores: Stores) -> Iterator[pa.Array]:
    """One column of a file, a batch at a time."""
    with storage_for(entry.uri, stores).open(entry.uri, entry.tag) as file, reading(entry.uri):
        for batch in pq.ParquetFile(file).iter_batches(_BATCH_ROWS * 4, columns=[column], use_threads=False):
            yield batch.column(0)


class ParquetRows:
    """Decodes each row group at most once, however many segments lie in it, and holds one batch of it."""

    def __init__(self, entry: Entry, columns: Sequence[str], stores: Stores) -> None:
        self._uri = entry.uri
        self._stream = storage_for(entry.uri, stores).open(entry.uri, entry.tag)
        with reading(entry.uri):
            self._file = pq.ParquetFile(self._stream)
        have = set(self._file.schema_arrow.names)
        self._columns = [name for name in columns if name in have]
        self._at = 0
        self._group = -1
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._rest: pa.RecordBatch | None = None

    def take(self, segment: Segment) -> pa.Table:
        with reading(self._uri):
            if segment.group > self._group:
                self._open_group(segment.group, segment.start - segment.skip)
            self._forward(segment.start - self._at)
            pieces = self._forward(segment.rows)
            return pa.Table.from_batches(pieces, schema=pieces[0].schema)

    def _open_group(self, group: int, first_row: int) -> None:
        metadata = self._file.metadata
        groups = list(range(group, metadata.num_row_groups))
        widest = max(metadata.row_group(i).total_byte_size // max(1, metadata.row_group(i).num_rows) for i in groups)
        rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, widest)))
        self._batches = self._file.iter_batches(rows, row_groups=groups, columns=self._columns, use_threads=False)
        self._group, self._at, self._rest = group, first_row, None

    def _forward(self, rows: int) -> list[pa.RecordBatch]:
        """The next `rows` rows."""
        pieces = []
        while rows > 0:
            batch = self._rest if self._rest is not None else next(self._batches)
            piece = batch.slice(0, rows)
            self._rest = batch.slice(rows) if batch.num_rows > rows else None
            self._at += piece.num_rows
            rows -= piece.num_rows
            pieces.append(piece)
        return pieces

    def close(self) -> None:
        self._stream.close()


def inspect_jsonl(entry: Entry, columns: Sequence[str], stores: Stores) -> tuple[InputFile, pa.Schema, set[str]]:
    """The file's stretches of lines, the schema of `columns`, and every key seen; raises InputError."""
    groups: list[RowGroup] = []
    schema = pa.schema([])
    keys: set[str] = set()
    for offset, size, rows in _line_groups(entry, stores):
        groups.append(RowGroup(len(rows), size, offset))
        for row in rows:
            keys.update(row)
        try:
            seen = pa.Table.from_pydict({c: [row.get(c) for row in rows] for c in columns}).schema
            schema = pa.unify_schemas([schema, seen], promote_options="permissive")
        except (pa.ArrowException, OverflowError, UnicodeError) as error:
            raise InputError(
                f"{entry.uri}: a column holds values that do not fit one type: {first_line(error)}",
                "give the column one type in every line: texts, or numbers of at most 64 bits",
            ) from None
    return InputFile(entry, tuple(groups)), schema, keys


def jsonl_column(entry: Entry, column: str, stores: Stores) -> Iterator[pa.Array]:
    """One column of a file, a stretch of lines at a time."""
    for _, _, rows in _line_groups(entry, stores):
        yield pa.array([row.get(column) for row in rows])


def _line_groups(entry: Entry, stores: Stores) -> Iterator[tuple[int, int, list[dict[str, Any]]]]:
    """(offset, bytes, rows) of each stretch of lines. Blank lines are no rows."""
    with storage_for(entry.uri, stores).open(entry.uri, entry.tag) as file:
        offset = at = 0
        rows: list[dict[str, Any]] = []
        for number, line in enumerate(file, start=1):
            at += len(line)
            if line.strip():
                rows.append(_parse(line, entry.uri, number))
                if len(rows) == LINES_PER_GROUP or at - offset > _BATCH_BYTES:
                    yield offset, at - offset, rows
                    offset, rows = at, []
        if rows:
            yield offset, at - offset, rows


def _parse(line: bytes, uri: str, number: int | None) -> dict[str, Any]:
    place = f"{uri}:{number}" if number else uri
    try:
        row = json.loads(line, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{place}: not a line of JSON: {first_line(error)[:300]}", "each line is one JSON object; mend or drop it"
        ) from None
    if not isinstance(row, dict):
        raise InputError(f"{place}: a line is a JSON object, not {type(row).__name__}", 'write {"column": value, ...}')
    return row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if any(key == other for other, _ in pairs[:i]))
        raise ValueError(f"the key {twice!r:.100} is there twice")
    return found


class JsonlRows:
    """Reads the bytes of each segment's lines."""

    def __init__(self, entry: Entry, schema: pa.Schema, stores: Stores) -> None:
        self._uri = entry.uri
        self._stream = storage_for(entry.uri, stores).open(entry.uri, entry.tag)
        self._schema = schema

    def take(self, segment: Segment) -> pa.Table:
        self._stream.seek(segment.offset)
        lines = io.BytesIO(self._stream.read(segment.end - segment.offset))
        kept = [line for line in lines if line.strip()][segment.skip : segment.skip + segment.rows]
        rows = [_parse(line, self._uri, None) for line in kept]
        with reading(self._uri):
            if len(rows) != segment.rows:
                raise StopIteration
            columns = {field.name: pa.array([r.get(field.name) for r in rows], field.type) for field in self._schema}
            return pa.Table.from_pydict(columns, schema=self._schema)

    def close(self) -> None:
        self._stream.close()


@contextlib.contextmanager
def reading(uri: str) -> Iterator[None]:
    """Turn an Arrow error while reading `uri` into an InputError that names it."""
    try:
        yield
    except BatchinferError:
        raise
    except Exception as error:
        # Damaged data makes Arrow raise more than its own exceptions, UnicodeDecodeError among them.
        raise InputError(
            f"{uri} cannot be read: {first_line(error) or 'it has fewer rows than it had or says'}",
            "it is damaged: write it again and run with --fresh",
        ) from None


def first_line(error: BaseException) -> str:
    """The message without the stack that Arrow appends, at most 500 characters of it."""
    return str(error).strip().splitlines()[0][:500] if str(error).strip() else ""

"""Arrow's IPC format, streams and files: what a file holds, single columns of it, and its rows in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import pyarrow as pa

from batchinfer.errors import InputError
from batchinfer.input.formats import Batches, Inspected, first_line, reading
from batchinfer.input.manifest import InputFile, RowGroup, Segment
from batchinfer.storage import Entry, Stores, storage_for

_FILE = b"ARROW1"
_STREAM_ENDS = (b"\xff\xff\xff\xff\0\0\0\0", b"\0\0\0\0")
"""The last bytes of a stream, today and before Arrow 0.15. A stream without them may be cut off between two batches."""


class _Source:
    """Record batches, each at its offset: the byte where it begins in a stream, its number in a file with a footer."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._footer = None
        if file.read(len(_FILE)) == _FILE:
            file.seek(0)
            self._footer = pa.ipc.open_file(file)
            self.schema: pa.Schema = self._footer.schema
            self.begin = 0
        else:
            file.seek(0)
            self.schema = pa.ipc.read_schema(pa.ipc.read_message(file))
            self.begin = file.tell()

    def batches(self, offset: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(offset, batch) from the one at `offset` on."""
        if self._footer is not None:
            for number in range(offset, self._footer.num_record_batches):
                yield number, self._footer.get_batch(number)
            return
        while True:
            self._file.seek(offset)
            head = self._file.read(8)
            if head.startswith(_STREAM_ENDS):
                return
            if not head:
                raise ValueError("it is cut off: the end of the stream is missing")
            self._file.seek(offset)
            message = pa.ipc.read_message(self._file)
            if message.type != "record batch":
                raise ValueError(f"it has a {message.type} in a stream, which is not read here: write an Arrow file")
            after = self._file.tell()
            yield offset, pa.ipc.read_record_batch(message, self.schema)
            offset = after


def inspect_arrow(entry: Entry, columns: Sequence[str], stores: Stores) -> Inspected:
    """The file's batches, the types of `columns`, and the names of all; raises InputError. Reads the whole file."""
    try:
        with storage_for(entry.uri, stores).open(entry.uri, entry.tag) as file:
            source = _Source(file)
            twice = next((name for name, count in Counter(source.schema.names).items() if count > 1), None)
            if twice is not None:
                raise InputError(f"{entry.uri} has two columns named {twice!r}", "rename one of them")
            wanted = [name for name in columns if name in source.schema.names]
            groups = []
            for offset, batch in source.batches(source.begin):
                size = sum(values.nbytes for values in _columns(batch, wanted).values())
                if batch.num_rows:
                    groups.append(RowGroup(batch.num_rows, size, offset))
            fields = [source.schema.field(name) for name in wanted]
            schema = pa.schema([pa.field(field.name, _plain(field.type)) for field in fields])
            return Inspected(InputFile(entry, tuple(groups)), schema, frozenset(source.schema.names))
    except (pa.ArrowException, OSError, ValueError, EOFError) as error:
        raise InputError(
            f"{entry.uri} is not a readable Arrow file: {first_line(error)}",
            "it may be cut off or another format: write it again, move it away, or set input.on_bad_file: skip",
        ) from None


def arrow_columns(entry: Entry, columns: Sequence[str], stores: Stores) -> Iterator[pa.Table]:
    """Columns of a file, a batch at a time. Raises InputError."""
    with storage_for(entry.uri, stores).open(entry.uri, entry.tag) as file, reading(entry.uri):
        source = _Source(file)
        for _, batch in source.batches(source.begin):
            yield pa.table(_columns(batch, columns))


class ArrowRows:
    """Reads each batch at most once, however many segments lie in it. Keeps one batch in memory."""

    def __init__(self, entry: Entry, columns: Sequence[str], stores: Stores) -> None:
        self._uri = entry.uri
        self._stream = storage_for(entry.uri, stores).open(entry.uri, entry.tag)
        with reading(entry.uri):
            self._source = _Source(self._stream)
        self._names = [name for name in columns if name in self._source.schema.names]
        self._group = -1
        self._batches = Batches(iter(()), 0)

    def take(self, segment: Segment) -> pa.Table:
        """See `formats.Rows`."""
        with reading(self._uri):
            if segment.group > self._group:
                found = self._source.batches(segment.offset)
                self._batches = Batches((self._table(batch) for _, batch in found), segment.start - segment.skip)
                self._group = segment.group
            return self._batches.take(segment)

    def _table(self, batch: pa.RecordBatch) -> pa.Table:
        # Without a column of its own, a file still has its number of rows.
        return pa.table(_columns(batch, self._names)) if self._names else pa.Table.from_batches([batch])

    def close(self) -> None:
        """See `formats.Rows`."""
        self._stream.close()


def _columns(batch: pa.RecordBatch, names: Sequence[str]) -> dict[str, pa.Array]:
    """The columns, checked to the last offset and byte: Arrow itself trusts what the file says."""
    found = {}
    for name in names:
        values = batch.column(name)
        values.validate(full=True)
        kind = _plain(values.type)
        if kind != values.type:
            values = _without_views(values, kind)
        found[name] = values
    return found


def _without_views(values: pa.Array, kind: pa.DataType) -> pa.Array:
    if not pa.types.is_dictionary(kind):
        return values.cast(kind)
    return pa.DictionaryArray.from_arrays(values.indices, values.dictionary.cast(kind.value_type))


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type without views, which Polars writes."""
    if pa.types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _plain(kind.value_type), kind.ordered)
    if pa.types.is_string_view(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind

"""Brings the rows of each group of `reduce` together: one row a group, in Parquet files of its own.

Rows are dealt out to temporary files by the hash of their key, until the rows of a file fit in memory and are sorted
there. So memory is bounded by the largest group, not by the input.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd  # for its vectorised hash of texts
import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer.errors import InputError
from batchinfer.input.column_types import JSON, fitted, same_text
from batchinfer.input.manifest import InputFile, RowGroup
from batchinfer.jobspec.reduce_keys import COUNT, MEMBERS
from batchinfer.storage import storage_for
from batchinfer.temporary import TemporaryFolder, room_in

GROUPS_FOOTER = b"batchinfer.groups"
"""In the footer of every file of groups."""

_IN_MEMORY = 2**26
"""Bytes of rows that are sorted at a time; about five times as many are held. Fewer make more temporary files."""

_MOST_BUCKETS = 128
"""Temporary files that are written at a time, each with an open file. Of a larger input each is dealt out again."""

_LEVELS = 4
"""How often rows are dealt out, each time by other 16 bits of the hash. A file that is still too large is one group."""

_LARGEST_GROUP = 2**30
"""Bytes of a group. It becomes one row, which a replica holds in memory with its shard; Arrow has 2^31 at most."""

_PART_BYTES = 2**26
"""Bytes of the groups of one file, before compression: a file is copied into the run's folder as a whole."""

_ROW_GROUP_BYTES = 2**23
"""Bytes of a row group, which a reader decodes as a whole. Smaller ones cost more footers."""

_MOST_ROWS = 8192


@dataclass(frozen=True, slots=True)
class Gathered:
    """The groups of `rows` rows: their files, which last as long as `folder`, and the schema of a group's row."""

    folder: TemporaryFolder
    files: tuple[InputFile, ...]
    schema: pa.Schema
    rows: int


def group_schema(whole: pa.Schema, key: str, columns: Sequence[str], ids: pa.DataType | None) -> pa.Schema:
    """The schema of a group's row. `whole`: of the rows; `ids`: the type of the members' ids, None without members.

    Raises InputError for a key that values are not compared by.
    """
    kind = whole.field(key).type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_nested(value) or value == JSON:
        raise InputError(
            f"reduce.key {key!r} has type {value!s:.100}",
            "rows are grouped by a text, a number, a date, a time, a UUID or a boolean: choose another column",
        )
    members = [] if ids is None else [pa.field(MEMBERS, pa.list_(_plain(ids)))]
    lists = [
        pa.field(name, pa.list_(_plain(whole.field(name).type)), metadata=whole.field(name).metadata)
        for name in columns
    ]
    return pa.schema([pa.field(key, _plain(kind)), pa.field(COUNT, pa.int64()), *members, *lists])


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type without a dictionary or an extension, whose lists Parquet would not give back."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if kind == pa.uuid():
        return pa.string()
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


_ROOM = "set TMPDIR to a folder with as much room as three times the columns that the job reads"


def gather(rows: Iterable[pa.Table], schema: pa.Schema, size: int) -> Gathered:
    """The groups of `rows`, tables in input order with the columns of `schema` but for `count`.

    The first column is the key. `size`: about how many bytes the rows have. Within a group rows keep their order.
    Groups come in the order of their first rows if the input fits in memory, otherwise in an order that depends on
    the keys alone.
    """
    folder = TemporaryFolder("groups")
    made = _Gathering(Path(folder.path), schema)
    parts = _Parts(Path(folder.path), schema)
    with room_in(folder.path, _ROOM), parts:
        for groups in made.groups(rows, size):
            parts.write(groups)
    return Gathered(folder, tuple(map(_input_file, parts.paths)), schema, made.rows)


def _input_file(path: Path) -> InputFile:
    entry = storage_for(str(path)).stat(str(path))
    assert entry is not None
    found = pq.read_metadata(path)
    groups = [found.row_group(i) for i in range(found.num_row_groups)]
    return InputFile(entry, tuple(RowGroup(group.num_rows, group.total_byte_size) for group in groups))


class _Gathering:
    """Turns rows into rows of groups. `rows`: how many it was given."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self.rows = 0
        self._folder = folder
        self._schema = schema
        self._key = schema.names[0]
        inner = [field.type.value_type for field in schema if field.name not in (self._key, COUNT)]
        names = [name for name in schema.names if name != COUNT]
        self._of_rows = pa.schema(list(zip(names, [schema.field(self._key).type, *inner], strict=True)))
        self._files = 0

    def groups(self, rows: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
        return self._grouped(map(self._counted, rows), size, 0)

    def _counted(self, table: pa.Table) -> pa.Table:
        self.rows += table.num_rows
        columns = [fitted(_decoded(table.column(field.name)), field.type) for field in self._of_rows]
        return pa.Table.from_arrays(columns, schema=self._of_rows)

    def _grouped(self, rows: Iterator[pa.Table], size: int, level: int) -> Iterator[pa.Table]:
        pieces = _pieces(rows, _IN_MEMORY if level < _LEVELS else _LARGEST_GROUP)
        first, second = next(pieces, None), next(pieces, None)
        if first is None:
            return
        if second is None:
            yield self._listed(first)
            return
        if level == _LEVELS:
            raise self._too_large(first)
        buckets = self._dealt(itertools.chain((first, second), pieces), size, level)
        del first, second
        for path in buckets:
            with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
                tables = (pa.Table.from_batches([batch]) for batch in stream)
                yield from self._grouped(tables, path.stat().st_size, level + 1)
            path.unlink()

    def _dealt(self, tables: Iterable[pa.Table], size: int, level: int) -> list[Path]:
        """Files with the rows, those with one key in one file, in the order in which they came."""
        count = min(_MOST_BUCKETS, max(2, math.ceil(2 * size / _IN_MEMORY)))
        paths = [self._folder / f"rows-{self._files + i}" for i in range(count)]
        self._files += count
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        writers = [pa.ipc.new_stream(str(path), self._of_rows, options=options) for path in paths]
        try:
            for table in tables:
                bucket = (self._hashes(table) >> np.uint64(16 * level)) % np.uint64(count)
                order = np.argsort(bucket, kind="stable")
                dealt = table.take(order)
                ends = np.cumsum(np.bincount(bucket.astype(np.intp), minlength=count)).tolist()
                for writer, start, end in zip(writers, [0, *ends], ends, strict=False):
                    if end > start:
                        writer.write_table(dealt.slice(start, end - start))
        finally:
            for writer in writers:
                writer.close()
        return paths

    def _hashes(self, table: pa.Table) -> npt.NDArray[np.uint64]:
        text = self._text(table)
        hashes: npt.NDArray[np.uint64] = pd.util.hash_array(
            text.fill_null("").to_numpy(zero_copy_only=False), categorize=False
        )
        return hashes

    def _text(self, table: pa.Table) -> pa.Array:
        """The keys as texts, of which equal keys have equal ones."""
        column = table.column(self._key)
        try:
            text = same_text(column).combine_chunks()
            text.validate(full=True)
        except pa.ArrowException:
            raise InputError(
                f"reduce.key {self._key!r} of type {column.type} holds a value without a text, such as bytes that are "
                "not UTF-8",
                "choose another column",
            ) from None
        return text

    def _listed(self, table: pa.Table) -> pa.Table:
        """One row for each key of `table`, in the order of their first rows."""
        keys = self._text(table).dictionary_encode(null_encoding="encode").indices.to_numpy()
        counts = np.bincount(keys)
        ends = np.cumsum(counts)
        together = table.take(np.argsort(keys, kind="stable"))
        offsets = pa.array(np.concatenate([[0], ends]), pa.int32())
        columns = []
        for field in self._schema:
            if field.name == COUNT:
                columns.append(pa.array(counts, pa.int64()))
            elif field.name == self._key:
                columns.append(together.column(field.name).take(ends - counts))
            else:
                values = together.column(field.name).combine_chunks()
                columns.append(pa.ListArray.from_arrays(offsets, values).cast(field.type))
        return pa.Table.from_arrays(columns, schema=self._schema)

    def _too_large(self, table: pa.Table) -> InputError:
        counts = self._text(table).value_counts()
        largest = max(counts.to_pylist(), key=lambda one: one["counts"])["values"]
        return InputError(
            f"the rows with {self._key} = {largest!r:.80} have more than {_LARGEST_GROUP // 2**30} GiB in the columns "
            "that the prompt reads, and a group is one row",
            "choose a finer reduce.key, or fewer rows with input.where",
        )


def _decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _pieces(tables: Iterable[pa.Table], most: int) -> Iterator[pa.Table]:
    """The rows in tables of about `most` bytes, so that few are sorted and each writes much to each file."""
    waiting: list[pa.Table] = []
    held = 0
    for table in tables:
        rows = max(1, most * table.num_rows // max(1, table.nbytes))
        for start in range(0, table.num_rows, rows):
            waiting.append(table.slice(start, rows))
            held += waiting[-1].nbytes
            if held >= most:
                yield pa.concat_tables(waiting).combine_chunks()
                waiting, held = [], 0
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


class _Parts:
    """Writes groups to `part-NNNN.parquet`, a new file after `_PART_BYTES`."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self.paths: list[Path] = []
        self._folder = folder
        self._schema = schema.with_metadata({GROUPS_FOOTER: b"1"})
        self._writer: pq.ParquetWriter | None = None
        self._room = 0

    def __enter__(self) -> _Parts:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, groups: pa.Table) -> None:
        mean = max(1, groups.nbytes // groups.num_rows)
        rows = max(1, min(_MOST_ROWS, _ROW_GROUP_BYTES // mean))
        for start in range(0, groups.num_rows, rows):
            piece = groups.slice(start, rows)
            if self._writer is None or self._room <= 0:
                self._begin()
            assert self._writer is not None
            self._writer.write_table(piece.replace_schema_metadata(self._schema.metadata))
            self._room -= piece.nbytes

    def _begin(self) -> None:
        if self._writer is not None:
            self._writer.close()
        path = self._folder / part_name(len(self.paths))
        self.paths.append(path)
        # Texts rarely repeat, and without dictionaries the sizes in the footer are those of the texts.
        self._writer = pq.ParquetWriter(
            path, self._schema, compression="zstd", use_dictionary=False, write_statistics=False
        )
        self._room = _PART_BYTES


def part_name(number: int) -> str:
    return f"part-{number:04d}.parquet"

"""Parquet: what the files hold, single columns of them, and the rows of a file in order."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchinfer.errors import InputError
from batchinfer.input.files import format_of_name
from batchinfer.input.formats import Batches, Inspected, reading
from batchinfer.input.manifest import InputFile, RowGroup, Segment
from batchinfer.input.parquet_footer import (
    FOOTERS_AT_ONCE,
    TAIL_BYTES,
    BadFooter,
    Footer,
    footer_bytes,
    open_parquet,
    open_with,
    read_footers,
)
from batchinfer.input.table_files import TableEntry, names_in_file, names_of_table
from batchinfer.storage import Entry, Stores, storage_for

_BATCH_ROWS = 8192

_BATCH_BYTES = 2**25
"""Bytes (32 MiB) decoded in one batch: with rows of 10 MB, a batch of 8192 rows would not fit in memory."""

_MOST_HELD = 2**27
"""Bytes (128 MiB) of small files whose id and group columns are kept, which saves a second read. More needs memory."""

_JULIAN_DAYS = -141_427
"""1582-10-15, in days from 1970: earlier days have other dates in the Julian calendar."""

_LOCAL_MEAN_TIME_US = -2_208_988_800_000_000
"""1900-01-01, in microseconds from 1970: earlier timestamps of Spark 2 are also shifted by the local mean time."""

_NS_RANGE_US = 2**63 // 1000 - 1


def inspect_parquet(
    entries: Sequence[Entry], columns: Sequence[str], kept: Sequence[str], stores: Stores, pool: ThreadPoolExecutor
) -> Iterator[Inspected | InputError]:
    """For each file, what it holds of `columns`, or the error if it cannot be read.

    The columns in `kept` are read together with the footer if the file is small.
    """
    held = 0
    looked = _ahead(pool, entries, stores)
    while some := list(itertools.islice(looked, FOOTERS_AT_ONCE)):
        footers = [footer for footer, _ in some if isinstance(footer, bytes)]
        stored = (name for entry in entries[: len(some)] for name in names_in_file(entry, columns).values())
        answers = iter(read_footers(footers, list(dict.fromkeys([*columns, *stored]))))
        for (footer, tail), entry in zip(some, entries, strict=False):
            found = next(answers) if isinstance(footer, bytes) else footer
            if isinstance(found, InputError | BadFooter):
                yield _unreadable(entry, found)
                continue
            found = _of_table(found, entry, columns)
            if found.twice is not None:
                yield InputError(f"{entry.uri} has two columns named {found.twice!r}", "rename one of them")
                continue
            columns_held = {}
            if tail is not None and kept and held + entry.size <= _MOST_HELD and isinstance(footer, bytes):
                held += entry.size
                wanted = names_in_file(entry, [name for name in kept if name in found.names])
                columns_held = _held(footer, tail, wanted)
            yield _inspected(entry, found, columns_held)
        entries = entries[len(some) :]


def _ahead(
    pool: ThreadPoolExecutor, entries: Sequence[Entry], stores: Stores
) -> Iterator[tuple[bytes | InputError | BadFooter, bytes | None]]:
    """For each file, its footer or the error, and all bytes if the file is small. The pool reads ahead."""

    def look(entry: Entry) -> tuple[bytes | InputError | BadFooter, bytes | None]:
        if entry.size == 0:
            return (
                InputError(f"{entry.uri} is empty (zero bytes), not a Parquet file", "write it again, or move it away"),
                None,
            )
        try:
            with storage_for(entry.uri, stores).open(entry.uri, entry.tag) as file:
                if entry.size > TAIL_BYTES:
                    return footer_bytes(file, entry.size), None
                data = file.read()
                return footer_bytes(pa.BufferReader(data), entry.size), data
        except (InputError, BadFooter) as error:
            return error, None

    for first in range(0, len(entries), _LOOKS):
        yield from pool.map(look, entries[first : first + _LOOKS])


_LOOKS = 4 * FOOTERS_AT_ONCE
"""Files whose footers are read ahead: more need memory for the small files among them, fewer keep threads idle."""


def _unreadable(entry: Entry, error: InputError | BadFooter) -> InputError:
    if isinstance(error, InputError):
        return error
    if error.remedy:
        return InputError(f"{entry.uri}: {error}", error.remedy)
    named = format_of_name(entry.uri)
    if named not in (None, "parquet"):
        return InputError(f"{entry.uri} is no Parquet file", f"set input.format: {named}")
    return InputError(
        f"{entry.uri} is not a readable Parquet file: {error}",
        "it may be cut off or another format: write it again, move it away, or set input.on_bad_file: skip",
    )


def _of_table(found: Footer, entry: Entry, columns: Sequence[str]) -> Footer:
    """The footer with the names that the columns have in the table, if the file is one of a table."""
    if not isinstance(entry, TableEntry) or entry.stored is None:
        return found
    told = names_of_table(entry, found.names)
    wanted = {stored: name for stored, name in told.items() if name in columns}

    def renamed(names: Iterable[str]) -> tuple[str, ...]:
        return tuple(wanted[name] for name in names if name in wanted)

    return replace(
        found,
        schema=pa.schema([field.with_name(wanted[field.name]) for field in found.schema if field.name in wanted]),
        names=tuple(told.values()),
        int96=renamed(found.int96),
        legacy=renamed(found.legacy),
        doubtful=renamed(found.doubtful),
    )


def _held(footer: bytes, data: bytes, names: Mapping[str, str]) -> dict[str, pa.Array]:
    """Columns of a small file; none if they cannot be read, because the later read reports the error."""
    try:
        table = open_with(footer, pa.BufferReader(data)).read(columns=list(names.values()), use_threads=False)
        return {name: table.column(stored) for name, stored in names.items()}
    except (pa.ArrowException, OSError, UnicodeError):
        return {}


def _inspected(entry: Entry, footer: Footer, held: dict[str, pa.Array]) -> Inspected:
    groups = tuple(RowGroup(rows, size) for rows, size in footer.groups)
    return Inspected(
        InputFile(entry, groups),
        footer.schema,
        frozenset(footer.names),
        int96=footer.int96,
        legacy=footer.legacy,
        doubtful=footer.doubtful,
        held=held,
    )


def parquet_columns(entry: Entry, columns: Sequence[str], stores: Stores) -> Iterator[pa.Table]:
    """Columns of a file, a batch at a time."""
    with storage_for(entry.uri, stores).open(entry.uri, entry.tag) as stream, reading(entry.uri):
        file = open_parquet(stream, entry.size)
        # A single column is an id or a group, which is short. Several may be whole texts.
        rows = _BATCH_ROWS * 4 if len(columns) == 1 else _batch_rows(file, range(file.metadata.num_row_groups))
        stored = names_in_file(entry, columns)
        for batch in file.iter_batches(rows, columns=list(stored.values()), use_threads=False):
            yield _named(batch, stored)


def _named(batch: pa.RecordBatch, stored: Mapping[str, str]) -> pa.Table:
    """The columns with the names of the table; `stored`: by name, that in the file."""
    return pa.table({name: batch.column(there) for name, there in stored.items()})


def parquet_column(entry: Entry, column: str, stores: Stores) -> Iterator[pa.Array]:
    """One column of a file, in batches. Raises InputError."""
    for table in parquet_columns(entry, [column], stores):
        yield from table.column(column).chunks


def _batch_rows(file: pq.ParquetFile, groups: Iterable[int]) -> int:
    """How many rows are decoded at a time, so that they keep within `_BATCH_BYTES`."""
    found = [file.metadata.row_group(i) for i in groups]
    widest = max((group.total_byte_size // max(1, group.num_rows) for group in found), default=1)
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, widest)))


def require_arrow_reads(entry: Entry, column: str, stores: Stores) -> None:
    """Raise InputError if Arrow cannot read the column."""
    try:
        for _ in parquet_column(entry, column, stores):
            pass
    except InputError as error:
        raise InputError(
            f"{error}: Arrow cannot read the column {column!r} as DuckDB wrote it",
            f"write it as a list, as in SELECT {column}::FLOAT[], or leave it out of the job",
        ) from None


def require_exact_times(entry: Entry, int96: Iterable[str], legacy: Iterable[str], stores: Stores) -> None:
    """Raise InputError for times that reading would change.

    These are timestamps of 96 bits finer than a microsecond, and Spark 2's days in the Julian calendar.
    """
    for column in int96:
        _require_microseconds(entry, column, stores)
    for column in legacy:
        for values in parquet_column(entry, column, stores):
            if _before_the_calendars_agree(values):
                raise InputError(
                    f"{entry.uri}: column {column!r} has days before 1900 or 1582 of the calendar of Spark 2",
                    "write it again with datetimeRebaseModeInWrite=CORRECTED, or leave the column out",
                )


def _require_microseconds(entry: Entry, column: str, stores: Stores) -> None:
    with storage_for(entry.uri, stores).open(entry.uri, entry.tag) as file, reading(entry.uri):
        footer = footer_bytes(file, entry.size)
        fine, whole = (
            open_with(footer, file, unit).iter_batches(_BATCH_ROWS * 4, columns=[column], use_threads=False)
            for unit in ("ns", "us")
        )
        for one, other in zip(fine, whole, strict=True):
            if not pa.types.is_timestamp(one.column(0).type):
                return
            nanoseconds, microseconds = (batch.column(0).cast(pa.int64()) for batch in (one, other))
            told = pc.less_equal(pc.abs(microseconds), _NS_RANGE_US)
            inside = pc.if_else(told, microseconds, 0)
            differs = pc.and_(told, pc.not_equal(pc.multiply(inside, 1000), nanoseconds))
            if pc.any(differs).as_py():
                raise InputError(
                    f"{entry.uri}: column {column!r} has timestamps of 96 bits finer than a microsecond",
                    "write the column with microseconds or as TIMESTAMP(NANOS), or leave it out of the job",
                )


def _before_the_calendars_agree(values: pa.Array) -> bool:
    kind = values.type
    if pa.types.is_nested(kind):
        return any(_before_the_calendars_agree(child) for child in _children(values))
    if pa.types.is_date(kind):
        least = pc.min(values.cast(pa.date32()).cast(pa.int32())).as_py()
        return least is not None and least < _JULIAN_DAYS
    if pa.types.is_timestamp(kind):
        least = pc.min(values.cast(pa.int64())).as_py()
        unit = {"s": 10**6, "ms": 10**3, "us": 1, "ns": 0.001}[kind.unit]
        return least is not None and least * unit < _LOCAL_MEAN_TIME_US
    return False


def _children(values: pa.Array) -> list[pa.Array]:
    if pa.types.is_struct(values.type):
        return list(values.flatten())
    if pa.types.is_map(values.type):
        return [values.keys, values.items]
    return [values.flatten()]


class ParquetRows:
    """Decodes each row group at most once, however many segments lie in it. Keeps one batch in memory."""

    def __init__(self, entry: Entry, columns: Sequence[str], stores: Stores) -> None:
        self._uri = entry.uri
        self._stream = storage_for(entry.uri, stores).open(entry.uri, entry.tag)
        with reading(entry.uri):
            self._file = open_parquet(self._stream, entry.size)
        have = set(self._file.schema_arrow.names)
        self._stored = {name: there for name, there in names_in_file(entry, columns).items() if there in have}
        self._group = -1
        self._batches = Batches(iter(()), 0)

    def take(self, segment: Segment) -> pa.Table:
        with reading(self._uri):
            if segment.group > self._group:
                self._open_group(segment.group, segment.start - segment.skip)
            return self._batches.take(segment)

    def _open_group(self, group: int, first_row: int) -> None:
        groups = list(range(group, self._file.metadata.num_row_groups))
        rows = _batch_rows(self._file, groups)
        batches = self._file.iter_batches(
            rows, row_groups=groups, columns=list(self._stored.values()), use_threads=False
        )
        self._batches = Batches(map(self._table, batches), first_row)
        self._group = group

    def _table(self, batch: pa.RecordBatch) -> pa.Table:
        # Without a column of its own, a file still has its number of rows.
        return _named(batch, self._stored) if self._stored else pa.Table.from_batches([batch])

    def close(self) -> None:
        self._stream.close()

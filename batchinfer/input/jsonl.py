"""JSON lines, plain or compressed: what a file holds, single columns of it, and its rows in order."""

from __future__ import annotations

import codecs
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import pyarrow as pa

from batchinfer.errors import InputError
from batchinfer.input.bad_rows import BAD_ROW, BadRow
from batchinfer.input.formats import Inspected, first_line, reading
from batchinfer.input.json_types import JsonColumn, problem_of, values_as
from batchinfer.input.manifest import InputFile, RowGroup, Segment
from batchinfer.input.packed import LONGEST_ROW, another_format, packing, unpacked, unpacking
from batchinfer.storage import Entry, Stores, storage_for

LINES_PER_GROUP = 64
"""Rows of a stretch of lines, whose offset is recorded because JSON lines have no row groups. With longer stretches
readers skip more lines; with shorter ones the cutting of shards needs more memory."""

_GROUP_BYTES = 2**25
"""Bytes (32 MiB) after which a stretch of lines ends early: with rows of 10 MB, 64 of them would fill the memory."""


def inspect_jsonl(
    entry: Entry,
    columns: Sequence[str],
    casts: Mapping[str, pa.DataType],
    stores: Stores,
    set_aside: bool = False,
) -> Inspected:
    """The file's stretches of lines, the types of `columns`, and every key seen; raises InputError.

    `set_aside`: rows that cannot be read are counted, by the columns that they lack, instead of refused.
    """
    groups: list[RowGroup] = []
    found = {name: JsonColumn(name, casts.get(name)) for name in columns}
    keys: set[str] = set()
    lacking: Counter[str] = Counter()
    whole_rows = whole_size = 0
    with storage_for(entry.uri, stores).open(entry.uri, entry.tag) as file:
        packed = packing(file) is not None
        for offset, size, numbers, rows in _line_groups(file, entry.uri, set_aside):
            if packed:
                whole_rows, whole_size = whole_rows + len(rows), whole_size + size
            else:
                groups.append(RowGroup(len(rows), size, offset))
            for row in rows:
                keys.update(row)
            for name, column in found.items():
                if set_aside:
                    column.add_most(rows, numbers, entry.uri)
                else:
                    column.add([row.get(name) for row in rows], numbers, entry.uri)
            for row in rows:
                if isinstance(row, BadRow):
                    lacking.update(name for name in (BAD_ROW, *columns) if row.get(name) is None)
    if whole_rows:
        # Compressed bytes can only be read from the beginning, so the whole file is one row group for one reader.
        groups = [RowGroup(whole_rows, whole_size)]
    schema = pa.schema([column.field(entry.uri) for column in found.values()])
    integers = {name: (column.big, column.negative) for name, column in found.items()}
    return Inspected(InputFile(entry, tuple(groups)), schema, frozenset(keys), integers=integers, bad_rows=lacking)


def jsonl_columns(entry: Entry, schema: pa.Schema, stores: Stores, set_aside: bool = False) -> Iterator[pa.Table]:
    """Columns of a file in the types of `schema`, a stretch of lines at a time.

    `set_aside`: a value that cannot be read is null.
    """
    with storage_for(entry.uri, stores).open(entry.uri, entry.tag) as file:
        for _, _, _, rows in _line_groups(file, entry.uri, set_aside):
            with reading(entry.uri):
                yield pa.Table.from_arrays([_column(rows, field, set_aside) for field in schema], schema=schema)


def _column(rows: list[dict[str, Any]], field: pa.Field, set_aside: bool) -> pa.Array:
    """The values of a column; with `set_aside` a row whose value does not fit becomes a BadRow without it."""
    values = [row.get(field.name) for row in rows]
    try:
        return values_as(values, field.type)
    except (pa.ArrowException, OverflowError, TypeError, UnicodeError):
        if not set_aside:
            raise
    for place, value in enumerate(values):
        problem = problem_of(value, field.type)
        if problem is not None:
            rows[place] = BadRow.of(rows[place], field.name, problem)
    return values_as([row.get(field.name) for row in rows], field.type)


def _lines(file: BinaryIO, uri: str, first: int = 1) -> Iterator[bytes]:
    """The lines of a file, of which the next one is number `first`. Raises InputError for one without an end."""
    for number in itertools.count(first):
        line = file.readline(LONGEST_ROW)
        if not line:
            return
        if len(line) == LONGEST_ROW and not line.endswith(b"\n"):
            raise InputError(
                f"{uri}:{number}: a line is longer than {LONGEST_ROW:,} bytes",
                "write one JSON object a line, as jq -c . does",
            )
        yield line


def _line_groups(
    file: BinaryIO, uri: str, set_aside: bool = False
) -> Iterator[tuple[int, int, list[int], list[dict[str, Any]]]]:
    """(offset, bytes, line numbers, rows) of each stretch of lines. Blank lines are no rows.

    `set_aside`: a line that is no JSON object is a BadRow, unless the first line shows that the whole file is another.
    """
    offset = at = 0
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    with unpacking(uri):
        for number, line in enumerate(_lines(unpacked(file), uri), start=1):
            at += len(line)
            if line.strip():
                rows.append(_parsed(line, uri, number, set_aside))
                numbers.append(number)
                if len(rows) == LINES_PER_GROUP or at - offset > _GROUP_BYTES:
                    yield offset, at - offset, numbers, rows
                    offset, rows, numbers = at, [], []
        if rows:
            yield offset, at - offset, numbers, rows


def _parsed(line: bytes, uri: str, number: int, set_aside: bool) -> dict[str, Any]:
    try:
        return _parse(line, uri, number)
    except InputError as error:
        another = number == 1 and (not line.lstrip().startswith(b'{"') or b"\r" in line.strip())
        if another or not set_aside:
            raise
        return BadRow(error.message.removeprefix(f"{uri}:{number}: "))


def _parse(line: bytes, uri: str, number: int | None) -> dict[str, Any]:
    place = f"{uri}:{number}" if number else uri
    try:
        # Decoded here: from bytes, the parser would also take UTF-16 and UTF-32, whose lines are cut elsewhere.
        text = line.removeprefix(codecs.BOM_UTF8).decode()
        row = json.loads(text, object_pairs_hook=_object, parse_float=_finite, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        what, remedy = _diagnosis(line, number, error)
        raise InputError(f"{place}: not a line of JSON: {what or first_line(error)[:300]}", remedy) from None
    if not isinstance(row, dict):
        remedy = 'write {"column": value, ...}'
        if isinstance(row, list) and number == 1:
            remedy = "the file is an array of JSON: write an object a line, as jq -c '.[]' does"
        raise InputError(f"{place}: a line is a JSON object, not {type(row).__name__}", remedy)
    return row


def _row(line: bytes, uri: str, set_aside: bool) -> dict[str, Any]:
    try:
        return _parse(line, uri, None)
    except InputError as error:
        if not set_aside:
            raise
        return BadRow(error.message.removeprefix(f"{uri}: "))


def _diagnosis(line: bytes, number: int | None, error: Exception) -> tuple[str | None, str]:
    """Why a line is not JSON, None if unknown; and the remedy."""
    text = line.strip()
    if number == 1:
        other = another_format(line)
        if other is not None:
            return f"the file is {other[0]}", other[1]
        if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "the file is UTF-16", "write it as UTF-8: iconv -f UTF-16 -t UTF-8"
        if line[:2] in (b"{\0", b"\0{"):
            of = "UTF-16LE" if line.startswith(b"{") else "UTF-16BE"
            return f"the file is {of}", f"write it as UTF-8: iconv -f {of} -t UTF-8"
        if text.startswith(b"["):
            return "the file is an array of JSON", "write an object a line, as jq -c '.[]' does"
        if text == b"{":
            return "the file is JSON over several lines", "write an object a line, as jq -c . does"
    if isinstance(error, UnicodeDecodeError):
        return (
            f"it is not UTF-8: {first_line(error)[:200]}",
            "write it as UTF-8: iconv -f LATIN1 -t UTF-8, if it is Latin-1",
        )
    if b"\r" in text:
        return "its lines end with CR alone", "end lines with LF: tr '\\r' '\\n'"
    if text.endswith(b","):
        return "a comma stands after the object", "drop the commas between the lines: sed 's/,$//'"
    return None, "each line is one JSON object; mend or drop it"


def _finite(number: str) -> float:
    """The number. Python makes infinity of one that exceeds a double, without an error."""
    found = float(number)
    if math.isinf(found):
        raise ValueError(f"{number:.40} is beyond the numbers that a double holds, 1.8e308")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON: write null")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if any(key == other for other, _ in pairs[:i]))
        raise ValueError(f"the key {twice!r:.100} is there twice")
    return found


class JsonlRows:
    """Reads the rows of each segment. A plain file is read at the segment's bytes, a compressed one sequentially.

    Only the lines of selected rows are parsed and held.
    """

    def __init__(self, entry: Entry, schema: pa.Schema, stores: Stores) -> None:
        self._uri = entry.uri
        self._stream = storage_for(entry.uri, stores).open(entry.uri, entry.tag)
        self._schema = schema
        self._packed = packing(self._stream) is not None
        self._lines: Iterator[bytes] = iter(())
        self._at: int | None = None

    def take(self, segment: Segment) -> pa.Table:
        with unpacking(self._uri):
            self._go_to(segment)
            mask = segment.mask
            lines = itertools.islice(self._lines, segment.span)
            kept = list(lines if mask is None else itertools.compress(lines, mask))
        self._at = segment.start + segment.span
        set_aside = BAD_ROW in self._schema.names
        rows = [_row(line, self._uri, set_aside) for line in kept]
        with reading(self._uri):
            if len(rows) != segment.rows:
                raise StopIteration
            columns = {field.name: _column(rows, field, set_aside) for field in self._schema if field.name != BAD_ROW}
            if set_aside:
                places = (segment.numbers - segment.place + segment.start).tolist()
                columns[BAD_ROW] = pa.array(
                    [
                        f"row {place} of {self._uri}: {row.problem}" if isinstance(row, BadRow) else None
                        for place, row in zip(places, rows, strict=True)
                    ],
                    pa.string(),
                )
            return pa.Table.from_arrays([columns[name] for name in self._schema.names], schema=self._schema)

    def _go_to(self, segment: Segment) -> None:
        """Let the next line be that of the segment's first row."""
        if self._at is None or (segment.start < self._at if self._packed else segment.start != self._at):
            self._stream.seek(0 if self._packed else segment.offset)
            self._at = 0 if self._packed else segment.start - segment.skip
            source = unpacked(self._stream) if self._packed else self._stream
            self._lines = (line for line in _lines(source, self._uri) if line.strip())
        for _ in itertools.islice(self._lines, segment.start - self._at):
            pass

    def close(self) -> None:
        self._stream.close()

"""CSV, plain or compressed: what a file holds, some columns of it, and its rows front to back.

Arrow parses the fields. Where a row ends is decided here, so that blocks hold whole rows of any length, each row has a
line number, and a shard may begin in the middle of a file.
"""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.csv as pa_csv

from batchinfer.errors import InputError
from batchinfer.input.column_types import fitted
from batchinfer.input.formats import Batches, Inspected, first_line, reading
from batchinfer.input.manifest import InputFile, RowGroup, Segment
from batchinfer.input.packed import LONGEST_ROW, another_format, packing, unpacked, unpacking
from batchinfer.jobspec import CsvSpec
from batchinfer.storage import Entry, Stores, storage_for

_BLOCK_BYTES = 2**20
"""Rows are parsed so much at a time, and a shard may begin at each block. Smaller blocks cost a call to Arrow each; of
larger ones more is parsed twice where a shard begins in the middle."""

_UTF8_BOM = codecs.BOM_UTF8

_NAMELESS = "\0"
"""How the names begin here of columns that have none."""

_Source = Callable[[int], bytes]
"""Reads so many bytes of UTF-8; none at the end."""


@dataclass(frozen=True, slots=True)
class _Block:
    """Whole rows: the byte of the file at which they begin, their bytes in UTF-8, and the line of the first one."""

    offset: int
    data: bytes
    line: int


def inspect_csv(
    entry: Entry,
    columns: Sequence[str],
    casts: Mapping[str, pa.DataType],
    kept: Sequence[str],
    room: Callable[[int], bool],
    csv: CsvSpec,
    stores: Stores,
) -> Inspected:
    """The file's blocks, the types of `columns` and the names of all; raises InputError. Columns in `kept` are held, so
    that the file is not unpacked once more, if there is `room` for so many bytes."""
    groups: list[RowGroup] = []
    held: list[pa.Table] | None = [] if kept else None
    with storage_for(entry.uri, stores).open(entry.uri, entry.tag) as stream:
        file = _Text(entry.uri, stream, csv)
        names = file.names
        needed = [name for name in columns if name in names]
        for block in file.blocks():
            table = file.parse(block, needed)
            for name in needed:
                if name in casts:
                    _require_castable(file, block, table, name, casts[name])
            if table.num_rows:
                groups.append(RowGroup(table.num_rows, len(block.data), block.offset))
            if held is not None:
                part = table.select([name for name in kept if name in needed])
                if room(part.nbytes):
                    held.append(part)
                else:
                    held = None
        seekable = file.seekable
    if groups and not seekable:
        # There is no way into the middle of compressed bytes: one reader takes the file from its beginning.
        groups = [RowGroup(sum(group.rows for group in groups), sum(group.size for group in groups))]
    found: dict[str, pa.ChunkedArray] = {}
    if held:
        whole = pa.concat_tables(held)
        found = {name: whole.column(name) for name in whole.column_names}
    schema = pa.schema([(name, pa.string()) for name in needed])
    return Inspected(
        InputFile(entry, tuple(groups)), schema, frozenset(n for n in names if not n.startswith(_NAMELESS)), held=found
    )


def csv_columns(entry: Entry, columns: Sequence[str], csv: CsvSpec, stores: Stores) -> Iterator[pa.Table]:
    """Columns of a file, a block at a time."""
    with storage_for(entry.uri, stores).open(entry.uri, entry.tag) as stream:
        file = _Text(entry.uri, stream, csv)
        for block in file.blocks():
            yield file.parse(block, columns)


class CsvRows:
    """Reads the rows of each segment: from their block on in a plain file, from the beginning on in a packed one."""

    def __init__(self, entry: Entry, columns: Sequence[str], csv: CsvSpec, stores: Stores) -> None:
        self._stream = storage_for(entry.uri, stores).open(entry.uri, entry.tag)
        self._file = _Text(entry.uri, self._stream, csv)
        self._columns = [name for name in columns if name in self._file.names]
        self._batches: Batches | None = None

    def take(self, segment: Segment) -> pa.Table:
        if self._batches is None or self._batches.at > segment.start or self._worth_a_jump(segment):
            begin = segment.start - segment.skip
            blocks = self._file.blocks(segment.offset) if self._file.seekable else self._file.blocks()
            parsed = (self._file.parse(block, self._columns) for block in blocks)
            self._batches = Batches(parsed, begin if self._file.seekable else 0)
        with reading(self._file.uri):
            return self._batches.take(segment)

    def _worth_a_jump(self, segment: Segment) -> bool:
        return self._file.seekable and self._batches is not None and self._batches.at < segment.start - segment.skip

    def close(self) -> None:
        self._stream.close()


class _Row(NamedTuple):
    """A row that has not as many fields as there are columns."""

    expected: int
    actual: int
    text: str | None


class _Text:
    """One file of CSV: its columns, its blocks of whole rows, and their tables."""

    def __init__(self, uri: str, stream: BinaryIO, csv: CsvSpec) -> None:
        self.uri = uri
        self._csv = csv
        self._stream = stream
        self._rows = _rows_pattern(csv.delimiter, csv.quote, csv.escape)
        self._utf8 = codecs.lookup(csv.encoding).name in ("utf-8", "utf-8-sig")
        self.seekable = self._utf8 and packing(stream) is None
        stream.seek(0)
        # In what is unpacked or decoded bytes are counted behind the mark.
        self._mark = len(_UTF8_BOM) if self.seekable and stream.read(len(_UTF8_BOM)) == _UTF8_BOM else 0
        self._begin, self._line = self._mark, 1
        self.names: tuple[str, ...] = csv.columns or ()
        if csv.header:
            self.names = self._header()

    def blocks(self, offset: int = 0) -> Iterator[_Block]:
        """The rows after the header, or those from the byte `offset` of a plain file on. Raises InputError."""
        begin = max(offset, self._begin)
        # Lines before `offset` are not counted: a file is read from its middle only after all of it was looked at.
        yield from self._whole_rows(begin, self._line)

    def parse(self, block: _Block, columns: Sequence[str]) -> pa.Table:
        """The columns of a block as texts. Raises InputError for a row that has not as many fields as the header."""
        bad: list[_Row] = []
        table = self._parsed(block.data, self.names, columns, bad)
        if bad:
            raise self._ragged(block, bad[0])
        return table

    def line_of(self, block: _Block, row: int) -> int:
        """The line of the file at which a row of a block begins."""
        at = 0
        for found in self._rows.one.finditer(block.data):
            if found[0].strip(b"\r\n"):
                if not row:
                    at = found.start()
                    break
                row -= 1
        return block.line + block.data.count(b"\n", 0, at)

    def _parsed(self, data: bytes, names: Sequence[str], columns: Sequence[str], bad: list[_Row]) -> pa.Table:
        def note(row: pa_csv.InvalidRow) -> str:
            bad.append(_Row(row.expected_columns, row.actual_columns, row.text))
            return "skip"

        csv = self._csv
        # Without a column Arrow would read them all.
        read = list(columns) or list(names[:1])
        table = pa_csv.read_csv(
            pa.BufferReader(data),
            read_options=pa_csv.ReadOptions(
                column_names=list(names), use_threads=False, block_size=max(len(data), 1) + 1
            ),
            parse_options=_fields(csv, note),
            convert_options=pa_csv.ConvertOptions(
                check_utf8=False,
                include_columns=read,
                column_types={name: pa.string() for name in read},
                null_values=list(csv.nulls),
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
        return table if columns else pa.table({"": pa.nulls(table.num_rows)}).select([])

    def _header(self) -> tuple[str, ...]:
        """The names in the first row of the file, none for a file without one."""
        for block in self._whole_rows(self._mark, 1):
            for found in self._rows.one.finditer(block.data):
                if found[0].strip(b"\r\n"):
                    names = self._names(found[0])
                    self._begin = block.offset + found.end()
                    self._line = block.line + block.data.count(b"\n", 0, found.end())
                    return names
        return ()

    def _names(self, row: bytes) -> tuple[str, ...]:
        try:
            read = pa_csv.read_csv(pa.BufferReader(row), parse_options=_fields(self._csv))
        except pa.ArrowInvalid as error:
            raise InputError(
                f"{self.uri}: its header cannot be read: {first_line(error)}",
                "check input.csv.delimiter and input.csv.quote, or correct the header",
            ) from None
        names = read.column_names
        if read.num_rows:
            raise self._endless(row, 1)
        if any("\0" in name for name in names):
            raise InputError(
                f"{self.uri}: the header has NUL characters, as UTF-16 read as UTF-8 has",
                "set input.csv.encoding: utf-16-le, or what else the file is written in",
            )
        twice = next((name for i, name in enumerate(names) if name and name in names[:i]), None)
        if twice is not None:
            raise InputError(f"{self.uri}: the header has the column {twice!r} twice", "rename one of them")
        other = next((mark for mark in ";\t|," if mark in names[0]), None) if len(names) == 1 else None
        if other is not None:
            raise InputError(
                f"{self.uri}: the header has one column, {names[0]!r:.100}",
                f"if {other!r} stands between the columns, set input.csv.delimiter: {_yaml(other)}",
            )
        # Columns without a name, as of a table's index, cannot be asked for, and Arrow needs a name for each.
        return tuple(name or f"{_NAMELESS}{i}" for i, name in enumerate(names))

    def _ragged(self, block: _Block, row: _Row) -> InputError:
        at = 0
        if row.text is not None:
            found = block.data.find(row.text.encode(errors="surrogateescape"))
            # The first row that reads so has as many fields, so that it is bad as well.
            at = max(0, found)
        line = block.line + block.data.count(b"\n", 0, at)
        what = "the header has" if self._csv.header else "input.csv.columns has"
        few = row.actual < row.expected
        return InputError(
            f"{self.uri}:{line}: the row has {row.actual} field{'s' if row.actual != 1 else ''}, and {what} "
            f"{row.expected}: {row.text or '':.60}",
            "correct the line, check input.csv.delimiter and input.csv.quote"
            + (", " if few else " (a field that holds a delimiter stands in quotes), ")
            + "or leave the whole file out with input.on_bad_file: skip",
        )

    def _whole_rows(self, offset: int, line: int) -> Iterator[_Block]:
        """Blocks of whole rows from a byte on, which is a byte of the unpacked UTF-8 text where it is no plain file."""
        source = self._source(offset)
        rest, at = b"", offset
        with unpacking(self.uri):
            while True:
                data = source(max(_BLOCK_BYTES, len(rest)))
                rest += data
                whole = len(rest) if not data else self._whole(rest)
                if whole:
                    block = _Block(at, rest[:whole], line)
                    self._require_text(block)
                    if not data:
                        self._require_closed(block)
                    yield block
                    line += block.data.count(b"\n")
                    rest, at = rest[whole:], at + whole
                if not data:
                    return
                if len(rest) > LONGEST_ROW:
                    raise self._endless(rest, line)

    def _whole(self, data: bytes) -> int:
        """The bytes of the whole rows at the beginning of `data`."""
        if self._csv.escape is None and (self._csv.quote is None or self._csv.quote.encode() not in data):
            return data.rfind(b"\n") + 1
        found = self._rows.many.match(data)
        return found.end() if found else 0

    def _require_closed(self, block: _Block) -> None:
        """The last rows of a file: the very last one may lack the end of its line, and not the quote of a field."""
        whole = self._whole(block.data)
        last = block.data[whole:]
        if last and not self._whole(last + b"\n"):
            raise self._endless(last, block.line + block.data.count(b"\n", 0, whole))

    def _endless(self, data: bytes, line: int) -> InputError:
        if b"\r" in data and b"\n" not in data:
            return InputError(f"{self.uri}:{line}: its lines end with CR alone", "end lines with LF: tr '\\r' '\\n'")
        if self._csv.quote is not None and self._csv.quote.encode() in data:
            return InputError(
                f"{self.uri}:{line}: a quote opens in this row and does not close",
                "mend the line; if quotes are plain characters in this file, set input.csv.quote: null",
            )
        return InputError(
            f"{self.uri}:{line}: a row is longer than {LONGEST_ROW:,} bytes",
            "write an end of line after each row",
        )

    def _require_text(self, block: _Block) -> None:
        if block.offset <= self._mark:
            other = another_format(block.data)
            if other is not None:
                raise InputError(f"{self.uri} is not CSV: it is {other[0]}", other[1])
        if block.data.isascii():
            return
        try:
            block.data.decode()
        except UnicodeDecodeError as error:
            raise self._misread(
                block.line + block.data.count(b"\n", 0, error.start), error.object[error.start]
            ) from None

    def _misread(self, line: int, byte: int) -> InputError:
        remedy = "set input.csv.encoding to what the file is written in, such as cp1252 (Windows) or latin-1"
        if self._begins_as_utf16():
            remedy = "set input.csv.encoding: utf-16"
        return InputError(f"{self.uri}:{line}: byte {byte:#04x} is not {self._csv.encoding} text", remedy)

    def _begins_as_utf16(self) -> bool:
        self._stream.seek(0)
        return unpacked(self._stream).read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

    def _source(self, offset: int) -> _Source:
        """A function that reads so many bytes of UTF-8, none at the end."""
        if self.seekable:
            self._stream.seek(offset)
            return functools.partial(_read_fully, self._stream)
        self._stream.seek(0)
        read: _Source = functools.partial(_read_fully, unpacked(self._stream))
        source = _without_mark(read if self._utf8 else self._transcoded(read))
        with unpacking(self.uri):
            while offset > 0 and (skipped := len(source(min(offset, _BLOCK_BYTES)))):
                offset -= skipped
        return source

    def _transcoded(self, read: _Source) -> _Source:
        decoder = codecs.getincrementaldecoder(self._csv.encoding)("strict")
        lines, left = 1, b""
        ended = False

        def source(size: int) -> bytes:
            nonlocal lines, left, ended
            while len(left) < size and not ended:
                data = read(_BLOCK_BYTES)
                ended = not data
                try:
                    text = decoder.decode(data, final=ended)
                except UnicodeDecodeError as error:
                    line = lines + error.object[: error.start].decode(self._csv.encoding, "replace").count("\n")
                    raise self._misread(line, error.object[error.start]) from None
                except UnicodeError as error:
                    # UTF-16 without the mark that says which byte comes first.
                    raise InputError(
                        f"{self.uri}: it is not {self._csv.encoding}: {first_line(error)}",
                        "set input.csv.encoding to what the file is written in",
                    ) from None
                lines += text.count("\n")
                left += text.encode(errors="surrogatepass")
            given, left = left[:size], left[size:]
            return given

        return source


def _fields(csv: CsvSpec, on_bad_row: Callable[[pa_csv.InvalidRow], str] | None = None) -> pa_csv.ParseOptions:
    """How Arrow tells the fields of a row apart."""
    return pa_csv.ParseOptions(
        delimiter=csv.delimiter,
        quote_char=csv.quote or False,
        escape_char=csv.escape or False,
        newlines_in_values=True,
        invalid_row_handler=on_bad_row,
    )


def _read_fully(file: BinaryIO, size: int) -> bytes:
    """`size` bytes, fewer only at the end: an unpacked file returns what it has."""
    parts = []
    while size > 0 and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _without_mark(read: _Source) -> _Source:
    """Without the mark that some programs write before UTF-8."""
    first = True

    def source(size: int) -> bytes:
        nonlocal first
        data = read(size)
        if first and data.startswith(_UTF8_BOM):
            data = data[len(_UTF8_BOM) :]
        first = False
        return data

    return source


class _Patterns(NamedTuple):
    one: re.Pattern[bytes]
    many: re.Pattern[bytes]


@functools.lru_cache(maxsize=16)
def _rows_pattern(delimiter: str, quote: str | None, escape: str | None) -> _Patterns:
    """What a row with its end is, and what many are.

    As Arrow has it: a quote counts at the beginning of a field alone, and behind the closing one a field goes on
    unquoted. The quantifiers are possessive, so that the time is linear.
    """
    d = re.escape(delimiter.encode())
    e = re.escape(escape.encode()) if escape else None
    plain = rb"[^" + d + rb"\n" + (e or b"") + rb"]*+"
    if e:
        plain = rb"(?:" + plain[:-2] + rb"++|" + e + rb".)*+"
    field = plain
    if quote:
        q = re.escape(quote.encode())
        inside = rb"[^" + q + (e or b"") + rb"]++|" + q + q + (rb"|" + e + rb"." if e else b"")
        field = rb"(?:" + q + rb"(?:" + inside + rb")*+" + q + plain + rb"|(?!" + q + rb")" + plain + rb")"
    row = field + rb"(?:" + d + field + rb")*+\n"
    last = field + rb"(?:" + d + field + rb")*+(?:\n|\Z)"
    return _Patterns(re.compile(rb"(?!\Z)" + last, re.DOTALL), re.compile(rb"(?:" + row + rb")*+", re.DOTALL))


def _require_castable(file: _Text, block: _Block, table: pa.Table, name: str, wanted: pa.DataType) -> None:
    """Raise InputError for a field that is not of the type that `input.cast` names."""
    try:
        fitted(table.column(name), wanted)
        return
    except pa.ArrowException:
        pass
    for row, value in enumerate(table.column(name)):
        try:
            fitted(pa.array([value.as_py()], pa.string()), wanted)
        except pa.ArrowException as error:
            raise InputError(
                f"{file.uri}:{file.line_of(block, row)}: column {name!r} holds {value.as_py()!r:.60}, which is "
                f"not of the type that input.cast names: {first_line(error)}",
                f"correct the line, set input.csv.nulls if it means null, or set input.cast: {{{name}: string}}",
            ) from None


def _yaml(mark: str) -> str:
    return '"\\t"' if mark == "\t" else f'"{mark}"'

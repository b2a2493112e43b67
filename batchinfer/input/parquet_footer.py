"""Reads Parquet footers in a child process, so that a hostile footer costs one file and not the command.

Arrow aborts the process on some footers (encrypted columns without their key, damaged statistics) instead of raising.
A child process therefore reads each footer first; if the child dies, the file is refused. The child runs this file
alone, which imports pyarrow and nothing of this package.
"""

from __future__ import annotations

import atexit
import base64
import binascii
import contextlib
import pickle
import re
import resource
import struct
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

MAGIC, ENCRYPTED_MAGIC = b"PAR1", b"PARE"

TAIL_BYTES = 64 * 1024
"""Bytes of the first read, from the end of a file. Most footers are smaller; a larger footer needs a second read."""

FOOTERS_AT_ONCE = 64
"""Footers in one message to the child. More would delay the next reads; fewer would need more process switches."""

_ARROW_KEY = b"\x0cARROW:schema\x18"
"""The bytes before the writer's Arrow schema in a footer: the key's length, the key, the next field's header."""

_SPARK_VERSION = b"org.apache.spark.version"
_SPARK_LEGACY = {"INT96": b"org.apache.spark.legacyINT96", "other": b"org.apache.spark.legacyDateTime"}


@dataclass(frozen=True, slots=True)
class Footer:
    """The footer of one file.

    `groups`: (rows, bytes of the wanted columns) of each row group. `schema`: the wanted columns as they are read.
    `names`: all columns. `int96`: wanted columns with timestamps of 96 bits that may hold nanoseconds. `legacy`:
    wanted columns whose days before 1582 are in the Julian calendar. `twice`: a wanted name that several columns
    have. `doubtful`: wanted columns that Arrow may be unable to read.
    """

    groups: tuple[tuple[int, int], ...]
    schema: pa.Schema
    names: tuple[str, ...]
    int96: tuple[str, ...] = ()
    legacy: tuple[str, ...] = ()
    twice: str | None = None
    doubtful: tuple[str, ...] = ()


class BadFooter(Exception):
    """The footer cannot be read. The message says why, without the file's name.

    `remedy` is set if the file is sound and only one of the wanted columns cannot be read.
    """

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.remedy = remedy


def _bad_column(path: str, what: str) -> BadFooter:
    return BadFooter(
        f"column {path!r} {what}", "write the column as text, numbers or structs, or leave it out of the job"
    )


def footer_bytes(file: BinaryIO, size: int) -> bytes:
    """The footer with its length and magic, from the end of a Parquet file. Raises BadFooter."""
    file.seek(max(0, size - TAIL_BYTES))
    tail = file.read()
    if tail[-4:] == ENCRYPTED_MAGIC:
        raise BadFooter("it is encrypted")
    if tail[-4:] != MAGIC or len(tail) < 12:
        raise BadFooter("it does not end as a Parquet file does")
    needed = int.from_bytes(tail[-8:-4], "little") + 8
    if needed + 4 > size:
        raise BadFooter("its footer is longer than the file")
    if needed > len(tail):
        file.seek(size - needed)
        tail = file.read()
    return tail[-needed:]


def open_parquet(file: Any, size: int) -> pq.ParquetFile:
    """The file, read with the types of `Footer.schema`.

    Views become plain types, dictionaries inside other types become their values, and timestamps of 96 bits become
    microseconds.
    """
    return open_with(footer_bytes(file, size), file)


def open_with(footer: bytes, file: Any, int96_unit: str = "us") -> pq.ParquetFile:
    """`open_parquet` of a file whose footer was read before."""
    metadata = _opened(_with_plain_schema(footer)).metadata
    return pq.ParquetFile(file, metadata=metadata, coerce_int96_timestamp_unit=int96_unit)


def _opened(footer: bytes) -> pq.ParquetFile:
    return pq.ParquetFile(pa.BufferReader(MAGIC + footer), coerce_int96_timestamp_unit="us")


def plain(kind: pa.DataType) -> pa.DataType:
    """The type as results store it: views become plain types, and inner fields are nullable.

    Arrow can neither take rows of views nor concatenate dictionaries inside other types. Parquet has neither type.
    """
    kinds = pa.types
    if kinds.is_string_view(kind):
        return pa.string()
    if kinds.is_binary_view(kind):
        return pa.binary()
    if kinds.is_dictionary(kind):
        value = plain(kind.value_type)
        return kind if value == kind.value_type else pa.dictionary(kind.index_type, value, kind.ordered)
    if kinds.is_struct(kind):
        return pa.struct([pa.field(field.name, _inner(field.type)) for field in kind])
    if kinds.is_map(kind):
        return pa.map_(_inner(kind.key_type), _inner(kind.item_type))
    if kinds.is_fixed_size_list(kind):
        return pa.list_(_inner(kind.value_type), kind.list_size)
    if kinds.is_large_list(kind) or kinds.is_large_list_view(kind):
        return pa.large_list(_inner(kind.value_type))
    if kinds.is_list(kind) or kinds.is_list_view(kind):
        return pa.list_(_inner(kind.value_type))
    return kind


def _inner(kind: pa.DataType) -> pa.DataType:
    return plain(kind.value_type if pa.types.is_dictionary(kind) else kind)


def _with_plain_schema(footer: bytes) -> bytes:
    """The footer with the writer's Arrow schema made plain; the same object if the schema is plain already.

    A footer is a sequence of fields without offsets, so the schema's bytes can be replaced by others of any length.
    """
    found = _arrow_schema(footer)
    if found is None:
        return footer
    begin, _, end, schema = found
    if schema is None:
        # Arrow does not know the schema's types. Under another key Arrow ignores the schema and uses Parquet's types.
        body = footer[: begin + 1] + b"arrow:schema" + footer[begin + 13 : -8]
    else:
        same = pa.schema([field.with_type(plain(field.type)) for field in schema], schema.metadata)
        if same.equals(schema):
            return footer
        new = base64.b64encode(same.serialize().to_pybytes())
        body = footer[: begin + len(_ARROW_KEY)] + _varint(len(new)) + new + footer[end:-8]
    return body + len(body).to_bytes(4, "little") + MAGIC


def _arrow_schema(footer: bytes) -> tuple[int, int, int, pa.Schema | None] | None:
    """The position of the Arrow schema's key, the begin and end of its value, and the schema; None if there is none.

    The schema is None if this Arrow cannot read it.
    """
    begin = footer.rfind(_ARROW_KEY)
    if begin < 0:
        return None
    at, length, shift = begin + len(_ARROW_KEY), 0, 0
    while at < len(footer) and shift < 35:
        byte = footer[at]
        length |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            break
    try:
        value = base64.b64decode(footer[at : at + length], validate=True)
    except binascii.Error:
        return None
    try:
        return begin, at, at + length, pa.ipc.read_schema(pa.py_buffer(value))
    except (pa.ArrowException, OSError):
        return begin, at, at + length, None


def _varint(number: int) -> bytes:
    made = bytearray()
    while number > 127:
        made.append(number & 127 | 128)
        number >>= 7
    return bytes([*made, number])


def read_footer(footer: bytes, columns: Sequence[str]) -> Footer:
    """The footer's facts about `columns`. Raises BadFooter; Arrow may abort the process."""
    try:
        return _read(_with_plain_schema(footer), frozenset(columns))
    except BadFooter:
        raise
    except Exception as error:
        # On a damaged footer Arrow raises exceptions of many types, from OSError to UnicodeDecodeError.
        raise BadFooter(str(error).strip().splitlines()[0][:500] if str(error).strip() else repr(error)) from None


def _read(footer: bytes, wanted: frozenset[str]) -> Footer:
    file = _opened(footer)
    metadata, schema = file.metadata, file.schema_arrow
    names = schema.names
    chunks: list[int] = []
    int96: dict[str, None] = {}
    enums: set[str] = set()
    unknown = b"arrow:schema" in (metadata.metadata or {})
    for i in range(metadata.num_columns):
        leaf = metadata.schema.column(i)
        owners = wanted.intersection(_names_in(leaf.path))
        if not owners:
            continue
        chunks.append(i)
        if leaf.physical_type == "INT96":
            int96.update(dict.fromkeys(owners))
        if unknown and leaf.physical_type == "FIXED_LEN_BYTE_ARRAY" and leaf.logical_type.type == "NONE":
            raise _bad_column(leaf.path, "has a type that Arrow cannot read, such as numbers of 128 bits")
        if leaf.converted_type == "INTERVAL":
            raise _bad_column(leaf.path, "is an INTERVAL, which Arrow neither reads nor writes")
        if "BSON" in (leaf.logical_type.type, leaf.converted_type):
            raise _bad_column(leaf.path, "is BSON, which has no text")
        if leaf.path.endswith(".metadata") and owners.intersection(_variants(metadata.schema)):
            raise _bad_column(leaf.path.removesuffix(".metadata"), "is a VARIANT, of which Arrow reads only the parts")
        if leaf.path in owners and "ENUM" in (leaf.logical_type.type, leaf.converted_type):
            enums.add(leaf.path)
    groups = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        size = 0
        for i in chunks:
            chunk = group.column(i)
            size += chunk.total_uncompressed_size
            if chunk.compression == "LZO":
                raise _bad_column(chunk.path_in_schema, "is compressed with LZO, which no reader here knows")
        groups.append((group.num_rows, max(0, size)))
    keys = metadata.metadata or {}
    zones = _zones(footer) if int96 else {}
    fields = []
    for name in sorted(wanted.intersection(names), key=names.index):
        if names.count(name) > 1:
            return Footer(tuple(groups), pa.schema([]), tuple(names), twice=name)
        fields.append(pa.field(name, _read_as(schema.field(name).type, name, enums, int96, zones, keys)))
    dated = [f.name for f in fields if f.name not in int96 and _SPARK_LEGACY["other"] in keys and _has_dates(f.type)]
    legacy = [*dated, *(int96 if _SPARK_LEGACY["INT96"] in keys else ())]
    # DuckDB writes a null of its type ARRAY as a list with values, which Arrow refuses as damaged.
    arrays = [f.name for f in fields if "DuckDB" in metadata.created_by and pa.types.is_nested(f.type)]
    return Footer(
        groups=tuple(groups),
        schema=pa.schema(fields),
        names=tuple(names),
        # Spark writes timestamps of 96 bits in whole microseconds only.
        int96=() if _SPARK_VERSION in keys else tuple(int96),
        legacy=tuple(legacy),
        doubtful=tuple(arrays),
    )


def _variants(schema: Any) -> set[str]:
    """The top-level columns with a VARIANT in them. Arrow knows the annotation, and says it only in this text, of two
    blanks for each level."""
    found: set[str] = set()
    top = ""
    for line in str(schema).splitlines():
        field = re.fullmatch(r"( *)\w+ group field_id=-?\d+ (.*?)(?: \((.*)\))? \{", line)
        if field is None:
            continue
        if len(field[1]) == 2:
            top = field[2]
        if (field[3] or "").startswith("Variant("):
            found.add(top)
    return found


def _read_as(
    kind: pa.DataType,
    name: str,
    enums: Iterable[str],
    int96: Iterable[str],
    zones: dict[str, str],
    keys: dict[bytes, bytes],
) -> pa.DataType:
    kind = plain(kind)
    if name in enums and pa.types.is_binary(kind):
        return pa.string()
    if name in int96 and pa.types.is_timestamp(kind) and kind.tz is None:
        # Spark's timestamps are instants in UTC. For other writers only the Arrow schema names a zone.
        zone = zones.get(name) or ("UTC" if _SPARK_VERSION in keys else None)
        return pa.timestamp("us", zone)
    return kind


def _zones(footer: bytes) -> dict[str, str]:
    """The zones of timestamps in the writer's Arrow schema: Arrow drops the zone of timestamps of 96 bits."""
    found = _arrow_schema(footer)
    if found is None or found[3] is None:
        return {}
    return {f.name: f.type.tz for f in found[3] if pa.types.is_timestamp(f.type) and f.type.tz}


def _has_dates(kind: pa.DataType) -> bool:
    if pa.types.is_nested(kind):
        return any(_has_dates(kind.field(i).type) for i in range(kind.num_fields))
    return bool(pa.types.is_date(kind) or pa.types.is_timestamp(kind))


def _names_in(path: str) -> list[str]:
    """The columns that a leaf's path may belong to: `a.b` is a field of `a`, or a column with a dot in its name."""
    if "." not in path:
        return [path]
    parts = path.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


class _Child:
    """A process that reads footers."""

    def __init__(self) -> None:
        # -P keeps this folder off sys.path: its modules, such as `inspect`, would hide Python's own.
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout

    def ask(self, footers: Sequence[bytes], columns: Sequence[str]) -> list[Any] | None:
        """The result of `_told` for each footer; None if the child died."""
        try:
            _send(self._to, (list(footers), list(columns)))
            answer: list[Any] = _receive(self._from)
            return answer
        except (OSError, EOFError):
            self.end()
            return None

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._to, self._from):
            with contextlib.suppress(OSError):
                pipe.close()


_lock = threading.Lock()
_child: _Child | None = None
_schemas: dict[bytes, pa.Schema] = {}
_SCHEMAS_KEPT = 1000
"""Distinct schemas kept by their bytes, so that files with equal schemas share one object and are merged once. Fewer
makes inputs of many schemas slower, more needs memory."""


def read_footers(footers: Sequence[bytes], columns: Sequence[str]) -> list[Footer | BadFooter]:
    """`read_footer` of each footer, in the child process. A footer that kills the child becomes a BadFooter."""
    answers: list[Footer | BadFooter] = []
    for first in range(0, len(footers), FOOTERS_AT_ONCE):
        some = footers[first : first + FOOTERS_AT_ONCE]
        told = _ask(some, columns)
        if told is None:
            told = [one for footer in some for one in _ask([footer], columns) or [_DIED]]
        answers += [_answer(one) for one in told]
    return answers


_DIED = ("the library that reads Parquet ends on its footer: columns are encrypted, or it is damaged", "")


def _ask(footers: Sequence[bytes], columns: Sequence[str]) -> list[Any] | None:
    global _child
    with _lock:
        if _child is None:
            _child = _Child()
        told = _child.ask(footers, columns)
        if told is None:
            _child = None
        return told


@atexit.register
def _end_child() -> None:
    if _child is not None:
        _child.end()


def _answer(told: Any) -> Footer | BadFooter:
    if len(told) == 2:
        return BadFooter(*told)
    groups, schema, *rest = told
    if schema not in _schemas:
        if len(_schemas) >= _SCHEMAS_KEPT:
            _schemas.clear()
        _schemas[schema] = pa.ipc.read_schema(pa.py_buffer(schema))
    return Footer(groups, _schemas[schema], *rest)


def _told(footer: bytes, columns: Sequence[str]) -> Any:
    """The fields of a Footer as a plain tuple, or the message and remedy of its BadFooter.

    The child runs this module as `__main__`, so the parent could not unpickle the module's classes.
    """
    try:
        made = read_footer(footer, columns)
    except BadFooter as error:
        return str(error), error.remedy
    schema = made.schema.serialize().to_pybytes()
    return made.groups, schema, made.names, made.int96, made.legacy, made.twice, made.doubtful


def _send(stream: Any, message: Any) -> None:
    data = pickle.dumps(message, protocol=5)
    stream.write(struct.pack("<Q", len(data)) + data)
    stream.flush()


def _receive(stream: Any) -> Any:
    return pickle.loads(_whole(stream, struct.unpack("<Q", _whole(stream, 8))[0]))


def _whole(stream: Any, length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return bytes(data)


def _requests(stream: Any) -> Iterator[tuple[list[bytes], list[str]]]:
    with contextlib.suppress(EOFError):
        while True:
            yield _receive(stream)


def main() -> None:
    """Answer requests until the parent closes the pipe."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for footers, columns in _requests(sys.stdin.buffer):
        _send(sys.stdout.buffer, [_told(footer, columns) for footer in footers])


if __name__ == "__main__":
    main()

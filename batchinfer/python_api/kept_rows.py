"""Rows in memory as Parquet beside the output: written once, compared whenever the same run is asked for again.

The rows are in `_input/<id>/part-N.parquet` of the output folder. `_rows.json`, which is written last, makes the folder
complete, and has the fingerprint of each part, so that equal rows are recognised without a read of what was written.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchinfer.errors import InputError
from batchinfer.execution.checks import find_manifest, refusals_are_the_users
from batchinfer.jobspec.printed import printed
from batchinfer.python_api.data import RowStream
from batchinfer.rundir.commit import committed_shards
from batchinfer.rundir.paths import Layout, reading
from batchinfer.storage import Storage, delete_many, join

PART_BYTES = 64 * 2**20
"""Bytes of the rows of one part, before compression. A part is held in memory, because stores take whole objects."""

GROUP_ROWS = 2**14
"""Rows of a row group. A reader decodes whole groups, so larger ones make the first shards wait."""

NOTE = "_rows.json"
"""Names with `_` are no input."""


@dataclass(frozen=True, slots=True)
class KeptRows:
    """A complete folder of rows: its schema, and the number of rows and the SHA-256 of each part."""

    uri: str
    schema: pa.Schema
    parts: tuple[tuple[int, str], ...]

    @property
    def rows(self) -> int:
        return sum(rows for rows, _ in self.parts)

    def part(self, number: int) -> str:
        return join(self.uri, f"part-{number:05d}.parquet")


def rows_beside(stream: RowStream, layout: Layout, fresh: bool) -> str:
    """The folder with the rows beside the output. Raises InputError if the run there was begun with other rows."""
    with refusals_are_the_users():
        layout.storage.require_writable(layout.root)
        manifest = find_manifest(layout)
        begun = manifest is not None and bool(committed_shards(layout)) and not fresh
        if manifest is not None:
            uri = str(manifest.fingerprint.spec["input"]["uri"])
            kept = kept_rows(layout.storage, uri)
            if kept is None and begun:
                raise InputError(
                    f"the run at {layout.root} was begun with the rows of {uri}, not with rows in memory",
                    "choose another output, or start over with fresh=True",
                )
        else:
            kept = newest_rows(layout)
        if kept is not None and (stream.again or begun):
            lines = difference(stream, kept, layout.storage)
            if not lines:
                return kept.uri
            if begun:
                raise InputError(
                    "the rows are not those that this output was begun with:\n"
                    + "\n".join(f"  {one}" for one in lines),
                    "choose another output, or start over with fresh=True",
                )
        return write_rows(stream, layout.storage, layout.kept_input_folder).uri


def write_rows(stream: RowStream, storage: Storage, parent: str) -> KeptRows:
    """Write the rows into a new folder in `parent`; memory holds one part. Raises InputError and StorageError."""
    uri = join(parent, uuid.uuid4().hex[:12])
    kept = KeptRows(uri, stream.schema, ())
    parts: list[tuple[int, str]] = []
    for table in _parts(stream):
        parts.append((table.num_rows, fingerprint(table)))
        storage.create(kept.part(len(parts) - 1), _parquet(table))
    kept = KeptRows(uri, stream.schema, tuple(parts))
    note = {
        "written_by": "batchinfer",
        "rows": kept.rows,
        "columns": {field.name: str(field.type) for field in stream.schema},
        "sha256": hashlib.sha256("".join(digest for _, digest in parts).encode()).hexdigest(),
        "parts": [{"rows": rows, "sha256": digest} for rows, digest in parts],
    }
    storage.create(join(uri, NOTE), json.dumps(note, indent=2).encode())
    return kept


def _parts(stream: RowStream) -> Iterator[pa.Table]:
    """The rows in tables of about PART_BYTES, one at least."""
    waiting: list[pa.RecordBatch] = []
    held = 0
    written = False
    for batch in stream.batches():
        waiting.append(batch)
        held += batch.nbytes
        if held >= PART_BYTES:
            yield pa.Table.from_batches(waiting, schema=stream.schema)
            waiting, held, written = [], 0, True
    if waiting or not written:
        yield pa.Table.from_batches(waiting, schema=stream.schema)


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    try:
        pq.write_table(table, sink, row_group_size=GROUP_ROWS, compression="zstd")
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"the rows cannot be written as Parquet: {str(error).splitlines()[0]}",
            "leave that column out, or give its values another type",
        ) from None
    data: bytes = sink.getvalue().to_pybytes()
    return data


class _Hashing:
    """A file that hashes what is written to it."""

    closed = False

    def __init__(self) -> None:
        self.sum = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.sum.update(data)
        return len(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def fingerprint(table: pa.Table) -> str:
    """The SHA-256 of the rows. Equal rows may have two (what lies under a null is hashed): see `difference`."""
    file = _Hashing()
    whole = table.combine_chunks().replace_schema_metadata(None)
    with pa.ipc.new_stream(pa.PythonFile(file, mode="w"), whole.schema) as writer:
        writer.write_table(whole)
    return file.sum.hexdigest()


def kept_rows(storage: Storage, uri: str) -> KeptRows | None:
    """The rows in the folder `uri`; None if it is not complete. Raises OutputError for a damaged note."""
    note = join(uri, NOTE)
    if storage.stat(note) is None:
        return None
    with reading(note, "choose another output, or start over with fresh=True"):
        parts = tuple((int(part["rows"]), str(part["sha256"])) for part in json.loads(storage.read(note))["parts"])
        found = KeptRows(uri, pa.schema([]), parts)
        with storage.open(found.part(0)) as file:
            schema = pq.read_schema(file)
    return KeptRows(uri, schema.remove_metadata(), parts)


def newest_rows(layout: Layout) -> KeptRows | None:
    """The complete rows beside an output without a run, None if there are none."""
    storage, parent = layout.storage, layout.kept_input_folder
    notes = [entry for entry in storage.list(parent) if entry.uri.endswith(f"/{NOTE}")]
    return kept_rows(storage, notes[-1].uri.removesuffix(f"/{NOTE}")) if notes else None


def remove_other_rows(layout: Layout, used: str) -> None:
    """Delete what is kept beside the output and is not in the folder `used`, which the run reads."""
    storage, parent = layout.storage, layout.kept_input_folder
    other = [entry.uri for entry in storage.list(parent) if not entry.uri.startswith(join(used, ""))]
    if used.startswith(join(parent, "")):
        delete_many(storage, other)


def difference(stream: RowStream, kept: KeptRows, storage: Storage) -> list[str]:
    """What the rows have otherwise than the kept ones, a line each; empty if they are equal. Memory holds one part."""
    lines = _columns(kept.schema, stream.schema)
    if lines:
        return lines
    rest = _Rest(stream)
    at = 0
    for number, (rows, digest) in enumerate(kept.parts):
        now = rest.take(rows)
        if now.num_rows == rows and fingerprint(now) == digest:
            at += rows
            continue
        with storage.open(kept.part(number)) as file:
            before = pq.read_table(file).replace_schema_metadata(None)
        place = _first_difference(before, now)
        if place is not None:
            if place >= now.num_rows:
                at += now.num_rows
                break
            return [_row(at + place, before.slice(place, 1), now.slice(place, 1))]
        at += rows
    total = at + rest.count()
    return [] if total == kept.rows else [f"there were {kept.rows:,} rows then, and are {total:,} now"]


def _columns(before: pa.Schema, now: pa.Schema) -> list[str]:
    lines = [f"the column {name!r} is gone" for name in before.names if name not in now.names]
    lines += [f"the column {name!r} is new" for name in now.names if name not in before.names]
    if not lines:
        lines = [
            f"the column {name!r} was of type {before.field(name).type} then, and is {now.field(name).type} now"
            for name in before.names
            if before.field(name).type != now.field(name).type
        ]
    if not lines and before.names != now.names:
        lines = [f"the order of the columns was {', '.join(before.names)} then, and is {', '.join(now.names)} now"]
    return lines


class _Rest:
    """Rows of a stream, taken from its beginning."""

    def __init__(self, stream: RowStream) -> None:
        self._schema = stream.schema
        self._batches = stream.batches()
        self._left: pa.RecordBatch | None = None

    def take(self, rows: int) -> pa.Table:
        """The next rows: so many, or what is left."""
        found: list[pa.RecordBatch] = []
        while rows > 0:
            batch = self._left if self._left is not None else next(self._batches, None)
            if batch is None:
                break
            found.append(batch.slice(0, rows))
            self._left = batch.slice(rows) if batch.num_rows > rows else None
            rows -= found[-1].num_rows
        return pa.Table.from_batches(found, schema=self._schema)

    def count(self) -> int:
        """How many rows are left."""
        left = self._left.num_rows if self._left is not None else 0
        return left + sum(int(batch.num_rows) for batch in self._batches)


def _first_difference(before: pa.Table, now: pa.Table) -> int | None:
    """The first row that differs, None if all of `before` are equal to the rows of `now`."""
    before, now = _comparable(before), _comparable(now)
    if before.equals(now):
        return None
    low, high = 0, max(before.num_rows, now.num_rows)
    while high - low > 1:
        middle = (low + high) // 2
        if before.slice(low, middle - low).equals(now.slice(low, middle - low)):
            low = middle
        else:
            high = middle
    return low


def _comparable(table: pa.Table) -> pa.Table:
    """Arrow counts NaN as different from itself, and equal texts of two dictionaries as different."""
    for place, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            plain = field.with_type(field.type.value_type)
            table = table.set_column(place, plain, table.column(place).cast(plain.type))
        if pa.types.is_floating(field.type):
            column = table.column(place)
            table = table.set_column(place, field, pc.if_else(pc.is_nan(column), pa.scalar(None, field.type), column))
    return table


def _row(place: int, before: pa.Table, now: pa.Table) -> str:
    changed = [
        f"{name!r} was {printed(old)!r:.80} then, and is {printed(new)!r:.80} now"
        for name, old, new in zip(
            before.column_names, before.to_pylist()[0].values(), now.to_pylist()[0].values(), strict=True
        )
        if old != new
    ]
    return f"row {place:,} (counted from 0): {'; '.join(changed) or 'a value differs in a way that is not printed'}"

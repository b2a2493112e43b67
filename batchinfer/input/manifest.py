"""The rows of each shard: cut once, before anything runs, and written to the manifest. Pure.

A shard is a range of rows in input order, made of segments of files, with a limit on rows and on bytes. The number of
a shard never changes, because it names the output file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from batchinfer.storage import Entry


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Rows of a file that are read together: a Parquet row group, or a stretch of JSON lines.

    `size`: the bytes of the columns to be read, uncompressed. `offset`: the byte at which a stretch of lines begins.
    """

    rows: int
    size: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class InputFile:
    """One input file and the row groups in it."""

    entry: Entry
    groups: tuple[RowGroup, ...]

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.groups)


@dataclass(frozen=True, slots=True)
class Segment:
    """`rows` rows of the file `entry`, from row `start` on; row `start` lies in row group `group`.

    `skip`: rows of that group before `start`. `offset` to `end`: the bytes to read of a file of JSON lines. `size`:
    bytes of the rows, estimated from the mean of their row group; 0 in manifests of earlier versions.
    """

    entry: Entry
    group: int
    start: int
    skip: int
    rows: int
    offset: int
    end: int
    size: int = 0


@dataclass(frozen=True, slots=True)
class Shard:
    """One unit of work, commit and accounting. `first_row` is the position of its first row in the whole input."""

    shard_id: int
    first_row: int
    segments: tuple[Segment, ...]

    @property
    def rows(self) -> int:
        return sum(segment.rows for segment in self.segments)

    @property
    def size(self) -> int:
        """Bytes of the columns to be read, estimated; 0 if unknown."""
        return sum(segment.size for segment in self.segments)


class Fingerprint(BaseModel):
    """The run that a manifest belongs to, and the part of the spec that must be equal when the run resumes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    spec: Mapping[str, Any]
    """The part of the spec that shapes the results."""
    job: str | None = None
    """The spec's `name` if the job runs repeatedly; None for a job that runs once."""
    tick: str | None = None
    """The tick of the run, if the job runs repeatedly."""
    empty: Mapping[str, str] | None = None
    """URI to tag of the files without rows; None unless the run is incremental."""


@dataclass(frozen=True, slots=True)
class ClaimedFiles:
    """The files that a written manifest claims: the tag of each file, and the files that have rows.

    Files without rows are included if the fingerprint has them (`empty`).
    """

    fingerprint: Fingerprint
    files: Mapping[str, str]
    with_rows: frozenset[str]


@dataclass(frozen=True, slots=True)
class Manifest:
    """All shards of a run, the schema of their rows, and the input that they were cut from.

    `schema`: the rows as they are read. `partitions`: columns of `schema` that come from a file's path if the file has
    no such column. `skipped`: (URI, reason) of each file that could not be read. `hint`: advice for a person.
    `left_out`: files that were ignored. `hint` and `left_out` are not written.
    """

    shards: tuple[Shard, ...]
    schema: pa.Schema
    partitions: tuple[str, ...]
    empty_files: tuple[str, ...]
    fingerprint: Fingerprint
    skipped: tuple[tuple[str, str], ...] = ()
    hint: str | None = field(default=None, compare=False)
    left_out: tuple[str, ...] = field(default=(), compare=False)

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def files(self) -> dict[str, str]:
        """URI to tag of every file that has rows."""
        return {segment.entry.uri: segment.entry.tag for shard in self.shards for segment in shard.segments}


@dataclass(frozen=True, slots=True)
class _Piece:
    """A row group with its place: `first_row` in the whole input, `start` in its file."""

    file: InputFile
    number: int
    first_row: int
    start: int

    @property
    def group(self) -> RowGroup:
        return self.file.groups[self.number]

    @property
    def end(self) -> int:
        return self.first_row + self.group.rows

    @property
    def row_bytes(self) -> int:
        return max(1, -(-self.group.size // self.group.rows))


def cut(
    files: Iterable[InputFile],
    sizes: Callable[[int], int],
    max_bytes: int,
    settle: Callable[[int, int], int] | None = None,
) -> list[Shard]:
    """Shards in input order, each of at most `sizes(first row)` rows and `max_bytes` bytes, but at least one row.

    `settle(first row, rows)` may return fewer rows, so that the shard ends at the end of a group.
    """
    pieces = _pieces(files)
    total = pieces[-1].end if pieces else 0
    shards: list[Shard] = []
    first_row = at = 0
    while first_row < total:
        rows = _fitting(pieces, at, first_row, sizes(first_row), max_bytes)
        rows = rows if settle is None else settle(first_row, rows)
        segments: list[Segment] = []
        end = first_row + rows
        while first_row < end:
            piece = pieces[at]
            take = min(end, piece.end) - first_row
            _append(segments, piece, first_row - piece.first_row, take)
            first_row += take
            at += first_row == piece.end
        shards.append(Shard(len(shards), end - rows, tuple(segments)))
    return shards


def _pieces(files: Iterable[InputFile]) -> list[_Piece]:
    pieces, first_row = [], 0
    for file in files:
        start = 0
        for number, group in enumerate(file.groups):
            if group.rows:
                pieces.append(_Piece(file, number, first_row + start, start))
            start += group.rows
        first_row += start
    return pieces


def _fitting(pieces: Sequence[_Piece], at: int, first_row: int, most: int, max_bytes: int) -> int:
    """How many rows from `first_row` on fit both limits, at least 1. `first_row` lies in the piece `at`."""
    rows, room = 0, max_bytes
    while at < len(pieces):
        piece = pieces[at]
        there = piece.end - first_row - rows
        take = min(there, most - rows, room // piece.row_bytes)
        rows += take
        room -= take * piece.row_bytes
        if take < there:
            break
        at += 1
    return max(1, rows)


def _append(segments: list[Segment], piece: _Piece, taken: int, take: int) -> None:
    """Add `take` rows of a row group, after its first `taken`. Extends the last segment if the rows continue it."""
    group, entry = piece.group, piece.file.entry
    start, end, size = piece.start + taken, group.offset + group.size, take * group.size // group.rows
    last = segments[-1] if segments else None
    if last is not None and last.entry == entry and last.start + last.rows == start:
        segments[-1] = replace(last, rows=last.rows + take, end=end, size=last.size + size)
    else:
        segments.append(Segment(entry, piece.number, start, taken, take, group.offset, end, size))


def read_together(shards: Sequence[Shard]) -> Iterator[list[Shard]]:
    """Lists of neighbouring shards that begin in the same row group; one reader should read each list.

    A row group is decoded as a whole: a hundred shards of one row group, each with its own reader, would decode the
    group a hundred times.
    """
    together: list[Shard] = []
    for shard in shards:
        begin = shard.segments[0]
        if together:
            before = together[-1].segments[0]
            if (before.entry.uri, before.group) != (begin.entry.uri, begin.group):
                yield together
                together = []
        together.append(shard)
    if together:
        yield together


FOOTER = b"batchinfer.manifest"
_COLUMNS = pa.schema(
    [
        ("shard_id", pa.int32()),
        ("first_row", pa.int64()),
        ("uri", pa.string()),
        ("size", pa.int64()),
        ("tag", pa.string()),
        ("group", pa.int32()),
        ("start", pa.int64()),
        ("skip", pa.int64()),
        ("rows", pa.int64()),
        ("offset", pa.int64()),
        ("end", pa.int64()),
        ("bytes", pa.int64()),
    ]
)


def to_parquet(manifest: Manifest) -> bytes:
    """The bytes of `_run/manifest.parquet`: one row for each segment, everything else in the footer."""
    pairs = [(shard, segment) for shard in manifest.shards for segment in shard.segments]
    columns: dict[str, list[Any]] = {
        "shard_id": [shard.shard_id for shard, _ in pairs],
        "first_row": [shard.first_row for shard, _ in pairs],
        "uri": [segment.entry.uri for _, segment in pairs],
        "size": [segment.entry.size for _, segment in pairs],
        "tag": [segment.entry.tag for _, segment in pairs],
    }
    for name in ("group", "start", "skip", "rows", "offset", "end"):
        columns[name] = [getattr(segment, name) for _, segment in pairs]
    columns["bytes"] = [segment.size for _, segment in pairs]
    footer = {
        b"batchinfer.schema": manifest.schema.serialize().to_pybytes(),
        FOOTER: json.dumps(
            {
                "partitions": manifest.partitions,
                "empty_files": manifest.empty_files,
                "fingerprint": manifest.fingerprint.model_dump(mode="json", exclude_none=True),
                "skipped": manifest.skipped,
            }
        ).encode(),
    }
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=_COLUMNS.with_metadata(footer)), sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def from_parquet(data: bytes) -> Manifest:
    """The inverse of `to_parquet`. Manifests of earlier versions have no column `bytes`.

    Raises exceptions of several types, ValueError among them, for data that `to_parquet` did not write.
    """
    table = pq.read_table(pa.BufferReader(data))
    if table.schema.names not in (_COLUMNS.names, _COLUMNS.names[:-1]):
        raise ValueError(f"a manifest does not have the columns {table.schema.names}")
    footer = table.schema.metadata
    about = json.loads(footer[FOOTER])
    entries: dict[tuple[str, str], Entry] = {}
    found: dict[int, tuple[int, list[Segment]]] = {}
    for row in zip(*(column.to_pylist() for column in table.columns), strict=True):
        shard_id, first_row, uri, size, tag, *place = row
        entry = entries.setdefault((uri, tag), Entry(uri, size, tag))
        found.setdefault(shard_id, (first_row, []))[1].append(Segment(entry, *place))
    shards = tuple(Shard(i, first_row, tuple(segments)) for i, (first_row, segments) in found.items())
    _require_whole(shards)
    return Manifest(
        shards=shards,
        schema=pa.ipc.read_schema(pa.py_buffer(footer[b"batchinfer.schema"])),
        partitions=tuple(about["partitions"]),
        empty_files=tuple(about["empty_files"]),
        fingerprint=Fingerprint.model_validate(about["fingerprint"]),
        # Earlier versions skipped no files and wrote no `skipped`.
        skipped=tuple((uri, why) for uri, why in about.get("skipped", ())),
    )


def _require_whole(shards: Sequence[Shard]) -> None:
    """Raise ValueError unless the shards are consecutive, beginning with number 0 and row 0."""
    at = 0
    for number, shard in enumerate(shards):
        sound = all(s.rows > 0 and min(s.group, s.start, s.skip, s.offset, s.size) >= 0 for s in shard.segments)
        if (shard.shard_id, shard.first_row) != (number, at) or not sound:
            raise ValueError(f"shard {number} does not follow on the one before it")
        at += shard.rows


def claimed_files(data: bytes) -> ClaimedFiles:
    """The files that a written manifest claims; reads two columns instead of all shards."""
    table = pq.read_table(pa.BufferReader(data), columns=["uri", "tag"])
    fingerprint = Fingerprint.model_validate(json.loads(table.schema.metadata[FOOTER])["fingerprint"])
    pairs = table.group_by(["uri", "tag"]).aggregate([])
    files = dict(zip(pairs.column("uri").to_pylist(), pairs.column("tag").to_pylist(), strict=True))
    return ClaimedFiles(fingerprint, {**(fingerprint.empty or {}), **files}, frozenset(files))

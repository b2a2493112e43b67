"""Which rows are which shard: cut once, before anything runs, and written to the manifest.

Pure: takes what the files hold, gives shards. A shard is a run of rows in input order, made of segments
of files, small enough by rows and by bytes. Its number never changes, and its output file is named by it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer.storage import Entry

MIN_AUTO_ROWS = 256
MAX_AUTO_ROWS = 8192
AUTO_SHARDS = 100
AUTO_OUTPUT_TOKENS = 2**18


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Rows of a file that are read together: a Parquet row group, or a stretch of JSON lines.

    `size` is the bytes of the columns to be read; `offset` the byte where a stretch of lines begins.
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
    """`rows` rows of the file `entry` from row `start` on; `start` lies in row group `group`.

    `skip` counts the rows of that group before `start`; `offset` to `end` are the bytes to read of a
    file of lines.
    """

    entry: Entry
    group: int
    start: int
    skip: int
    rows: int
    offset: int
    end: int


@dataclass(frozen=True, slots=True)
class Shard:
    """One unit of work, commit and accounting. `first_row` is its place in the whole input."""

    shard_id: int
    first_row: int
    segments: tuple[Segment, ...]

    @property
    def rows(self) -> int:
        return sum(segment.rows for segment in self.segments)


@dataclass(frozen=True, slots=True)
class Manifest:
    """All shards of a run, what the rows look like, and what they were cut from.

    `fingerprint` holds whatever must be the same for a resume (see `difference`); `schema` is that of
    the rows as read, `partitions` the columns among them that come from the path.
    """

    shards: tuple[Shard, ...]
    schema: pa.Schema
    partitions: tuple[str, ...]
    empty_files: tuple[str, ...]
    fingerprint: Mapping[str, Any]

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def files(self) -> dict[str, str]:
        """URI to tag of every file that has rows."""
        return {segment.entry.uri: segment.entry.tag for shard in self.shards for segment in shard.segments}


def rows_per_shard(total_rows: int, asked: int | Literal["auto"], max_tokens: int) -> int:
    """`shards.rows`, where `auto` aims at 100 shards of 256 to 8192 rows, fewer where answers are long.

    Enough shards that progress shows and a crash loses little (at most 2**18 output tokens a shard, a
    minute or so of a GPU), rows enough that the price of a shard (two Ray tasks and two files, about
    40 ms) does not show.
    """
    if asked != "auto":
        return asked
    most = max(MIN_AUTO_ROWS, min(MAX_AUTO_ROWS, AUTO_OUTPUT_TOKENS // max_tokens))
    return max(MIN_AUTO_ROWS, min(most, -(-total_rows // AUTO_SHARDS)))


def cut(files: Iterable[InputFile], rows: int, max_bytes: int) -> list[Shard]:
    """Shards of at most `rows` rows and `max_bytes` bytes (one row at least), in input order."""
    shards: list[Shard] = []
    segments: list[Segment] = []
    room_rows, room_bytes, first_row = rows, max_bytes, 0

    def close() -> None:
        nonlocal segments, room_rows, room_bytes, first_row
        if segments:
            shards.append(Shard(len(shards), first_row, tuple(segments)))
            first_row += shards[-1].rows
        segments, room_rows, room_bytes = [], rows, max_bytes

    for file in files:
        start = 0
        for number, group in enumerate(file.groups):
            row_bytes = max(1, -(-group.size // max(1, group.rows)))
            taken = 0
            while taken < group.rows:
                if segments and (room_rows == 0 or room_bytes < row_bytes):
                    close()
                take = min(group.rows - taken, room_rows, max(1, room_bytes // row_bytes))
                _append(segments, file, number, start, taken, take)
                room_rows -= take
                room_bytes -= take * row_bytes
                taken += take
            start += group.rows
    close()
    return shards


def _append(segments: list[Segment], file: InputFile, number: int, start: int, taken: int, take: int) -> None:
    """Add rows of a row group to the shard, growing its last segment where they follow on it."""
    group = file.groups[number]
    end = group.offset + group.size
    last = segments[-1] if segments else None
    if last is not None and last.entry == file.entry and last.start + last.rows == start + taken:
        segments[-1] = Segment(last.entry, last.group, last.start, last.skip, last.rows + take, last.offset, end)
    else:
        segments.append(Segment(file.entry, number, start + taken, taken, take, group.offset, end))


def read_together(shards: Sequence[Shard]) -> Iterator[list[Shard]]:
    """Shards in lists that one reader should read: those that begin in the same row group.

    A row group is decoded as a whole, so that cutting one of a million rows into a hundred shards with
    a reader each would decode it a hundred times.
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
    ]
)


def to_parquet(manifest: Manifest) -> bytes:
    """`_run/manifest.parquet`: a row a segment, the rest in the footer."""
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
    footer = {
        b"batchinfer.schema": manifest.schema.serialize().to_pybytes(),
        b"batchinfer.manifest": json.dumps(
            {
                "partitions": manifest.partitions,
                "empty_files": manifest.empty_files,
                "fingerprint": manifest.fingerprint,
            }
        ).encode(),
    }
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=_COLUMNS.with_metadata(footer)), sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def from_parquet(data: bytes) -> Manifest:
    """The inverse of `to_parquet`."""
    table = pq.read_table(pa.BufferReader(data))
    footer = table.schema.metadata
    about = json.loads(footer[b"batchinfer.manifest"])
    entries: dict[tuple[str, str], Entry] = {}
    found: dict[int, tuple[int, list[Segment]]] = {}
    for row in zip(*(column.to_pylist() for column in table.columns), strict=True):
        shard_id, first_row, uri, size, tag, group, start, skip, rows, offset, end = row
        entry = entries.setdefault((uri, tag), Entry(uri, size, tag))
        found.setdefault(shard_id, (first_row, []))[1].append(Segment(entry, group, start, skip, rows, offset, end))
    return Manifest(
        shards=tuple(Shard(i, first_row, tuple(segments)) for i, (first_row, segments) in found.items()),
        schema=pa.ipc.read_schema(pa.py_buffer(footer[b"batchinfer.schema"])),
        partitions=tuple(about["partitions"]),
        empty_files=tuple(about["empty_files"]),
        fingerprint=about["fingerprint"],
    )


def claimed_files(data: bytes) -> tuple[dict[str, Any], dict[str, str], set[str]]:
    """What a written manifest took, without its shards: its fingerprint, the tag of each of its files, and
    which of these have rows.

    Tags of files without rows are known of manifests that hold them in their fingerprint (`empty`).
    """
    table = pq.read_table(pa.BufferReader(data), columns=["uri", "tag"])
    fingerprint: dict[str, Any] = json.loads(table.schema.metadata[b"batchinfer.manifest"])["fingerprint"]
    pairs = table.group_by(["uri", "tag"]).aggregate([])
    files = dict(zip(pairs.column("uri").to_pylist(), pairs.column("tag").to_pylist(), strict=True))
    return fingerprint, {**fingerprint.get("empty", {}), **files}, set(files)

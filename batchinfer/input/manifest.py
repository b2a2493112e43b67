"""The rows of each shard, as `cutting` cuts them once, before anything runs, and the file that keeps them. Pure.

A shard is a range of rows in input order, made of segments of files, with a limit on rows and on bytes. The number of
a shard never changes, because it names the output file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from batchinfer.input.table_files import TableEntry
from batchinfer.storage import Entry
from batchinfer.temporary import TemporaryFolder


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

    `skip`: rows of that group before `start`. `offset` to `end`: the bytes to read of a file of lines. `size`: bytes of
    the rows, estimated from the mean of their row group; 0 in manifests of earlier versions. `place`: the position of
    row `start` in the whole input. `picked`: the selected rows from `start` on, as np.packbits packs them, the last one
    being the last 1; None: `rows` rows without a gap.
    """

    entry: Entry
    group: int
    start: int
    skip: int
    rows: int
    offset: int
    end: int
    size: int = 0
    place: int = 0
    picked: bytes | None = None

    @property
    def span(self) -> int:
        """Rows of the file from the first selected one to the last."""
        if self.picked is None:
            return self.rows
        last = self.picked[-1]
        return len(self.picked) * 8 - ((last & -last).bit_length() - 1)

    @property
    def mask(self) -> npt.NDArray[np.bool_] | None:
        """For each row of the span, whether it is selected; None: all are."""
        if self.picked is None:
            return None
        return np.unpackbits(np.frombuffer(self.picked, np.uint8))[: self.span].astype(bool)

    @property
    def numbers(self) -> npt.NDArray[np.int64]:
        """The number of each selected row in the whole input."""
        mask = self.mask
        return self.place + (np.arange(self.rows) if mask is None else np.flatnonzero(mask))

    def beginning(self, rows: int) -> Segment:
        """The first `rows` selected rows of the segment."""
        if rows >= self.rows:
            return self
        mask = self.mask
        if mask is None:
            return replace(self, rows=rows)
        return replace(self, rows=rows, picked=packed_mask(mask[: np.flatnonzero(mask)[rows - 1] + 1]))


def packed_mask(mask: npt.NDArray[np.bool_]) -> bytes | None:
    """The mask as `Segment.picked` has it; None if it has no gap."""
    return None if mask.all() else np.packbits(mask).tobytes()


@dataclass(frozen=True, slots=True)
class Shard:
    """One unit of work, commit and accounting. `first_row` is the position of its first row among the selected rows."""

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

    @property
    def numbers(self) -> npt.NDArray[np.int64]:
        """The number of each row in the whole input."""
        return np.concatenate([segment.numbers for segment in self.segments])

    @property
    def scattered_numbers(self) -> tuple[int, ...] | None:
        """`numbers`; None where each row is the next one of the input."""
        numbers = self.numbers
        return None if int(numbers[-1]) - int(numbers[0]) == len(numbers) - 1 else tuple(numbers.tolist())


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
    table_version: str | None = None
    """The version of the table that the run reads; None if the input is no table."""


@dataclass(frozen=True, slots=True)
class ClaimedFiles:
    """The files that a written manifest claims: the tag of each file, and the files that have rows.

    Files without rows are included if the fingerprint has them (`empty`).
    """

    fingerprint: Fingerprint
    files: Mapping[str, str]
    with_rows: frozenset[str]


@dataclass(frozen=True, slots=True)
class Sources:
    """The rows that the groups of `reduce` were made of: how many, and all files of the input that have rows."""

    rows: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """All shards of a run, the schema of their rows, and the input that they were cut from.

    `schema`: the rows as they are read. `partitions`: columns of `schema` that come from a file's path if the file has
    no such column. `skipped`: (URI, reason) of each file that could not be read. `total_rows`: rows of the input, of
    which `rows` are selected; None if all are. `unselected`: files with rows, none of them selected. `hint`: advice for
    a person. `left_out`: files that were ignored. `sources`: of a manifest whose rows are groups, which lie in files of
    their own; these are in the folder `temporary` before the run has them. The last four but for `sources` are not
    written.
    """

    shards: tuple[Shard, ...]
    schema: pa.Schema
    partitions: tuple[str, ...]
    empty_files: tuple[str, ...]
    fingerprint: Fingerprint
    skipped: tuple[tuple[str, str], ...] = ()
    total_rows: int | None = None
    unselected: tuple[Entry, ...] = ()
    hint: str | None = field(default=None, compare=False)
    left_out: tuple[str, ...] = field(default=(), compare=False)
    sources: Sources | None = None
    temporary: TemporaryFolder | None = field(default=None, compare=False)

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def rows_of_all(self) -> str:
        """How many rows run, of how many, for a person."""
        if self.sources is not None:
            return f"{self.rows:,} groups of {self.sources.rows:,} rows"
        of_all = "" if self.total_rows is None else f" of {self.total_rows:,}"
        return f"{self.rows:,}{of_all} row{'' if (self.total_rows or self.rows) == 1 else 's'}"

    @property
    def files(self) -> dict[str, str]:
        """URI to tag of every file that has rows, selected or not."""
        return {entry.uri: entry.tag for entry in self.entries}

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The files of the input that have rows, selected or not."""
        return self.read_files if self.sources is None else self.sources.entries

    @property
    def read_files(self) -> tuple[Entry, ...]:
        """The files that the shards were cut from: those of `entries`, or the files of groups."""
        used = {segment.entry.uri: segment.entry for shard in self.shards for segment in shard.segments}
        return (*used.values(), *self.unselected)


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
_SELECTED_COLUMNS = pa.schema([*_COLUMNS, ("place", pa.int64()), ("picked", pa.binary())])
"""Of a manifest that leaves rows of its files out."""


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
    about: dict[str, Any] = {
        "partitions": manifest.partitions,
        "empty_files": manifest.empty_files,
        "fingerprint": manifest.fingerprint.model_dump(mode="json", exclude_none=True),
        "skipped": manifest.skipped,
    }
    in_tables = {entry.uri: entry for entry in (*manifest.entries, *manifest.read_files)}
    columns_of_files = {
        uri: (entry.stored, entry.values)
        for uri, entry in in_tables.items()
        if isinstance(entry, TableEntry) and (entry.stored is not None or entry.values)
    }
    if columns_of_files:
        about["table_files"] = columns_of_files
    if manifest.sources is not None:
        about["sources"] = {
            "rows": manifest.sources.rows,
            "files": [(entry.uri, entry.size, entry.tag) for entry in manifest.sources.entries],
        }
    schema = _COLUMNS
    if manifest.total_rows is not None:
        schema = _SELECTED_COLUMNS
        columns["place"] = [segment.place for _, segment in pairs]
        columns["picked"] = [segment.picked for _, segment in pairs]
        about["total_rows"] = manifest.total_rows
        about["unselected"] = [(entry.uri, entry.size, entry.tag) for entry in manifest.unselected]
    footer = {
        b"batchinfer.schema": manifest.schema.serialize().to_pybytes(),
        FOOTER: json.dumps(about).encode(),
    }
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=schema.with_metadata(footer)), sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def from_parquet(data: bytes) -> Manifest:
    """The inverse of `to_parquet`. Manifests of earlier versions have no column `bytes`.

    Raises exceptions of several types, ValueError among them, for data that `to_parquet` did not write.
    """
    table = pq.read_table(pa.BufferReader(data))
    if table.schema.names not in (_SELECTED_COLUMNS.names, _COLUMNS.names, _COLUMNS.names[:-1]):
        raise ValueError(f"a manifest does not have the columns {table.schema.names}")
    footer = table.schema.metadata
    about = json.loads(footer[FOOTER])
    entries: dict[tuple[str, str], Entry] = {}
    found: dict[int, tuple[int, list[Segment]]] = {}
    at = 0
    for row in zip(*(column.to_pylist() for column in table.columns), strict=True):
        shard_id, first_row, uri, size, tag, *rest = row
        entry = entries.setdefault((uri, tag), _entry(about, uri, size, tag))
        segment = Segment(entry, *rest)
        if "place" not in table.schema.names:
            segment = replace(segment, place=at)
        at += segment.rows
        found.setdefault(shard_id, (first_row, []))[1].append(segment)
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
        total_rows=about.get("total_rows"),
        unselected=tuple(_entry(about, *values) for values in about.get("unselected", ())),
        sources=_sources(about),
    )


def _entry(about: Mapping[str, Any], uri: str, size: int, tag: str) -> Entry:
    told = about.get("table_files", {}).get(uri)
    if told is None:
        return Entry(uri, size, tag)
    stored, values = told
    names = None if stored is None else tuple((name, there) for name, there in stored)
    return TableEntry(uri, size, tag, names, tuple((name, text, kind) for name, text, kind in values))


def _sources(about: Mapping[str, Any]) -> Sources | None:
    found = about.get("sources")
    return None if found is None else Sources(found["rows"], tuple(_entry(about, *values) for values in found["files"]))


def _require_whole(shards: Sequence[Shard]) -> None:
    """Raise ValueError unless the shards are consecutive, beginning with number 0 and row 0."""
    at = 0
    for number, shard in enumerate(shards):
        sound = all(map(_is_sound, shard.segments))
        if (shard.shard_id, shard.first_row) != (number, at) or not sound:
            raise ValueError(f"shard {number} does not follow on the one before it")
        at += shard.rows


def _is_sound(segment: Segment) -> bool:
    if (
        segment.rows <= 0
        or min(segment.group, segment.start, segment.skip, segment.offset, segment.size, segment.place) < 0
    ):
        return False
    if segment.picked is None:
        return True
    bits = np.unpackbits(np.frombuffer(segment.picked, np.uint8))
    return bool(segment.picked[-1:]) and segment.picked[-1] != 0 and int(bits.sum()) == segment.rows


def claimed_files(data: bytes) -> ClaimedFiles:
    """The files that a written manifest claims; reads two columns instead of all shards."""
    table = pq.read_table(pa.BufferReader(data), columns=["uri", "tag"])
    about = json.loads(table.schema.metadata[FOOTER])
    fingerprint = Fingerprint.model_validate(about["fingerprint"])
    pairs = table.group_by(["uri", "tag"]).aggregate([])
    files = dict(zip(pairs.column("uri").to_pylist(), pairs.column("tag").to_pylist(), strict=True))
    sources = _sources(about)
    if sources is not None:
        files = {entry.uri: entry.tag for entry in sources.entries}
    files |= {uri: tag for uri, _, tag in about.get("unselected", ())}
    return ClaimedFiles(fingerprint, {**(fingerprint.empty or {}), **files}, frozenset(files))

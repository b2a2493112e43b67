"""A manifest of a few rows of another one: for a trial of the job."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from random import Random

from batchinfer.errors import InputError
from batchinfer.input.column_types import same_text
from batchinfer.input.manifest import Fingerprint, Manifest, Segment, Shard
from batchinfer.input.reader import read_shards
from batchinfer.jobspec import JobSpec
from batchinfer.jobspec.job_keys import ROW_NUMBER

ROWS_OF_A_SHARD = 256
"""Rows of a shard of few rows: the smallest that a run cuts by itself. With fewer a large trial commits too often."""

_NAMED = 5


def spread_rows(rows: int, wanted: int) -> list[int]:
    """Positions of `wanted` of the rows, spread over all of them and the same each time; all rows if there are no more.

    One row is drawn from each of `wanted` equal parts. A fixed step would see one kind of row where kinds take turns.
    """
    count = min(rows, wanted)
    draw = Random(f"{rows} {count}")
    return [draw.randrange(i * rows // count, (i + 1) * rows // count) for i in range(count)]


def few_rows(manifest: Manifest, positions: Sequence[int], fingerprint: Fingerprint) -> Manifest:
    """The manifest of the rows at the positions, which ascend and are counted among the manifest's rows."""
    segments = list(_segments(manifest, positions))
    shards = [
        Shard(number, start, tuple(segments[start : start + ROWS_OF_A_SHARD]))
        for number, start in enumerate(range(0, len(segments), ROWS_OF_A_SHARD))
    ]
    # Rows keep their numbers in the whole input.
    total = manifest.rows if manifest.total_rows is None else manifest.total_rows
    return dataclasses.replace(manifest, shards=tuple(shards), fingerprint=fingerprint, total_rows=total, hint=None)


def _segments(manifest: Manifest, positions: Sequence[int]) -> Iterator[Segment]:
    """Each row as a segment of its own."""
    wanted = iter(positions)
    position = next(wanted, None)
    at = 0
    for segment in (segment for shard in manifest.shards for segment in shard.segments):
        while position is not None and position < at + segment.rows:
            skipped = int(segment.numbers[position - at]) - segment.place
            yield dataclasses.replace(
                segment,
                start=segment.start + skipped,
                skip=segment.skip + skipped,
                rows=1,
                place=segment.place + skipped,
                picked=None,
                size=segment.size // segment.rows,
            )
            position = next(wanted, None)
        at += segment.rows


def positions_of(spec: JobSpec, manifest: Manifest, ids: Collection[str]) -> list[int]:
    """The positions of the rows with these ids, as texts, in the order of the input.

    Raises InputError for an id that no row has.
    """
    found: dict[str, int] = {}
    column = spec.rows_input.id_column
    if column is None:
        wanted = set(ids)
        for shard in manifest.shards:
            numbers = enumerate(map(str, shard.numbers.tolist()))
            found |= {text: shard.first_row + place for place, text in numbers if text in wanted}
    else:
        wanted = set(ids)
        only = manifest.schema.empty_table().select([column]).schema
        for shard, rows in read_shards(manifest.shards, only, (), spec.rows_input, spec.storage):
            texts = same_text(rows.column(column)).to_pylist()
            found |= {text: shard.first_row + place for place, text in enumerate(texts) if text in wanted}
            if len(found) == len(wanted):
                break
    missing = [text for text in ids if text not in found]
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise InputError(
            f"no row has the id {', '.join(f'{text!r:.80}' for text in missing[:_NAMED])}{more}",
            f"ids are the values of {column!r}" if column else f"rows are numbered from 0, as in {ROW_NUMBER}",
        )
    return sorted(found.values())

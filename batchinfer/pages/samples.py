"""What a page shows of a run's results: lengths of prompts and answers, and rows that failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchinfer.accounting.records import ShardRecord
from batchinfer.jobspec import JobSpec
from batchinfer.jobspec.printed import printed
from batchinfer.rundir.commit import opened_results
from batchinfer.rundir.paths import Layout

MOST_SHARDS = 64
"""Shards whose lengths are read, spread over the run. Three columns of 64 shards say how lengths are distributed; all
shards of a large run would take minutes of the end of each command."""

SHOWN = 12
"""Failed rows that a page names, at most three of a code where there are several codes."""

LONGEST_TEXT = 300
"""Characters of an answer or a message on a page."""


@dataclass(frozen=True, slots=True)
class FailedRow:
    """A row that failed. `message` and `answer` only if texts are wanted."""

    id: str
    code: str
    message: str | None
    answer: str | None


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of rows that have an answer, from some of the shards."""

    prompts: Sequence[int]
    answers: Sequence[int]
    cached_shares: Sequence[float]
    shards: int
    of_shards: int


def lengths(layout: Layout, records: Sequence[ShardRecord]) -> Lengths:
    """The lengths in up to MOST_SHARDS shards, spread evenly over the run."""
    shards = sorted({record.shard_id for record in records})
    step = max(1, -(-len(shards) // MOST_SHARDS))
    chosen = shards[::step]
    names = ["input_tokens", "cached_tokens", "output_tokens"]
    tables = [
        table.filter(pc.is_null(table.column("error_code"))).select(names)
        for table in (_read(layout, shard, [*names, "error_code"]) for shard in chosen)
        if set(names) <= set(table.column_names)
    ]
    if not tables:
        return Lengths((), (), (), 0, len(shards))
    found = pa.concat_tables(tables)
    prompts, cached = found.column("input_tokens").to_pylist(), found.column("cached_tokens").to_pylist()
    return Lengths(
        prompts=prompts,
        answers=found.column("output_tokens").to_pylist(),
        cached_shares=[part / whole for part, whole in zip(cached, prompts, strict=True) if whole],
        shards=len(chosen),
        of_shards=len(shards),
    )


def failed_rows(layout: Layout, spec: JobSpec, records: Sequence[ShardRecord], texts: bool) -> list[FailedRow]:
    """Some of the rows that failed, of each code; their messages and answers only with `texts`."""
    newest = {record.shard_id: record for record in sorted(records, key=lambda record: record.generation)}
    codes = {code for record in newest.values() for code in record.errors}
    left = dict.fromkeys(codes, SHOWN if len(codes) == 1 else 3)
    found: list[FailedRow] = []
    for shard in sorted(newest):
        if not any(left.values()) or len(found) >= SHOWN:
            break
        if not any(left.get(code) for code in newest[shard].errors):
            continue
        table = _read(layout, shard, None if texts else [spec.id_column, "error_code"])
        for row in table.filter(pc.is_valid(table.column("error_code"))).to_pylist():
            code = row["error_code"]
            if left.get(code, 0) and len(found) < SHOWN:
                left[code] -= 1
                answer = row.get(spec.output.column)
                found.append(
                    FailedRow(
                        id=printed(row[spec.id_column])[:LONGEST_TEXT],
                        code=code,
                        message=(row.get("error_message") or "")[:LONGEST_TEXT] if texts else None,
                        answer=printed(answer)[:LONGEST_TEXT] if texts and answer is not None else None,
                    )
                )
    return found


def _read(layout: Layout, shard: int, columns: list[str] | None) -> pa.Table:
    with opened_results(layout, shard) as file:
        have = pq.ParquetFile(file)
        names = None if columns is None else [name for name in columns if name in have.schema_arrow.names]
        return have.read(columns=names)

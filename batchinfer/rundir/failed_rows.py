"""The failed rows of a run, for a retry."""

from __future__ import annotations

import json
from collections import Counter

import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchinfer.accounting.records import ShardRecord
from batchinfer.rundir.commit import committed_shards, opened_results, read_accounting, repair
from batchinfer.rundir.ownership import overwrite
from batchinfer.rundir.paths import Layout, reading


def failed_rows(layout: Layout) -> tuple[dict[int, list[int]], dict[int, int]]:
    """For each shard with failed rows: their positions in the shard, and the generation of the next retry.

    Writes accounting files that are missing after a crash. Raises OutputError for a damaged file.
    """
    positions, generations = {}, {}
    for shard_id, record in _newest(layout).items():
        if record.rows_failed:
            with opened_results(layout, shard_id) as file:
                codes = pq.read_table(file, columns=["error_code"]).column("error_code")
            positions[shard_id] = pc.indices_nonzero(pc.is_valid(codes)).to_pylist()
            generations[shard_id] = record.generation + 1
    return positions, generations


def failed_codes(layout: Layout) -> Counter[str]:
    """The failed rows of the run, by error code."""
    failed: Counter[str] = Counter()
    for record in _newest(layout).values():
        failed.update(record.errors)
    return failed


def _newest(layout: Layout) -> dict[int, ShardRecord]:
    """The record of each shard as it stands now."""
    records = list(read_accounting(layout))
    records += repair(layout, committed_shards(layout), records, noted_retry(layout))
    return {record.shard_id: record for record in sorted(records, key=lambda r: r.generation)}


def note_retry(layout: Layout, run_id: str, positions: dict[int, list[int]]) -> None:
    """Record the shards that a retry is about to replace, for `commit.repair` after a crash."""
    noted = {"run_id": run_id, "shards": sorted(positions)}
    overwrite(layout, layout.retry_note, json.dumps(noted).encode())


def noted_retry(layout: Layout) -> list[int]:
    """The shards of the last retry; empty without one. Raises OutputError for a damaged note."""
    uri = layout.retry_note
    if layout.storage.stat(uri) is None:
        return []
    with reading(uri, "move it away and run the same command again"):
        return [int(shard) for shard in json.loads(layout.storage.read(uri))["shards"]]

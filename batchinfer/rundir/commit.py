"""The commit of a shard is one Parquet object, which is created once or not at all.

Its name depends only on the shard, so a second attempt finds the object and loses. The accounting is written to a
separate file and to the footer of the data file. So a crash between the two writes loses nothing (`repair`).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer.accounting.records import ShardRecord, shard_records, shard_table
from batchinfer.errors import OutputError, StorageError
from batchinfer.input.manifest import Manifest
from batchinfer.rundir.paths import Layout, reading
from batchinfer.storage import read_many

FOOTER = b"batchinfer.accounting"

_AGAIN = "move it away and run the job again: the shard runs again"


def commit(layout: Layout, rows: pa.Table, record: ShardRecord) -> bool:
    """Write the shard's results, then its accounting. False if another attempt committed before. Idempotent."""
    uri = layout.data(record.shard_id)
    committed = layout.storage.create(uri, _encode(rows, [record]))
    if not committed and layout.storage.stat(uri) is not None:
        # Ray reruns a task whose worker died after the write; the object is then of this attempt.
        with layout.storage.open(uri) as file:
            committed = footer_records(file, uri)[0] == record
    if committed:
        _account(layout, record)
    return committed


def commit_retry(layout: Layout, rows: pa.Table, positions: Sequence[int], record: ShardRecord) -> bool:
    """Replace rows of the shard's file by the rows of a retry, atomically.

    `positions`: the rows' positions in the shard. False if another retry has changed the file since this one was
    planned. Raises StorageError if the file is missing.
    """
    storage, uri = layout.storage, layout.data(record.shard_id)
    before = storage.stat(uri)
    if before is None:
        raise StorageError(f"{uri} is gone", "run the job again: it runs the missing shard again")
    data = storage.read(uri)
    history = footer_records(pa.BufferReader(data), uri)
    if history[-1].generation != record.generation - 1:
        return False
    old = pq.read_table(pa.BufferReader(data)).replace_schema_metadata(None)
    order: list[int] = list(range(old.num_rows))
    for i, position in enumerate(positions):
        order[position] = old.num_rows + i
    merged = pa.concat_tables([old, rows.cast(old.schema)]).take(order)
    replaced = storage.replace(uri, _encode(merged, [*history, record]), before.tag)
    if replaced:
        _account(layout, record)
    return replaced


@contextlib.contextmanager
def opened_results(layout: Layout, shard_id: int) -> Iterator[BinaryIO]:
    """The file with the results of a shard, for the block. Raises OutputError if the block finds it damaged."""
    uri = layout.data(shard_id)
    with reading(uri, _AGAIN), layout.storage.open(uri) as file:
        yield file


def _account(layout: Layout, record: ShardRecord) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(shard_table([record]), sink)
    layout.storage.create(layout.accounting(record.shard_id, record.generation), sink.getvalue().to_pybytes())


def _encode(rows: pa.Table, history: list[ShardRecord]) -> bytes:
    footer = json.dumps([record.model_dump(mode="json") for record in history]).encode()
    sink = pa.BufferOutputStream()
    pq.write_table(rows.replace_schema_metadata({FOOTER: footer}), sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data


def footer_records(file: Any, uri: str) -> list[ShardRecord]:
    """The accounting in the footer of the data file at `uri`: one record for the first attempt and for each retry.

    Raises OutputError if no run wrote the file, or if it is damaged.
    """
    with reading(uri, _AGAIN):
        footer = pq.read_metadata(file).metadata
        found: list[Any] = json.loads(footer[FOOTER])
        return [ShardRecord.model_validate(record) for record in found]


def committed_shards(layout: Layout) -> set[int]:
    """The ids of the shards that have a data file."""
    names = (entry.uri.rsplit("/", 1)[-1] for entry in layout.storage.list(layout.data_folder))
    return {int(match[1]) for name in names if (match := re.fullmatch(r"shard-(\d{6,})\.parquet", name))}


def read_accounting(layout: Layout) -> Iterator[ShardRecord]:
    """Every accounting record of the run, in order of shards and generations. Raises OutputError.

    Each shard has its own file, so several files are read at a time.
    """
    storage = layout.storage
    uris = (entry.uri for entry in storage.list(layout.accounting_folder) if entry.uri.endswith(".parquet"))
    listed, fetched = itertools.tee(uris)
    for uri, data in zip(listed, read_many(storage, fetched), strict=True):
        with reading(uri, "move it away: the run's next command writes it again from the results"):
            (record,) = shard_records(pq.read_table(pa.BufferReader(data), use_threads=False))
            _require(uri == layout.accounting(record.shard_id, record.generation), "it holds another shard's account")
        yield record


def read_records(layout: Layout, manifest: Manifest, retried: Iterable[int]) -> list[ShardRecord]:
    """Every accounting record of the run, in order of shards and generations. Writes nothing.

    A record without an accounting file is read from the footer of the results. `retried`: the shards of the last
    retry. Raises OutputError for a file that is damaged or belongs to another run.
    """
    shards = {shard.shard_id: shard for shard in manifest.shards}
    records = list(read_accounting(layout))
    committed = committed_shards(layout)
    records += missing_records(layout, committed, records, retried)
    for extra in sorted(committed - shards.keys()):
        raise _not_of_run(layout.data(extra), f"the run has {len(shards)} shards, and none of that number")
    for record in records:
        uri = layout.accounting(record.shard_id, record.generation)
        shard = shards.get(record.shard_id)
        if shard is None:
            raise _not_of_run(uri, f"the run has {len(shards)} shards, and none of that number")
        if record.run_id != manifest.fingerprint.run_id:
            raise _not_of_run(uri, f"it is of the run {record.run_id}")
        if record.shard_id not in committed:
            raise _not_of_run(uri, f"its results are gone: {layout.data(record.shard_id)}")
        if record.rows > shard.rows or (record.generation == 0 and record.rows != shard.rows):
            raise _not_of_run(uri, f"it counts {record.rows:,} rows, and the shard has {shard.rows:,}")
    return sorted(records, key=lambda record: (record.shard_id, record.generation))


def _not_of_run(uri: str, why: str) -> OutputError:
    return OutputError(f"{uri} does not belong to this run: {why}", "move it away, then give the same command again")


def _require(holds: bool, why: str) -> None:
    if not holds:
        raise ValueError(why)


def repair(
    layout: Layout, committed: Iterable[int], accounted: Iterable[ShardRecord], retried: Iterable[int]
) -> list[ShardRecord]:
    """Write the accounting files that are missing after a crash, and return their records. `retried`: see
    `missing_records`."""
    mended = missing_records(layout, committed, accounted, retried)
    for record in mended:
        _account(layout, record)
    return mended


def missing_records(
    layout: Layout, committed: Iterable[int], accounted: Iterable[ShardRecord], retried: Iterable[int]
) -> list[ShardRecord]:
    """The records in the footers of results that have no accounting file. Writes nothing.

    Reads the footers of shards without accounting and of `retried`, the shards of the last retry. The footers of other
    shards are not read.
    """
    have: dict[int, int] = {}
    for record in accounted:
        have[record.shard_id] = max(have.get(record.shard_id, -1), record.generation)
    mended = []
    for shard_id in sorted(set(committed) & ((set(committed) - have.keys()) | set(retried))):
        with layout.storage.open(layout.data(shard_id)) as file:
            history = footer_records(file, layout.data(shard_id))
        for record in history:
            if record.generation > have.get(shard_id, -1):
                mended.append(record)
    return mended

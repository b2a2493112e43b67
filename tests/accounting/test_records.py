from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from batchinfer.accounting.records import ACCOUNTING_SCHEMA, ReplicaRecord, ShardRecord, shard_records, shard_table
from tests.support.builders import make_journal, make_reading, make_record

CONTRACT = [
    *("run_id", "job_name", "shard_id", "attempt", "replica_id", "node", "accelerator", "num_gpus", "model"),
    *("revision", "quantization", "tensor_parallel", "pipeline_parallel", "rows", "rows_failed", "input_tokens"),
    *("cached_tokens", "output_tokens", "started_at", "finished_at", "wall_seconds", "gpu_seconds"),
    *("tokens_per_second", "price_per_gpu_hour", "cost_usd"),
]

seconds = st.floats(0, 1e9)
counts = st.dictionaries(st.text(max_size=8), st.integers(0, 10**9), max_size=3)
records = st.builds(
    make_record,
    shard_id=st.integers(0, 2**31 - 1),
    revision=st.none() | st.text(max_size=5),
    node=st.text(max_size=5),
    rows=st.integers(0, 10**12),
    started_at_us=st.integers(0, 4 * 10**15),
    finished_at_us=st.integers(0, 4 * 10**15),
    gpu_seconds=seconds,
    price_per_gpu_hour=st.floats(0, 100),
    errors=counts,
    finish_reasons=counts,
    evaluation=st.dictionaries(st.text(max_size=5), st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=3),
    labels=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    meter=st.builds(make_reading, st.integers(0, 4 * 10**15), seconds, seconds, seconds),
)


@settings(deadline=None, max_examples=50)
@given(st.lists(records, max_size=4))
def test_records_come_back_from_an_accounting_file_as_they_were(written):
    file = io.BytesIO()
    pq.write_table(shard_table(written), file)
    assert shard_records(pq.read_table(file)) == written


@settings(deadline=None, max_examples=50)
@given(records)
def test_a_record_comes_back_from_a_footer_as_it_was(record):
    assert ShardRecord.model_validate_json(record.model_dump_json()) == record


def test_a_journal_comes_back_as_it_was():
    journal = make_journal(finished_at_us=None, ready_at_us=None, shards_in_flight=(3, 5))
    assert ReplicaRecord.model_validate_json(journal.model_dump_json()) == journal


def test_the_accounting_has_the_columns_of_the_contract():
    assert set(CONTRACT) <= set(ACCOUNTING_SCHEMA.names)
    assert shard_table([make_record()]).schema == ACCOUNTING_SCHEMA


def test_the_derived_columns_follow_from_the_record():
    record = make_record(
        started_at_us=1_000_000, finished_at_us=3_500_000, gpu_seconds=7200.0, price_per_gpu_hour=1.5
    )  # 2.5 seconds of wall time, two device-hours
    row = shard_table([record]).to_pylist()[0]
    assert row["wall_seconds"] == 2.5
    assert row["tokens_per_second"] == (40 + 20) / 2.5
    assert row["cost_usd"] == 3.0
    assert row["started_at"].timestamp() == 1.0
    assert row["finished_at"].timestamp() == 3.5


def test_a_shard_that_took_no_time_has_no_speed():
    assert make_record(started_at_us=5, finished_at_us=5).tokens_per_second == 0


def test_no_records_are_a_table_without_rows():
    table = shard_table([])
    assert (table.num_rows, table.schema) == (0, ACCOUNTING_SCHEMA)
    assert shard_records(table) == []


def test_a_record_with_a_column_that_is_not_known_is_refused():
    with pytest.raises(ValidationError, match="novelty"):
        shard_records(shard_table([make_record()]).append_column("novelty", pa.array([1])))


def test_accounting_of_a_version_without_labels_is_read():
    old = shard_table([make_record()]).drop_columns("labels")
    assert [record.labels for record in shard_records(old)] == [{}]

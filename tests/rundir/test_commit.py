from __future__ import annotations

import os
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer.errors import StorageError
from batchinfer.rundir.commit import commit, commit_retry, committed_shards, footer_records, read_accounting, repair
from batchinfer.rundir.paths import Layout
from tests.support.builders import make_record


@pytest.fixture
def layout(tmp_path):
    return Layout(str(tmp_path / "out"))


def rows(*outputs, failed=()):
    """Results with ids 0, 1, ...; the outputs at the positions `failed` have an error."""
    return pa.table(
        {
            "id": pa.array(range(len(outputs)), pa.int64()),
            "output": pa.array(outputs, pa.string()),
            "error_code": pa.array(
                ["output_invalid" if i in failed else None for i in range(len(outputs))], pa.string()
            ),
        }
    )


def committed(layout, shard=0):
    return pq.read_table(layout.data(shard)).to_pydict()


def test_a_commit_writes_the_rows_and_their_account(layout):
    record = make_record(3)
    assert commit(layout, rows("a", "b"), record) is True
    assert pq.read_table(layout.data(3)).equals(rows("a", "b"))
    assert list(read_accounting(layout)) == [record]
    assert footer_records(layout.data(3), layout.data(3)) == [record]
    assert os.path.relpath(layout.data(3), layout.root) == "data/shard-000003.parquet"
    assert os.path.relpath(layout.accounting(3, 0), layout.root) == "accounting/shard-000003.parquet"


def test_a_second_attempt_that_comes_late_loses_and_changes_nothing(layout):
    first, late = make_record(0, replica_id="r1"), make_record(0, replica_id="r2", attempt=2)
    assert commit(layout, rows("a"), first) is True
    assert commit(layout, rows("b"), late) is False
    assert committed(layout)["output"] == ["a"]
    assert list(read_accounting(layout)) == footer_records(layout.data(0), layout.data(0)) == [first]


def test_an_attempt_whose_commit_is_run_again_has_won(layout):
    record = make_record(0)
    commit(layout, rows("a"), record)
    os.unlink(layout.accounting(0, 0))
    assert commit(layout, rows("a"), record) is True
    assert list(read_accounting(layout)) == [record]


def test_of_attempts_at_once_one_wins_data_and_account(layout):
    won, barrier = {}, threading.Barrier(6)

    def attempt(me):
        barrier.wait()
        won[me] = commit(layout, rows(str(me)), make_record(0, replica_id=str(me)))

    threads = [threading.Thread(target=attempt, args=(me,)) for me in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [me for me, won_it in won.items() if won_it]
    assert len(winners) == 1
    assert committed(layout)["output"] == [str(winners[0])]
    assert [record.replica_id for record in read_accounting(layout)] == [str(winners[0])]


def test_the_schema_of_a_result_file_is_that_of_the_rows(layout):
    commit(layout, rows("a").replace_schema_metadata({"pandas": "x"}), make_record(0))
    assert pq.read_schema(layout.data(0)).remove_metadata() == rows("a").schema


def test_what_is_committed_is_what_has_a_data_file(layout):
    assert committed_shards(layout) == set()
    for shard in (0, 7, 1_234_567):
        commit(layout, rows("a"), make_record(shard))
    for stranger in ("notes.txt", "shard-000001.parquet.bak", "shard-000002 (copy).parquet", "shard-x.parquet"):
        layout.storage.put(f"{layout.data_folder}/{stranger}", b"")
    assert committed_shards(layout) == {0, 7, 1_234_567}


def test_an_account_that_a_crash_kept_from_being_written_is_mended(layout):
    records = [make_record(shard, gpu_seconds=float(shard)) for shard in range(4)]
    for record in records:
        commit(layout, rows("a"), record)
    for lost in (1, 3):
        os.unlink(layout.accounting(lost, 0))
    accounted = list(read_accounting(layout))
    assert [record.shard_id for record in accounted] == [0, 2]
    assert repair(layout, committed_shards(layout), accounted, []) == [records[1], records[3]]
    assert list(read_accounting(layout)) == records


def test_a_late_attempt_does_not_put_its_own_account_where_the_winners_is_missing(layout):
    first, late = make_record(0, replica_id="r1"), make_record(0, replica_id="r2", attempt=2)
    commit(layout, rows("a"), first)
    os.unlink(layout.accounting(0, 0))
    assert commit(layout, rows("b"), late) is False
    assert repair(layout, {0}, list(read_accounting(layout)), []) == [first]
    assert list(read_accounting(layout)) == [first]


def test_where_nothing_is_missing_nothing_is_mended(layout):
    commit(layout, rows("a"), make_record(0))
    assert repair(layout, {0}, list(read_accounting(layout)), [0]) == []


def test_an_account_without_data_does_not_bring_the_shard_back(layout):
    commit(layout, rows("a"), make_record(0))
    os.unlink(layout.data(0))
    assert repair(layout, committed_shards(layout), list(read_accounting(layout)), [0]) == []


def test_a_retry_puts_its_rows_into_their_places(layout):
    first = make_record(0, rows=4, rows_failed=2)
    again = make_record(0, rows=2, rows_failed=1, generation=1)
    commit(layout, rows("a", "x", "c", "y", failed=(1, 3)), first)
    retried = pa.table({"id": [1, 3], "output": ["B", "z"], "error_code": [None, "output_invalid"]})
    assert commit_retry(layout, retried, [1, 3], again) is True
    assert committed(layout) == {
        "id": [0, 1, 2, 3],
        "output": ["a", "B", "c", "z"],
        "error_code": [None, None, None, "output_invalid"],
    }
    assert footer_records(layout.data(0), layout.data(0)) == [first, again]
    assert list(read_accounting(layout)) == [first, again]


def test_a_retry_whose_rows_are_all_null_keeps_the_types(layout):
    commit(layout, rows("a", None, failed=(1,)), make_record(0))
    retried = pa.table({"id": [1], "output": pa.nulls(1), "error_code": ["engine_rejected"]})
    assert commit_retry(layout, retried, [1], make_record(0, generation=1)) is True
    assert pq.read_schema(layout.data(0)).remove_metadata() == rows("a").schema
    assert committed(layout)["error_code"] == [None, "engine_rejected"]


def test_a_retry_loses_if_another_was_first(layout):
    commit(layout, rows("x", failed=(0,)), make_record(0))
    one, two = (make_record(0, generation=1, replica_id=name) for name in ("r1", "r2"))
    assert commit_retry(layout, rows("one"), [0], one) is True
    assert commit_retry(layout, rows("two"), [0], two) is False
    assert committed(layout)["output"] == ["one"]
    assert [record.replica_id for record in read_accounting(layout)] == ["r1", "r1"]


def test_a_retry_of_the_retry_comes_after_it(layout):
    records = [make_record(0, generation=generation) for generation in range(3)]
    commit(layout, rows("0"), records[0])
    assert commit_retry(layout, rows("2"), [0], records[2]) is False
    assert commit_retry(layout, rows("1"), [0], records[1]) is True
    assert commit_retry(layout, rows("2"), [0], records[2]) is True
    assert committed(layout)["output"] == ["2"]
    assert list(read_accounting(layout)) == footer_records(layout.data(0), layout.data(0)) == records


def test_a_retry_of_a_shard_that_is_gone_says_so(layout):
    with pytest.raises(StorageError) as caught:
        commit_retry(layout, rows("a"), [0], make_record(5, generation=1))
    assert str(caught.value) == f"{layout.data(5)} is gone"


def test_the_account_of_a_retry_is_mended_when_the_retry_was_noted(layout):
    records = [make_record(0), make_record(0, generation=1)]
    commit(layout, rows("a"), records[0])
    commit_retry(layout, rows("b"), [0], records[1])
    os.unlink(layout.accounting(0, 1))
    assert repair(layout, {0}, list(read_accounting(layout)), [0]) == [records[1]]
    assert list(read_accounting(layout)) == records

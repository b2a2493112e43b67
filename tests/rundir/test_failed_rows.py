import os

import pyarrow as pa
import pytest

from batchinfer.rundir.commit import commit, commit_retry, read_accounting
from batchinfer.rundir.failed_rows import failed_rows, note_retry, noted_retry
from batchinfer.rundir.paths import Layout
from tests.support.builders import make_record


@pytest.fixture
def layout(tmp_path):
    return Layout(str(tmp_path / "out"))


def results(*codes):
    return pa.table({"id": list(range(len(codes))), "error_code": pa.array(codes, pa.string())})


def test_failed_rows_are_found_by_shard_and_place(layout):
    commit(layout, results(None, "a", "b"), make_record(0, rows_failed=2))
    commit(layout, results(None, None), make_record(1))
    commit(layout, results("a"), make_record(2, rows_failed=1))
    assert failed_rows(layout) == ({0: [1, 2], 2: [0]}, {0: 1, 2: 1})


def test_after_a_retry_only_what_failed_again_is_left(layout):
    commit(layout, results(None, "a", "b"), make_record(0, rows_failed=2))
    commit_retry(layout, results(None, "b"), [1, 2], make_record(0, generation=1, rows_failed=1))
    assert failed_rows(layout) == ({0: [2]}, {0: 2})
    commit_retry(layout, results(None), [2], make_record(0, generation=2, rows_failed=0))
    assert failed_rows(layout) == ({}, {})


def test_a_retry_that_crashed_before_its_account_is_not_run_again(layout):
    commit(layout, results("a"), make_record(0, rows_failed=1))
    note_retry(layout, "run", {0: [0]})
    commit_retry(layout, results(None), [0], make_record(0, generation=1, rows_failed=0))
    os.unlink(layout.accounting(0, 1))
    assert failed_rows(layout) == ({}, {})
    assert [record.generation for record in read_accounting(layout)] == [0, 1]


def test_the_shards_of_the_last_retry_are_noted(layout):
    assert noted_retry(layout) == []
    note_retry(layout, "run", {4: [0], 2: [1, 2]})
    assert noted_retry(layout) == [2, 4]


def test_a_run_without_results_has_no_failed_rows(layout):
    assert failed_rows(layout) == ({}, {})

import pyarrow as pa
import pytest
from builders import make_journal

from batchinfer.job import Layout, lost_attempts, read_journals, seal, unseal

ROWS = pa.table({"id": [1, 2, 3], "text": ["a", None, "ü"], "m": [[{"role": "user"}], [], None]})


@pytest.mark.parametrize("rows", [ROWS, ROWS.slice(1, 1), ROWS.slice(0, 0), pa.concat_tables([ROWS, ROWS])])
def test_a_sealed_shard_opens_as_it_was(rows):
    about = {"shard_id": 7, "retried": None, "first_row": 2**40}
    block = seal(rows, about)
    opened, told = unseal(block)
    assert block.num_rows == 1
    assert opened.equals(rows)
    assert opened.schema == rows.schema
    assert told == about


def test_a_sealed_shard_survives_being_merged_and_cut_out_again():
    blocks = pa.concat_tables([seal(ROWS.slice(i, 1), {"shard_id": i}) for i in range(3)])
    for i in range(3):
        opened, about = unseal(blocks.slice(i, 1))
        assert (opened.to_pylist(), about) == (ROWS.slice(i, 1).to_pylist(), {"shard_id": i})


def test_the_journals_of_all_replicas_are_read(tmp_path):
    layout = Layout(str(tmp_path))
    assert read_journals(layout) == []
    journals = [make_journal("a"), make_journal("b", finished_at_us=None, shards_in_flight=(1, 2))]
    for journal in journals:
        layout.storage.put(layout.journal(journal.replica_id), journal.model_dump_json().encode())
    assert read_journals(layout) == journals


def test_an_attempt_is_lost_with_the_replica_that_was_at_it_when_it_ended_or_was_killed():
    journals = [
        make_journal("a", finished_at_us=None, shards_in_flight=(1, 2)),
        make_journal("b", finished_at_us=None, shards_in_flight=(2,)),
        make_journal("c", finished_at_us=5, shards_in_flight=(2,)),
        make_journal("d", finished_at_us=5),
    ]
    lost = lost_attempts(journals)
    assert dict(lost) == {1: 1, 2: 3}
    assert lost[3] == 0

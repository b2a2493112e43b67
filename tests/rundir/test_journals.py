from batchinfer.rundir.journals import lost_attempts, read_journals
from batchinfer.rundir.paths import Layout
from tests.support.builders import make_journal


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

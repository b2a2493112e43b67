from __future__ import annotations

import time

import pytest

from batchinfer.accounting.meter import Meter
from batchinfer.accounting.records import ReplicaRecord
from batchinfer.errors import StorageError
from batchinfer.events import heard_by
from batchinfer.execution import journal as journal_module
from batchinfer.execution.job import RunningJob
from batchinfer.execution.journal import Clock, Journal
from batchinfer.rundir.paths import Layout
from batchinfer.storage import LocalStorage
from tests.support.builders import make_plan, make_spec


def test_a_clock_that_is_set_while_a_replica_runs_moves_none_of_its_seconds(monkeypatch):
    real = time.time_ns
    clock = Clock()
    meter = Meter(2, clock)
    meter.ready()
    meter.begin("a", 4)
    readings = [clock()]
    for jump in (3600, -7200, 10**6):
        monkeypatch.setattr(time, "time_ns", lambda jump=jump: real() + jump * 10**9)
        readings.append(clock())
    meter.finished("a", 4)
    seconds, reading = meter.end("a")
    assert readings == sorted(readings)
    assert readings[-1] - readings[0] < 60e6
    assert 0 <= seconds < 120
    lifetime = (reading.at_us - meter.started_at_us) / 1e6 * 2
    assert abs(reading.load_seconds + reading.busy_seconds + reading.idle_seconds - lifetime) < 1e-6


def test_a_journal_that_the_store_did_not_take_is_written_later_with_all_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "JOURNAL_SECONDS", 0.02)
    real, down = LocalStorage.put, []

    def put(storage, uri, data):
        if down:
            raise StorageError("the store is down", "wait")
        real(storage, uri, data)

    monkeypatch.setattr(LocalStorage, "put", put)
    layout = Layout(str(tmp_path))
    told = []
    journal = Journal(RunningJob("run", make_spec(), make_plan(), layout, 1), Meter(1, Clock()))
    with heard_by(lambda name, **values: told.append((name, values))):
        journal.begin(7)
        down.append(True)
        deadline = time.monotonic() + 10
        while len(told) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert told[0] == ("journal not written", {"reason": "the store is down"})
        # What is in flight goes on; no shard begins whose seconds could be lost.
        with pytest.raises(StorageError, match="the store is down"):
            journal.begin(8)
        journal.end(8)
        down.clear()
        journal.begin(8)
    journal.close()
    record = ReplicaRecord.model_validate_json(layout.storage.read(layout.journal(journal.ran.replica_id)))
    assert record.finished_at_us == record.meter.at_us
    assert record.shards_in_flight == (7, 8)

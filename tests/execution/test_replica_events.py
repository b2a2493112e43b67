from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from batchinfer import events
from batchinfer.errors import StorageError
from batchinfer.execution import replica_events
from batchinfer.execution.replica_events import EventFile, ReplicaEvents
from batchinfer.rundir.ownership import require_own
from batchinfer.rundir.paths import Layout
from batchinfer.storage import LocalStorage

REPLICA = "0123456789ab"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(str(tmp_path))


def names(found: list[dict[str, Any]]) -> list[str]:
    return [one["event"] for one in found]


def test_what_a_replica_tells_is_heard_once_with_its_ids(layout: Layout) -> None:
    hearing = ReplicaEvents(layout)
    file = EventFile(layout, "run", REPLICA)
    events.tell("engine ready", seconds=1.0)
    file.write()
    first = list(hearing.new())
    assert names(first) == ["engine ready"]
    assert {key: first[0][key] for key in ("run_id", "replica_id", "seconds")} == {
        "run_id": "run",
        "replica_id": REPLICA,
        "seconds": 1.0,
    }
    assert list(hearing.new()) == []
    events.tell("engine restarting", restart=1, max_restarts=20)
    file.close()
    assert names(list(hearing.new())) == ["engine restarting"]


def test_an_event_is_in_the_run_folder_soon_without_a_close(layout: Layout) -> None:
    file = EventFile(layout, "run", REPLICA)
    events.tell("engine ready", seconds=1.0)
    deadline = time.monotonic() + 10
    while not layout.storage.stat(layout.events(REPLICA)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    file.close()


def test_events_of_earlier_sessions_are_not_told_again(layout: Layout) -> None:
    file = EventFile(layout, "run", REPLICA)
    events.tell("engine ready", seconds=1.0)
    file.close()
    assert list(ReplicaEvents(layout).new()) == []


def test_the_file_is_one_of_the_runs_own_and_a_foreign_one_of_its_name_is_not(layout: Layout, tmp_path: Path) -> None:
    file = EventFile(layout, "run", REPLICA)
    events.tell("engine ready", seconds=1.0)
    file.close()
    require_own(layout)
    Path(layout.events("ffffffffffff")).write_text(json.dumps({"mine": 1}))
    with pytest.raises(Exception, match="did not write"):
        require_own(layout)


def test_lines_that_are_no_events_are_passed_over(layout: Layout, tmp_path: Path) -> None:
    hearing = ReplicaEvents(layout)
    path = Path(layout.events(REPLICA))
    path.parent.mkdir(parents=True)
    path.write_bytes(b'{"event": "engine ready"}\n[1]\n{"event": 7}\n\xff\xfe\n{"ev')
    assert names(list(hearing.new())) == ["engine ready"]


def test_a_store_that_fails_fails_no_replica_and_is_tried_again(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = LocalStorage.put

    def fail(self: LocalStorage, uri: str, data: bytes) -> None:
        raise StorageError("no")

    monkeypatch.setattr(LocalStorage, "put", fail)
    file = EventFile(layout, "run", REPLICA)
    events.tell("engine ready", seconds=1.0)
    file.write()
    monkeypatch.setattr(LocalStorage, "put", put)
    file.write()
    file.close()
    assert Path(layout.events(REPLICA)).read_text().count("engine ready") == 1


def test_a_replica_that_tells_without_end_stops_at_a_limit(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_events, "MOST_EVENTS", 10)
    file = EventFile(layout, "run", REPLICA)
    for _ in range(100):
        events.tell("engine ready", seconds=1.0)
    file.close()
    assert len(Path(layout.events(REPLICA)).read_text().splitlines()) == 11

"""The lock of a store without locks, over a store in memory whose faults a test switches on."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from batchinfer import events
from batchinfer.errors import StorageError
from batchinfer.storage.lease import Lease, Seen

SECONDS = 0.6


class MemoryStore:
    """One object. `down`: every call fails."""

    def __init__(self) -> None:
        self.data: bytes | None = None
        self.down = False
        self._version = 0
        self._written_at = 0.0
        self._lock = threading.Lock()

    def create(self, data: bytes) -> str | None:
        with self._lock:
            return None if self.data is not None else self._write(data)

    def replace(self, data: bytes, tag: str) -> str | None:
        with self._lock:
            return self._write(data) if tag == str(self._version) else None

    def look(self) -> Seen | None:
        with self._lock:
            self._require_up()
            if self.data is None:
                return None
            return Seen(str(self._version), self.data, time.monotonic() - self._written_at)

    def _write(self, data: bytes) -> str:
        self._require_up()
        self.data, self._written_at = data, time.monotonic()
        self._version += 1
        return str(self._version)

    def _require_up(self) -> None:
        if self.down:
            raise StorageError("the store is down")

    def lock(self, patience: float = 5.0) -> Lease:
        return Lease("s3://b/lock", SECONDS, patience, self.create, self.replace, self.look)


@pytest.fixture
def heard():
    told: list[tuple[str, dict[str, Any]]] = []
    with events.heard_by(lambda name, **values: told.append((name, values))):
        yield told


def test_the_lock_of_a_holder_elsewhere_that_is_gone_is_waited_for_and_taken_and_both_are_told(heard):
    store = MemoryStore()
    store.create(b'{"lease": "theirs", "holder": "7 on a-machine", "place": "elsewhere", "pid": 7}')
    with store.lock() as lease:
        lease.require_held()
    assert [name for name, _ in heard] == ["lock waited for", "lease taken"]
    assert {values["holder"] for _, values in heard} == {"7 on a-machine"}


def test_a_lock_that_another_took_is_told_once_and_is_not_taken_back(heard):
    store = MemoryStore()
    with store.lock() as lease:
        seen = store.look()
        assert seen is not None
        assert store.replace(b'{"lease": "theirs"}', seen.tag)
        deadline = time.monotonic() + 10
        while not heard and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(StorageError, match="another may have taken it over"):
            lease.require_held()
    assert [name for name, _ in heard] == ["lease lost"]
    assert store.data == b'{"lease": "theirs"}'


def test_an_outage_that_ends_in_time_is_told_and_costs_nothing(heard):
    store = MemoryStore()
    with store.lock() as lease:
        store.down = True
        threading.Timer(2 * SECONDS, lambda: setattr(store, "down", False)).start()
        time.sleep(1.5 * SECONDS)
        lease.require_held()
        assert not store.down
    assert [name for name, _ in heard] == ["lease late"]
    assert store.data is not None
    assert b'"released": true' in store.data


def test_an_outage_that_does_not_end_ends_the_run_in_time(heard):
    store = MemoryStore()
    began = time.monotonic()
    with store.lock(patience=0.5) as lease:
        store.down = True
        time.sleep(SECONDS + 0.2)
        with pytest.raises(StorageError, match="could not renew its lock in time"):
            lease.require_held()
    assert time.monotonic() - began < 9
    assert [name for name, _ in heard] == ["lease late"]

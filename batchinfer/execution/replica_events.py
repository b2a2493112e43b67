"""The events of replicas on their way to the command that runs the job: one file for each replica in the run's folder.

A replica may be killed at any moment, on any machine; the events in its file are kept. A store cannot append, so a
thread writes the whole file soon after an event: for most replicas twice.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

from batchinfer import events
from batchinfer.errors import StorageError
from batchinfer.rundir.ownership import EVENTS_MARK
from batchinfer.rundir.paths import Layout

MOST_EVENTS = 1000
"""Events of one replica; later ones are dropped. Each event writes the whole file again, by then some 300 KB."""
CLOSE_SECONDS = 10.0


class EventFile:
    """Writes this process's events to the replica's file, until closed. Thread-safe; raises nothing."""

    def __init__(self, layout: Layout, run_id: str, replica_id: str) -> None:
        self._layout = layout
        self._uri = layout.events(replica_id)
        self._ids = {"run_id": run_id, "replica_id": replica_id}
        about = json.dumps(self._ids).removeprefix("{")
        self._lines = [EVENTS_MARK.decode() + ", " + about]
        self._log = events.json_log(self._lines.append)
        self._adding, self._writing = threading.Lock(), threading.Lock()
        self._written = 0
        self._wake = threading.Event()
        self._closed = False
        self._hearing = contextlib.ExitStack()
        self._hearing.enter_context(events.heard_by(self.event))
        self._thread = threading.Thread(target=self._serve, name="events", daemon=True)
        self._thread.start()

    def event(self, name: str, **values: Any) -> None:
        """Queue an event; the thread writes it soon."""
        with self._adding:
            if len(self._lines) <= MOST_EVENTS:
                self._log.info(name, **self._ids, **values)
        self._wake.set()

    def write(self) -> None:
        """Write the file if it lacks an event; if the store fails, the next event retries."""
        with self._writing:
            with self._adding:
                lines = list(self._lines)
            if len(lines) == self._written:
                return
            try:
                self._layout.storage.put(self._uri, ("\n".join(lines) + "\n").encode())
            except StorageError:
                # The journal uses the same store and fails the replica, because the accounting needs it.
                return
            self._written = len(lines)

    def _serve(self) -> None:
        while not self._closed:
            self._wake.wait()
            self._wake.clear()
            self.write()

    def close(self) -> None:
        """Write the last events, unless the store takes too long."""
        self._hearing.close()
        self._closed = True
        self._wake.set()
        self._thread.join(CLOSE_SECONDS)


class ReplicaEvents:
    """The new events of this session's replicas."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._tags = {entry.uri: entry.tag for entry in layout.storage.list(layout.events_folder)}
        self._read: dict[str, int] = {}

    def new(self) -> Iterator[dict[str, Any]]:
        """Events since the last call, by replica: `event` and its values. Raises StorageError."""
        storage = self._layout.storage
        for entry in storage.list(self._layout.events_folder):
            if self._tags.get(entry.uri) == entry.tag:
                continue
            text = storage.read(entry.uri)
            self._tags[entry.uri] = entry.tag
            found = [line for line in map(_parsed, text.splitlines()) if line is not None]
            yield from found[self._read.get(entry.uri, 0) :]
            self._read[entry.uri] = len(found)


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The event on a line; None for the first line, and for a line that no replica wrote."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("event"), str) else None

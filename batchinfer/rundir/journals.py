"""Reads the journals of a run's replicas."""

from __future__ import annotations

import time
from collections import Counter

from batchinfer.accounting.records import ReplicaRecord
from batchinfer.errors import OutputError
from batchinfer.rundir.past_runs import is_locked
from batchinfer.rundir.paths import Layout, reading
from batchinfer.storage import read_many

ALIVE_SECONDS = 20.0
"""A replica counts as running if its journal is younger; it writes the journal every second. Shorter fails with a slow
store or clocks that differ; longer shows killed replicas as running after a quick resume."""


def read_journals(layout: Layout) -> list[ReplicaRecord]:
    """The journals of all replicas of the run, of this session and of earlier ones.

    Raises OutputError for a journal that is damaged, or that is a copy of another replica's.
    """
    storage = layout.storage
    uris = [entry.uri for entry in storage.list(layout.journals_folder)]
    journals = []
    for uri, text in zip(uris, read_many(storage, uris), strict=True):
        with reading(uri, "move it away: what is known of that replica from its commits is counted then"):
            journal = ReplicaRecord.model_validate_json(text)
            if uri != layout.journal(journal.replica_id):
                raise ValueError("it is a copy of another replica's journal")
        journals.append(journal)
    return journals


def require_of_run(layout: Layout, journals: list[ReplicaRecord], run_id: str) -> None:
    """Raise OutputError for a journal of another run."""
    for journal in journals:
        if journal.run_id != run_id:
            raise OutputError(
                f"{layout.journal(journal.replica_id)} does not belong to this run: it is of the run {journal.run_id}",
                "move it away, then give the same command again",
            )


def living_replicas(layout: Layout, journals: list[ReplicaRecord]) -> frozenset[str]:
    """The ids of the replicas that run now: a process holds the run's lock, and their journals are recent."""
    moment = time.time()
    fresh = frozenset(
        journal.replica_id
        for journal in journals
        if journal.finished_at_us is None and abs(moment - journal.meter.at_us / 1e6) < ALIVE_SECONDS
    )
    return fresh if fresh and is_locked(layout.lock, layout.stores) else frozenset()


def lost_attempts(journals: list[ReplicaRecord]) -> Counter[int]:
    """By shard: how many of these journals end with the shard in flight, because their replica left or was killed."""
    return Counter(shard for journal in journals for shard in journal.shards_in_flight)

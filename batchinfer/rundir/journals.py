"""What the replicas of a run wrote about themselves."""

from __future__ import annotations

from collections import Counter

from batchinfer.accounting.records import ReplicaRecord
from batchinfer.rundir.paths import Layout, reading
from batchinfer.storage import read_many


def read_journals(layout: Layout) -> list[ReplicaRecord]:
    """What every replica of the run, of this session and of earlier ones, wrote about itself."""
    storage = layout.storage
    uris = [entry.uri for entry in storage.list(layout.journals_folder)]
    journals = []
    for uri, text in zip(uris, read_many(storage, uris), strict=True):
        with reading(uri, "move it away: that replica's seconds are then missing from the accounts"):
            journals.append(ReplicaRecord.model_validate_json(text))
    return journals


def lost_attempts(journals: list[ReplicaRecord]) -> Counter[int]:
    """How often each shard was in flight when a replica, one of those in `journals`, left or was killed."""
    return Counter(shard for journal in journals for shard in journal.shards_in_flight)

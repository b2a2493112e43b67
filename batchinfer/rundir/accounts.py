"""What the replicas of a run cost, from its files: `_run/replicas.parquet` if it is newer than every journal."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer.accounting.ledger import ReplicaAccount, accounts_of, replica_accounts, replicas_table
from batchinfer.rundir.commit import committed_shards, missing_records, read_accounting
from batchinfer.rundir.failed_rows import noted_retry
from batchinfer.rundir.journals import ALIVE_SECONDS, read_journals
from batchinfer.rundir.ownership import overwrite
from batchinfer.rundir.paths import Layout, reading
from batchinfer.storage import Entry, join

STATE = b"batchinfer.journals"
"""Metadata of `_run/replicas.parquet`: the state of the journals that the accounts were made from."""


@dataclass(frozen=True, slots=True)
class AccountsState:
    """What a run's accounts depend on, as one listing of `_run/` shows it.

    `journals`: a hash of the journals' names and tags. `replicas`: the tag of `_run/replicas.parquet`, empty if there
    is none.
    """

    journals: str
    replicas: str


def journals_state(layout: Layout) -> str:
    """A hash of the journals' names and tags; it changes with every entry of a replica."""
    return _hash(layout.storage.list(layout.journals_folder))


def accounts_state(layout: Layout) -> AccountsState:
    """The state of the run's accounts, from one listing."""
    entries = list(layout.storage.list(join(layout.root, "_run")))
    inside = join(layout.journals_folder, "")
    journals = [entry for entry in entries if entry.uri.startswith(inside)]
    replicas = next((entry.tag for entry in entries if entry.uri == layout.replicas), "")
    return AccountsState(_hash(journals), replicas)


def _hash(entries: Iterable[Entry]) -> str:
    lines = sorted(f"{entry.uri.rsplit('/', 1)[-1]} {entry.tag}" for entry in entries)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def write_accounts(layout: Layout, accounts: Sequence[ReplicaAccount], journals: str) -> None:
    """Write `_run/replicas.parquet`. `journals`: the state of the journals before they were read."""
    sink = pa.BufferOutputStream()
    pq.write_table(replicas_table(accounts).replace_schema_metadata({STATE: journals}), sink)
    overwrite(layout, layout.replicas, sink.getvalue().to_pybytes())


def read_accounts(layout: Layout, state: AccountsState) -> list[ReplicaAccount]:
    """The account of each replica of the run. Raises OutputError for a damaged file. Writes nothing."""
    if state.replicas:
        with reading(layout.replicas, "move it away: the accounts are built again from the journals"):
            # Not `read_table`, which plans a data set and takes three times as long for a file of a few rows.
            table = pq.ParquetFile(pa.BufferReader(layout.storage.read(layout.replicas))).read(use_threads=False)
            if (table.schema.metadata or {}).get(STATE) == state.journals.encode():
                return accounts_of(table)
    return _from_journals(layout)


def _from_journals(layout: Layout) -> list[ReplicaAccount]:
    """The accounts of a run that runs, that was killed, or that an earlier version made."""
    records = list(read_accounting(layout))
    records += missing_records(layout, committed_shards(layout), records, noted_retry(layout))
    journals = read_journals(layout)
    # Without a look at the lock, which would need the permission to write.
    moment = time.time()
    alive = {
        journal.replica_id
        for journal in journals
        if journal.finished_at_us is None and abs(moment - journal.meter.at_us / 1e6) < ALIVE_SECONDS
    }
    return replica_accounts(records, journals, alive)

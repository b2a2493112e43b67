"""What every worker of a run is told, and where the files of a run are."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from batchinfer.errors import OutputError, StorageError
from batchinfer.planner import Plan
from batchinfer.records import ReplicaRecord
from batchinfer.spec import JobSpec
from batchinfer.storage import Storage, Stores, join, read_many, storage_for


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of the run at `root`, in a store that is reached as `stores` says."""

    root: str
    stores: Stores = field(default_factory=dict)

    @property
    def storage(self) -> Storage:
        return storage_for(self.root, self.stores)

    @property
    def data_folder(self) -> str:
        return join(self.root, "data")

    @property
    def accounting_folder(self) -> str:
        return join(self.root, "accounting")

    @property
    def folders(self) -> tuple[str, str, str]:
        """All that a run writes lies in these."""
        return self.data_folder, self.accounting_folder, join(self.root, "_run")

    def data(self, shard_id: int) -> str:
        return join(self.data_folder, f"{shard_name(shard_id)}.parquet")

    def accounting(self, shard_id: int, generation: int) -> str:
        suffix = f".retry-{generation}" if generation else ""
        return join(self.accounting_folder, f"{shard_name(shard_id)}{suffix}.parquet")

    def run(self, name: str) -> str:
        return join(self.root, "_run", name)

    @property
    def journals_folder(self) -> str:
        return self.run("replicas")

    def journal(self, replica_id: str) -> str:
        return join(self.journals_folder, f"{replica_id}.json")


@contextlib.contextmanager
def reading(uri: str, remedy: str) -> Iterator[None]:
    """A run's file is data from outside: one that does not hold what its name says is an OutputError with `remedy`."""
    try:
        yield
    except StorageError as error:
        if isinstance(error.__cause__, IsADirectoryError):
            raise OutputError(f"{uri} is a folder, where a run has a file", remedy) from error
        raise
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise OutputError(f"{uri} is not what a run of batchinfer wrote there, or it is damaged", remedy) from error


def shard_name(shard_id: int) -> str:
    return f"shard-{shard_id:06d}"


@dataclass(frozen=True, slots=True)
class Job:
    """One run as its workers see it."""

    run_id: str
    spec: JobSpec
    plan: Plan
    layout: Layout
    shards_in_flight: int


def seal(rows: pa.Table, about: dict[str, Any]) -> pa.Table:
    """A block of one row that holds a whole shard: its rows as an Arrow stream, and what goes with them.

    Ray Data merges and splits blocks of rows as it sees fit; a row it leaves whole. Opening it again
    copies nothing.
    """
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    stream = sink.getvalue()
    offsets = pa.py_buffer(np.array([0, stream.size], dtype=np.int64))
    packed = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, stream])
    return pa.table({"about": pa.array([json.dumps(about)]), "rows": packed})


def unseal(block: pa.Table) -> tuple[pa.Table, dict[str, Any]]:
    """The inverse of `seal`."""
    assert block.num_rows == 1, f"{block.num_rows} shards in one block"
    about: dict[str, Any] = json.loads(block.column("about")[0].as_py())
    with pa.ipc.open_stream(block.column("rows")[0].as_buffer()) as reader:
        return reader.read_all(), about


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

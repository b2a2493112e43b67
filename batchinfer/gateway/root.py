"""The folder of a gateway: where its files, batches, queues and keys are, and what is read and written there.

    owners/OWNER/uploads/FILE.jsonl           an uploaded file
                /files/FILE/record.json       what is known of a file: written after its bytes
                           /batches/BATCH     batches that read it
    owners/OWNER/batches/BATCH/               the run of a batch, with its own files
                              /request/       what was asked, and what became of it
    queues/MODEL/DEADLINE.OWNER.BATCH         batches that have not ended, in the order in which they run
    keys/HASH.json                            API keys

An entry of a queue is written before its batch, and deleted after the batch's end: a batch that has not ended always
has one.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel

from batchinfer.errors import StorageError
from batchinfer.gateway.names import batch_of_file, is_batch_id, is_file_id, is_owner, queue_name
from batchinfer.gateway.records import BatchEnd, BatchMarks, BatchProgress, BatchRecord, FileRecord
from batchinfer.rundir.paths import Layout
from batchinfer.storage import Storage, Stores, delete_many, join, normal_uri, storage_for

Record = TypeVar("Record", bound=BaseModel)

_ENTRY = re.compile(r"(\d{12})\.([a-z0-9_-]+)\.(batch_[0-9a-f]{32})")

_RECORD = "record.json"
_BATCH, _STARTED, _FINALIZING, _CANCELLING = "batch.json", "in_progress.json", "finalizing.json", "cancelling.json"
_PROGRESS, _END, _FAILURE = "progress.json", "ended.json", "failure-"


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """A batch that has not ended. `queue`: the folder of its model. `expires_at`: seconds since 1970."""

    queue: str
    expires_at: int
    owner: str
    batch_id: str

    @property
    def name(self) -> str:
        return f"{self.expires_at:012d}.{self.owner}.{self.batch_id}"


def entry_of(queue: str, name: str) -> QueueEntry | None:
    """The entry of a queue with that name; None for a name that is none."""
    match = _ENTRY.fullmatch(name)
    return QueueEntry(queue, int(match[1]), match[2], match[3]) if match is not None and is_owner(match[2]) else None


class GatewayRoot:
    """The objects of the gateway at `uri`. Ids and owners are checked: no other text becomes part of a path."""

    def __init__(self, uri: str, stores: Stores | None = None) -> None:
        self.uri = normal_uri(uri)
        self.stores: Stores = stores or {}
        self.storage: Storage = storage_for(self.uri, self.stores)

    # Files

    def file_content(self, owner: str, file_id: str) -> str:
        """The URI of the file's bytes, which for a file that a batch wrote is among those of its run."""
        batch = batch_of_file(file_id)
        if batch is None:
            self._file(owner, file_id)
            return join(self._owner(owner), "uploads", f"{file_id}.jsonl")
        layout = self.layout(owner, batch)
        return layout.batch_output if file_id.endswith("-output") else layout.batch_errors

    def add_file(self, owner: str, record: FileRecord) -> None:
        """Make the file exist, whose content is there."""
        self._create(join(self._file(owner, record.id), _RECORD), record)

    def file(self, owner: str, file_id: str) -> FileRecord | None:
        """The file of that owner; None if there is none."""
        return self._read(join(self._file(owner, file_id), _RECORD), FileRecord)

    def file_ids(self, owner: str) -> Iterator[str]:
        """The ids of the owner's files, the newest first."""
        return filter(is_file_id, self.storage.folders(join(self._owner(owner), "files")))

    def delete_file(self, owner: str, file_id: str) -> None:
        """Delete the file. The record goes first: a file without one does not exist."""
        self.storage.delete(join(self._file(owner, file_id), _RECORD))
        self.storage.delete(self.file_content(owner, file_id))
        delete_many(self.storage, [entry.uri for entry in self.storage.list(self._file(owner, file_id))])

    def readers(self, owner: str, file_id: str) -> Iterator[str]:
        """The batches that read the file and have not ended."""
        for entry in self.storage.list(join(self._file(owner, file_id), "batches")):
            batch = entry.uri.rsplit("/", 1)[-1]
            if is_batch_id(batch) and self.batch(owner, batch) is not None and self.marks(owner, batch).end is None:
                yield batch

    # Batches

    def layout(self, owner: str, batch_id: str) -> Layout:
        """The run of a batch."""
        return Layout(self._batch(owner, batch_id), self.stores)

    def add_batch(self, record: BatchRecord) -> QueueEntry:
        """Make the batch exist, and queue it."""
        entry = QueueEntry(queue_name(record.model), record.expires_at, record.owner, record.id)
        if is_file_id(record.input_file_id):
            self.storage.create(join(self._file(record.owner, record.input_file_id), "batches", record.id), b"")
        self.storage.create(self._entry(entry), b"")
        self._create(self._of_batch(record.owner, record.id, _BATCH), record)
        return entry

    def batch(self, owner: str, batch_id: str) -> BatchRecord | None:
        """The batch of that owner; None if there is none."""
        return self._read(self._of_batch(owner, batch_id, _BATCH), BatchRecord)

    def batch_ids(self, owner: str) -> Iterator[str]:
        """The ids of the owner's batches, the newest first."""
        return filter(is_batch_id, self.storage.folders(join(self._owner(owner), "batches")))

    def marks(self, owner: str, batch_id: str) -> BatchMarks:
        """What has become of the batch."""
        folder = join(self._batch(owner, batch_id), "request")
        there = set(self.storage.names(folder))
        end = self._read(join(folder, _END), BatchEnd) if _END in there else None
        live = self._read(join(folder, _PROGRESS), BatchProgress) if _PROGRESS in there and end is None else None
        times = {
            field: self._time(join(folder, name)) if name in there else None
            for field, name in (
                ("in_progress_at", _STARTED),
                ("finalizing_at", _FINALIZING),
                ("cancelling_at", _CANCELLING),
            )
        }
        return BatchMarks(**times, progress=live, end=end)

    def mark_started(self, record: BatchRecord, at: float) -> None:
        self._mark(record, _STARTED, at)

    def mark_finalizing(self, record: BatchRecord, at: float) -> None:
        self._mark(record, _FINALIZING, at)

    def mark_cancelling(self, record: BatchRecord, at: float) -> None:
        self._mark(record, _CANCELLING, at)

    def _mark(self, record: BatchRecord, name: str, at: float) -> None:
        self.storage.create(self._of_batch(record.owner, record.id, name), json.dumps({"at": int(at)}).encode())

    def is_cancelling(self, record: BatchRecord) -> bool:
        return self.storage.stat(self._of_batch(record.owner, record.id, _CANCELLING)) is not None

    def note_failure(self, record: BatchRecord, message: str) -> int:
        """Note that an attempt at the batch failed. Returns how many have, this one included."""
        folder = join(self._batch(record.owner, record.id), "request")
        earlier = sum(name.startswith(_FAILURE) for name in self.storage.names(folder))
        told = json.dumps({"message": message[:2000]}).encode()
        self.storage.create(join(folder, f"{_FAILURE}{earlier + 1}.json"), told)
        return earlier + 1

    def tell_progress(self, record: BatchRecord, progress: BatchProgress) -> None:
        self.storage.put(self._of_batch(record.owner, record.id, _PROGRESS), progress.model_dump_json().encode())

    def end(self, record: BatchRecord, end: BatchEnd) -> None:
        """End the batch, once: the first end stays. Its entry in the queue goes after that."""
        self._create(self._of_batch(record.owner, record.id, _END), end)
        self.leave_queue(QueueEntry(queue_name(record.model), record.expires_at, record.owner, record.id))

    # Queues

    def queued(self) -> dict[str, list[QueueEntry]]:
        """By queue: the batches that have not ended, those with the earliest deadline first."""
        found: dict[str, list[QueueEntry]] = {}
        for one in self.storage.list(join(self.uri, "queues")):
            queue, _, name = one.uri.rpartition("/")
            entry = entry_of(queue.rpartition("/")[2], name)
            if entry is not None:
                found.setdefault(entry.queue, []).append(entry)
        for entries in found.values():
            entries.sort(key=lambda entry: entry.name)
        return found

    def leave_queue(self, entry: QueueEntry) -> None:
        self.storage.delete(self._entry(entry))

    @contextlib.contextmanager
    def holding(self, queue: str) -> Iterator[Callable[[], None]]:
        """Hold a queue, so that no other process starts its batches. Raises OutputBusy if another one does."""
        with self.storage.lock(join(self.uri, "locks", f"{queue}.lock")) as require_held:
            yield require_held

    def _entry(self, entry: QueueEntry) -> str:
        return join(self.uri, "queues", entry.queue, entry.name)

    # Paths

    def owner_folder(self, owner: str) -> str:
        """The folder of an owner's files and runs."""
        return self._owner(owner)

    def _owner(self, owner: str) -> str:
        if not is_owner(owner):
            raise ValueError("that is no owner")
        return join(self.uri, "owners", owner)

    def _file(self, owner: str, file_id: str) -> str:
        if not is_file_id(file_id):
            raise ValueError("that is no id of a file")
        return join(self._owner(owner), "files", file_id)

    def _batch(self, owner: str, batch_id: str) -> str:
        if not is_batch_id(batch_id):
            raise ValueError("that is no id of a batch")
        return join(self._owner(owner), "batches", batch_id)

    def _of_batch(self, owner: str, batch_id: str, name: str) -> str:
        return join(self._batch(owner, batch_id), "request", name)

    # Objects

    def _create(self, uri: str, record: BaseModel) -> None:
        self.storage.create(uri, record.model_dump_json().encode())

    def _read(self, uri: str, kind: type[Record]) -> Record | None:
        data = self.read(uri)
        return None if data is None else kind.model_validate_json(data)

    def _time(self, uri: str) -> int | None:
        data = self.read(uri)
        found: Any = None if data is None else json.loads(data)
        return None if found is None else int(found["at"])

    def read(self, uri: str) -> bytes | None:
        """The object at `uri`; None if there is none."""
        try:
            return self.storage.read(uri)
        except StorageError:
            # Asked for only after a failure: a look before each read would double the requests.
            if self.storage.stat(uri) is None:
                return None
            raise

"""One batch, from wherever it stands to its end: the same run as `batchinfer run`, in a process of its own.

Whatever ends the process, the next one goes on: what is done is in the run's folder, and how the batch ended is written
once, after its files.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from batchinfer import events, signals
from batchinfer.accounting.records import ShardRecord
from batchinfer.accounting.report import Report
from batchinfer.errors import (
    BatchinferError,
    ClusterError,
    ClusterNotStarted,
    OutputBusy,
    Stopped,
    StorageError,
    UserError,
)
from batchinfer.execution import reports, runner
from batchinfer.execution.checks import find_manifest
from batchinfer.execution.progress import Listener, Progress
from batchinfer.gateway.engines import job_of_batch
from batchinfer.gateway.names import error_file_id, output_file_id
from batchinfer.gateway.records import (
    BatchEnd,
    BatchProblem,
    BatchProgress,
    BatchRecord,
    BatchUsage,
    EndStatus,
    FileRecord,
)
from batchinfer.gateway.root import GatewayRoot, QueueEntry
from batchinfer.jobspec import JobSpec
from batchinfer.rundir.batch_files import Unanswered

LOOK_SECONDS = 1.0
"""Seconds between looks for a cancellation, and between two writings of the progress. Shorter asks the store more."""

STOP_AGAIN_SECONDS = 120.0
"""Seconds that shards in flight have to end after a cancellation or the deadline; then they are left."""

MOST_FAILURES = 3
"""Failures of a batch's engine or machines after which the batch has failed. With one, a single lost machine would end
it."""

UNMADE_SECONDS = 600.0
"""Age of an entry in a queue from which its batch counts as never made: the gateway died between the two writes."""


def settle(root: GatewayRoot, entry: QueueEntry, listener: Listener, address: str | None) -> None:
    """Run the batch of the entry, or what is left of it, and end it.

    Raises Stopped if this process is to end before the batch, and StorageError or ClusterError, after which the batch
    is to be tried again.
    """
    record = root.batch(entry.owner, entry.batch_id)
    if record is None:
        _drop_unmade(root, entry)
        return
    marks = root.marks(record.owner, record.id)
    if marks.end is not None:
        root.leave_queue(entry)
        return
    work = _Work(root, record)
    if marks.cancelling_at is not None:
        work.end_early("cancelled")
    elif time.time() >= record.expires_at:
        work.end_early("expired")
    else:
        work.run(listener, address)


def _drop_unmade(root: GatewayRoot, entry: QueueEntry) -> None:
    # The id counts time backwards from 2**48 ms, see `names`.
    made = (2**48 - 1 - int(entry.batch_id.removeprefix("batch_")[:12], 16)) / 1000
    if time.time() - made > UNMADE_SECONDS:
        root.leave_queue(entry)


class _Work:
    """A batch that has not ended."""

    def __init__(self, root: GatewayRoot, record: BatchRecord) -> None:
        self._root = root
        self._record = record
        self._layout = root.layout(record.owner, record.id)

    def _job(self) -> JobSpec:
        record, root = self._record, self._root
        content = root.file_content(record.owner, record.input_file_id)
        return job_of_batch(record, content, self._layout.root, dict(root.stores))

    def run(self, listener: Listener, address: str | None) -> None:
        root, record = self._root, self._record
        try:
            spec = self._job()
            telling = _ProgressListener(root, record, listener)
            with _stopped_in_time(lambda: root.is_cancelling(record), record.expires_at):
                made = runner.run(spec, telling, address)
        except (OutputBusy, ClusterError, ClusterNotStarted, StorageError):
            raise
        except UserError as error:
            self._fail("invalid_request", error)
        except Stopped as error:
            if root.is_cancelling(record):
                self.end_early("cancelled")
            elif time.time() >= record.expires_at:
                self.end_early("expired")
            elif signals.pending():
                raise
            else:
                self._fail("budget_reached", error)
        except BatchinferError as error:
            if root.note_failure(record, error.message) < MOST_FAILURES:
                raise
            self._fail("engine_error", error)
        else:
            root.mark_finalizing(record, time.time())
            self._end("cancelled" if root.is_cancelling(record) else "completed", made)

    def end_early(self, status: EndStatus, problems: tuple[BatchProblem, ...] = ()) -> None:
        """End the batch with what is done."""
        root, layout = self._root, self._layout
        manifest = find_manifest(layout)
        if manifest is None:
            progress = BatchProgress(total=self._record.lines)
            root.end(self._record, BatchEnd(status=status, at=int(time.time()), progress=progress, problems=problems))
            return
        spec = self._job()
        unanswered = None
        if status == "expired":
            unanswered = Unanswered(
                "batch_expired", "This request could not be executed before the completion window expired.", spec.input
            )
        with layout.storage.lock(layout.lock):
            made = reports.conclude(layout, spec, manifest, unanswered=unanswered)
        self._end(status, made, problems)

    def _fail(self, code: str, error: BatchinferError) -> None:
        # The remedy speaks of a spec, and places of this machine are not the client's business.
        told = error.message
        content = self._root.file_content(self._record.owner, self._record.input_file_id)
        told = told.replace(content, self._record.input_file_id).replace(self._root.uri, "")
        self.end_early("failed", (BatchProblem(code=code, message=told[:2000]),))

    def _end(self, status: EndStatus, made: Report, problems: tuple[BatchProblem, ...] = ()) -> None:
        root, record, layout = self._root, self._record, self._layout
        now = int(time.time())
        ids: list[str | None] = []
        for uri, file_id, kind in (
            (layout.batch_output, output_file_id(record.id), "output"),
            (layout.batch_errors, error_file_id(record.id), "errors"),
        ):
            found = layout.storage.stat(uri)
            ids.append(None if found is None else file_id)
            if found is not None:
                name = f"{record.id}_{kind}.jsonl"
                root.add_file(
                    record.owner,
                    FileRecord(id=file_id, bytes=found.size, created_at=now, filename=name, purpose="batch_output"),
                )
        root.end(
            record,
            BatchEnd(
                status=status,
                at=now,
                progress=BatchProgress(
                    total=made.rows_in_input,
                    completed=made.rows - made.rows_failed,
                    failed=made.rows_failed,
                    cost_usd=made.cost_usd,
                ),
                output_file_id=ids[0],
                error_file_id=ids[1],
                problems=problems,
                usage=BatchUsage(
                    input_tokens=made.input_tokens,
                    cached_tokens=made.cached_tokens,
                    output_tokens=made.output_tokens,
                    reasoning_tokens=made.reasoning_tokens,
                ),
            ),
        )


class _ProgressListener:
    """Passes a run's progress on, and writes it beside the batch, once a second at most."""

    def __init__(self, root: GatewayRoot, record: BatchRecord, listener: Listener) -> None:
        self._root = root
        self._record = record
        self._listener = listener
        self._told_at = 0.0
        self._complete = False

    def event(self, name: str, **values: Any) -> None:
        self._listener.event(name, **values)
        if name in events.BEGINNINGS:
            self._root.mark_started(self._record, time.time())

    def begin(self, progress: Progress) -> None:
        self._listener.begin(progress)
        self._tell(progress)

    def advance(self, progress: Progress, record: ShardRecord) -> None:
        self._listener.advance(progress, record)
        self._complete = progress.rows_done == progress.rows_total
        if time.monotonic() - self._told_at > LOOK_SECONDS or self._complete:
            self._tell(progress)

    def end(self) -> None:
        self._listener.end()
        if self._complete:
            self._root.mark_finalizing(self._record, time.time())

    def _tell(self, progress: Progress) -> None:
        self._told_at = time.monotonic()
        told = BatchProgress(
            total=progress.rows_total,
            completed=progress.rows_done - progress.rows_failed,
            failed=progress.rows_failed,
            cost_usd=progress.cost_usd,
        )
        # The next commit tries again, and the end has its own counts.
        with contextlib.suppress(StorageError):
            self._root.tell_progress(self._record, told)


@contextlib.contextmanager
def _stopped_in_time(asked: Callable[[], bool], deadline: float) -> Iterator[None]:
    """Stop the run of this process, as a signal does, once `asked` is true or the time is `deadline`."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(LOOK_SECONDS):
            with contextlib.suppress(StorageError):
                if time.time() >= deadline or asked():
                    os.kill(os.getpid(), signal.SIGTERM)
                    if over.wait(STOP_AGAIN_SECONDS):
                        return

    thread = threading.Thread(target=watch, name="deadline", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()

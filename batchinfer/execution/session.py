"""One session of a run: its work, until the end, a signal or a budget."""

from __future__ import annotations

import time
from collections.abc import Callable

from batchinfer import signals
from batchinfer.errors import (
    BatchinferError,
    EngineError,
    Stopped,
    StorageError,
    WorkersLost,
)
from batchinfer.execution import ray_pipeline
from batchinfer.execution.job import RunningJob
from batchinfer.execution.metrics import Metrics, labels_of
from batchinfer.execution.progress import Listener
from batchinfer.execution.ray_pipeline import Work
from batchinfer.execution.replica_events import ReplicaEvents
from batchinfer.execution.reports import account_for
from batchinfer.execution.stop_and_budget import Stopper, Tally, Watch
from batchinfer.input.manifest import Manifest
from batchinfer.rundir.commit import committed_shards
from batchinfer.rundir.journals import read_journals
from batchinfer.rundir.ownership import STOP_MARK, remove
from batchinfer.rundir.paths import Layout

JOURNAL_WAIT_SECONDS = 30.0
"""Seconds to wait at the end for the replicas' last entries. If shorter, a slow store leaves them out of the report."""

DEAD_AFTER_SECONDS = 5.0
"""Seconds without an entry after which a replica is not waited for: it writes one each second."""

NAMED_SHARDS = 20
"""Shards that an error names; of further ones it says only that there are more."""


def execute(
    job: RunningJob, manifest: Manifest, work: Work, listener: Listener, require_held: Callable[[], None]
) -> None:
    """Run the work to its end, or until a signal or a budget stops it (Stopped), or the lock is lost.

    `require_held` raises if the lock on the output is lost. Raises BatchinferError; committed shards stay.
    """
    try:
        if work.shards:
            _work(job, manifest, work, listener, require_held)
    finally:
        # The remaining work is short and has its own exit code, so a signal may end the process.
        signals.let_end(True)


def _work(
    job: RunningJob, manifest: Manifest, work: Work, listener: Listener, require_held: Callable[[], None]
) -> None:
    layout = job.layout
    remove(layout, layout.stop)
    earlier = {journal.replica_id for journal in read_journals(layout)}
    counting = Metrics(labels_of(job))
    tally = Tally(job, manifest, work, counting.observed)
    stopper = Stopper(
        lambda: layout.storage.put(layout.stop, STOP_MARK),
        lambda: layout.storage.stat(layout.stop) is not None,
        lambda: _begun(layout, earlier),
        lambda: not tally.left,
        listener,
    )
    stopper.reason = tally.over_budget() or ""
    if stopper.reason:
        # The budget does not cover one shard, so no engine is loaded.
        raise _stopped(stopper, tally, work)
    replicas = ReplicaEvents(layout)
    waiting = ray_pipeline.waits_for(job.plan)
    if waiting is not None:
        listener.event("waiting", **waiting, hint="the job starts when the cluster has them free")
    listener.begin(tally.progress())
    try:
        with stopper, Watch(tally, stopper, replicas, listener) as watch:
            for committed in stopper.until_stopped(ray_pipeline.run_shards(job, manifest, work)):
                require_held()
                tally.add(committed.record, committed.won)
                if committed.won:
                    counting.committed(committed.record)
                    listener.advance(tally.progress(), committed.record)
                watch.check()
            # The readers see a stop file at once, so the shards may have ended before the watch looked.
            stopper.heed()
            if not stopper.at_once:
                _wait_for_journals(layout, earlier)
            tally.look()
    except BatchinferError as error:
        account_for(layout, manifest)
        if isinstance(error, EngineError | WorkersLost):
            error.message += _shards_left(layout, tally.left, earlier)
        raise
    finally:
        listener.end()
    if stopper.reason and tally.left:
        account_for(layout, manifest)
        raise _stopped(stopper, tally, work)
    lost = {shard.shard_id for shard in work.shards} - committed_shards(layout)
    if lost:
        raise StorageError(
            f"{len(lost)} shards ran, but their results are not there: {layout.data(min(lost))}",
            "check what stands in their place, then run the same command again",
        )


def _begun(layout: Layout, earlier: set[str]) -> bool:
    """Whether a replica of this session has begun."""
    return any(journal.replica_id not in earlier for journal in read_journals(layout))


def _stopped(stopper: Stopper, tally: Tally, work: Work) -> Stopped:
    raised = ", with a higher limit" if "limits." in stopper.reason else ""
    return Stopped(
        f"{stopper.reason}: {len(tally.left)} of {len(work.shards)} shards are left",
        f"the same command{raised} goes on where this one stopped",
    )


def _shards_left(layout: Layout, left: set[int], earlier: set[str]) -> str:
    """A text for after engines or machines failed: the shards left, and the shards that were in flight."""
    flying = {s for j in read_journals(layout) if j.replica_id not in earlier for s in j.shards_in_flight} & left
    named = ", ".join(map(str, sorted(flying)[:NAMED_SHARDS])) + (", ..." if len(flying) > NAMED_SHARDS else "")
    return f" ({len(left)} shards are left" + (f", in flight were {named})" if flying else ")")


def _wait_for_journals(layout: Layout, earlier: set[str]) -> None:
    """Wait until replicas have written their last entry; a killed replica never does, so the wait is limited."""
    deadline = time.monotonic() + JOURNAL_WAIT_SECONDS
    while time.monotonic() < deadline:
        journals = [j for j in read_journals(layout) if j.replica_id not in earlier and j.finished_at_us is None]
        # A journal that has stopped moving belongs to a replica that is dead.
        if all(time.time() - j.meter.at_us / 1e6 > DEAD_AFTER_SECONDS for j in journals):
            return
        time.sleep(0.1)

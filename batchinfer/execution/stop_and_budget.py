"""A session, which is one command's share of a run: its progress, its budget, and how a signal stops it."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Self, TypeVar

from batchinfer import signals
from batchinfer.accounting.budget import LEAST_START_SECONDS, Spending, over_budget
from batchinfer.accounting.ledger import Ledger, ReplicaAccount, active_seconds
from batchinfer.accounting.records import ReplicaRecord, ShardRecord
from batchinfer.catalog.accelerators import device_cost
from batchinfer.errors import BatchinferError, StorageError
from batchinfer.execution.job import RunningJob
from batchinfer.execution.progress import Listener, Progress, Speed
from batchinfer.execution.ray_pipeline import Work
from batchinfer.execution.replica_events import ReplicaEvents
from batchinfer.input.manifest import Manifest
from batchinfer.rundir.commit import read_accounting
from batchinfer.rundir.journals import read_journals

LOOK_SECONDS = 2.0
"""Seconds between two reads of the replicas' journals and events. If longer, a budget is exceeded by more; if shorter,
a store receives more requests."""

LOST_AFTER_SECONDS = 15.0
"""Seconds without a new journal after which a replica counts as lost: it writes one each second. If shorter, a slow
store makes live replicas count as lost."""


class Tally:
    """What this session has done, for the progress and the budgets. Thread-safe.

    `observe` receives the journals of this session's replicas, live and finished ones, after each read.
    """

    def __init__(
        self, job: RunningJob, manifest: Manifest, work: Work, observe: Callable[[list[ReplicaRecord]], None]
    ) -> None:
        self._job = job
        self._observe = observe
        self._total = manifest
        self._lock = threading.Lock()
        self._waiting = {
            s.shard_id: s.rows if work.positions is None else len(work.positions[s.shard_id]) for s in work.shards
        }
        self._rows_left = sum(self._waiting.values())
        self._largest = max(self._waiting.values(), default=0)
        self._speed = Speed(time.monotonic)
        self._began = time.monotonic()
        self._looked_at = time.monotonic()
        self._journals: list[ReplicaRecord] = read_journals(job.layout)
        self._earlier = {journal.replica_id for journal in self._journals}
        self._alive: set[str] = set()
        self._moved_at: dict[str, float] = {}
        self._lost: set[str] = set()
        self._commits, self._wall_seconds = 0, 0.0
        self._own_rows, self._own_device_seconds = 0, 0.0
        # Over all commits, also those of earlier sessions.
        self._ledger = Ledger()
        self._rows, self._tokens, self._device_seconds = 0, 0, 0.0
        self._failed: dict[int, int] = {}
        """Failed rows of each shard in its newest generation."""
        for record in read_accounting(job.layout):
            self._account(record)

    def _account(self, record: ShardRecord) -> None:
        self._ledger.add(record)
        self._rows += record.rows
        self._tokens += record.input_tokens + record.output_tokens
        self._failed[record.shard_id] = record.rows_failed
        self._device_seconds += record.gpu_seconds

    @property
    def left(self) -> set[int]:
        """The shards of this session that are not committed."""
        return set(self._waiting)

    def add(self, record: ShardRecord, won: bool) -> None:
        """An attempt at a shard has ended. The shard is committed, whether this attempt or another one `won`."""
        with self._lock:
            self._rows_left -= self._waiting.pop(record.shard_id, 0)
            if won:
                self._account(record)
                self._commits += 1
                self._wall_seconds += record.wall_seconds
                self._own_rows += record.rows
                self._own_device_seconds += record.gpu_seconds
                self._speed.add(record)

    def look(self) -> None:
        """Read the replicas' journals now. Raises StorageError."""
        with self._lock:
            self._read()

    def _read(self) -> None:
        before = {journal.replica_id: journal for journal in self._journals}
        self._looked_at = time.monotonic()
        self._journals = read_journals(self._job.layout)
        # A live replica writes every second. Comparing journals needs no clock of another machine.
        moving = [j for j in self._journals if j != before.get(j.replica_id)]
        self._alive = {journal.replica_id for journal in moving if journal.finished_at_us is None}
        self._moved_at |= dict.fromkeys((journal.replica_id for journal in moving), self._looked_at)
        ours = [j for j in self._journals if j.replica_id not in self._earlier]
        self._observe([j for j in ours if j.finished_at_us is not None or j.replica_id in self._alive])

    def _look(self) -> list[ReplicaRecord]:
        if time.monotonic() - self._looked_at >= LOOK_SECONDS:
            self._read()
        return self._journals

    def newly_lost(self) -> list[ReplicaRecord]:
        """This session's replicas that were lost since the last call. Raises StorageError."""
        with self._lock:
            lost = [
                journal
                for journal in self._look()
                if journal.finished_at_us is None
                and journal.replica_id not in self._lost | self._earlier
                and self._looked_at - self._moved_at[journal.replica_id] > LOST_AFTER_SECONDS
            ]
            self._lost |= {journal.replica_id for journal in lost}
            return lost

    def over_budget(self) -> str | None:
        """Why no further shard may start, None if one may. Raises StorageError."""
        limits = self._job.spec.limits
        if limits.max_cost_usd is None and limits.max_runtime_hours is None:
            return None
        with self._lock:
            return over_budget(limits, self._standing()) if self._waiting else None

    def _accounts(self) -> list[ReplicaAccount]:
        journals = self._look()
        return self._ledger.accounts(journals, self._alive)

    def _standing(self) -> Spending:
        accounts = self._accounts()
        alive = [journal for journal in self._journals if journal.replica_id in self._alive]
        flying = {shard for journal in alive for shard in journal.shards_in_flight} & self._waiting.keys()
        plan = self._job.plan
        least = LEAST_START_SECONDS * plan.devices * plan.min_replicas
        return Spending(
            cost_usd=sum(account.cost_usd for account in accounts),
            cost_to_start=0.0 if self._alive else device_cost(least, plan.price_per_gpu_hour),
            cost_in_flight=sum(device_cost(a.in_flight_seconds, a.price_per_gpu_hour) for a in accounts),
            cost_per_row=self._cost_per_row(),
            rows_in_flight=sum(self._waiting[shard] for shard in flying),
            rows_of_next=self._largest if len(flying) < len(self._waiting) else 0,
            seconds=time.monotonic() - self._began,
            seconds_per_shard=self._wall_seconds / self._commits if self._commits else None,
        )

    def _cost_per_row(self) -> float | None:
        """Dollars of a row in this session, whose price and layout may differ from those of earlier sessions.

        Until a shard of this session is finished, the device-seconds of earlier sessions count, at this session's
        price.
        """
        rows, seconds = self._own_rows, self._own_device_seconds
        if not rows:
            rows, seconds = self._rows, self._device_seconds
        return device_cost(seconds, self._job.plan.price_per_gpu_hour) / rows if rows else None

    def progress(self) -> Progress:
        """Where the run stands."""
        with self._lock:
            accounts = self._accounts()
            active = active_seconds(accounts)
            rows_per_second, _ = self._speed.per_second()
            return Progress(
                rows_done=self._total.rows - self._rows_left,
                rows_total=self._total.rows,
                shards_done=len(self._total.shards) - len(self._waiting),
                shards_total=len(self._total.shards),
                rows_failed=sum(self._failed.values()),
                tokens_per_second=self._tokens / active if active else 0.0,
                rows_per_second=rows_per_second,
                cost_usd=sum(account.cost_usd for account in accounts),
                selected_from=self._total.total_rows,
            )


T = TypeVar("T")

LEAVE_SECONDS = 30.0
"""Seconds in which a command that stops at once must write its accounts and end its cluster. If shorter, a slow store
leaves a run without a report."""


class Stopper:
    """The first signal, a budget or the run's stop file stops new shards and lets those in flight end; a second signal
    stops at once.

    If no replica has begun, the first signal also stops at once: a replica may wait hours for a GPU. A signal after
    the last shard changes nothing.
    """

    def __init__(
        self,
        announce: Callable[[], None],
        asked: Callable[[], bool],
        begun: Callable[[], bool],
        done: Callable[[], bool],
        listener: Listener,
    ) -> None:
        self._announce = announce
        self._asked = asked
        self._begun = begun
        self._done = done
        self._listener = listener
        self._handling = contextlib.ExitStack()
        self._arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._over = False
        self.reason = ""
        self.at_once = False
        """Whether shards in flight are abandoned."""

    def stop(self, reason: str) -> None:
        """Let no new shard start. Raises StorageError."""
        if not self.reason:
            self.reason = reason
            self._announce()
            self._listener.event("stopping", reason=reason, hint="shards in flight end first; Ctrl-C again stops now")

    def until_stopped(self, commits: Iterator[T]) -> Iterator[T]:
        """Yield from `commits` until a signal stops the run at once. Raises what `commits` raises.

        A separate thread reads `commits`, because Ray cannot be interrupted while it waits for the next commit.
        """

        def read() -> None:
            try:
                for commit in commits:
                    self._arrived.put((commit, None))
                    if self._over:
                        break
                else:
                    self._arrived.put(None)
            except BaseException as error:
                self._arrived.put((None, error))

        threading.Thread(target=read, name="commits", daemon=True).start()
        try:
            while (arrived := self._arrived.get()) is not None and not self.at_once:
                commit, error = arrived
                if error is not None:
                    raise error
                yield commit
        finally:
            self._over = True

    def _signal(self, name: str, count: int) -> None:
        """Called in the thread that reads signals."""
        if not self._done():
            self.ask(f"stopped by {name}")

    def ask(self, reason: str) -> None:
        """Stop, or stop at once if a stop was asked for before or no replica has begun."""
        # If the store fails, the stop cannot be written.
        with contextlib.suppress(StorageError):
            if not self.reason and self._begun():
                self.stop(reason)
                return
        self.reason = self.reason or reason
        self.at_once = True
        self._arrived.put(None)
        signals.leave_after(LEAVE_SECONDS, f"{self.reason}: the same command goes on where this one stopped")

    def heed(self) -> None:
        """Ask for a stop if another process or thread has written the run's stop file. Raises StorageError."""
        if not self.reason and not self._done() and self._asked():
            self.ask("stopped by a request")

    def __enter__(self) -> None:
        self._handling.enter_context(signals.handled(self._signal))

    def __exit__(self, *exception: object) -> None:
        self._handling.close()


class Watch:
    """Checks the budget and relays the replicas' events every LOOK_SECONDS, also while a model loads."""

    def __init__(self, tally: Tally, stopper: Stopper, replicas: ReplicaEvents, listener: Listener) -> None:
        self._tally = tally
        self._stopper = stopper
        self._replicas = replicas
        self._listener = listener
        self._over = threading.Event()
        self._failure: BatchinferError | None = None
        self._relaying = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def check(self) -> None:
        """Stop the run if no further shard may start. Raises BatchinferError, also one that ended the thread."""
        if self._failure is not None:
            raise self._failure
        reason = self._tally.over_budget()
        if reason:
            self._stopper.stop(reason)

    def relay(self) -> None:
        """Pass new events of the replicas to the listener. Raises StorageError."""
        with self._relaying:
            for told in self._replicas.new():
                self._listener.event(str(told.pop("event")), **told)
            for lost in self._tally.newly_lost():
                self._listener.event(
                    "worker lost",
                    replica_id=lost.replica_id,
                    node=lost.node,
                    seconds=LOST_AFTER_SECONDS,
                    shards=list(lost.shards_in_flight),
                )

    def _watch(self) -> None:
        try:
            while not self._over.wait(LOOK_SECONDS):
                self.relay()
                self._stopper.heed()
                if not self._stopper.reason:
                    self.check()
        except BatchinferError as error:
            self._failure = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()
        # The last events of replicas that are gone; the run's outcome does not depend on them.
        with contextlib.suppress(BatchinferError):
            self.relay()

"""One command's share of a run: what it has done, whether it may go on, and how it is told to stop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Self

from batchinfer.accounting.budget import LEAST_START_SECONDS, Spending, over_budget
from batchinfer.accounting.ledger import Ledger, ReplicaAccount, active_seconds
from batchinfer.accounting.records import ReplicaRecord, ShardRecord
from batchinfer.catalog.accelerators import device_cost
from batchinfer.errors import StorageError
from batchinfer.execution.job import Job
from batchinfer.execution.progress import Listener, Progress, Speed
from batchinfer.execution.ray_pipeline import Work
from batchinfer.input.manifest import Manifest
from batchinfer.rundir.commit import read_accounting
from batchinfer.rundir.journals import read_journals

LOOK_SECONDS = 2.0
"""How often the replicas' journals are read for what the run has cost."""


class Tally:
    """What this session has done, for the progress and the budgets. Thread-safe.

    `observe` is told of this session's replicas, those that live and those that left in peace, whenever their
    journals were read.
    """

    def __init__(
        self, job: Job, manifest: Manifest, work: Work, observe: Callable[[list[ReplicaRecord]], None]
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
        self._commits, self._wall_seconds = 0, 0.0
        # Of all that was ever committed, by earlier sessions too.
        self._ledger = Ledger()
        self._rows, self._tokens, self._cost = 0, 0, 0.0
        self._failed: dict[int, int] = {}
        """Failed rows of each shard, as of its newest generation."""
        for record in read_accounting(job.layout):
            self._account(record)

    def _account(self, record: ShardRecord) -> None:
        self._ledger.add(record)
        self._rows += record.rows
        self._tokens += record.input_tokens + record.output_tokens
        self._failed[record.shard_id] = record.rows_failed
        self._cost += record.cost_usd

    @property
    def left(self) -> set[int]:
        """The shards of this session that are not committed."""
        return set(self._waiting)

    def add(self, record: ShardRecord, won: bool) -> None:
        """An attempt at a shard has ended; whichever of two `won`, the shard is there."""
        with self._lock:
            self._rows_left -= self._waiting.pop(record.shard_id, 0)
            if won:
                self._account(record)
                self._commits += 1
                self._wall_seconds += record.wall_seconds
                self._speed.add(record)

    def look(self) -> None:
        """Read the replicas' journals now. Raises StorageError."""
        with self._lock:
            self._read()

    def _read(self) -> None:
        before = {journal.replica_id: journal for journal in self._journals}
        self._looked_at = time.monotonic()
        self._journals = read_journals(self._job.layout)
        # A replica that lives writes every second; nothing here asks what time it is elsewhere.
        moving = [j for j in self._journals if j != before.get(j.replica_id)]
        self._alive = {journal.replica_id for journal in moving if journal.finished_at_us is None}
        ours = [j for j in self._journals if j.replica_id not in self._earlier]
        self._observe([j for j in ours if j.finished_at_us is not None or j.replica_id in self._alive])

    def _look(self) -> list[ReplicaRecord]:
        if time.monotonic() - self._looked_at >= LOOK_SECONDS:
            self._read()
        return self._journals

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
            cost_per_row=self._cost / self._rows if self._rows else None,
            rows_in_flight=sum(self._waiting[shard] for shard in flying),
            rows_of_next=self._largest if len(flying) < len(self._waiting) else 0,
            seconds=time.monotonic() - self._began,
            seconds_per_shard=self._wall_seconds / self._commits if self._commits else None,
        )

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
            )


class Stopper:
    """The first SIGINT or SIGTERM, or a budget, stops new shards and lets those in flight end; a second
    signal stops at once, and so does the first where no replica has begun: one may wait for a GPU for hours."""

    def __init__(self, announce: Callable[[], None], begun: Callable[[], bool], listener: Listener) -> None:
        self._announce = announce
        self._begun = begun
        self._listener = listener
        self._before: dict[signal.Signals, signal._HANDLER] = {}
        self.reason = ""

    def stop(self, reason: str) -> None:
        """Let no new shard start. Raises StorageError."""
        if not self.reason:
            self.reason = reason
            self._announce()
            self._listener.event("stopping", reason=reason, hint="shards in flight end first; Ctrl-C again stops now")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.reason:
            raise KeyboardInterrupt
        reason = f"stopped by {signal.Signals(number).name}"
        if not self._begun():
            self.reason = reason
            raise KeyboardInterrupt
        self.stop(reason)

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class BudgetWatch:
    """Looks at the budget every other second, also while no shard ends: a model may load for long."""

    def __init__(self, tally: Tally, stopper: Stopper) -> None:
        self._tally = tally
        self._stopper = stopper
        self._over = threading.Event()
        self._failure: StorageError | None = None
        self._thread = threading.Thread(target=self._watch, name="budget", daemon=True)

    def check(self) -> None:
        """Stop the run if no further shard may start. Raises StorageError, also what ended the watching."""
        if self._failure is not None:
            raise self._failure
        reason = self._tally.over_budget()
        if reason:
            self._stopper.stop(reason)

    def _watch(self) -> None:
        try:
            while not self._over.wait(LOOK_SECONDS) and not self._stopper.reason:
                self.check()
        except StorageError as error:
            self._failure = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

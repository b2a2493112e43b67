"""The ledger: from the shards' and the replicas' records to where every device-second and cent went. Pure.

The law. A replica's lifetime x devices = load + busy + idle, as its meter read them (see `meter`). Busy
is the sum over the replica's shard attempts. The committed part of busy is work. The rest is in flight while the
replica lives. Once the replica has ended, the rest is waste: lost attempts (a crash, a late second attempt). Over a run

    sum of the shards' gpu_seconds + the replicas' load + idle + wasted = lifetimes x devices

and, with one price for each replica, the same law holds for the money.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from batchinfer.accounting.records import TIMESTAMP, MeterReading, Ran, ReplicaRecord, ShardRecord, StepCount, column
from batchinfer.catalog.accelerators import device_cost


class Counts(BaseModel):
    """What the committed shards of one replica, or of several, add up to."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    rows: int = 0
    """Rows of the output: a retried row counts where it ran first."""
    rows_ran: int = 0
    """Rows that the engine ran, retried ones included."""
    input_tokens: int = 0
    """Tokens of the prompts that the engine ran."""
    cached_tokens: int = 0
    """Tokens of the prompts that the KV cache already held."""
    output_tokens: int = 0
    """Tokens of the answers."""

    @classmethod
    def of(cls, shard: ShardRecord) -> Counts:
        return cls(
            rows=0 if shard.generation else shard.rows,
            rows_ran=shard.rows - shard.rows_rejected,
            input_tokens=shard.input_tokens,
            cached_tokens=shard.cached_tokens,
            output_tokens=shard.output_tokens,
        )

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in Counts.model_fields})


class ReplicaAccount(Ran):
    """One row of `_run/replicas.parquet`. Seconds are device-seconds. `finished_at_us` of a killed replica is its
    last known moment alive."""

    started_at_us: int
    ready_at_us: int | None
    finished_at_us: int
    load_seconds: float
    work_seconds: float
    idle_seconds: float
    wasted_seconds: float
    killed: bool
    running: bool = False
    in_flight_seconds: float = 0.0
    """Device-seconds of a running replica's uncommitted shards. 0 once the replica has ended."""
    price_source: str = ""
    committed: Counts
    """What its committed shards add up to."""

    @property
    def gpu_seconds(self) -> float:
        """Lifetime x devices."""
        return (self.finished_at_us - self.started_at_us) / 1e6 * self.num_gpus

    @property
    def cost_usd(self) -> float:
        return device_cost(self.gpu_seconds, self.price_per_gpu_hour)


class StepTotals(BaseModel):
    """What one of the job's `steps` did. Rows and failures count each row once, by its latest retry; the rest includes
    retries.
    """

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    rows: int
    """Rows without those that skipped the step."""
    rows_failed: int
    """Rows in which the step failed, or had no earlier answer to use."""
    errors: dict[str, int]
    """Those rows by `error_code`."""
    input_tokens: int
    """Tokens of the prompts that the engine ran."""
    cached_tokens: int
    """Tokens of the prompts that the KV cache already held."""
    output_tokens: int
    """Tokens of the answers."""
    work_seconds: float
    """Device-seconds of the step, by how long the engine had its requests. All steps add up to the work of the run."""
    cost_usd: float
    """Dollars for the device-seconds."""
    rows_reused: int = 0
    """Rows whose answer was that of an equal request."""
    tokens_reused: int = 0
    """Tokens of those answers and their prompts, which did not run again."""
    tokens_from_cache: int = 0
    """The part of `tokens_reused` whose answers an earlier run had (`cache`)."""
    saved_by_cache_usd: float = 0.0
    """Dollars that `tokens_from_cache` cost in that run."""


class Totals(BaseModel):
    """A run's accounts. Rows and failures count each row once, by its latest retry. Tokens and `rows_ran` (rows that
    the engine ran) include retries; money includes retries and lost attempts."""

    model_config = ConfigDict(frozen=True)

    rows: int
    rows_failed: int
    errors: dict[str, int]
    finish_reasons: dict[str, int]
    evaluation: dict[str, tuple[int, int]]
    rows_ran: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    rejected_tokens: int
    reasoning_tokens: int
    load_seconds: float
    work_seconds: float
    idle_seconds: float
    wasted_seconds: float
    in_flight_seconds: float
    active_seconds: float
    up_seconds: float
    cost_usd: float
    shards: int
    steps: dict[str, StepTotals] = {}
    rows_reused: int = 0
    tokens_reused: int = 0
    rows_from_cache: int = 0
    tokens_from_cache: int = 0
    saved_by_cache_usd: float = 0.0


class Ledger:
    """Each replica's account, from the records of the committed shards, which are added one by one."""

    def __init__(self) -> None:
        self._work: dict[str, float] = defaultdict(float)
        self._newest: dict[str, ShardRecord] = {}
        self._committed: dict[str, Counts] = defaultdict(Counts)

    def add(self, shard: ShardRecord) -> None:
        """Add the record of a committed shard."""
        self._work[shard.replica_id] += shard.gpu_seconds
        self._committed[shard.replica_id] += Counts.of(shard)
        newest = self._newest.get(shard.replica_id)
        if newest is None or shard.meter.at_us >= newest.meter.at_us:
            self._newest[shard.replica_id] = shard

    def accounts(self, journals: Iterable[ReplicaRecord], alive: Collection[str] = ()) -> list[ReplicaAccount]:
        """The account of each replica, ordered by start. `alive`: the ids of running replicas.

        A replica that was killed after a commit and before the next journal entry has a journal that is older than
        its commit: the newest reading counts. A missing journal is rebuilt from the newest commit, so later seconds
        of that replica are lost.
        """
        known = {journal.replica_id: journal for journal in journals}
        known |= {name: _rebuilt(shard) for name, shard in self._newest.items() if name not in known}
        made = [self._account(journal, journal.replica_id in alive) for journal in known.values()]
        return sorted(made, key=lambda account: (account.started_at_us, account.replica_id))

    def _account(self, journal: ReplicaRecord, alive: bool) -> ReplicaAccount:
        newest = self._newest.get(journal.replica_id)
        reading = journal.meter if newest is None else _newer(journal.meter, newest.meter)
        work = self._work.get(journal.replica_id, 0.0)
        rest = max(0.0, reading.busy_seconds - work)
        running = alive and journal.finished_at_us is None
        return ReplicaAccount(
            **journal.ran(),
            price_source=journal.price_source,
            committed=self._committed.get(journal.replica_id, Counts()),
            started_at_us=journal.started_at_us,
            ready_at_us=journal.ready_at_us,
            finished_at_us=reading.at_us,
            load_seconds=reading.load_seconds,
            work_seconds=work,
            idle_seconds=reading.idle_seconds,
            # A shard in flight may still be committed, so its seconds are not waste yet.
            wasted_seconds=0.0 if running else rest,
            in_flight_seconds=rest if running else 0.0,
            killed=journal.finished_at_us is None and not running,
            running=running,
        )


def _rebuilt(shard: ShardRecord) -> ReplicaRecord:
    """A replica's journal, rebuilt from its newest commit, whose reading covers the replica's life until then."""
    started = shard.meter.at_us - round(shard.meter.seconds / shard.num_gpus * 1e6)
    return ReplicaRecord(
        **shard.ran(),
        started_at_us=max(0, started),
        ready_at_us=shard.started_at_us,
        finished_at_us=None,
        meter=shard.meter,
        shards_in_flight=(),
    )


def replica_accounts(
    shards: Iterable[ShardRecord], journals: Iterable[ReplicaRecord], alive: Collection[str] = ()
) -> list[ReplicaAccount]:
    """The account of each replica, ordered by start. `alive`: the ids of running replicas."""
    ledger = Ledger()
    for shard in shards:
        ledger.add(shard)
    return ledger.accounts(journals, alive)


def _newer(a: MeterReading, b: MeterReading) -> MeterReading:
    return a if a.at_us >= b.at_us else b


def totals(shards: Sequence[ShardRecord], replicas: Sequence[ReplicaAccount]) -> Totals:
    """The run's accounts."""
    first = [shard for shard in shards if shard.generation == 0]
    newest: dict[int, ShardRecord] = {}
    for shard in sorted(shards, key=lambda s: s.generation):
        newest[shard.shard_id] = shard
    errors: Counter[str] = Counter()
    for shard in newest.values():
        errors.update(shard.errors)
    return Totals(
        rows=sum(shard.rows for shard in first),
        rows_failed=sum(shard.rows_failed for shard in newest.values()),
        errors=dict(errors.most_common()),
        finish_reasons=_counted(shards),
        evaluation=_evaluation(shards),
        rows_ran=sum(shard.rows - shard.rows_rejected - shard.rows_reused for shard in shards),
        input_tokens=sum(shard.input_tokens for shard in shards),
        rejected_tokens=sum(shard.rejected_tokens for shard in shards),
        reasoning_tokens=sum(shard.reasoning_tokens for shard in shards),
        cached_tokens=sum(shard.cached_tokens for shard in shards),
        output_tokens=sum(shard.output_tokens for shard in shards),
        load_seconds=sum(r.load_seconds for r in replicas),
        work_seconds=sum(r.work_seconds for r in replicas),
        idle_seconds=sum(r.idle_seconds for r in replicas),
        wasted_seconds=sum(r.wasted_seconds for r in replicas),
        in_flight_seconds=sum(r.in_flight_seconds for r in replicas),
        active_seconds=active_seconds(replicas),
        up_seconds=_covered([(r.started_at_us, r.finished_at_us) for r in replicas]),
        cost_usd=sum(r.cost_usd for r in replicas),
        shards=len(first),
        steps=_steps(shards, newest.values()),
        rows_reused=sum(shard.rows_reused for shard in shards),
        tokens_reused=sum(shard.tokens_reused for shard in shards),
        rows_from_cache=sum(shard.rows_from_cache for shard in shards),
        tokens_from_cache=sum(shard.tokens_from_cache for shard in shards),
        saved_by_cache_usd=sum(shard.saved_by_cache_usd for shard in shards),
    )


def _steps(shards: Sequence[ShardRecord], newest: Iterable[ShardRecord]) -> dict[str, StepTotals]:
    newest = list(newest)
    names = dict.fromkeys(name for shard in shards for name in shard.steps)
    return {name: _step(name, shards, [shard.steps[name] for shard in newest if name in shard.steps]) for name in names}


def _step(name: str, shards: Sequence[ShardRecord], newest: Sequence[StepCount]) -> StepTotals:
    mine = [(shard, shard.steps[name]) for shard in shards if name in shard.steps]
    errors: Counter[str] = Counter()
    for step in newest:
        errors.update(step.errors)
    return StepTotals(
        rows=sum(step.rows for shard, step in mine if shard.generation == 0),
        rows_failed=errors.total(),
        errors=dict(errors.most_common()),
        input_tokens=sum(step.input_tokens for _, step in mine),
        cached_tokens=sum(step.cached_tokens for _, step in mine),
        output_tokens=sum(step.output_tokens for _, step in mine),
        work_seconds=sum(step.gpu_seconds for _, step in mine),
        cost_usd=sum(device_cost(step.gpu_seconds, shard.price_per_gpu_hour) for shard, step in mine),
        rows_reused=sum(step.rows_reused for _, step in mine),
        tokens_reused=sum(step.tokens_reused for _, step in mine),
        tokens_from_cache=sum(step.tokens_from_cache for _, step in mine),
        saved_by_cache_usd=sum(step.saved_by_cache_usd for _, step in mine),
    )


def active_seconds(replicas: Sequence[ReplicaAccount]) -> float:
    """Seconds in which at least one replica was ready."""
    return _covered([(r.ready_at_us, r.finished_at_us) for r in replicas if r.ready_at_us is not None])


def _counted(shards: Iterable[ShardRecord]) -> dict[str, int]:
    reasons: Counter[str] = Counter()
    for shard in shards:
        reasons.update(shard.finish_reasons)
    return dict(reasons.most_common())


def _evaluation(shards: Iterable[ShardRecord]) -> dict[str, tuple[int, int]]:
    """(right, compared) by group. A retry adds only to right: its rows failed before, and were compared as wrong."""
    groups: dict[str, tuple[int, int]] = {}
    for shard in shards:
        for group, (right, compared) in shard.evaluation.items():
            before = groups.get(group, (0, 0))
            groups[group] = (before[0] + right, before[1] + (0 if shard.generation else compared))
    return dict(sorted(groups.items()))


def _covered(spans: Iterable[tuple[int, int]]) -> float:
    """Seconds in which at least one of the spans (microseconds) runs."""
    covered, end = 0, 0
    for start, stop in sorted(spans):
        covered += max(0, stop - max(start, end))
        end = max(end, stop)
    return covered / 1e6


REPLICAS_SCHEMA = pa.schema(
    [
        ("replica_id", pa.string()),
        ("run_id", pa.string()),
        ("node", pa.string()),
        ("accelerator", pa.string()),
        ("num_gpus", pa.int32()),
        ("price_per_gpu_hour", pa.float64()),
        ("started_at", TIMESTAMP),
        ("ready_at", TIMESTAMP),
        ("finished_at", TIMESTAMP),
        ("gpu_seconds", pa.float64()),
        ("load_seconds", pa.float64()),
        ("work_seconds", pa.float64()),
        ("idle_seconds", pa.float64()),
        ("wasted_seconds", pa.float64()),
        ("cost_usd", pa.float64()),
        ("killed", pa.bool_()),
        ("job_name", pa.string()),
        ("labels", pa.string()),
        ("model", pa.string()),
        ("quantization", pa.string()),
        ("dtype", pa.string()),
        ("tensor_parallel", pa.int32()),
        ("pipeline_parallel", pa.int32()),
        ("price_source", pa.string()),
        column("session", pa.int32(), "which of the run's commands started it, from 1: `_run/plans/` has its plan"),
        column("rows", pa.int64(), "rows of the output that it committed; a retried row counts where it ran first"),
        column("rows_ran", pa.int64(), "rows that its engine ran, retried ones included"),
        column("input_tokens", pa.int64(), "tokens of the prompts of its committed shards"),
        column("cached_tokens", pa.int64(), "tokens of these prompts that were in the prefix cache"),
        column("output_tokens", pa.int64(), "tokens of the answers of its committed shards"),
    ]
)


def replicas_table(replicas: Sequence[ReplicaAccount]) -> pa.Table:
    """The rows of `_run/replicas.parquet`."""
    rows: list[dict[str, Any]] = []
    for replica in replicas:
        row: dict[str, Any] = replica.model_dump(exclude={"running", "in_flight_seconds", "committed"})
        row |= replica.committed.model_dump()
        row["labels"] = json.dumps(row["labels"], sort_keys=True)
        for name in ("started_at", "ready_at", "finished_at"):
            row[name] = row.pop(f"{name}_us")
        rows.append(row | {"gpu_seconds": replica.gpu_seconds, "cost_usd": replica.cost_usd})
    return pa.Table.from_pylist(rows, schema=REPLICAS_SCHEMA)


def accounts_of(table: pa.Table) -> list[ReplicaAccount]:
    """The inverse of `replicas_table`. Raises ValueError for a table of a version that wrote no tokens."""
    times = ("started_at", "ready_at", "finished_at")
    missing = sorted({*REPLICAS_SCHEMA.names} - {*table.column_names})
    if missing:
        raise ValueError(f"it has no {', '.join(missing)}")
    micros = {name: table.column(name).cast(pa.int64()).to_pylist() for name in times}
    made = []
    for i, row in enumerate(table.drop_columns([*times, "gpu_seconds", "cost_usd"]).to_pylist()):
        row |= {f"{name}_us": micros[name][i] for name in times}
        row["labels"] = json.loads(row["labels"])
        row["committed"] = {name: row.pop(name) for name in Counts.model_fields}
        made.append(ReplicaAccount.model_validate(row))
    return made

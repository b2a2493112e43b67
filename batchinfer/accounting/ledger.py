"""The ledger: from the shards' and the replicas' records to where every device-second and cent went. Pure.

The law. A replica's lifetime x devices = load + busy + idle, as its meter read them (see `meter`). Busy
is the sum of the shares of every shard attempt on it. What was committed of that is work; the rest was
spent on attempts that were lost (a crash, a late second attempt) and is waste. So over a run

    sum of the shards' gpu_seconds + the replicas' load + idle + wasted = lifetimes x devices

and with one price a replica the same holds for the money.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from batchinfer.accounting.records import TIMESTAMP, MeterReading, ReplicaRecord, ShardRecord
from batchinfer.catalog.accelerators import device_cost


class ReplicaAccount(BaseModel):
    """One row of `_run/replicas.parquet`. Seconds are device-seconds; `finished_at_us` of a replica that
    was killed is the last moment it is known to have lived."""

    model_config = ConfigDict(frozen=True)

    replica_id: str
    run_id: str
    node: str
    accelerator: str
    num_gpus: int
    price_per_gpu_hour: float
    started_at_us: int
    ready_at_us: int | None
    finished_at_us: int
    load_seconds: float
    work_seconds: float
    idle_seconds: float
    wasted_seconds: float
    killed: bool

    @property
    def gpu_seconds(self) -> float:
        """Lifetime x devices."""
        return (self.finished_at_us - self.started_at_us) / 1e6 * self.num_gpus

    @property
    def cost_usd(self) -> float:
        return device_cost(self.gpu_seconds, self.price_per_gpu_hour)


class Totals(BaseModel):
    """A run's accounts. Rows and failures count each row once, as it stands after retries; tokens and
    money count everything that was spent."""

    model_config = ConfigDict(frozen=True)

    rows: int
    rows_failed: int
    errors: dict[str, int]
    finish_reasons: dict[str, int]
    evaluation: dict[str, tuple[int, int]]
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    load_seconds: float
    work_seconds: float
    idle_seconds: float
    wasted_seconds: float
    active_seconds: float
    up_seconds: float
    cost_usd: float
    shards: int


class Ledger:
    """What became of each replica's time, from the records of the shards, which it is fed one by one."""

    def __init__(self) -> None:
        self._work: dict[str, float] = defaultdict(float)
        self._newest: dict[str, MeterReading] = {}

    def add(self, shard: ShardRecord) -> None:
        """A shard was committed."""
        self._work[shard.replica_id] += shard.gpu_seconds
        self._newest[shard.replica_id] = _newer(shard.meter, self._newest.get(shard.replica_id))

    def accounts(self, journals: Iterable[ReplicaRecord]) -> list[ReplicaAccount]:
        """The account of each replica, in the order in which they started.

        A journal may be older than the replica's last commit, when the replica was killed between the two:
        the newest of the readings counts.
        """
        made = [self._account(journal) for journal in journals]
        return sorted(made, key=lambda account: (account.started_at_us, account.replica_id))

    def _account(self, journal: ReplicaRecord) -> ReplicaAccount:
        reading = _newer(journal.meter, self._newest.get(journal.replica_id))
        work = self._work.get(journal.replica_id, 0.0)
        return ReplicaAccount(
            **journal.model_dump(exclude={"meter", "shards_in_flight", "finished_at_us"}),
            finished_at_us=reading.at_us,
            load_seconds=reading.load_seconds,
            work_seconds=work,
            idle_seconds=reading.idle_seconds,
            wasted_seconds=max(0.0, reading.busy_seconds - work),
            killed=journal.finished_at_us is None,
        )


def replica_accounts(shards: Iterable[ShardRecord], journals: Iterable[ReplicaRecord]) -> list[ReplicaAccount]:
    """What became of each replica's time."""
    ledger = Ledger()
    for shard in shards:
        ledger.add(shard)
    return ledger.accounts(journals)


def _newer(a: MeterReading, b: MeterReading | None) -> MeterReading:
    return a if b is None or a.at_us >= b.at_us else b


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
        input_tokens=sum(shard.input_tokens for shard in shards),
        cached_tokens=sum(shard.cached_tokens for shard in shards),
        output_tokens=sum(shard.output_tokens for shard in shards),
        load_seconds=sum(r.load_seconds for r in replicas),
        work_seconds=sum(r.work_seconds for r in replicas),
        idle_seconds=sum(r.idle_seconds for r in replicas),
        wasted_seconds=sum(r.wasted_seconds for r in replicas),
        active_seconds=_covered([(r.ready_at_us, r.finished_at_us) for r in replicas if r.ready_at_us is not None]),
        up_seconds=_covered([(r.started_at_us, r.finished_at_us) for r in replicas]),
        cost_usd=sum(r.cost_usd for r in replicas),
        shards=len(first),
    )


def _counted(shards: Iterable[ShardRecord]) -> dict[str, int]:
    reasons: Counter[str] = Counter()
    for shard in shards:
        reasons.update(shard.finish_reasons)
    return dict(reasons.most_common())


def _evaluation(shards: Iterable[ShardRecord]) -> dict[str, tuple[int, int]]:
    """A retry's rows were compared before, and were not right then."""
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
    ]
)


def replicas_table(replicas: Sequence[ReplicaAccount]) -> pa.Table:
    """The rows of `_run/replicas.parquet`."""
    rows: list[dict[str, Any]] = []
    for replica in replicas:
        row: dict[str, Any] = replica.model_dump()
        for name in ("started_at", "ready_at", "finished_at"):
            row[name] = row.pop(f"{name}_us")
        rows.append(row | {"gpu_seconds": replica.gpu_seconds, "cost_usd": replica.cost_usd})
    return pa.Table.from_pylist(rows, schema=REPLICAS_SCHEMA)

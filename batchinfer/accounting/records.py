"""What is written down about a shard and about a replica: the rows of the accounting.

A `ShardRecord` is the one row of an accounting file, and rides in the footer of the shard's data file
too. A `ReplicaRecord` is a replica's journal, written by the replica itself while it lives, so that a
crash loses at most the seconds since the last entry. Timestamps are whole microseconds since 1970 (UTC):
sums of differences are then exact.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, PositiveInt

from batchinfer.catalog.accelerators import device_cost
from batchinfer.errors import REJECTED_CODES

TIMESTAMP = pa.timestamp("us", tz="UTC")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class MeterReading(_Record):
    """Where a replica's device-seconds have gone up to `at_us`: load + busy + idle = its lifetime x devices."""

    at_us: NonNegativeInt
    load_seconds: NonNegativeFloat
    busy_seconds: NonNegativeFloat
    idle_seconds: NonNegativeFloat

    @property
    def seconds(self) -> float:
        """Device-seconds of the whole life."""
        return self.load_seconds + self.busy_seconds + self.idle_seconds


class ShardRecord(_Record):
    """What one attempt at one shard took. Seconds named gpu_seconds are device-seconds.

    `generation` is 0 for the first commit and counts the retries of its failed rows; a retry's record
    covers the rows that it ran again. `errors` counts the rows that failed, `finish_reasons` the answers of
    those that did not; `evaluation` maps a
    group to [right, compared]. `meter` is the replica's reading when the shard was finished.
    `labels` are the spec's. `input_tokens` are of rows that the engine ran; `rejected_tokens` those of prompts that
    it never ran (see `errors.REJECTED_CODES`). Files of earlier versions lack the fields that have defaults.
    """

    run_id: str
    job_name: str
    shard_id: NonNegativeInt
    attempt: NonNegativeInt
    generation: NonNegativeInt
    replica_id: str
    node: str
    accelerator: str
    num_gpus: PositiveInt
    model: str
    revision: str | None
    quantization: str
    tensor_parallel: int
    pipeline_parallel: int
    rows: NonNegativeInt
    rows_failed: NonNegativeInt
    input_tokens: NonNegativeInt
    cached_tokens: NonNegativeInt
    output_tokens: NonNegativeInt
    started_at_us: NonNegativeInt
    finished_at_us: NonNegativeInt
    gpu_seconds: NonNegativeFloat
    price_per_gpu_hour: NonNegativeFloat
    errors: dict[str, int]
    finish_reasons: dict[str, int]
    evaluation: dict[str, tuple[int, int]]
    meter: MeterReading
    labels: dict[str, str] = {}
    rejected_tokens: NonNegativeInt = 0
    reasoning_tokens: NonNegativeInt = 0
    """Tokens of the thinking, a part of `output_tokens`."""
    dtype: str = "auto"

    @property
    def rows_rejected(self) -> int:
        """Rows that the engine never ran."""
        return sum(count for code, count in self.errors.items() if code in REJECTED_CODES)

    @property
    def wall_seconds(self) -> float:
        return (self.finished_at_us - self.started_at_us) / 1e6

    @property
    def tokens_per_second(self) -> float:
        tokens = self.input_tokens + self.output_tokens
        return tokens / self.wall_seconds if self.wall_seconds > 0 else 0.0

    @property
    def cost_usd(self) -> float:
        return device_cost(self.gpu_seconds, self.price_per_gpu_hour)


class ReplicaRecord(_Record):
    """One replica's life so far. `finished_at_us` is None while it lives, and for ever if it was killed.

    `shards_in_flight` of one that was killed are the shards whose attempts were lost with it. What has a default,
    journals of earlier versions lack.
    """

    replica_id: str
    run_id: str
    node: str
    accelerator: str
    num_gpus: PositiveInt
    price_per_gpu_hour: NonNegativeFloat
    started_at_us: NonNegativeInt
    ready_at_us: NonNegativeInt | None
    finished_at_us: NonNegativeInt | None
    meter: MeterReading
    shards_in_flight: tuple[int, ...]
    job_name: str = ""
    labels: dict[str, str] = {}
    model: str = ""
    quantization: str = ""
    dtype: str = "auto"
    tensor_parallel: PositiveInt = 1
    pipeline_parallel: PositiveInt = 1
    price_source: str = ""


ACCOUNTING_SCHEMA = pa.schema(
    [
        ("run_id", pa.string()),
        ("job_name", pa.string()),
        ("shard_id", pa.int32()),
        ("attempt", pa.int32()),
        ("generation", pa.int32()),
        ("replica_id", pa.string()),
        ("node", pa.string()),
        ("accelerator", pa.string()),
        ("num_gpus", pa.int32()),
        ("model", pa.string()),
        ("revision", pa.string()),
        ("quantization", pa.string()),
        ("tensor_parallel", pa.int32()),
        ("pipeline_parallel", pa.int32()),
        ("rows", pa.int64()),
        ("rows_failed", pa.int64()),
        ("input_tokens", pa.int64()),
        ("cached_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("started_at", TIMESTAMP),
        ("finished_at", TIMESTAMP),
        ("wall_seconds", pa.float64()),
        ("gpu_seconds", pa.float64()),
        ("tokens_per_second", pa.float64()),
        ("price_per_gpu_hour", pa.float64()),
        ("cost_usd", pa.float64()),
        ("errors", pa.string()),
        ("finish_reasons", pa.string()),
        ("evaluation", pa.string()),
        ("meter", pa.string()),
        ("labels", pa.string()),
        ("rejected_tokens", pa.int64()),
        ("dtype", pa.string()),
        ("reasoning_tokens", pa.int64()),
    ]
)

_JSON_COLUMNS = ("errors", "finish_reasons", "evaluation", "meter", "labels")


def shard_table(records: Sequence[ShardRecord]) -> pa.Table:
    """The records as rows of the accounting schema."""
    rows = []
    for record in records:
        row: dict[str, Any] = record.model_dump()
        row.update({name: json.dumps(row[name], sort_keys=True) for name in _JSON_COLUMNS})
        row["started_at"] = row.pop("started_at_us")
        row["finished_at"] = row.pop("finished_at_us")
        row["wall_seconds"] = record.wall_seconds
        row["tokens_per_second"] = record.tokens_per_second
        row["cost_usd"] = record.cost_usd
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=ACCOUNTING_SCHEMA)


def shard_records(table: pa.Table) -> list[ShardRecord]:
    """The inverse of `shard_table`."""
    derived = ("wall_seconds", "tokens_per_second", "cost_usd", "started_at", "finished_at")
    times = {name: table.column(name).cast(pa.int64()).to_pylist() for name in ("started_at", "finished_at")}
    records = []
    for i, row in enumerate(table.drop_columns(list(derived)).to_pylist()):
        row.update({name: json.loads(row[name]) for name in _JSON_COLUMNS if name in row})
        row["started_at_us"] = times["started_at"][i]
        row["finished_at_us"] = times["finished_at"][i]
        records.append(ShardRecord.model_validate(row))
    return records

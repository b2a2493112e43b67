"""The accounting records of a shard and of a replica.

A `ShardRecord` is the only row of an accounting file; the footer of the shard's data file has a copy. A
`ReplicaRecord` is the journal that a running replica writes, so that a crash loses at most the seconds since the last
entry. Timestamps are whole microseconds since 1970 (UTC), because sums of their differences are exact.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from batchinfer.catalog.accelerators import device_cost
from batchinfer.errors import REJECTED_CODES

TIMESTAMP = pa.timestamp("us", tz="UTC")


def column(name: str, kind: pa.DataType, what: str) -> pa.Field:
    """A column that says what it holds, for the reference."""
    return pa.field(name, kind, metadata={"what": what})


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class Setup(BaseModel):
    """What replicas ran with: device, weights, layout and price."""

    model_config = ConfigDict(frozen=True, protected_namespaces=(), use_attribute_docstrings=True)

    accelerator: str
    """The device of the replicas."""
    quantization: str
    """How the weights were quantized."""
    dtype: str
    """The spec's `model.dtype` when the replicas ran."""
    tensor_parallel: PositiveInt
    """GPUs that share each layer in a replica."""
    pipeline_parallel: PositiveInt
    """Stages that a replica's layers are split into."""
    price_per_gpu_hour: NonNegativeFloat
    """Dollars for one GPU and hour, or for one replica and hour on a CPU."""


class Ran(_Record, Setup):
    """Which replica ran, for which job, and with what: the same in its journal, in its account and in its shards.

    Each record names the fields that files of earlier versions lack in `earlier`, with the value to take for them.
    """

    earlier: ClassVar[Mapping[str, Any]] = {}

    replica_id: str
    run_id: str
    job_name: str
    node: str
    num_gpus: PositiveInt
    model: str
    labels: dict[str, str]
    """The spec's `labels`."""
    session: NonNegativeInt = 0
    """Which of the run's commands started the replica, from 1; 0 in files of versions that did not count them."""

    @model_validator(mode="before")
    @classmethod
    def _of_an_earlier_version(cls, values: Any) -> Any:
        return {**cls.earlier, **values} if isinstance(values, dict) else values

    def ran(self) -> dict[str, Any]:
        """The fields of this class, to make another record of the same replica from."""
        return {name: getattr(self, name) for name in Ran.model_fields}


class MeterReading(_Record):
    """A replica's device-seconds up to `at_us`: load + busy + idle = lifetime x devices."""

    at_us: NonNegativeInt
    load_seconds: NonNegativeFloat
    busy_seconds: NonNegativeFloat
    idle_seconds: NonNegativeFloat

    @property
    def seconds(self) -> float:
        """Device-seconds of the replica's life up to `at_us`."""
        return self.load_seconds + self.busy_seconds + self.idle_seconds


class StepCount(_Record):
    """What one step of a job with `steps` did in a shard, over the rows that asked the engine or failed before."""

    rows: NonNegativeInt
    """Rows without those that skipped the step."""
    rows_failed: NonNegativeInt
    input_tokens: NonNegativeInt
    cached_tokens: NonNegativeInt
    output_tokens: NonNegativeInt
    reasoning_tokens: NonNegativeInt
    rejected_tokens: NonNegativeInt
    errors: dict[str, int]
    gpu_seconds: NonNegativeFloat
    """Its part of the record's device-seconds, by how long the engine had its requests."""
    rows_reused: NonNegativeInt = 0
    """Rows whose answer was that of an equal request."""
    tokens_reused: NonNegativeInt = 0
    """Tokens of those answers and their prompts, which did not run again."""
    tokens_from_cache: NonNegativeInt = 0
    """The part of `tokens_reused` whose answers an earlier run had."""
    saved_by_cache_usd: NonNegativeFloat = 0.0
    """Dollars that `tokens_from_cache` cost in that run."""


class ShardRecord(Ran):
    """The accounting of one committed attempt at a shard. `gpu_seconds` are device-seconds.

    `generation` is 0 for the first commit and counts the retries of its failed rows; a retry's record covers only
    the retried rows. `errors` counts failed rows by code, `finish_reasons` the answers of the other rows.
    `evaluation` maps a group to [right, compared]. `meter` is the replica's reading when the shard was finished.
    `input_tokens` are of rows that the engine ran, `rejected_tokens` of prompts that it never ran (see
    `errors.REJECTED_CODES`).
    """

    earlier = MappingProxyType({"labels": {}, "dtype": "auto", "rejected_tokens": 0})

    shard_id: NonNegativeInt
    attempt: NonNegativeInt
    generation: NonNegativeInt
    revision: str | None
    rows: NonNegativeInt
    rows_failed: NonNegativeInt
    input_tokens: NonNegativeInt
    cached_tokens: NonNegativeInt
    output_tokens: NonNegativeInt
    started_at_us: NonNegativeInt
    finished_at_us: NonNegativeInt
    gpu_seconds: NonNegativeFloat
    errors: dict[str, int]
    finish_reasons: dict[str, int]
    evaluation: dict[str, tuple[int, int]]
    meter: MeterReading
    rejected_tokens: NonNegativeInt
    reasoning_tokens: NonNegativeInt = 0
    """Tokens of the thinking, a part of `output_tokens`."""
    steps: dict[str, StepCount] = {}
    """By the name of the step; empty for a job with one prompt. Tokens and seconds add up to the record's own."""
    rows_reused: NonNegativeInt = 0
    """Rows that took no tokens, since all their answers were those of equal requests."""
    tokens_reused: NonNegativeInt = 0
    """Tokens of such answers and their prompts, which did not run again; they count in no other field."""
    rows_from_cache: NonNegativeInt = 0
    """The part of `rows_reused` with an answer that an earlier run had."""
    tokens_from_cache: NonNegativeInt = 0
    """The part of `tokens_reused` whose answers an earlier run had."""
    saved_by_cache_usd: NonNegativeFloat = 0.0
    """Dollars that `tokens_from_cache` cost in that run."""

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


class ReplicaRecord(Ran):
    """One replica's life so far. `finished_at_us` is None while the replica runs, and stays None if it was killed.

    `shards_in_flight` of a killed replica are the shards whose attempts were lost.
    """

    earlier = MappingProxyType(
        {
            "job_name": "", "labels": {}, "model": "", "quantization": "", "dtype": "auto", "tensor_parallel": 1,
            "pipeline_parallel": 1,
        }
    )  # fmt: skip

    started_at_us: NonNegativeInt
    ready_at_us: NonNegativeInt | None
    finished_at_us: NonNegativeInt | None
    meter: MeterReading
    shards_in_flight: tuple[int, ...]
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
        ("steps", pa.string()),
        column("session", pa.int32(), "which of the run's commands it was of, from 1: `_run/plans/` has its plan"),
        ("rows_reused", pa.int64()),
        ("tokens_reused", pa.int64()),
        column("rows_from_cache", pa.int64(), "those of rows_reused with an answer that an earlier run had (`cache`)"),
        column("tokens_from_cache", pa.int64(), "those of tokens_reused whose answers an earlier run had"),
        column("saved_by_cache_usd", pa.float64(), "dollars that tokens_from_cache cost in that run"),
    ]
)

_JSON_COLUMNS = ("errors", "finish_reasons", "evaluation", "meter", "labels", "steps")


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

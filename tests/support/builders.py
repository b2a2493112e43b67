"""Values that many tests need, with every key that a test does not care about filled in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer.accounting.ledger import replica_accounts, totals
from batchinfer.accounting.records import MeterReading, ReplicaRecord, ShardRecord
from batchinfer.accounting.report import Report, make_report
from batchinfer.execution.shard_block import Envelope
from batchinfer.input import build_manifest, read_shards
from batchinfer.input.manifest import Fingerprint, Manifest
from batchinfer.jobspec import CsvSpec, InputSpec, JobSpec, parse
from batchinfer.planner import Plan

SPEC = """\
name: a-job
model: {source: scripted}
input: {uri: /in, id_column: id}
prompt: {template: "Say {{ text }}"}
output: {uri: /out}
"""


def spec_text(**sections: Any) -> str:
    """The least spec there is, as JSON (which is YAML), with whole sections put in place of its own."""
    least: dict[str, Any] = {
        "name": "a-job",
        "model": {"source": "scripted"},
        "input": {"uri": "/in", "id_column": "id"},
        "prompt": {"template": "Say {{ text }}"},
        "output": {"uri": "/out"},
    }
    return json.dumps(least | sections)


def make_spec(**sections: Any) -> JobSpec:
    return parse(spec_text(**sections))


def make_fingerprint(**values: Any) -> Fingerprint:
    known: dict[str, Any] = {"run_id": "run", "spec": {}}
    return Fingerprint(**(known | values))


def make_envelope(**values: Any) -> Envelope:
    known: dict[str, Any] = {"shard_id": 0, "generation": 0, "first_row": 0}
    return Envelope(**(known | values))


def make_plan(**values: Any) -> Plan:
    known: dict[str, Any] = {
        "model": "a-model",
        "quantization": "auto",
        "accelerator": "H100",
        "tensor_parallel": 2,
        "pipeline_parallel": 1,
        "min_replicas": 1,
        "max_replicas": 1,
        "num_gpus": 2,
        "price_per_gpu_hour": 3.6,
        "price_source": "a price list",
        "kv_cache_memory_bytes": None,
    }
    return Plan(**(known | values))


def make_reading(at_us: int = 10_000_000, load: float = 0.0, busy: float = 0.0, idle: float = 0.0) -> MeterReading:
    return MeterReading(at_us=at_us, load_seconds=load, busy_seconds=busy, idle_seconds=idle)


def make_record(shard_id: int = 0, **values: Any) -> ShardRecord:
    known: dict[str, Any] = {
        "run_id": "run",
        "job_name": "a-job",
        "shard_id": shard_id,
        "attempt": 1,
        "generation": 0,
        "replica_id": "r1",
        "node": "n1",
        "accelerator": "H100",
        "num_gpus": 2,
        "model": "a-model",
        "revision": None,
        "quantization": "auto",
        "tensor_parallel": 2,
        "pipeline_parallel": 1,
        "rows": 4,
        "rows_failed": 0,
        "input_tokens": 40,
        "cached_tokens": 8,
        "output_tokens": 20,
        "started_at_us": 1_000_000,
        "finished_at_us": 3_000_000,
        "gpu_seconds": 4.0,
        "price_per_gpu_hour": 3.6,
        "errors": {},
        "finish_reasons": {"stop": 4},
        "evaluation": {},
        "meter": make_reading(),
        "labels": {"team": "search"},
    }
    return ShardRecord(**(known | values))


def make_journal(replica_id: str = "r1", **values: Any) -> ReplicaRecord:
    known: dict[str, Any] = {
        "replica_id": replica_id,
        "run_id": "run",
        "node": "n1",
        "accelerator": "H100",
        "num_gpus": 2,
        "price_per_gpu_hour": 3.6,
        "started_at_us": 1_000_000,
        "ready_at_us": 2_000_000,
        "finished_at_us": 10_000_000,
        "meter": make_reading(),
        "shards_in_flight": (),
    }
    return ReplicaRecord(**(known | values))


def make_report_value(*, work_seconds: float = 100.0, load_seconds: float = 10.0, **values: Any) -> Report:
    """The report of a run of one shard on one replica of one device; `values` of the shard's record."""
    end = round((work_seconds + load_seconds) * 1e6)
    meter = make_reading(end, load=load_seconds, busy=work_seconds)
    known: dict[str, Any] = {"num_gpus": 1, "gpu_seconds": work_seconds, "finished_at_us": end, "meter": meter}
    record = make_record(**(known | values))
    of_plan = ("model", "accelerator", "quantization", "tensor_parallel", "pipeline_parallel")
    journal = make_journal(
        num_gpus=1,
        started_at_us=0,
        ready_at_us=round(load_seconds * 1e6),
        finished_at_us=end,
        meter=meter,
        **{name: getattr(record, name) for name in of_plan},
    )
    accounts = replica_accounts([record], [journal])
    return make_report(
        job_name=record.job_name,
        run_id=record.run_id,
        output="/somewhere/out",
        plan=make_plan(num_gpus=1, **{name: getattr(record, name) for name in of_plan}),
        totals=totals([record], accounts),
        replicas=accounts,
        rows_in_input=record.rows,
        shards_in_input=1,
        max_error_rate=0.05,
    )


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def write_lines(path: Path, *rows: Any) -> Path:
    """JSON lines: a text is written as it is, anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def manifest_of(uri: Path | str, columns: list[str], file_format: str = "parquet", **values: Any) -> Manifest:
    """The manifest of the input at `uri`, read for `columns`. `values`: rows and max_bytes of shards, keys of input."""
    shards = {"rows": "auto"} | {key: values.pop(key) for key in ("rows", "max_bytes") if key in values}
    spec = make_spec(input={"uri": str(uri), "format": file_format, "id_column": None, **values}, shards=shards)
    return build_manifest(spec, dict.fromkeys(columns, "input.columns"), make_fingerprint())


def rows_of(
    manifest: Manifest, uri: Path | str, file_format: str = "parquet", csv: CsvSpec | None = None
) -> list[dict[str, Any]]:
    """All rows of the manifest's shards, one reader for all of them."""
    given = InputSpec.model_validate({"uri": str(uri), "format": file_format, "csv": csv or CsvSpec()})
    shards = read_shards(manifest.shards, manifest.schema, manifest.partitions, given)
    return [row for _, table in shards for row in table.to_pylist()]

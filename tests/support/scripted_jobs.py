"""Jobs on the scripted engine: their input, their spec, what they leave behind, and a listener."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer.accounting.records import ShardRecord
from batchinfer.execution.progress import Progress
from batchinfer.jobspec import JobSpec


class KeepingListener:
    """Keeps the events and the progress."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.progress: list[Progress] = []
        self.records: list[ShardRecord] = []

    def event(self, name: str, **values: Any) -> None:
        self.events.append((name, values))

    def begin(self, progress: Progress) -> None:
        self.progress.append(progress)

    def advance(self, progress: Progress, record: ShardRecord) -> None:
        self.progress.append(progress)
        self.records.append(record)

    def end(self) -> None:
        pass


def write_corpus(folder: Path) -> Path:
    """See `corpus`."""
    folder.mkdir()
    for number, (start, stop) in enumerate([(0, 400), (400, 700), (700, 1000)]):
        ids = [f"row-{i:04d}" for i in range(start, stop)]
        table = pa.table(
            {
                "id": ids,
                "text": [f"the text of {i}" for i in ids],
                "topic": ["even" if i % 2 == 0 else "odd" for i in range(start, stop)],
            }
        )
        pq.write_table(table, folder / f"part-{number}.parquet", row_group_size=150)
    return folder


def scripted_spec(corpus: Path, output: Path, /, **changes: Any) -> JobSpec:
    """A job on the scripted engine that echoes the text; `changes` are keys of the spec."""
    values: dict[str, Any] = {
        "name": "scripted",
        "model": {"source": "scripted"},
        "input": {"uri": str(corpus), "id_column": "id", "columns": ["topic"]},
        "prompt": {"template": "{{ text }}"},
        "sampling": {"max_tokens": 64},
        "output": {"uri": str(output)},
        "shards": {"rows": 100},
    }
    return JobSpec.model_validate(values | changes)


def results(output: Path) -> pa.Table:
    """All results of a run, in the order of shards and rows."""
    return pq.read_table(output / "data")


def assert_ledger_adds_up(output: Path) -> None:
    """The law of the ledger, from the files alone."""
    shards = pq.read_table(output / "accounting")
    replicas = pq.read_table(output / "_run" / "replicas.parquet")

    def total(table: pa.Table, name: str) -> float:
        return float(sum(table.column(name).to_pylist()))

    spent = total(shards, "gpu_seconds") + sum(
        total(replicas, name) for name in ("load_seconds", "idle_seconds", "wasted_seconds")
    )
    lifetimes = sum(
        (row["finished_at"] - row["started_at"]).total_seconds() * row["num_gpus"] for row in replicas.to_pylist()
    )
    assert spent == pytest.approx(lifetimes, abs=1e-6)
    assert total(replicas, "gpu_seconds") == pytest.approx(lifetimes, abs=1e-6)
    hours = sum(row["gpu_seconds"] * row["price_per_gpu_hour"] / 3600 for row in replicas.to_pylist())
    assert total(replicas, "cost_usd") == pytest.approx(hours, abs=1e-9)

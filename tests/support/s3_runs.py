"""Jobs on S3 for tests: their specs, and whether what they leave is whole."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer.jobspec import JobSpec
from batchinfer.storage import Storage, join
from tests.support.scripted_jobs import scripted_spec


def spec_on(url: str, corpus: str, output: str, options: dict[str, Any] | None = None, **changes: Any) -> JobSpec:
    given = {"input": {"uri": corpus, "id_column": "id", "columns": ["topic", "split"]}, **changes}
    bucket = "/".join(output.split("/")[:3])
    return scripted_spec(Path(), Path(), **{
        "output": {"uri": output},
        "storage": {bucket: {"endpoint_url": url, **(options or {})}},
        **given,
    })  # fmt: skip


def table(store: Storage, folder: str) -> pa.Table:
    """All Parquet files of a folder, in order."""
    return pa.concat_tables([pq.read_table(io.BytesIO(store.read(e.uri))) for e in store.list(folder)])


def assert_whole(store: Storage, output: str) -> None:
    """Every row once, in order, as it should be; and the law of the ledger."""
    rows = table(store, join(output, "data"))
    assert rows.column("id").to_pylist() == [f"row-{i:04d}" for i in range(1000)]
    assert rows.column("output").to_pylist() == [f"the text of row-{i:04d}" for i in range(1000)]
    assert set(rows.column("split").to_pylist()) == {"all"}
    assert rows.column("error_code").null_count == 1000
    shards = table(store, join(output, "accounting"))
    assert sorted(shards.column("shard_id").to_pylist()) == list(range(shards.num_rows))
    replicas = pq.read_table(io.BytesIO(store.read(join(output, "_run", "replicas.parquet")))).to_pylist()
    spent = sum(shards.column("gpu_seconds").to_pylist()) + sum(
        row[name] for row in replicas for name in ("load_seconds", "idle_seconds", "wasted_seconds")
    )
    lifetimes = sum((row["finished_at"] - row["started_at"]).total_seconds() for row in replicas)
    assert spent == pytest.approx(lifetimes, abs=1e-6)

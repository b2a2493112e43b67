"""Shared by the tests that run jobs: a Ray cluster of the session, and a listener that keeps what it hears."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer.accounting.records import ShardRecord
from batchinfer.execution import ray_pipeline
from batchinfer.execution.progress import Progress
from batchinfer.jobspec import JobSpec, StoreSpec
from batchinfer.storage import Storage, storage_for

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# For the moto server, and in place before any Ray worker starts; nothing of the developer's own is used.
os.environ.update(
    AWS_ACCESS_KEY_ID="testing",
    AWS_SECRET_ACCESS_KEY="testing",
    AWS_DEFAULT_REGION="us-east-1",
    AWS_EC2_METADATA_DISABLED="true",
    AWS_CONFIG_FILE=os.devnull,
    AWS_SHARED_CREDENTIALS_FILE=os.devnull,
)
for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
    os.environ.pop(name, None)

ROOT = Path(__file__).parent.parent


_SLOWEST = (
    *("test_kills.py", "test_architectures.py", "test_recurring.py", "test_model_keys.py", "test_vllm_engine.py"),
    *("test_submit.py", "test_runner.py", "test_parallel_jobs.py", "test_store_faults.py"),
    *("test_jobs.py", "test_cli.py", "test_s3_jobs.py", "test_placement.py", "test_secrets.py", "test_s3.py"),
    "test_code_blocks.py",
)
"""Begun first, so that two workers end at about the same time. A worker has its next file before it has ended the
one it is at, and so the second worker gets all three of the engine's, which share a process (engine_process.py)."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: i for i, name in enumerate(_SLOWEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


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


@pytest.fixture
def listener() -> KeepingListener:
    return KeepingListener()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local cluster for all tests that run a job in this process."""
    with ray_pipeline.connected(None):
        yield


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """1,000 rows in three files: id, text, topic."""
    return write_corpus(tmp_path / "corpus")


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


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """The address of a moto server in a process of its own."""
    server = subprocess.Popen([sys.executable, ROOT / "tests" / "s3_server.py"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        assert url.startswith("http://"), "the moto server did not start"
        yield url
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def bucket(s3_url: str) -> str:
    """The URI of a bucket of the test's own."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    boto3.client("s3", endpoint_url=s3_url).create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture
def store(s3_url: str) -> Storage:
    """The store without faults."""
    return storage_for("s3://any", {"s3://": StoreSpec(endpoint_url=s3_url)})


@pytest.fixture
def remote_corpus(corpus: Path, bucket: str, store: Storage) -> str:
    """The corpus in the bucket, with things beside it that are no input."""
    for path in corpus.iterdir():
        store.put(f"{bucket}/in/split=all/{path.name}", path.read_bytes())
    store.put(f"{bucket}/in/_SUCCESS", b"")
    store.put(f"{bucket}/in/_old/part-9.parquet", b"no Parquet")
    return f"{bucket}/in"

"""Fixtures of several packages: input, a Ray cluster and an S3 server of the session."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings

from batchinfer.jobspec import StoreSpec
from batchinfer.storage import Storage, storage_for
from tests.support import ROOT, tiers
from tests.support.scripted_jobs import KeepingListener, write_corpus

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

# Both measure the machine, which is shared: how long an example takes, and how long it takes to draw one.
settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")

_SLOWEST = (
    *("test_kills.py", "test_architectures.py", "test_recurring.py", "test_model_keys.py", "test_vllm_engine.py"),
    *("test_submit.py", "test_runner.py", "test_parallel_jobs.py", "test_store_faults.py"),
    *("test_jobs.py", "test_cli.py", "test_s3_jobs.py", "test_placement.py", "test_secrets.py", "test_s3.py"),
    "test_code_blocks.py",
)
"""Begun first, so that two workers end at about the same time. A worker has its next file before it has ended the
one it is at, and so the second worker gets all three of the engine's, which share a process (engine_process.py)."""


def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in tiers.MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


# First, so that `-m unit` finds the markers.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: i for i, name in enumerate(_SLOWEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))
    for item in items:
        item.add_marker(tier_of(item))
    early = tiers.HEAVY & sys.modules.keys()
    if early:
        # All tiers would pay for it: every one collects every file.
        raise pytest.UsageError(f"{sorted(early)} imported by a file of tests: import in a fixture or in the test")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    with tiers.unit_test() if tier_of(item) == tiers.UNIT else contextlib.nullcontext():
        return (yield)


def tier_of(item: pytest.Item) -> str:
    return tiers.tier({mark.name for mark in item.iter_markers()}, getattr(item, "fixturenames", ()))


@pytest.fixture
def listener() -> KeepingListener:
    return KeepingListener()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local cluster for all tests that run a job in this process."""
    from batchinfer.execution import ray_pipeline

    with ray_pipeline.connected(None):
        yield


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """1,000 rows in three files: id, text, topic."""
    return write_corpus(tmp_path / "corpus")


@pytest.fixture(scope="session")
def torch() -> ModuleType:
    import torch

    return torch


@pytest.fixture(scope="session")
def transformers() -> ModuleType:
    import transformers

    return transformers


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """The address of a moto server in a process of its own."""
    command = [sys.executable, "-m", "tests.support.s3_server"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
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
    import boto3

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

"""LocalStack's own S3, an implementation that shares no code with moto, keeps writers apart and runs a whole job."""

from __future__ import annotations

import boto3
import pytest

from batchinfer.execution import runner
from batchinfer.jobspec import StoreSpec
from batchinfer.storage import join, storage_for
from tests.support import store_checks
from tests.support.localstack_store import PYTHON, LocalStack
from tests.support.s3_runs import assert_whole, spec_on
from tests.support.scripted_jobs import KeepingListener

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not PYTHON.exists(), reason="`make soak` installs LocalStack into .venv-localstack"),
]


@pytest.fixture(scope="module")
def localstack(tmp_path_factory):
    with LocalStack(tmp_path_factory.mktemp("localstack")) as store:
        boto3.client("s3", endpoint_url=store.url).create_bucket(Bucket="runs")
        yield store


@pytest.fixture
def storage(localstack):
    return storage_for("s3://runs", {"s3://": StoreSpec(endpoint_url=localstack.url, lease_seconds=3)})


@pytest.mark.parametrize("folder", ["s3://runs", "s3://runs/a folder/é#%20"])
def test_it_proves_to_be_a_store_that_keeps_writers_apart(storage, folder):
    store_checks.keeps_writers_apart(storage, folder)


def test_of_many_creators_of_large_objects_exactly_one_is_first(storage):
    store_checks.has_one_first_creator(storage, "s3://runs/race")


def test_a_lock_is_renewed_given_back_and_taken_again(storage):
    store_checks.renews_its_lock(storage, "s3://runs/lock")


def test_keys_with_every_character_are_listed_and_read(storage):
    names = ["a b", "a+b", "a%20b", "é", "a#b", "a?b", "a=b&c", "日本", "a:b", "(a)", "a'b", "a~b"]
    uris = [join("s3://runs/odd", name) for name in names]
    for uri in uris:
        storage.put(uri, uri.encode())
    assert sorted(entry.uri for entry in storage.list("s3://runs/odd")) == sorted(uris)
    assert [storage.read(uri) for uri in uris] == [uri.encode() for uri in uris]


@pytest.mark.usefixtures("ray_cluster")
def test_a_job_runs_and_is_resumed(localstack, storage, corpus):
    for path in sorted(corpus.rglob("*.parquet")):
        storage.put(f"s3://runs/in/split=all/{path.name}", path.read_bytes())
    output = "s3://runs/a job"
    spec = spec_on(localstack.url, "s3://runs/in", output)
    assert runner.run(spec, KeepingListener()).rows == 1000
    for shard in (2, 7):
        storage.delete(f"{output}/data/shard-{shard:06d}.parquet")
        storage.delete(f"{output}/accounting/shard-{shard:06d}.parquet")
    again = KeepingListener()
    runner.run(spec, again)
    assert {record.shard_id for record in again.records} == {2, 7}
    assert_whole(storage, output)

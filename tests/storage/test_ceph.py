"""A real store: Ceph's gateway compares If-Match with the bare tag, ignores conditions on parts, and has outages."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import boto3
import pytest

from batchinfer.events import heard_by
from batchinfer.jobspec import StoreSpec
from batchinfer.storage import join, storage_for
from tests.support import store_checks
from tests.support.ceph_gateway import CephGateway, missing_programs

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(bool(missing_programs()), reason=f"Ceph is not installed: {', '.join(missing_programs())}"),
]

OUTAGE_SECONDS = 15


@pytest.fixture(scope="module")
def ceph(tmp_path_factory):
    with CephGateway(tmp_path_factory.mktemp("ceph")) as gateway:
        boto3.client("s3", endpoint_url=gateway.url).create_bucket(Bucket="runs")
        yield gateway


@pytest.fixture
def storage(ceph):
    return storage_for("s3://runs", {"s3://": StoreSpec(endpoint_url=ceph.url, lease_seconds=3)})


@pytest.mark.parametrize("folder", ["s3://runs", "s3://runs/a folder/é"])
def test_it_proves_to_be_a_store_that_keeps_writers_apart(storage, folder):
    store_checks.keeps_writers_apart(storage, folder)


def test_of_many_creators_of_large_objects_exactly_one_is_first(storage):
    for number in range(3):
        store_checks.has_one_first_creator(storage, f"s3://runs/race/{number}")


def test_a_lock_is_renewed_given_back_and_taken_again(storage):
    store_checks.renews_its_lock(storage, "s3://runs/lock")


def test_an_outage_longer_than_the_lease_loses_no_write_and_no_lock(ceph, storage):
    told = []
    with heard_by(lambda name, **values: told.append(name)), storage.lock("s3://runs/outage-lock") as require_held:
        ceph.cut()
        threading.Timer(OUTAGE_SECONDS, ceph.mend).start()
        uris = [join("s3://runs/outage", str(i)) for i in range(40)]
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(lambda uri: storage.create(uri, uri.encode()), uris))
        require_held()
    assert {entry.uri for entry in storage.list("s3://runs/outage")} == set(uris)
    assert all(storage.read(uri) == uri.encode() for uri in uris)
    assert "store retried" in told

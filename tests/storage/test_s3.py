"""What is S3's own: lost answers, parts, leases, stores that honour no conditions, credentials."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import boto3
import pytest

from batchinfer.errors import InputError, OutputError, StorageError, StoreRefused
from batchinfer.jobspec import StoreSpec
from batchinfer.storage import is_temporary, join, s3, storage_for
from tests.support.faulty_store import FAULTS, FaultyStore

HOLDER = """
import sys, time
from batchinfer.jobspec import StoreSpec
from batchinfer.storage import storage_for
uri, url, lease = sys.argv[1:]
with storage_for(uri, {"s3://": StoreSpec(endpoint_url=url, lease_seconds=float(lease))}).lock(uri):
    print("held", flush=True)
    time.sleep(100)
"""

MANY_BYTES = 40 * 2**20


def reach(url, **options):
    given = {"connect_timeout": 2, "read_timeout": 1, "max_attempts": 3, "lease_seconds": 2} | options
    return storage_for("s3://any", {"s3://": StoreSpec(endpoint_url=url, **given)})


@pytest.fixture
def faulty(s3_url):
    with FaultyStore(s3_url, hang=2) as proxy:
        yield proxy


def first_put_only(faulty, fault):
    """One fault, of the next PUT."""
    draw = iter([fault])
    faulty.choose = lambda method: next(draw, None) if method == "PUT" else None


@pytest.mark.parametrize("fault", ["lost", "timeout", "reset", "slow_down", "error"])
def test_a_create_whose_answer_is_lost_knows_its_own_write(faulty, bucket, fault):
    first_put_only(faulty, fault)
    assert reach(faulty.url).create(f"{bucket}/a", b"mine") is True
    assert reach(faulty.url).read(f"{bucket}/a") == b"mine"


def test_a_create_whose_answer_is_lost_still_loses_to_another_of_the_same_content(faulty, bucket, store):
    store.create(f"{bucket}/a", b"same")
    first_put_only(faulty, "lost")
    assert reach(faulty.url).create(f"{bucket}/a", b"same") is False


def test_a_replace_whose_answer_is_lost_knows_its_own_write(faulty, bucket, store):
    store.put(f"{bucket}/a", b"one")
    tag = store.stat(f"{bucket}/a").tag
    first_put_only(faulty, "lost")
    assert reach(faulty.url).replace(f"{bucket}/a", b"two", tag) is True
    first_put_only(faulty, "lost")
    assert reach(faulty.url).replace(f"{bucket}/a", b"three", tag) is False


@pytest.mark.parametrize("fault", ["truncated", "slow", "timeout", "reset"])
def test_a_body_that_breaks_off_is_read_again_whole(faulty, bucket, store, fault):
    data = os.urandom(3_000_000)
    store.put(f"{bucket}/a", data)
    faulty.rate, faulty.faults, faulty.only = 0.4, (fault,), "GET"
    patient = reach(faulty.url, max_attempts=12)
    assert patient.read(f"{bucket}/a") == data
    with patient.open(f"{bucket}/a") as file:
        assert file.read() == data
    assert len(list(patient.list(bucket))) == 1


def test_a_store_that_never_answers_is_named_in_bounded_time(faulty, bucket):
    faulty.rate, faulty.faults = 1.0, tuple(fault for fault in FAULTS if fault != "slow")
    for call in ("read", "stat", "open", "delete"):
        began = time.monotonic()
        with pytest.raises(StorageError) as caught:
            getattr(reach(faulty.url), call)(f"{bucket}/a")
        assert time.monotonic() - began < 15
        assert caught.value.message.startswith(f"{bucket}/a: ")
        assert faulty.url in caught.value.message


def test_a_large_object_is_created_once_and_read_in_pieces(bucket, store):
    data = os.urandom(MANY_BYTES)
    assert store.create(f"{bucket}/large", data)
    assert not store.create(f"{bucket}/large", data[::-1])
    assert store.read(f"{bucket}/large") == data
    with store.open(f"{bucket}/large") as file:
        file.seek(20_000_000)
        assert file.read(15_000_000) == data[20_000_000:35_000_000]


def test_a_large_object_survives_faults(faulty, bucket, store):
    data = os.urandom(MANY_BYTES)
    faulty.rate, faulty.faults = 0.3, ("lost", "reset", "slow_down", "truncated")
    assert reach(faulty.url, max_attempts=15, read_timeout=20).create(f"{bucket}/large", data)
    assert store.read(f"{bucket}/large") == data


def test_an_object_beyond_one_request_is_refused_with_the_keys_that_make_it_smaller(bucket, store, monkeypatch):
    monkeypatch.setattr(s3, "LARGEST_BYTES", 10)
    with pytest.raises(StorageError, match="5 GiB") as caught:
        store.create(f"{bucket}/large", b"more than ten")
    assert "shards.max_bytes" in caught.value.remedy


def test_unfinished_uploads_of_others_stay(s3_url, bucket, store):
    client, name = boto3.client("s3", endpoint_url=s3_url), bucket.removeprefix("s3://")
    for key in ("out/data/a", "other/b"):
        client.create_multipart_upload(Bucket=name, Key=key)
    for folder in ("", "/out", "/out/data"):
        store.remove_leftovers(f"{bucket}{folder}")
    assert {u["Key"] for u in client.list_multipart_uploads(Bucket=name)["Uploads"]} == {"other/b", "out/data/a"}


def test_listing_goes_over_pages_and_leaves_out_marks_of_folders(bucket, store, monkeypatch):
    monkeypatch.setattr(s3, "KEYS_A_PAGE", 10)
    names = [f"{i:04d}" for i in range(35)]
    for name in [*names, "folder/"]:
        store.put(f"{bucket}/in/{name}", b"")
    assert [entry.uri.rsplit("/", 1)[1] for entry in store.list(f"{bucket}/in")] == names


def test_a_listing_streams(faulty, bucket, store, monkeypatch):
    monkeypatch.setattr(s3, "KEYS_A_PAGE", 10)
    for i in range(30):
        store.put(f"{bucket}/in/{i:04d}", b"x")
    listing = reach(faulty.url).list(f"{bucket}/in")
    assert next(listing).uri == f"{bucket}/in/0000"
    # Ten are at hand; the rest were not asked for before they were wanted.
    faulty.rate, faulty.faults = 1.0, ("error",)
    assert [next(listing).uri[-1] for _ in range(9)] == list("123456789")
    with pytest.raises(StorageError, match="InternalError"):
        next(listing)


def test_an_object_overwritten_while_it_is_read_gives_no_mixture(bucket, store):
    store.put(f"{bucket}/a", b"a" * 1_000_000)
    with store.open(f"{bucket}/a") as file:
        assert file.read(10) == b"a" * 10
        store.put(f"{bucket}/a", b"b" * 1_000_000)
        with pytest.raises(InputError, match="has changed"):
            file.read()


@pytest.mark.parametrize("conditions", ["ignore", "refuse"])
def test_a_store_without_conditional_writes_is_refused_with_the_way_out(faulty, bucket, store, conditions):
    faulty.conditions = conditions
    with pytest.raises(OutputError, match="does not honour conditional writes") as caught:
        reach(faulty.url).require_writable(f"{bucket}/out")
    assert faulty.url in caught.value.message
    assert "conditional_writes: false" in caught.value.remedy
    assert not [name for name in store.names(f"{bucket}/out") if is_temporary(name)]

    alone = reach(faulty.url, conditional_writes=False)
    alone.require_writable(f"{bucket}/out")
    assert alone.create(f"{bucket}/out/a", b"1")
    assert not alone.create(f"{bucket}/out/a", b"2")
    tag = alone.stat(f"{bucket}/out/a").tag
    assert alone.replace(f"{bucket}/out/a", b"3", tag)
    assert not alone.replace(f"{bucket}/out/a", b"4", tag)
    assert alone.read(f"{bucket}/out/a") == b"3"
    with alone.lock(f"{bucket}/out/lock") as require_held:
        require_held()


def test_a_bucket_that_is_not_there_cannot_be_written_to(s3_url):
    with pytest.raises(OutputError, match="NoSuchBucket") as caught:
        reach(s3_url).require_writable("s3://no-such-bucket/out")
    assert "create the bucket" in caught.value.remedy


@pytest.mark.parametrize("profile", [None, "nobody"])
def test_missing_credentials_are_said_to_be_missing(s3_url, monkeypatch, profile):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    # A region of its own, so that no client of another test, made with credentials, is used.
    with pytest.raises(StoreRefused, match=r"credentials|profile") as caught:
        reach(s3_url, profile=profile, region=f"test-{os.getpid()}").read("s3://bucket/a")
    assert "AWS_PROFILE" in caught.value.remedy


def hold(uri, url, lease):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, uri, url, str(lease)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_killed_holder_of_this_machine_keeps_nobody_waiting(s3_url, bucket):
    uri = join(bucket, "lock")
    holder = hold(uri, s3_url, 600)
    try:
        with pytest.raises(OutputError, match=f"process {holder.pid} on "), reach(s3_url).lock(uri):
            pass
    finally:
        holder.kill()
        holder.wait()
    with reach(s3_url, lease_seconds=600).lock(uri) as require_held:
        require_held()


def from_another_machine(store, uri):
    """The lock at `uri` as if a process that cannot be seen from here held it."""
    data = store.read(uri).replace(b'"place": "', b'"place": "elsewhere ')
    assert b"elsewhere" in data
    assert store.replace(uri, data, store.stat(uri).tag)


def test_a_holder_of_another_machine_is_waited_for_until_its_lease_ends(s3_url, bucket, store):
    uri = join(bucket, "lock")
    holder = hold(uri, s3_url, 600)
    holder.kill()
    holder.wait()
    from_another_machine(store, uri)
    began = time.monotonic()
    with reach(s3_url, lease_seconds=3).lock(uri):
        assert 1 < time.monotonic() - began < 20


def test_who_lost_the_lock_is_told_and_leaves_it_to_the_other(s3_url, bucket, store):
    uri = join(bucket, "lock")
    with reach(s3_url, lease_seconds=2).lock(uri) as require_held:
        require_held()
        from_another_machine(store, uri)
        theirs = store.read(uri)
        deadline = time.monotonic() + 20
        with pytest.raises(StorageError, match="could not renew its lock"):  # noqa: PT012 # it takes its time
            while time.monotonic() < deadline:
                require_held()
                time.sleep(0.05)
    assert store.read(uri) == theirs


def test_a_holder_that_cannot_reach_the_store_knows_when_its_lease_has_ended(faulty, bucket):
    with reach(faulty.url, lease_seconds=1, max_attempts=1, retry_seconds=1).lock(join(bucket, "lock")) as require_held:
        require_held()
        faulty.rate, faulty.faults = 1.0, ("error",)
        time.sleep(1.2)
        began = time.monotonic()
        with pytest.raises(StorageError, match="could not renew its lock"):
            require_held()
        assert time.monotonic() - began < 5

"""What a store says is passed on, what it must be able to do is tried, and an outage is waited for."""

from __future__ import annotations

import threading
import time

import pytest

from batchinfer.errors import InputError, OutputError, StorageError, StoreRefused, UserError
from batchinfer.events import heard_by
from batchinfer.execution.plan_job import earlier_reports
from batchinfer.input.files import input_entries
from batchinfer.input.inspect import build_manifest
from batchinfer.jobspec import JobSpec, StoreSpec
from batchinfer.rundir.paths import Layout
from batchinfer.storage import impatient, join, lease, patience, read_many, storage_for
from tests.support.builders import make_fingerprint
from tests.support.faulty_store import FaultyStore

HASTY = {"connect_timeout": 2, "read_timeout": 5, "retry_seconds": 3, "lease_seconds": 2}


def reach(url, **options):
    return storage_for("s3://any", {"s3://": StoreSpec(endpoint_url=url, **HASTY | options)})


@pytest.fixture
def faulty(s3_url):
    with FaultyStore(s3_url, hang=1) as proxy:
        yield proxy


@pytest.fixture
def told():
    heard = []
    with heard_by(lambda name, **values: heard.append((name, values))):
        yield heard


# What the store must prove


@pytest.mark.parametrize(
    ("conditions", "what"),
    [
        ("ignore", "a second writer overwrites what the first has written"),
        ("ignore large", "a second writer of 5,242,881 bytes overwrites"),
        ("refuse", "it refuses a write with If-None-Match: .*NotImplemented by the test"),
        ("no match", "a writer with the right tag is refused"),
    ],
)
def test_a_store_that_does_not_keep_writers_apart_is_refused_with_what_it_did(faulty, bucket, store, conditions, what):
    faulty.conditions = conditions
    with pytest.raises(OutputError, match=f"does not honour conditional writes.*: {what}"):
        reach(faulty.url).require_writable(f"{bucket}/out")
    assert list(store.names(f"{bucket}/out")) == []


def test_a_store_that_ignores_conditions_when_parts_are_completed_is_never_sent_parts(faulty, bucket):
    sent = []

    def watch(method, path, headers):
        sent.append((method, path))

    faulty.refuse = watch
    large = bytes(40 * 2**20)
    assert reach(faulty.url, read_timeout=30).create(f"{bucket}/large", large)
    assert not reach(faulty.url, read_timeout=30).create(f"{bucket}/large", large)
    assert not [path for method, path in sent if method == "POST" or "uploadId" in path or "uploads" in path]


def test_a_store_that_compares_the_bare_tag_renews_a_lock(faulty, bucket):
    faulty.conditions = "bare"
    storage = reach(faulty.url, lease_seconds=1)
    storage.require_writable(f"{bucket}/out")
    with storage.lock(f"{bucket}/lock") as require_held:
        time.sleep(2.5)
        require_held()
    with storage.lock(f"{bucket}/lock") as require_held:
        require_held()


def test_the_root_of_a_bucket_is_a_place_for_an_output(bucket, store):
    store.require_writable(bucket)
    assert list(store.names(bucket)) == []
    assert list(earlier_reports(Layout(bucket, {"s3://": store.options}))) == []


# What the store says


@pytest.mark.parametrize(
    ("status", "code", "remedy"),
    [
        (400, "ExpiredToken", "credentials may have expired"),
        (403, "AccessDenied", "list, read, write and delete"),
        (403, "RequestTimeTooSkewed", "clock"),
        (400, "InvalidRequest", "ask those who run it"),
        (501, "NotImplemented", "ask those who run it"),
    ],
)
def test_a_write_that_is_refused_ends_in_the_stores_words_and_never_in_advice_to_leave_the_guard_off(
    faulty, bucket, status, code, remedy
):
    faulty.refuse = lambda method, path, headers: (status, code, "said by the store") if method == "PUT" else None
    with pytest.raises(OutputError, match=f"{code} said by the store") as caught:
        reach(faulty.url).require_writable(f"{bucket}/out")
    assert remedy in caught.value.remedy
    assert "conditional_writes" not in str(caught.value) + caught.value.remedy


def test_credentials_that_expire_between_a_plain_write_and_a_conditional_one_are_called_expired(faulty, bucket):
    def refuse(method, path, headers):
        conditional = {"if-match", "if-none-match"} & {name.lower() for name in headers}
        return (400, "ExpiredToken", "The provided token has expired.") if method == "PUT" and conditional else None

    faulty.refuse = refuse
    with pytest.raises(OutputError, match="ExpiredToken The provided token has expired") as caught:
        reach(faulty.url).require_writable(f"{bucket}/out")
    assert "may have expired" in caught.value.remedy


def test_a_head_that_is_refused_is_explained_by_a_get(faulty, bucket):
    faulty.refuse = lambda method, path, headers: (400, "ExpiredToken", "has expired")
    with pytest.raises(StoreRefused, match="ExpiredToken has expired") as caught:
        reach(faulty.url).stat(f"{bucket}/a")
    assert "may have expired" in caught.value.remedy


@pytest.mark.parametrize(
    ("status", "code"), [(400, "InvalidArgument"), (501, "NotImplemented"), (403, "SignatureDoesNotMatch")]
)
def test_a_store_that_refuses_checksums_is_written_to_without(faulty, bucket, store, told, status, code):
    def refuse(method, path, headers):
        summed = [name for name in headers if name.lower().startswith(("x-amz-checksum", "x-amz-sdk-checksum"))]
        return (status, code, "what is this header") if method == "PUT" and summed else None

    faulty.refuse = refuse
    storage = reach(faulty.url)
    storage.require_writable(f"{bucket}/out")
    assert storage.create(f"{bucket}/out/a", b"1")
    assert not storage.create(f"{bucket}/out/a", b"2")
    assert store.read(f"{bucket}/out/a") == b"1"
    assert [values["setting"] for name, values in told if name == "store setting"] == ["checksums: when_required"]
    reach(faulty.url, checksums="when_required").require_writable(f"{bucket}/out")
    with pytest.raises(OutputError, match=code):
        reach(faulty.url, checksums="when_supported").require_writable(f"{bucket}/out")


def test_a_public_bucket_is_read_without_credentials(faulty, bucket, store, monkeypatch):
    store.put(f"{bucket}/a", b"public")
    signed = []

    def watch(method, path, headers):
        signed.extend(name for name in headers if name.lower() == "authorization")

    faulty.refuse = watch
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(StoreRefused, match="credentials") as caught:
        reach(faulty.url).read(f"{bucket}/a")
    assert "anonymous: true" in caught.value.remedy
    # moto keeps the bucket's owner's objects to the owner: the request is what counts.
    with pytest.raises(StoreRefused):
        reach(faulty.url, anonymous=True).read(f"{bucket}/a")
    assert signed == []


def test_an_address_without_a_scheme_is_the_users_mistake(monkeypatch, bucket):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    with pytest.raises(UserError, match="localhost:9000") as caught:
        storage_for("s3://any", {"s3://": StoreSpec(region="nowhere-1")}).stat(f"{bucket}/a")
    assert "https://host:port" in caught.value.remedy


# Tags


@pytest.mark.parametrize("etags", ["weak", "drop", "unlisted"])
def test_an_object_has_one_tag_however_it_is_asked_for(faulty, bucket, store, etags):
    store.put(f"{bucket}/in/a", b"one")
    store.put(f"{bucket}/in/b", b"two!")
    faulty.etags = etags
    storage = reach(faulty.url)
    listed = list(storage.list(f"{bucket}/in"))
    assert [(entry.uri, entry.size) for entry in listed] == [(f"{bucket}/in/a", 3), (f"{bucket}/in/b", 4)]
    for entry in listed:
        assert storage.stat(entry.uri) == entry
        with storage.open(entry.uri, entry.tag) as file:
            assert file.read() == store.read(entry.uri)
    if etags != "drop":
        assert listed == list(store.list(f"{bucket}/in"))


def test_an_empty_object_that_marks_a_folder_hides_nothing_below_it(bucket, store):
    for name in ("in/n", "in/n/a.parquet", "in/empty", "in/old_$folder$"):
        store.put(f"{bucket}/{name}", b"x" if name.endswith(".parquet") else b"")
    assert [entry.uri for entry in store.list(f"{bucket}/in/n")] == [f"{bucket}/in/n/a.parquet"]
    assert [entry.uri for entry in store.list(f"{bucket}/in")] == [f"{bucket}/in/empty", f"{bucket}/in/n/a.parquet"]
    assert [entry.uri for entry in store.list(f"{bucket}/in/empty")] == [f"{bucket}/in/empty"]


# Permissions


def only_below(folder):
    """The rule of credentials that may touch one folder; a name that is not there is forbidden to ask for."""

    def refuse(method, path, headers):
        key, _, query = path.partition("?")
        inside = f"prefix={folder}%2F" in query if "list-type" in query else f"/{folder}/" in key
        if not inside or (method == "HEAD" and "batchinfer-absent" in key):
            return 403, "AccessDenied", "not yours"
        return None

    return refuse


def test_credentials_for_the_output_alone_are_enough_for_the_output(faulty, bucket, store):
    faulty.refuse = only_below("job1")
    storage = reach(faulty.url)
    storage.require_writable(f"{bucket}/job1")
    assert storage.create(f"{bucket}/job1/data/a", b"1")
    assert [entry.uri for entry in storage.list(f"{bucket}/job1")] == [f"{bucket}/job1/data/a"]
    assert list(earlier_reports(Layout(f"{bucket}/job1", {"s3://": storage.options}))) == []


def test_a_name_that_is_free_is_not_taken_for_a_forbidden_one(faulty, bucket, store):
    faulty.refuse = lambda method, path, headers: (
        (403, "AccessDenied", "not yours") if method in ("HEAD", "GET") and "list-type" not in path else None
    )
    store.put(f"{bucket}/out/there", b"x")
    assert reach(faulty.url).stat(f"{bucket}/out/free") is None
    with pytest.raises(StoreRefused, match="AccessDenied not yours"):
        reach(faulty.url).stat(f"{bucket}/out/there")


@pytest.mark.parametrize(
    ("call", "action"),
    [
        (lambda storage, uri: list(storage.list(uri)), "s3:ListBucket"),
        (lambda storage, uri: storage.read(uri), "s3:GetObject"),
        (lambda storage, uri: storage.put(uri, b""), "s3:PutObject"),
        (lambda storage, uri: storage.delete(uri), "s3:DeleteObject"),
    ],
)
def test_a_request_that_is_forbidden_names_the_permission_and_the_object(faulty, bucket, call, action):
    faulty.refuse = lambda method, path, headers: (403, "AccessDenied", "no")
    with pytest.raises(StoreRefused, match=rf"^{bucket}/in/a: AccessDenied no, {action} is not allowed"):
        call(reach(faulty.url), f"{bucket}/in/a")


def test_an_input_that_is_not_there_is_said_to_be_so_with_credentials_for_it_alone(faulty, bucket):
    faulty.refuse = only_below("in")
    with pytest.raises(InputError, match=f"there are no parquet files at input.uri {bucket}/in") as caught:
        input_entries(f"{bucket}/in", "parquet", {"s3://": reach(faulty.url).options})
    assert f"what else lies in {bucket} cannot be listed" in caught.value.remedy


def test_leftovers_that_may_not_be_listed_or_deleted_stop_nothing(faulty, bucket, told):
    faulty.refuse = lambda method, path, headers: (403, "AccessDenied", "not yours")
    reach(faulty.url).remove_leftovers(f"{bucket}/out")
    assert [name for name, _ in told] == ["leftover kept"]


# Outages


def test_an_outage_is_waited_for_and_told(faulty, bucket, store, told):
    store.put(f"{bucket}/a", b"kept")
    storage = reach(faulty.url, retry_seconds=60)
    # A client takes seconds to make on a busy machine, and the outage is to be met by a request.
    assert storage.read(f"{bucket}/a") == b"kept"
    faulty.rate, faulty.faults = 1.0, ("reset", "error", "slow_down")
    threading.Timer(2.5, lambda: setattr(faulty, "rate", 0.0)).start()
    began = time.monotonic()
    assert storage.read(f"{bucket}/a") == b"kept"
    assert time.monotonic() - began > 2
    retried = [values for name, values in told if name == "store retried"]
    assert len(retried) == 1, "one line for an outage, not one for each try"
    assert retried[0]["store"] == faulty.url
    assert 50 < retried[0]["gives_up_in_seconds"] <= 60


def test_steady_throttling_ends_no_request_and_slows_all_of_them_down(faulty, bucket, store, told):
    for i in range(100):
        store.put(f"{bucket}/in/{i:03d}", b"%d" % i)
    faulty.rate, faulty.faults = 0.35, ("slow_down",)
    storage = reach(faulty.url, retry_seconds=60)
    uris = [f"{bucket}/in/{i:03d}" for i in range(100)]
    assert list(read_many(storage, uris)) == [b"%d" % i for i in range(100)]
    assert faulty.injected["slow_down"] > 30
    assert [values["store"] for name, values in told if name == "store throttled"] == [faulty.url]


def test_retries_end_after_the_time_that_the_spec_gives(faulty, bucket):
    faulty.rate, faulty.faults = 1.0, ("slow_down",)
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"SlowDown.*after \d+ attempts in \d+ s") as caught:
        reach(faulty.url, retry_seconds=2).read(f"{bucket}/a")
    assert time.monotonic() - began < 6
    assert "retry_seconds" in caught.value.remedy


def test_before_a_run_an_address_that_never_answers_is_given_up_soon(monkeypatch):
    monkeypatch.setattr(patience, "FIRST_ANSWER_SECONDS", 1.0)
    began = time.monotonic()
    with impatient(), pytest.raises(StorageError, match=r"127\.0\.0\.1:9"):
        reach("http://127.0.0.1:9", retry_seconds=300).stat("s3://bucket/a")
    assert time.monotonic() - began < 10


def test_a_lock_outlives_an_outage_longer_than_its_lease(faulty, bucket, told):
    with reach(faulty.url, lease_seconds=1, retry_seconds=30).lock(f"{bucket}/lock") as require_held:
        faulty.rate, faulty.faults = 1.0, ("error",)
        time.sleep(2.5)
        threading.Timer(1.0, lambda: setattr(faulty, "rate", 0.0)).start()
        require_held()
    assert "lease late" in [name for name, _ in told]


def test_a_lock_that_can_be_neither_made_nor_taken_over_is_waited_for_with_an_end(faulty, bucket, monkeypatch, told):
    monkeypatch.setattr(lease, "WAITED_SECONDS_MORE", 1.0)
    with reach(faulty.url).lock(join(bucket, "lock")):
        pass
    faulty.conditions = "no match"
    began = time.monotonic()
    with (
        pytest.raises(StorageError, match="this lock could not be had in") as caught,
        reach(faulty.url, lease_seconds=1).lock(join(bucket, "lock")),
    ):
        pass
    assert time.monotonic() - began < 15
    assert "delete that file" in caught.value.remedy


# Credentials that are renewed


def test_credentials_that_expire_in_the_middle_are_read_again_where_they_came_from(
    faulty, bucket, store, monkeypatch, tmp_path
):
    """As a profile of a file that another program renews; the process that reads it is not started again."""
    kept = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(kept))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    valid = "FIRST"

    def renew(key):
        kept.write_text(f"[team]\naws_access_key_id = {key}\naws_secret_access_key = s\naws_session_token = t\n")

    def refuse(method, path, headers):
        signed = headers.get("Authorization", "")
        return None if f"Credential={valid}/" in signed else (400, "ExpiredToken", "The provided token has expired.")

    renew("FIRST")
    faulty.refuse = refuse
    storage = reach(faulty.url, profile="team")
    assert storage.create(f"{bucket}/a", b"1")
    valid = "SECOND"
    with pytest.raises(StoreRefused, match="ExpiredToken") as caught:
        storage.create(f"{bucket}/b", b"2")
    assert "may have expired: renew them, then run the same command again" in caught.value.remedy
    renew("SECOND")
    # Each kind of request may be the first that meets it; a HEAD is refused without a word.
    for number, ask in enumerate(
        (
            lambda: storage.create(f"{bucket}/b", b"2"),
            lambda: storage.stat(f"{bucket}/a").size == 1,
            lambda: storage.read(f"{bucket}/a") == b"1",
            lambda: [entry.uri for entry in storage.list(f"{bucket}/")] != [],
        )
    ):
        valid = f"NEXT{number}"
        renew(valid)
        assert ask()


# Many small objects


@pytest.mark.parametrize(("form", "where"), [("jsonl", None), ("csv", "text <> 'q'")])
def test_columns_of_many_small_objects_are_read_again_many_at_a_time(faulty, bucket, store, form, where):
    row = {"jsonl": '{{"id": "r{0}", "text": "a"}}\n', "csv": "id,text\nr{0},a\n"}[form]
    for i in range(24):
        store.put(f"{bucket}/in/{i:02d}.{form}", row.format(i).encode())
    given = {"uri": f"{bucket}/in", "id_column": "id", "format": form, "where": where}
    stores = {"s3://": StoreSpec(endpoint_url=faulty.url, **HASTY | {"read_timeout": 30})}
    made = JobSpec.model_validate(
        {
            "name": "many",
            "model": {"source": "scripted"},
            "input": {key: value for key, value in given.items() if value is not None},
            "prompt": {"template": "{{ text }}"},
            "output": {"uri": f"{bucket}/out"},
            "storage": stores,
        }
    )
    faulty.delay = 0.2
    manifest = build_manifest(made, {"id": "input.id_column", "text": "prompt.template"}, make_fingerprint())
    assert sum(shard.rows for shard in manifest.shards) == 24
    # A HEAD and a GET for the look at each file, and again for each pass over its columns.
    assert faulty.requests > 90
    assert faulty.waited_alone < 20, "one after the other, the requests of a pass would wait alone: 48"

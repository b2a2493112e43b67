"""Whole jobs with everything on S3."""

from __future__ import annotations

import json
from typing import Any

import pytest

from batchinfer.errors import InputError, UserError
from batchinfer.execution import preview, reports, runner
from batchinfer.jobspec import JobSpec
from batchinfer.storage import Storage, join
from tests.support.s3_runs import assert_whole, spec_on, table
from tests.support.scripted_jobs import KeepingListener

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_a_job_with_everything_on_s3_runs_and_is_resumed(
    s3_url: str, bucket: str, store: Storage, remote_corpus: str, listener: KeepingListener, monkeypatch: Any
) -> None:
    output = f"{bucket}/a run"
    spec = spec_on(s3_url, remote_corpus, output)
    report = runner.run(spec, listener)
    assert (report.rows, report.rows_failed, report.shards, report.complete) == (1000, 0, 10, True)
    assert_whole(store, output)
    assert sorted(store.names(join(output, "_run"))) == [
        *("events", "lock", "manifest.parquet", "plan.json", "plans", "replicas", "replicas.parquet", "report.html"),
        *("report.json", "spec.yaml"),
    ]  # fmt: skip

    for shard in (2, 7):
        store.delete(f"{output}/data/shard-{shard:06d}.parquet")
        store.delete(f"{output}/accounting/shard-{shard:06d}.parquet")
    # A commit that was cut off between its two writes.
    store.delete(f"{output}/accounting/shard-000005.parquet")
    again = KeepingListener()
    assert runner.run(spec, again).replicas == 2
    assert {record.shard_id for record in again.records} == {2, 7}
    assert_whole(store, output)

    # A later command knows only the output: the way there is in the environment.
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_url)
    found = reports.report(output + "/")
    assert json.loads(store.read(join(output, "_run", "report.json"))) == json.loads(found.model_dump_json())


def test_retry_replaces_failed_rows_on_s3(
    s3_url: str, bucket: str, store: Storage, remote_corpus: str, listener: KeepingListener, monkeypatch: Any
) -> None:
    output = f"{bucket}/out"
    engine = {"scripted": {"reject_on": "row-07"}}
    spec = spec_on(s3_url, remote_corpus, output, engine=engine, limits={"max_error_rate": 1})
    assert runner.run(spec, listener).rows_failed == 100
    uri = join(output, "_run", "spec.yaml")
    store.put(uri, store.read(uri).replace(b"reject_on: row-07", b"reject_on: no such row"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_url)
    assert runner.retry(output, KeepingListener()).rows_failed == 0
    rows = table(store, join(output, "data"))
    assert rows.column("id").to_pylist() == [f"row-{i:04d}" for i in range(1000)]
    assert rows.column("error_code").null_count == 1000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": {"uri": "BUCKET/inn"}}, "there are no parquet files at input.uri BUCKET/inn"),
        ({"input": {"uri": "BUCKET/in/*.json"}}, "there are no parquet files"),
        ({"input": {"uri": "s3://no-such-bucket-here/in"}}, "NoSuchBucket"),
        ({"output": {"uri": "BUCKET/in/out"}}, "output.uri lies inside input.uri"),
        ({"output": {"uri": "s3://x"}}, "'x' is not the name of a bucket"),
        ({"output": {"uri": "s3a://bucket/x"}}, "not a store"),
        ({"model": {"source": "BUCKET/in"}}, "BUCKET/in has no config.json"),
    ],
)
def test_a_mistake_is_found_before_anything_is_written(
    changes: Any, message: str, s3_url: str, bucket: str, store: Storage, remote_corpus: str
) -> None:
    changes = json.loads(json.dumps(changes).replace("BUCKET", bucket))
    before = list(store.list(bucket))
    spec = spec_on(s3_url, remote_corpus, f"{bucket}/out").model_dump(mode="json", exclude_unset=True) | changes
    spec["storage"] = {"s3://": {"endpoint_url": s3_url}}
    with pytest.raises(UserError) as caught:
        preview.validate(JobSpec.model_validate(spec))
    assert message.replace("BUCKET", bucket) in caught.value.message
    assert "secret" not in caught.value.message
    assert caught.value.remedy
    assert list(store.list(bucket)) == before


def test_an_object_that_changes_during_the_run_fails_it_with_its_name(
    s3_url: str, bucket: str, store: Storage, remote_corpus: str
) -> None:
    output = f"{bucket}/out"

    class Changing(KeepingListener):
        def event(self, name: str, **values: Any) -> None:
            if name == "started":
                uri = f"{remote_corpus}/split=all/part-2.parquet"
                store.put(uri, store.read(f"{remote_corpus}/split=all/part-1.parquet"))

    with pytest.raises(InputError, match=r"part-2.parquet has changed since the run began"):
        runner.run(spec_on(s3_url, remote_corpus, output), Changing())
    ids = {e.uri for e in store.list(join(output, "data"))}
    assert not {f"{output}/data/shard-{i:06d}.parquet" for i in (7, 8, 9)} & ids, "no row of the wrong file"

"""The results of a run are in their table once: after repeats, kills, races and retries, in Delta and in Iceberg."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from batchinfer.errors import OutputError, SpecError, TooManyFailedRows, UserError
from batchinfer.execution import publish as publishing
from batchinfer.execution import reports, runner
from batchinfer.execution.publish import require_publishable
from batchinfer.execution.reports import report
from batchinfer.execution.result_rows import results_schema
from batchinfer.rundir.commit import commit_retry
from batchinfer.tables import iceberg
from tests.support.builders import make_record, make_spec
from tests.support.lakes import Lake, past_run
from tests.support.mixed_runs import ROWS
from tests.support.threads import in_threads

FORMATS = ["delta", "iceberg"]


@pytest.fixture(autouse=True)
def _no_pages(monkeypatch):
    """Drawing a page takes longer than all that is looked at here."""
    monkeypatch.setattr(reports, "_write_page", lambda *story: None)


@pytest.fixture(params=FORMATS)
def lake(request, tmp_path) -> Lake:
    return Lake(request.param, tmp_path / "lake")


def published(checked, lake: Lake, **values):
    return runner.publish(checked.layout.root, [f"output.publish={json.dumps(lake.keys(**values))}"])


def retried(checked, shard: int, answer: str, generation: int = 1) -> None:
    """Replace row 0 of a shard, as a retry does."""
    run_id = checked.manifest.fingerprint.run_id
    record = make_record(shard, run_id=run_id, generation=generation, rows=1, replica_id="abcdefabcdef")
    row = pa.table({"id": [shard * ROWS], "output": [answer], "error_code": pa.nulls(1, pa.string())})
    assert commit_retry(checked.layout, row, [0], record)


def test_a_repeat_commits_once_and_the_report_names_the_table(lake, tmp_path):
    checked = past_run(tmp_path)
    first = published(checked, lake)
    again = published(checked, lake)
    assert lake.read().sort_by("id").column("id").to_pylist() == list(range(3 * ROWS))
    assert lake.commits() == [checked.manifest.fingerprint.run_id]
    assert first.published == again.published == report(checked.layout.root).published
    assert first.published.rows == 3 * ROWS


def test_a_lost_note_is_found_again_in_the_table(lake, tmp_path):
    checked = past_run(tmp_path)
    published(checked, lake)
    checked.layout.storage.delete(checked.layout.published)
    published(checked, lake)
    assert lake.read().num_rows == 3 * ROWS
    assert checked.layout.storage.stat(checked.layout.published) is not None


def test_publishers_that_race_commit_once(lake, tmp_path, monkeypatch):
    checked = past_run(tmp_path)
    if lake.to == "delta":
        lake.write(pa.table({"id": [-1], "output": ["old"], "error_code": pa.nulls(1, pa.string())}))
    results = publishing.Results(
        checked.layout,
        checked.spec,
        make_spec(output={"uri": "/out", "publish": lake.keys()}).output.publish,
        checked.manifest,
        dict.fromkeys(range(3), 0),
    )
    # Without the run's lock, as if its lease had lapsed.
    in_threads(4, lambda _: publishing._publish(results))
    counts = Counter(lake.read().column("id").to_pylist())
    assert set(counts.values()) == {1}
    assert len(lake.commits()) == 1


@pytest.mark.integration
@pytest.mark.parametrize("to", FORMATS)
def test_a_table_in_a_bucket_is_written_once_and_replaced_by_key(to, bucket, s3_url, tmp_path):
    lake = Lake(to, tmp_path / "lake", bucket, s3_url)
    first, second = (past_run(tmp_path, 2, name, storage=lake.storage) for name in ("first", "second"))
    keys = lake.keys(mode="upsert", join_cols=["id"])
    results = [
        publishing.Results(
            one.layout,
            one.spec,
            make_spec(output={"uri": "/out", "publish": keys}).output.publish,
            one.manifest,
            dict.fromkeys(range(2), 0),
        )
        for one in (first, second, first, second)
    ]
    in_threads(4, lambda number: publishing._publish(results[number]))
    assert sorted(lake.read().column("id").to_pylist()) == list(range(2 * ROWS))
    assert set(lake.commits()) == {one.manifest.fingerprint.run_id for one in (first, second)}
    retried(second, 1, "better")
    report = published(second, lake, mode="upsert", join_cols=["id"])
    rows = {row["id"]: row["output"] for row in lake.read().to_pylist()}
    assert rows == {**dict.fromkeys(range(2 * ROWS), "x"), ROWS: "better"}
    assert report.published.rows == ROWS


@pytest.mark.integration
@pytest.mark.parametrize("to", FORMATS)
def test_a_kill_between_any_two_steps_leaves_one_commit(to, tmp_path):
    """Each step is killed before and after, by SIGKILL in a process of its own; then the command is given again."""
    require_one_commit_after_kills(to, str(tmp_path))


@pytest.mark.soak
@pytest.mark.integration
@pytest.mark.parametrize("to", FORMATS)
def test_a_kill_between_any_two_steps_leaves_one_commit_in_a_bucket(to, tmp_path, bucket, s3_url):
    require_one_commit_after_kills(to, str(tmp_path), bucket, s3_url)


def require_one_commit_after_kills(*arguments: str) -> None:
    script = Path(__file__).parent.parent / "support" / "killed_publishers.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(script), *arguments], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert len(outcomes) >= 8
    for step, outcome in outcomes.items():
        assert outcome == {"killed": True, "rows": 2 * ROWS, "distinct": 2 * ROWS, "commits": 1, "noted": True}, step


def test_after_a_retry_append_replaces_the_rows_of_the_run_alone(lake, tmp_path):
    first, second = past_run(tmp_path, 2, "first"), past_run(tmp_path, 2, "second")
    for checked in (first, second):
        published(checked, lake, run_column="run")
    retried(first, 1, "better")
    published(first, lake, run_column="run")
    rows = lake.read().to_pylist()
    assert Counter(row["run"] for row in rows) == {one.manifest.fingerprint.run_id: 2 * ROWS for one in (first, second)}
    changed = [row for row in rows if row["output"] == "better"]
    assert [(row["id"], row["run"]) for row in changed] == [(ROWS, first.manifest.fingerprint.run_id)]


def test_append_without_a_run_column_cannot_take_a_retry(lake, tmp_path):
    checked = past_run(tmp_path)
    published(checked, lake)
    retried(checked, 0, "better")
    with pytest.raises(UserError, match="nothing tells them apart") as refused:
        published(checked, lake)
    assert "run_column" in refused.value.remedy
    assert "better" not in lake.read().column("output").to_pylist()


def test_upsert_replaces_by_key_and_a_retry_writes_its_shards_alone(lake, tmp_path):
    lake.write(pa.table({"id": [1, 9999], "output": ["old", "kept"], "error_code": pa.nulls(2, pa.string())}))
    checked = past_run(tmp_path)
    published(checked, lake, mode="upsert", join_cols=["id"])
    rows = {row["id"]: row["output"] for row in lake.read().to_pylist()}
    assert rows == {**dict.fromkeys(range(3 * ROWS), "x"), 9999: "kept"}
    # Another run has newer values of a row in a shard that no retry touched.
    other = past_run(tmp_path, 1, "other")
    retried(other, 0, "newer")
    published(other, lake, mode="upsert", join_cols=["id"])
    retried(checked, 2, "better")
    published(checked, lake, mode="upsert", join_cols=["id"])
    rows = {row["id"]: row["output"] for row in lake.read().to_pylist()}
    assert (rows[0], rows[2 * ROWS], rows[9999], len(rows)) == ("newer", "better", "kept", 3 * ROWS + 1)


def test_overwrite_replaces_everything_but_not_what_came_since(lake, tmp_path):
    lake.write(pa.table({"id": [9999], "output": ["old"], "error_code": pa.nulls(1, pa.string())}))
    checked = past_run(tmp_path)
    published(checked, lake, mode="overwrite")
    assert sorted(lake.read().column("id").to_pylist()) == list(range(3 * ROWS))
    retried(checked, 0, "better")
    published(checked, lake, mode="overwrite")
    assert lake.read().column("output").to_pylist().count("better") == 1
    lake.write(pa.table({"id": [9999], "output": ["since"], "error_code": pa.nulls(1, pa.string())}))
    retried(checked, 0, "best", 2)
    with pytest.raises(OutputError, match="was written since"):
        published(checked, lake, mode="overwrite")
    assert "since" in lake.read().column("output").to_pylist()


def test_a_run_without_a_table_says_how_to_name_one(tmp_path):
    checked = past_run(tmp_path)
    with pytest.raises(UserError, match="names no table") as refused:
        runner.publish(checked.layout.root)
    assert "output.publish.table=" in refused.value.remedy


def test_columns_can_be_chosen_and_added(lake, tmp_path):
    lake.write(pa.table({"id": [9999], "team": ["search"]}))
    checked = past_run(tmp_path)
    with pytest.raises(OutputError, match="no column 'output'"):
        published(checked, lake, columns=["id", "output"])
    published(checked, lake, columns=["id", "output"], schema_evolution="additive")
    table = lake.read()
    assert set(table.column_names) == {"id", "team", "output"}
    assert {"id": 9999, "team": "search", "output": None} in table.to_pylist()
    assert {"id": 0, "team": None, "output": "x"} in table.to_pylist()


@pytest.mark.parametrize("partitioned", [False, True])
def test_many_chunks_are_one_commit_of_an_iceberg_table(partitioned, tmp_path, monkeypatch):
    from pyiceberg.transforms import BucketTransform

    monkeypatch.setattr(iceberg, "_FILE_BYTES", 1)
    monkeypatch.setattr(iceberg, "_PARTITIONED_BYTES", 1)
    lake = Lake("iceberg", tmp_path / "lake")
    lake.write(pa.table({"id": [-1], "output": ["old"], "error_code": pa.nulls(1, pa.string())}))
    table = lake.open().load_table("db.t")
    if partitioned:
        with table.update_spec() as change:
            change.add_field("id", BucketTransform(2), "bucket")
    before = len(lake.open().load_table("db.t").metadata.metadata_log)
    checked = past_run(tmp_path)
    for _ in range(2):
        published(checked, lake)
    assert sorted(lake.read().column("id").to_pylist()) == list(range(-1, 3 * ROWS))
    now = lake.open().load_table("db.t")
    assert len(now.metadata.metadata_log) == before + 1
    written = [task.file for task in now.scan().plan_files() if task.file.record_count != 1]
    assert len(written) > 2
    assert {file.partition[0] for file in written} == {0, 1} if partitioned else len(written) == 3


def test_an_upsert_keeps_the_other_columns_of_delta_and_is_refused_by_iceberg(lake, tmp_path):
    lake.write(pa.table({"id": [0], "team": ["search"], "output": ["old"]}))
    checked = past_run(tmp_path)
    values = {"columns": ["id", "output"], "mode": "upsert", "join_cols": ["id"]}
    if lake.to == "iceberg":
        with pytest.raises(OutputError, match="has the columns team"):
            published(checked, lake, **values)
        return
    published(checked, lake, **values)
    assert {"id": 0, "team": "search", "output": "x"} in lake.read().to_pylist()


def test_two_results_with_one_key_are_refused(lake, tmp_path):
    checked = past_run(tmp_path)
    with pytest.raises(OutputError, match="results have output 'x'"):
        published(checked, lake, mode="upsert", join_cols=["output"])


def test_a_run_with_too_many_failed_rows_is_not_published(lake, tmp_path):
    checked = past_run(tmp_path)
    run_id = checked.manifest.fingerprint.run_id
    record = make_record(
        0, run_id=run_id, generation=1, rows=1, rows_failed=1, errors={"output_invalid": 1}, replica_id="abcdefabcdef"
    )
    row = pa.table({"id": [0], "output": pa.nulls(1, pa.string()), "error_code": ["output_invalid"]})
    assert commit_retry(checked.layout, row, [0], record)
    with pytest.raises(TooManyFailedRows, match="nothing was published"):
        runner.publish(checked.layout.root, [f"output.publish={json.dumps(lake.keys())}", "limits.max_error_rate=0.0"])
    runner.publish(
        checked.layout.root,
        [f"output.publish={json.dumps(lake.keys(failed_rows=False))}", "limits.max_error_rate=1.0"],
    )
    assert 0 not in lake.read().column("id").to_pylist()
    assert lake.read().num_rows == 3 * ROWS - 1


def test_typed_answers_have_columns_of_their_types(lake, tmp_path):
    schema = {
        "type": "object",
        "properties": {
            "amount": {"type": "number"},
            "pages": {"type": "integer"},
            "due": {"type": "string", "format": "date"},
            "kind": {"enum": ["a", "b"]},
            "items": {"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}}}},
        },
    }
    checked = past_run(tmp_path)
    spec = make_spec(
        input={"uri": checked.spec.input.uri, "id_column": "id"},
        output={"uri": str(tmp_path / "o"), "json_schema": schema, "as": "columns", "publish": lake.keys()},
    )
    assert "creates" in str(require_publishable(spec, checked.manifest))
    fitted = publishing._fitted(spec.output.publish, results_schema(spec, checked.manifest.schema), None).written
    kinds = {name: fitted.field(name).type for name in ("amount", "pages", "due", "kind", "items")}
    assert kinds == {
        "amount": pa.float64(),
        "pages": pa.int64(),
        "due": pa.date32(),
        "kind": pa.string(),
        "items": pa.list_(pa.struct([("name", pa.string())])),
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "upsert"}, "needs join_cols"),
        ({"join_cols": ["id"]}, "join_cols is for mode: upsert"),
        ({"columns": ["id", "id"]}, "names a column twice"),
        ({"catalog": "lake"}, "catalog is for Iceberg"),
        ({"to": "iceberg", "table": "labels"}, "namespace and name"),
        (
            {"to": "iceberg", "table": "a.b", "catalog": {"properties": {"s3.secret-access-key": "x"}}},
            "PYICEBERG_CATALOG__NAME__S",
        ),
    ],
)
def test_a_wrong_key_is_told_with_the_spec(values, message):
    with pytest.raises(SpecError, match=message):
        make_spec(output={"uri": "/out", "publish": {"to": "delta", "table": "/t", **values}})


def test_what_is_wrong_with_the_table_is_told_before_a_run(lake, tmp_path):
    checked = past_run(tmp_path)

    def refusal(**values) -> str:
        spec = make_spec(
            input={"uri": checked.spec.input.uri, "id_column": "id"},
            output={"uri": str(tmp_path / "o"), "publish": {**lake.keys(), **values}},
        )
        with pytest.raises(UserError) as refused:
            require_publishable(spec, checked.manifest)
        assert refused.value.exit_code == 2
        assert refused.value.remedy
        return str(refused.value)

    assert "there is no" in refusal(create=False)
    assert "names 'nope'" in refusal(mode="upsert", join_cols=["nope"])
    lake.write(pa.table({"id": ["text"]}))
    assert "'id' is" in refusal(schema_evolution="additive")
    if lake.to == "iceberg":
        assert "no namespace nowhere" in refusal(table="nowhere.t")
        assert "cannot be reached" in refusal(catalog={"name": "not-described"})


def test_a_missing_library_is_named_with_its_extra(monkeypatch, lake, tmp_path):
    name = "deltalake" if lake.to == "delta" else "pyiceberg.catalog"
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError) as refused:
        publishing.destination(make_spec(output={"uri": "/o", "publish": lake.keys()}).output.publish, {})
    assert f"batchinfer[{lake.to}]" in refused.value.remedy

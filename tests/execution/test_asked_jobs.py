"""Whole jobs with what people ask of a model: rows chosen, labels with confidence, typed answers, and a trial."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer.execution import reports, runner
from batchinfer.jobspec import to_yaml
from batchinfer.scheduling import recurring
from batchinfer.storage import Storage
from tests.support import ROOT
from tests.support.s3_runs import spec_on
from tests.support.scripted_jobs import KeepingListener, assert_ledger_adds_up, results, scripted_spec

pytestmark = [pytest.mark.end_to_end, pytest.mark.usefixtures("ray_cluster")]

AREAS = {
    "Open a socket, listen for connections, send bytes to a host.": "network",
    "Parse a header of an XML document, escape a tag of HTML.": "markup",
    "Draw a button in a window, bind it to a key.": "gui",
    "Start a thread, wait for a lock, put it into a queue.": "concurrency",
}


def test_a_tick_sorts_the_rows_that_it_selects_and_withholds_labels_that_it_is_not_sure_of(tmp_path: Path) -> None:
    """The demo model on the real engine, and `evaluate` on what it left behind."""
    texts = [(text, area, lang) for lang in ("en", "de") for text, area in AREAS.items()] * 6
    columns = {"text": [t for t, _, _ in texts], "area": [a for _, a, _ in texts], "lang": [x for *_, x in texts]}
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"id": list(range(len(texts))), **columns}), tmp_path / "in" / "rows.parquet")
    below = 0.9
    spec = scripted_spec(
        tmp_path / "in",
        tmp_path / "out",
        name="sorted-nightly",
        model={"source": str(ROOT / "jobs/demo/model"), "dtype": "float32"},
        input={"uri": str(tmp_path / "in"), "id_column": "id", "columns": ["area"], "where": "lang = 'en'"},
        prompt={"template": "{{ text }}", "too_long": "truncate"},
        sampling={"max_tokens": 4, "temperature": 0},
        output={
            "uri": str(tmp_path / "out" / "{{ run.date }}"),
            "column": "label",
            "choices": sorted(AREAS.values()),
            "confidence": True,
            "abstain_below": below,
        },
        engine={"max_model_len": 256, "enforce_eager": True, "kv_cache_memory_bytes": 2**27},
        schedule={"cron": "0 2 * * *", "timezone": "UTC"},
        shards={"rows": 10},
    )
    assert spec.schedule is not None
    outcome = recurring.run_due(
        spec, spec.schedule, KeepingListener(), clock=lambda: datetime(2026, 11, 20, 3, tzinfo=UTC)
    )
    (made,) = outcome.reports
    assert (made.rows, made.rows_in_input, made.selected_from, made.rows_failed) == (24, 24, 48, 0)
    output = Path(made.output)
    assert output.name == "2026-11-20"
    rows = results(output).to_pylist()
    assert [row["area"] for row in rows] == list(AREAS.values()) * 6
    for row in rows:
        probabilities = dict(row["label_probabilities"])
        assert sum(probabilities.values()) == pytest.approx(1)
        assert row["label_confidence"] == pytest.approx(probabilities[row["label_guess"]])
        assert row["label"] == (row["label_guess"] if row["label_confidence"] >= below else None)
    found = reports.evaluate(made.output, ["evaluate.expected=area"])["all"]
    right = sum(row["label_guess"] == row["area"] for row in rows)
    assert (found.compared, found.right) == (24, right)
    assert right > 12, "a model that was trained for it is better than a guess"
    assert sum(count for line in found.confusion.values() for count in line.values()) == 24
    assert found.calibration_error is not None
    assert 0 <= found.calibration_error <= 1
    (level,) = [level for level in found.abstention if level.below == below]
    assert level.answered == sum(row["label"] is not None for row in rows)
    assert_ledger_adds_up(output)


def test_typed_answers_keep_their_types_through_failures_and_a_retry(
    corpus: Path, tmp_path: Path, listener: KeepingListener
) -> None:
    schema = {
        "type": "object",
        "additionalProperties": False,
        "required": ["n", "day"],
        "properties": {
            "n": {"type": "integer"},
            "day": {"type": "string", "format": "date"},
            "kind": {"type": "string", "enum": ["a", "b"]},
        },
    }
    # Whole shards fail, which must have the columns all the same.
    engine = {"scripted": {"answer": '{"n":7,"day":"2026-02-28","kind":"b"}', "reject_on": "row-07"}}
    spec = scripted_spec(
        corpus,
        tmp_path / "out",
        output={"uri": str(tmp_path / "out"), "as": "columns", "json_schema": schema},
        engine=engine,
        limits={"max_error_rate": 1},
    )
    assert runner.run(spec, listener).rows_failed == 100
    before = [pq.read_schema(path) for path in sorted((tmp_path / "out" / "data").iterdir())]
    assert all(schema.equals(before[0]) for schema in before)
    types = {"n": pa.int64(), "day": pa.date32(), "kind": pa.dictionary(pa.int32(), pa.string())}
    assert {name: before[0].field(name).type for name in types} == types
    assert results(tmp_path / "out").column("n").null_count == 100

    made = runner.retry(spec.output.uri, KeepingListener(), None, ["engine.scripted.reject_on=nobody"])
    assert (made.rows, made.rows_failed) == (1000, 0)
    after = [pq.read_schema(path) for path in sorted((tmp_path / "out" / "data").iterdir())]
    assert all(schema.equals(before[0]) for schema in after)
    rows = results(tmp_path / "out")
    assert rows.column("id").to_pylist() == [f"row-{i:04d}" for i in range(1000)]
    assert {str(day) for day in rows.column("day").to_pylist()} == {"2026-02-28"}
    assert_ledger_adds_up(tmp_path / "out")


def test_a_trial_on_s3_leaves_the_run_alone(s3_url: str, bucket: str, store: Storage, remote_corpus: str) -> None:
    output = f"{bucket}/out"
    tried = runner.try_rows(spec_on(s3_url, remote_corpus, output), KeepingListener(), 20)
    assert (len(tried.rows), tried.rows_in_input, tried.report.rows_failed) == (20, 1000, 0)
    assert tried.output == f"{output}/_try"
    written = [entry.uri for entry in store.list(output)]
    assert written
    assert all(uri.startswith(f"{output}/_try/") for uri in written)
    again = runner.try_rows(spec_on(s3_url, remote_corpus, output), KeepingListener(), 2, ["row-0003", "row-0900"])
    assert [row.answer for row in again.rows] == ["the text of row-0003", "the text of row-0900"]


def test_a_trial_that_is_interrupted_says_so_and_the_next_one_runs(corpus: Path, tmp_path: Path) -> None:
    spec = scripted_spec(corpus, tmp_path / "out", engine={"scripted": {"seconds_per_batch": 60.0}})
    (tmp_path / "job.yaml").write_text(to_yaml(spec))
    process = subprocess.Popen(
        [sys.executable, "-m", "batchinfer", "try", str(tmp_path / "job.yaml")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    # The trial's rows are in the engine, for a minute.
    until = time.monotonic() + 200
    while not list((tmp_path / "out" / "_try" / "_run" / "replicas").glob("*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.1)
    for _ in range(2):
        os.kill(process.pid, signal.SIGINT)
        time.sleep(0.5)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 4, told
    assert "Traceback" not in told
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["_try"]
    quick = scripted_spec(corpus, tmp_path / "out")
    assert len(runner.try_rows(quick, KeepingListener(), 3).rows) == 3
    assert json.loads((tmp_path / "out" / "_try" / "_run" / "report.json").read_text())["rows"] == 3

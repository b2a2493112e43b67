"""Runs from Python on Ray: in this process, in a thread and in an event loop, and what they leave behind.

One local cluster serves all of them, so that it counts as the caller's own connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pydantic import BaseModel

import batchinfer
from batchinfer.errors import InputError, OutputError, Stopped, TooManyFailedRows, UserError
from tests.support.lakes import Lake

ROWS = 600
FRAME = pd.DataFrame({"ticket": range(ROWS), "body": [f"text {i}" for i in range(ROWS)], "open": [True, False] * 300})
pytestmark = pytest.mark.usefixtures("ray_cluster")


class Label(BaseModel):
    queue: Literal["billing", "outage"]
    urgency: int


def labelled(**keys: Any) -> batchinfer.Job:
    return batchinfer.Job(
        **{
            "name": "tickets",
            "model": "scripted",
            "prompt": "{{ body }}",
            "id_column": "ticket",
            "output_schema": Label,
            "engine": {"scripted": {"answer": '{"queue": "outage", "urgency": 3}'}},
            "shards": {"rows": 100},
            **keys,
        }
    )


@contextlib.contextmanager
def left_as_found() -> Iterator[None]:
    """Nothing of this process that a call could change is changed."""
    import ray
    from ray.data import DataContext

    def state() -> list[Any]:
        context = DataContext.get_current()
        return [
            [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
            [context.target_max_block_size, context.enable_progress_bars, context.execution_options.preserve_order],
            [logging.getLogger(name).level for name in ("ray", "ray.data")],
            ray.is_initialized(),
        ]

    before = state()
    yield
    assert state() == before


def test_a_frame_becomes_a_typed_frame_and_the_same_call_goes_on(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO, "batchinfer")
    with left_as_found():
        run = labelled().run(FRAME, output=tmp_path)
    assert capfd.readouterr().out == ""
    assert [record for record in caplog.records if record.name == "batchinfer" and "started" in record.message]

    assert (run.status, run.report.rows, run.report.complete) == ("complete", ROWS, True)
    assert run.cost == run.report.cost_usd > 0
    first = run.report.run_id
    found = run.to_pandas()
    assert list(found["ticket"]) == list(range(ROWS))
    assert list(found.columns[:3]) == ["ticket", "queue", "urgency"]
    assert (str(found.dtypes["urgency"]), set(found["queue"])) == ("Int64", {"outage"})
    assert run.failed().empty

    joined = run.to_arrow(join=True)
    assert joined.column_names[:5] == ["ticket", "body", "open", "queue", "urgency"]
    assert joined.select(["ticket", "body", "open"]).to_pydict() == FRAME.to_dict("list")
    assert run.to_polars(join=True).filter(pl.col("open")).height == ROWS // 2
    assert run.to_duckdb().aggregate("sum(urgency)").fetchall() == [(3 * ROWS,)]
    assert run.to_duckdb(connection=duckdb.connect()).columns[:3] == ["ticket", "queue", "urgency"]
    assert run.to_ray(join=True).count() == ROWS

    assert "engine loaded" in (tmp_path / "_run" / "run.log").read_text()
    assert "complete" in repr(run)
    assert "tokens/s" in str(run)
    assert "<svg" in run._repr_html_()

    # The same call, with the same rows from elsewhere: nothing is run, nothing is written again.
    written = sorted(tmp_path.glob("_input/*/*"))
    for data in (FRAME, pl.from_pandas(FRAME), duckdb.from_df(FRAME)):
        again = labelled().run(data, output=tmp_path)
        assert again.report.run_id == first
    assert sorted(tmp_path.glob("_input/*/*")) == written
    assert len(written) == 2
    assert batchinfer.open(str(tmp_path)).report == run.report

    other = FRAME.assign(body=FRAME["body"].where(FRAME["ticket"] != 345, "changed"))
    with pytest.raises(InputError, match=r"row 345 .*'body' was 'text 345' then, and is 'changed' now"):
        labelled().run(other, output=tmp_path)
    with pytest.raises(OutputError, match="belongs to another spec"):
        labelled(prompt="{{ body }}!").run(FRAME, output=tmp_path)
    # What another run would cost may be asked all the same.
    assert f"{len(FRAME):,} rows" in str(labelled(prompt="{{ body }}!").plan(FRAME, output=tmp_path))
    monkeypatch.chdir(tmp_path.parent)
    begun_anew = labelled().run(other, output=tmp_path.name, fresh=True)
    assert begun_anew.report.run_id != first
    assert begun_anew.to_arrow(join=True).column("body")[345].as_py() == "changed"
    assert len(list(tmp_path.glob("_input/*/_rows.json"))) == 1, "the rows of the first run are gone with it"


def test_failed_rows_are_a_frame_and_are_retried(tmp_path: Path) -> None:
    answer = '{"queue": "outage", "urgency": 3}'
    job = labelled(engine={"scripted": {"reject_on": "text 7", "answer": answer}}, limits={"max_error_rate": 0.01})
    with pytest.raises(TooManyFailedRows):
        job.run(FRAME, output=tmp_path)
    run = batchinfer.open(str(tmp_path))
    failed = run.failed()
    assert failed["ticket"].tolist() == [7, *range(70, 80)]
    assert list(failed.columns) == ["ticket", "error_code", "error_message"]
    assert run.to_pandas()["urgency"].isna().sum() == 11
    retried = run.retry({"engine.scripted.reject_on": None})
    assert retried.report.rows_failed == 0
    with pytest.raises(UserError, match="a retry cannot change that"):
        run.retry({"prompt.template": "x"})


def test_a_run_in_the_background_is_stopped_and_goes_on_in_an_event_loop(tmp_path: Path) -> None:
    job = batchinfer.Job(
        model="scripted", prompt="{{ body }}", shards={"rows": 10}, engine={"scripted": {"seconds_per_batch": 0.2}}
    )
    with left_as_found():
        run = job.run(FRAME, output=tmp_path, wait=False)
        with pytest.raises(TimeoutError):
            run.wait(timeout=0.01)
        while run.status == "pending" or not list(tmp_path.glob("data/*.parquet")):
            time.sleep(0.05)
        assert run.stop()
        with pytest.raises(Stopped, match="stopped by a request"):
            run.wait(timeout=60)
        assert run.status == "stopped"
        some = run.to_arrow().num_rows
        assert 0 < some < ROWS
        assert not run.stop(), "nothing runs any more"

        ended = asyncio.run(_beside_another_task(job, tmp_path))
        assert ended.report.rows == ROWS
        assert ended.to_arrow().column("row_number").to_pylist() == list(range(ROWS))


async def _beside_another_task(job: batchinfer.Job, output: Path) -> batchinfer.Run:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.05)

    other = asyncio.create_task(tick())
    run = await job.run_async(FRAME, output=output)
    other.cancel()
    assert ticks > 5, "the loop went on"
    return run


def test_a_cancelled_task_stops_its_run(tmp_path: Path) -> None:
    job = batchinfer.Job(
        model="scripted", prompt="{{ body }}", shards={"rows": 20}, engine={"scripted": {"seconds_per_batch": 0.3}}
    )

    async def cancelled() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await job.run_async(FRAME, output=tmp_path)

    asyncio.run(cancelled())
    deadline = time.monotonic() + 60
    while batchinfer.open(str(tmp_path)).status == "running":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert not batchinfer.open(str(tmp_path)).report.complete


def test_results_go_into_the_job_s_table_and_into_another(tmp_path: Path) -> None:
    lake, second = Lake("delta", tmp_path / "lake"), Lake("iceberg", tmp_path / "second")
    chosen = ["ticket", "queue", "urgency"]
    run = labelled(output={"publish": lake.keys(columns=chosen, run_column="run")}).run(FRAME, output=tmp_path / "run")
    table = lake.read().sort_by("ticket")
    assert table.column_names == [*chosen, "run"]
    assert table.select(chosen).to_pylist() == run.to_arrow().select(chosen).to_pylist()
    assert set(table.column("run").to_pylist()) == {run.report.run_id}
    assert run.publish() is run
    assert lake.read().num_rows == ROWS
    # Opened later, in a loop, it goes into a second table too, once.
    opened = batchinfer.open(str(tmp_path / "run"))
    for _ in range(2):
        asyncio.run(opened.publish_async({"output.publish": second.keys()}))
    assert sorted(second.read().column("ticket").to_pylist()) == list(range(ROWS))
    assert opened.report.published is not None
    assert (opened.report.published.to, opened.report.published.rows) == ("iceberg", ROWS)
    with pytest.raises(UserError, match="a publication cannot change that"):
        opened.publish({"prompt.template": "x"})
    with pytest.raises(OutputError, match="names 'nope'"):
        opened.publish({"output.publish": lake.keys(table=str(tmp_path / "third"), columns=["nope"])})


def test_a_few_rows_are_tried_and_shown(tmp_path: Path) -> None:
    tried = labelled().try_(FRAME, n=5)
    assert len(tried.rows) == len(tried.to_pandas()) == 5
    assert tried.rows[0].answer == {"queue": "outage", "urgency": 3}
    assert "all 600 rows" in str(tried)
    assert "<th" in tried._repr_html_()
    assert tried.plan.plan.workload is not None
    assert labelled().try_(FRAME, ids=["3", "5"], output=tmp_path).to_pandas()["id"].tolist() == [3, 5]
    assert not (tmp_path / "_run").exists()


def test_a_ray_dataset_and_a_uri_are_rows_too(tmp_path: Path) -> None:
    import ray.data

    dataset = ray.data.from_pandas(FRAME.iloc[:60])
    run = labelled().run(dataset, output=tmp_path / "ray")
    assert run.to_arrow(join=True).column("body").to_pylist() == FRAME["body"][:60].tolist()
    assert labelled().run(dataset, output=tmp_path / "ray").report.run_id == run.report.run_id
    csv = tmp_path / "in.csv"
    FRAME.iloc[:5].to_csv(csv, index=False)
    found = labelled(input={"format": "csv"}).run(csv, output=tmp_path / "csv").to_arrow(join=True)
    assert found.column("body").to_pylist() == FRAME["body"][:5].tolist()
    reader = pa.RecordBatchReader.from_batches(
        pa.schema([("body", pa.string())]), [pa.record_batch({"body": ["a", "b"]})]
    )
    assert labelled(id_column=None).run(reader, output=tmp_path / "reader").report.rows == 2


def test_columns_of_one_name_are_not_joined(tmp_path: Path) -> None:
    run = labelled().run(FRAME[:4].assign(queue="before"), output=tmp_path)
    assert run.to_arrow().num_rows == 4
    with pytest.raises(UserError, match="both have a column 'queue'"):
        run.to_arrow(join=True)


def test_there_is_no_run_where_none_was(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there is no run at"):
        batchinfer.open(str(tmp_path))

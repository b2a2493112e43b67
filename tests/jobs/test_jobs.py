"""The example jobs: each is valid, is planned as its comments say, and goes through the whole pipeline."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer.execution import runner
from batchinfer.execution.checks import check
from batchinfer.execution.plan_job import plan_job
from batchinfer.jobspec import JobSpec, load
from batchinfer.planner import Plan, assumed_cluster
from batchinfer.prompting.prompts import needed_columns
from tests.support.builders import write_lines
from tests.support.scripted_jobs import assert_ledger_adds_up, results

JOBS = Path(__file__).parents[2] / "jobs"
NAMES = sorted(path.stem for path in JOBS.glob("*.yaml") if path.stem not in ("demo", "nightly"))
ROWS = 32

ANSWERS = {
    "tickets": "outage",
    "audit": '["price","churn"]',
    "claims": "<think>The terms cover it.</think>pay",
    "extract": '{"seller": "Sellers & Sons", "total": 12.5, "currency": "EUR", "issued": "2026-02-28"}',
}
"""What a scripted engine answers, where not every answer will do."""


NUMBERS = {"amount": 120.0}
"""Values of the columns that are no text."""


def local_job(name: str, folder: Path, *overrides: str) -> JobSpec:
    """The job with `ROWS` made-up rows in place of its bucket, and its output in the folder."""
    spec = load(str(JOBS / f"{name}.yaml"), [])
    words = "the line has been down since the storm and nobody answers the telephone "
    rows = [
        {column: NUMBERS.get(column, f"{column} {i}: {words * (1 + i % 5)}") for column in needed_columns(spec)}
        for i in range(ROWS)
    ]
    if spec.takes_requests:
        rows = [request(i, row["body"]) for i, row in enumerate(rows)]
    if spec.input.format in ("jsonl", "openai_batch"):
        write_lines(folder / "in" / "rows.jsonl", *rows)
    else:
        (folder / "in").mkdir()
        pq.write_table(pa.Table.from_pylist(rows), folder / "in" / "rows.parquet")
    places = [f"input.uri={folder / 'in'}", f"output.uri={folder / 'out'}"]
    return load(str(JOBS / f"{name}.yaml"), [*places, *overrides])


def request(number: int, text: str) -> dict[str, Any]:
    """A line of a batch file."""
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}], "temperature": 0}
    return {"custom_id": f"r-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def planned(name: str, folder: Path) -> Plan:
    spec = local_job(name, folder)
    return plan_job(check(spec, "run", access=False), assumed_cluster(spec, 2**34))


@pytest.mark.integration
@pytest.mark.parametrize("name", NAMES)
def test_every_job_is_valid_and_can_be_planned_with_time_and_cost(name, tmp_path):
    plan = planned(name, tmp_path)
    assert plan.workload is not None
    assert (plan.workload.rows, plan.workload.sampled_rows) == (ROWS, ROWS)
    assert plan.estimate is not None
    assert 0 < plan.estimate.cost_usd.low <= plan.estimate.cost_usd.mid <= plan.estimate.cost_usd.high
    assert plan.kv_cache_tokens is not None
    assert plan.kv_cache_tokens > plan.workload.longest_input_tokens


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "accelerator", "gpus", "quantization"),
    [
        ("summarize", "L40S", 1, "none"),
        ("tickets", "L4", 1, "none"),
        ("extract", "H100", 1, "none"),
        ("review-70b", "H100", 4, "none"),
        ("embed", "L4", 1, "none"),
        ("audit", "L4", 1, "none"),
        ("claims", "L40S", 1, "none"),
        ("batch", "L4", 1, "none"),
        ("maverick", "H100", 8, "fp8"),
    ],
)
def test_the_layout_is_what_the_job_says_of_itself(name, accelerator, gpus, quantization, tmp_path):
    plan = planned(name, tmp_path)
    assert (plan.accelerator, plan.num_gpus, plan.quantization) == (accelerator, gpus, quantization)
    assert (plan.pipeline_parallel, plan.nodes_per_replica) == (1, 1)


def test_one_job_each_night_and_one_of_each_kind_of_answer():
    specs = {name: load(str(JOBS / f"{name}.yaml"), []) for name in NAMES}
    assert [name for name, spec in specs.items() if spec.schedule] == ["long-documents", "summarize"]
    assert [name for name, spec in specs.items() if spec.output.confidence] == ["tickets"]
    assert [name for name, spec in specs.items() if spec.output.multi_label] == ["audit"]
    assert [name for name, spec in specs.items() if spec.input.sample] == ["audit"]
    assert [name for name, spec in specs.items() if spec.reasoning] == ["claims"]
    assert [name for name, spec in specs.items() if spec.output.as_ == "columns"] == ["extract"]
    assert [name for name, spec in specs.items() if spec.task == "embed"] == ["embed"]
    assert [name for name, spec in specs.items() if spec.takes_requests] == ["batch"]
    assert len({spec.name for spec in specs.values()}) == len(specs)
    for spec in specs.values():
        assert spec.input.uri.startswith("s3://")
        assert spec.output.uri.startswith("s3://")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "embed"])
def test_every_job_goes_through_the_pipeline(name, tmp_path, ray_cluster, listener):
    """On the scripted engine: prompts, columns, checks of the answer and accounting are the job's own."""
    answer: dict[str, Any] = {"scripted": {"answer": ANSWERS[name]} if name in ANSWERS else {}}
    spec = local_job(name, tmp_path, "model={source: scripted}", "resources={accelerator: cpu}", f"engine={answer}")
    made = runner.run(spec, listener)
    assert (made.rows, made.rows_failed) == (ROWS, 0)
    table = results(Path(made.output))
    answers = spec.output.columns if spec.steps is None else [step.name for step in spec.steps]
    assert {*answers, spec.id_column, *spec.input.columns} <= set(table.column_names)
    if name == "tickets":
        sure = [confidence >= 0.7 for confidence in table.column("queue_confidence").to_pylist()]
        assert table.column("queue").to_pylist() == [ANSWERS[name] if one else None for one in sure]
        assert set(table.column("queue_guess").to_pylist()) == {ANSWERS[name]}
        assert len(set(sure)) == 2
    if name == "audit":
        assert table.column("topics").to_pylist()[0] == ["price", "churn"]
    if name == "claims":
        assert set(table.column("decision").to_pylist()) == {"pay"}
        assert set(table.column("why").to_pylist()) == {"The terms cover it."}
    if name == "extract":
        assert table.select(spec.output.columns).to_pylist()[0] == {
            "seller": "Sellers & Sons", "issued": date(2026, 2, 28), "currency": "EUR", "total": 12.5, "lines": None
        }  # fmt: skip
    if name == "batch":
        assert len((tmp_path / "out" / "batch" / "output.jsonl").read_text().splitlines()) == ROWS
    assert_ledger_adds_up(Path(made.output))


# The demo job of test_kills.py is the same kind of job on the same engine and model.
@pytest.mark.soak
def test_the_tickets_are_sorted_by_the_real_engine_with_a_model_that_a_cpu_holds(tmp_path, ray_cluster, listener):
    spec = local_job(
        "tickets",
        tmp_path,
        f"model={{source: {JOBS / 'demo' / 'model'}, dtype: float32}}",
        "resources={accelerator: cpu}",
        "engine={max_model_len: 512, enforce_eager: true, kv_cache_memory_bytes: 134217728}",
    )
    made = runner.run(spec, listener)
    assert (made.rows, made.rows_failed) == (ROWS, 0)
    assert spec.output.choices is not None
    assert set(results(tmp_path / "out").column("queue").to_pylist()) <= set(spec.output.choices)
    assert_ledger_adds_up(tmp_path / "out")

"""Whole jobs with `steps`: an engine that dies in the middle, a retry, and accounts that add up for each step."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from batchinfer.execution import runner
from tests.support.scripted_jobs import KeepingListener, assert_ledger_adds_up, results, scripted_spec

pytestmark = pytest.mark.end_to_end

STEPS = [
    {"name": "kind", "prompt": "Kind of {{ text }}", "output": {"choices": ["even", "odd"]}},
    {"name": "reply", "when": "topic == 'even'", "prompt": "A {{ kind }}: {{ text }}"},
    {"name": "grade", "prompt": "Grade of {{ reply | default('none') }}"},
]


def assert_steps_add_up(output: Path) -> None:
    for row in pq.read_table(output / "accounting").to_pylist():
        steps = json.loads(row["steps"]).values()
        assert sum(step["gpu_seconds"] for step in steps) == pytest.approx(row["gpu_seconds"], abs=1e-9)
        for name in ("input_tokens", "cached_tokens", "output_tokens"):
            assert sum(step[name] for step in steps) == row[name]


def test_an_engine_that_dies_in_a_later_step_costs_that_row_alone_and_a_retry_runs_that_step_alone(
    corpus: Path, tmp_path: Path, ray_cluster: object
) -> None:
    output = tmp_path / "out"
    engine = {"max_num_seqs": 32, "scripted": {"kill_on": "even: the text of row-0950"}}
    steps = [STEPS[0] | {"output": {"choices": ["even"]}}, *STEPS[1:]]
    spec = scripted_spec(corpus, output, engine=engine, prompt={}, steps=steps, sampling={"max_tokens": 16})
    before = runner.run(spec, KeepingListener())
    rows = results(output).to_pylist()
    assert [row["id"] for row in rows] == [f"row-{i:04d}" for i in range(1000)]
    failed = [row for row in rows if row["error_code"]]
    assert [(row["id"], row["kind"], row["reply_error_code"]) for row in failed] == [
        ("row-0950", "even", "engine_killed")
    ]
    assert {row["reply"] for row in rows if row["topic"] == "odd"} == {None}
    assert rows[41]["grade"] == "Grade of none"
    assert rows[42]["grade"] == "Grade of A even: the text of row-0042"
    assert before.errors == {"step_failed": 1}
    assert {name: step.rows for name, step in before.steps.items()} == {"kind": 1000, "reply": 500, "grade": 1000}
    # "Grade of none" is the same in all rows without a reply: each replica asks it once.
    assert 500 - before.replicas <= before.steps["grade"].rows_reused < 500
    assert sum(row["grade_reused"] for row in rows) == before.steps["grade"].rows_reused
    assert sum(row["grade_output_tokens"] > 0 for row in rows) == 999 - before.steps["grade"].rows_reused
    assert before.rows_ran == 1000
    assert before.steps["reply"].errors == {"engine_killed": 1}
    assert sum(step.work_seconds for step in before.steps.values()) == pytest.approx(before.seconds.work)
    assert_steps_add_up(output)
    assert_ledger_adds_up(output)

    again = KeepingListener()
    after = runner.retry(str(output), again, overrides=["engine.scripted.kill_on=no such row"])
    (record,) = again.records
    assert {name: step.rows for name, step in record.steps.items()} == {"kind": 0, "reply": 1, "grade": 1}
    assert after.rows_failed == 0
    assert results(output).to_pylist()[950]["grade"] == "Grade of A even: the text of row-0950"
    assert after.steps["kind"].rows == 1000
    assert_steps_add_up(output)
    assert_ledger_adds_up(output)

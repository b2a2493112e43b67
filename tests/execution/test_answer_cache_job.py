"""Whole jobs with `cache`: a second job has the answers of the first, and its accounts say so."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchinfer.execution import runner
from tests.support.scripted_jobs import KeepingListener, assert_ledger_adds_up, results, scripted_spec


@pytest.mark.end_to_end
def test_another_job_of_the_same_requests_runs_only_what_no_file_answers(
    tmp_path: Path, corpus: Path, ray_cluster: object
) -> None:
    cache = {"uri": str(tmp_path / "answers")}
    killing = {"scripted": {"kill_on": "the text of row-0007"}}
    rows = {"uri": str(corpus), "limit": 900}
    first = scripted_spec(corpus, tmp_path / "first", cache=cache, engine=killing, input=rows)
    before = runner.run(first, KeepingListener())
    assert (before.rows_from_cache, before.errors) == (0, {"engine_killed": 1})

    steps = [
        {"name": "same", "prompt": "{{ text }}"},
        {"name": "shout", "prompt": "{{ same }}!", "output": {"choices": ["a", "b"]}},
    ]
    second = scripted_spec(corpus, tmp_path / "second", name="two", cache=cache, prompt={}, steps=steps, engine=killing)
    made = runner.run(second, KeepingListener())
    assert made.complete
    assert made.steps["same"].tokens_from_cache == before.input_tokens + before.output_tokens
    assert made.steps["shout"].tokens_from_cache == 0

    (damaged, *_) = sorted((tmp_path / "answers").rglob("*.parquet"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    third = scripted_spec(corpus, tmp_path / "third", cache=cache, engine=killing)
    again = runner.run(third, KeepingListener())
    answers = results(tmp_path / "third").to_pylist()
    assert [row["output"] for row in answers] == [
        None if row["id"] == "row-0007" else f"the text of {row['id']}" for row in answers
    ]
    assert again.rows == again.rows_from_cache + again.rows_ran
    assert again.rows_from_cache > 0
    assert again.saved_usd == again.saved_by_cache_usd
    reused = [row for row in answers if row["reused"]]
    assert len(reused) == again.rows_from_cache
    assert all(row["input_tokens"] == row["output_tokens"] == 0 for row in reused)
    for run in ("first", "second", "third"):
        assert_ledger_adds_up(tmp_path / run)

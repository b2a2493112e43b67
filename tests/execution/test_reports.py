"""Answers that are there already can be compared later: `evaluate` shapes no result."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from batchinfer.errors import UserError
from batchinfer.execution import reports
from batchinfer.execution.checks import check
from batchinfer.execution.runner import _write_run_files
from batchinfer.rundir.commit import commit
from tests.support.builders import make_journal, make_plan, make_record, make_spec, write_parquet


@pytest.fixture
def ended(tmp_path: Path) -> str:
    """A run of two shards of four rows, with the columns area and team passed through; one row failed."""
    write_parquet(
        tmp_path / "in" / "a.parquet", {"id": list(range(8)), "text": ["x"] * 8, "area": ["a"] * 8, "team": ["t"] * 8}
    )
    spec = make_spec(
        input={"uri": str(tmp_path / "in"), "id_column": "id", "columns": ["area", "team"]},
        output={"uri": str(tmp_path / "out")},
        shards={"rows": 4},
    )
    checked = check(spec, "run")
    _write_run_files(checked.layout, checked, make_plan())
    journal = make_journal("0123456789ab")
    checked.layout.storage.create(checked.layout.journal("0123456789ab"), journal.model_dump_json().encode())
    for shard, (codes, teams) in enumerate(((["output_invalid", None, None, None], "xxyy"), ([None] * 4, "xxxx"))):
        rows = pa.table(
            {
                "id": range(shard * 4, shard * 4 + 4),
                "area": ["a", "b", "a", None],
                "team": list(teams),
                "output": ["a", "a", "a", "a"],
                "error_code": pa.array(codes, pa.string()),
            }
        )
        assert commit(checked.layout, rows, make_record(shard, replica_id="0123456789ab"))
    return str(tmp_path / "out")


def test_the_answers_are_compared_with_a_column_that_was_passed_through(ended):
    assert reports.report(ended).overall_accuracy is None
    made = reports.report(ended, ["evaluate.expected=area"])
    assert made.overall_accuracy is not None
    # Of three rows with a value in each shard: one failed and counts as wrong, "b" is not "a".
    assert (made.overall_accuracy.right, made.overall_accuracy.compared) == (3, 6)


def test_and_by_another_column(ended):
    made = reports.report(ended, ["evaluate.expected=area", "evaluate.by=team"])
    assert {group: (seen.right, seen.compared) for group, seen in made.accuracy.items()} == {"x": (2, 5), "y": (1, 1)}


def test_a_column_that_is_not_in_the_results_is_refused(ended):
    with pytest.raises(UserError, match="no column 'label'") as caught:
        reports.report(ended, ["evaluate.expected=label"])
    assert "area, team" in caught.value.remedy


def test_nothing_else_may_be_set_for_a_report(ended):
    with pytest.raises(UserError, match="only evaluate"):
        reports.report(ended, ["sampling.max_tokens=9"])


def test_an_evaluation_has_the_rows_of_the_accuracy_and_those_of_each_group(ended):
    made = reports.evaluate(ended, ["evaluate.expected=area", "evaluate.by=team"])
    assert list(made) == ["all", "x", "y"]
    assert (made["all"].right, made["all"].compared) == (3, 6)
    assert made["all"].confusion == {"a": {"(none)": 1, "a": 3}, "b": {"a": 2}}
    assert made["all"].calibration_error is None


def test_an_evaluation_needs_a_column(ended):
    with pytest.raises(UserError, match="no column with right answers") as caught:
        reports.evaluate(ended)
    assert "--expected" in caught.value.remedy

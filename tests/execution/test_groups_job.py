"""Whole jobs with `reduce`: one row a group, once; a retry and a resume run over the groups as they were made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from batchinfer.errors import InputError, OutputError
from batchinfer.execution import runner
from batchinfer.execution.checks import check
from batchinfer.execution.preview import validate
from batchinfer.jobspec import JobSpec
from batchinfer.rundir.groups import keep_groups
from batchinfer.rundir.paths import Layout
from tests.support.builders import write_parquet
from tests.support.scripted_jobs import KeepingListener, assert_ledger_adds_up, results, scripted_spec

KEYS = 40


def write_tickets(folder: Path) -> Path:
    """400 rows in two files, those of a customer far from one another."""
    for number in range(2):
        rows = range(200 * number, 200 * number + 200)
        columns = {
            "id": [f"t-{i}" for i in rows],
            "customer": [f"c-{i % KEYS}" for i in rows],
            "body": [f"ticket-{i}" for i in rows],
        }
        write_parquet(folder / f"{number}.parquet", columns, row_group_size=50)
    return folder


def digest(folder: Path, output: Path, **changes: Any) -> JobSpec:
    values: dict[str, Any] = {
        "input": {"uri": str(folder), "id_column": "id"},
        "reduce": {"key": "customer", "members": True},
        "prompt": {"template": "{{ customer }} has {{ count }}:{% for text in body %} {{ text }}{% endfor %}"},
        "shards": {"rows": 8},
    }
    return scripted_spec(folder, output, **(values | changes))


def test_checks_say_how_many_groups_there_are_and_write_nothing(tmp_path: Path) -> None:
    folder = write_tickets(tmp_path / "in")
    checked = validate(digest(folder, tmp_path / "out"))
    assert checked.manifest.rows_of_all == "40 groups of 400 rows"
    assert not (tmp_path / "out").exists()


def test_groups_without_a_manifest_are_no_run_and_the_next_command_makes_them_anew(tmp_path: Path) -> None:
    spec = digest(write_tickets(tmp_path / "in"), tmp_path / "out")
    layout = Layout(spec.output.uri)
    kept = keep_groups(layout, check(spec, "run").manifest)
    assert [entry.uri for entry in kept.read_files] == [layout.groups(0)]
    again = check(spec, "again")
    assert not again.resumed
    assert again.manifest.temporary is not None


@pytest.mark.end_to_end
def test_a_group_that_kills_the_engine_is_retried_and_a_resume_takes_the_groups_as_they_were_made(
    tmp_path: Path, ray_cluster: object
) -> None:
    folder, output = write_tickets(tmp_path / "in"), tmp_path / "out"
    spec = digest(folder, output, engine={"max_num_seqs": 8, "scripted": {"kill_on": "c-7 has"}})
    report = runner.run(spec, KeepingListener())
    assert (report.rows_in_input, report.errors) == (40, {"engine_killed": 1})
    rows = results(output).to_pylist()
    assert [row["customer"] for row in rows] == [f"c-{key}" for key in range(KEYS)]
    places = {key: range(key, 400, KEYS) for key in range(KEYS)}
    for key, row in enumerate(rows):
        assert (row["count"], row["members"]) == (10, [f"t-{i}" for i in places[key]])
        answer = f"c-{key} has 10: " + " ".join(f"ticket-{i}" for i in places[key])
        assert row["output"] == (None if key == 7 else answer)

    after = runner.retry(str(output), KeepingListener(), overrides=["engine.scripted.kill_on=nobody"])
    assert after.rows_failed == 0
    assert results(output).to_pylist()[7]["output"].startswith("c-7 has 10: ticket-7 ticket-47")
    assert_ledger_adds_up(output)

    (part,) = (output / "_run" / "groups").iterdir()
    made = part.stat()
    for one in ("data/shard-000003.parquet", "accounting/shard-000003.parquet"):
        (output / one).unlink()
    listener = KeepingListener()
    runner.run(spec, listener)
    assert "resumed" in [name for name, _ in listener.events]
    assert [row["customer"] for row in results(output).to_pylist()] == [f"c-{key}" for key in range(KEYS)]
    assert (part.stat().st_mtime_ns, part.stat().st_ino) == (made.st_mtime_ns, made.st_ino)

    whole = part.read_bytes()
    part.write_bytes(whole)
    with pytest.raises(OutputError, match="holds groups of this run, has changed"):
        check(spec, "again")
    write_parquet(folder / "2.parquet", {"id": ["t"], "customer": ["c-1"], "body": ["x"]})
    with pytest.raises(InputError, match=r"2\.parquet is new"):
        check(spec, "again")
    fresh = runner.run(digest(folder, output), KeepingListener(), fresh=True)
    assert fresh.rows_in_input == 40
    assert results(output).to_pylist()[1]["count"] == 11

    trial = runner.try_rows(digest(folder, output), KeepingListener(), 0, ids=["c-5"])
    assert [(row.id, row.answer.split(":")[0]) for row in trial.rows] == [("c-5", "c-5 has 10")]
    assert trial.rows_in_input == 40

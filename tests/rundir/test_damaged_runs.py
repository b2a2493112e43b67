"""A run folder is data from outside: whatever is wrong with it ends in one message, never in a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer.errors import BatchinferError, UserError
from batchinfer.execution import preview, ray_pipeline, reports, runner
from batchinfer.execution.checks import check
from batchinfer.execution.reports import conclude
from batchinfer.execution.runner import _write_run_files
from batchinfer.jobspec import JobSpec
from batchinfer.planner import Estimate, Interval
from batchinfer.rundir.commit import commit
from tests.support.builders import make_journal, make_plan, make_reading, make_record, make_spec, write_parquet
from tests.support.scripted_jobs import KeepingListener

SHARDS, ROWS = 3, 4


class Started(BatchinferError):
    """What a command raises here in place of starting Ray: it found nothing wrong."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[JobSpec, Path]:
    """A complete run of three shards with a failed row each, made without Ray."""
    folder = tmp_path_factory.mktemp("runs")
    write_parquet(folder / "in" / "a.parquet", {"id": list(range(SHARDS * ROWS)), "text": ["x"] * SHARDS * ROWS})
    spec = make_spec(
        input={"uri": str(folder / "in"), "id_column": "id"},
        output={"uri": str(folder / "out")},
        shards={"rows": ROWS},
        limits={"max_error_rate": 1.0},
    )
    checked = check(spec, "run")
    _write_run_files(checked.layout, checked, make_plan())
    checked.layout.storage.create(
        checked.layout.journal("0123456789ab"),
        make_journal("0123456789ab", meter=make_reading(10_000_000, load=4.0, busy=14.0)).model_dump_json().encode(),
    )
    for shard in range(SHARDS):
        codes = pa.array([None, "output_invalid", None, None], pa.string())
        rows = pa.table({"id": range(shard * ROWS, (shard + 1) * ROWS), "error_code": codes})
        record = make_record(shard, rows_failed=1, errors={"output_invalid": 1}, replica_id="0123456789ab")
        assert commit(checked.layout, rows, record)
    conclude(checked.layout, checked.spec, checked.manifest)
    return spec, folder / "out"


@pytest.fixture
def run(whole, tmp_path, monkeypatch) -> tuple[JobSpec, Path]:
    """A copy of it, in its own place, that a test may damage."""
    spec, made = whole
    kept = tmp_path / "kept"
    shutil.copytree(made, kept)
    monkeypatch.setattr(ray_pipeline, "connected", _no_ray)
    yield spec, made
    shutil.rmtree(made)
    shutil.copytree(kept, made)


def _no_ray(address: str | None) -> Any:
    raise Started("the command would start now", "")


def garbage(path: Path) -> None:
    path.write_bytes(bytes(range(256)))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def another_text(path: Path) -> None:
    path.write_text("[1, 2")


def another_document(path: Path) -> None:
    path.write_text('{"novelty": 1}')


def another_table(path: Path) -> None:
    pq.write_table(pa.table({"customer": ["a", "b"]}), path)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


FILES = [
    *("_run/manifest.parquet", "_run/spec.yaml", "_run/plan.json", "_run/replicas.parquet", "_run/report.json"),
    *("_run/replicas/0123456789ab.json", "data/shard-000001.parquet", "accounting/shard-000001.parquet"),
    *("_run/lock", "_run/run.log", "_run/stop", "_run/retry.json", "_run/skipped.json"),
]
KINDS = [garbage, empty, cut, another_text, another_document, another_table, a_folder, a_link_to_itself]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", KINDS, ids=lambda kind: kind.__name__)
def test_damage_ends_in_one_message_that_names_the_file(run, name, damage):
    spec, output = run
    path = output / name
    path.touch()
    damage(path)
    commands = {
        "report": lambda: reports.report(str(output)),
        "validate": lambda: preview.validate(spec),
        "retry": lambda: runner.retry(str(output), KeepingListener()),
        "run": lambda: runner.run(spec, KeepingListener()),
    }
    refusals = {command: error for command, call in commands.items() if (error := refusal(call)) is not None}
    for command, error in refusals.items():
        assert path.name in error.message or str(output) in error.message, command
        assert error.remedy, command
        # A loop of links cannot be read at all, which is the store's to say.
        assert error.exit_code == 2 or damage is a_link_to_itself, command


def refusal(call: Callable[[], object]) -> BatchinferError | None:
    """What a command says against the run, None if it ends well or would start."""
    try:
        call()
    except Started:
        return None
    except BatchinferError as error:
        return error
    return None


def test_a_lost_account_is_counted_from_the_results(run):
    _, output = run
    whole = reports.report(str(output))
    (output / "accounting" / "shard-000001.parquet").unlink()
    assert reports.report(str(output)) == whole


def test_a_lost_journal_is_counted_from_the_commits(run):
    _, output = run
    (output / "_run" / "replicas" / "0123456789ab.json").unlink()
    made = reports.report(str(output))
    assert made.seconds.work == pytest.approx(SHARDS * 4.0)
    assert made.replicas == 1


def test_a_lost_spec_is_named_with_the_way_to_have_it_again(run):
    spec, output = run
    (output / "_run" / "spec.yaml").unlink()
    for call in (lambda: reports.report(str(output)), lambda: runner.retry(str(output), KeepingListener())):
        with pytest.raises(UserError, match=r"_run/spec\.yaml is gone") as caught:
            call()
        assert "run the job again" in caught.value.remedy
    runner.run(spec, KeepingListener())
    assert reports.report(str(output)).rows == SHARDS * ROWS


def test_a_report_is_made_without_the_plan(run):
    _, output = run
    whole = reports.report(str(output))
    (output / "_run" / "plan.json").unlink()
    made = reports.report(str(output))
    assert (made.rows, made.cost_usd, made.seconds) == (whole.rows, whole.cost_usd, whole.seconds)
    assert made.model == "scripted"


def refused(output: Path) -> str:
    with pytest.raises(UserError) as caught:
        reports.report(str(output))
    assert caught.value.remedy
    return caught.value.message


JOURNAL = "_run/replicas/0123456789ab.json"


@pytest.mark.parametrize(
    "wrong",
    [
        {"meter": {"at_us": 10_000_000, "load_seconds": -4.0, "busy_seconds": 14.0, "idle_seconds": 0.0}},
        {"meter": {"at_us": 10_000_000, "load_seconds": 1e999, "busy_seconds": 14.0, "idle_seconds": 0.0}},
        {"price_per_gpu_hour": -1.0},
        {"num_gpus": 0},
        {"run_id": "another"},
    ],
    ids=str,
)
def test_a_journal_that_no_replica_of_the_run_wrote_is_told_not_counted(run, wrong):
    _, output = run
    journal = json.loads((output / JOURNAL).read_text())
    (output / JOURNAL).write_text(json.dumps(journal | wrong))
    assert "0123456789ab.json" in refused(output)


def test_a_journal_that_is_there_twice_is_told_not_counted(run):
    _, output = run
    shutil.copy(output / JOURNAL, output / "_run" / "replicas" / "ba9876543210.json")
    assert "ba9876543210.json" in refused(output)


def test_a_shard_that_the_run_does_not_have_is_told_not_counted(run):
    _, output = run
    shutil.copy(output / "data" / "shard-000001.parquet", output / "data" / "shard-000009.parquet")
    assert "shard-000009.parquet" in refused(output)


def test_an_account_under_another_name_is_told_not_counted(run):
    _, output = run
    shutil.copy(output / "accounting" / "shard-000001.parquet", output / "accounting" / "shard-000009.parquet")
    assert "shard-000009.parquet" in refused(output)


def test_an_account_whose_results_are_gone_is_told_not_counted(run):
    _, output = run
    (output / "data" / "shard-000001.parquet").unlink()
    message = refused(output)
    assert "accounting/shard-000001.parquet" in message
    assert "data/shard-000001.parquet" in message


def test_a_manifest_with_a_hole_is_told(run):
    _, output = run
    path = output / "_run" / "manifest.parquet"
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table.slice(0, 1), table.slice(2)]), path)
    assert "manifest.parquet" in refused(output)


def test_a_resume_keeps_what_the_first_plan_expected(whole, tmp_path):
    spec, _ = whole
    spec = spec.model_copy(update={"output": spec.output.model_copy(update={"uri": str(tmp_path / "resumed")})})
    expected, later = (
        Estimate(**dict.fromkeys(Estimate.model_fields, Interval(low=at, mid=at, high=at))) for at in (1.0, 2.0)
    )
    begun = check(spec, "run")
    _write_run_files(begun.layout, begun, make_plan(estimate=expected))
    for _ in range(2):
        resumed = check(spec, "run")
        assert resumed.resumed
        _write_run_files(resumed.layout, resumed, make_plan(estimate=later))
    assert reports.report(str(tmp_path / "resumed")).planned == expected

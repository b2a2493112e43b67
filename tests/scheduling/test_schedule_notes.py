"""What a schedule leaves beside its runs: skipped ticks, failed attempts, and who holds the job. No Ray is started."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from batchinfer.errors import InputError, StorageError
from batchinfer.input import build_manifest
from batchinfer.input.manifest import to_parquet
from batchinfer.jobspec import JobSpec
from batchinfer.jobspec.cron import Tick, tick_name
from batchinfer.rundir.attempts import failed_attempts, forget_failed, held_since, note_failed, note_turn
from batchinfer.rundir.past_runs import FileChoice, past_runs, waiting_lock
from batchinfer.rundir.paths import Layout
from batchinfer.scheduling import recurring
from tests.support.builders import make_fingerprint, make_spec, write_lines
from tests.support.scripted_jobs import KeepingListener, scripted_spec

TICK = datetime(2026, 11, 19, 2, tzinfo=UTC)
BEFORE, AFTER = datetime(2026, 11, 18, 3, tzinfo=UTC), datetime(2026, 11, 19, 3, tzinfo=UTC)


def nightly(folder: Path) -> JobSpec:
    return scripted_spec(folder / "in", folder / "out", name="nightly", schedule={"cron": "0 2 * * *"})


def run_due(spec: JobSpec) -> recurring.Outcome:
    assert spec.schedule is not None
    return recurring.run_due(spec, spec.schedule, KeepingListener(), clock=lambda: AFTER)


def test_a_tick_that_comes_while_the_job_is_held_is_skipped_and_written_down(tmp_path: Path) -> None:
    spec, root = nightly(tmp_path), str(tmp_path / "out")
    with waiting_lock(f"{root}/_schedule/nightly.lock", 0, {}):
        note_turn(root, "nightly", BEFORE, {})
        outcome = run_due(spec)
    assert (outcome.reports, outcome.errors) == ([], []), "exit code 0"
    assert [(run.tick, run.state) for run in past_runs(root, "nightly", {})] == [(TICK, "skipped")]
    assert (tmp_path / "out" / "20261119T020000Z" / "_run" / "skipped.json").exists()


def test_a_tick_that_its_holder_owes_is_left_to_it(tmp_path: Path) -> None:
    spec, root = nightly(tmp_path), str(tmp_path / "out")
    with waiting_lock(f"{root}/_schedule/nightly.lock", 0, {}):
        note_turn(root, "nightly", AFTER, {})
        assert run_due(spec).errors == []
    assert past_runs(root, "nightly", {}) == []


def test_a_failed_tick_is_remembered_with_its_reason_and_stays_due(tmp_path: Path) -> None:
    spec = nightly(tmp_path)
    assert spec.schedule is not None
    for attempt in (1, 2):
        assert [type(error) for error in run_due(spec).errors] == [InputError]
        standing = recurring.standing(recurring.Scheduled("x.yaml", spec, spec.schedule), AFTER)
        assert (standing.state, standing.ticks_due) == ("failed", 1)
        assert standing.problem is not None
        assert standing.problem.startswith("there are no parquet files at input.uri")
        assert f"tried {attempt}x" in standing.problem


def test_a_bad_file_that_was_skipped_is_tried_again_at_the_next_tick(tmp_path: Path) -> None:
    inbox, root = tmp_path / "in", str(tmp_path / "out")
    write_lines(inbox / "a.jsonl", {"text": "a"})
    write_lines(inbox / "b.jsonl", "cut off")
    spec = make_spec(
        name="nightly",
        input={"uri": str(inbox), "format": "jsonl", "on_bad_file": "skip", "incremental": {}},
        output={"uri": root},
        schedule={"cron": "0 2 * * *"},
    )

    def taken_at(at: datetime) -> tuple[list[str], list[str]]:
        layout = Layout(f"{root}/{tick_name(at)}")
        choice = FileChoice.of(spec, Tick(at, root), layout)
        fingerprint = make_fingerprint(run_id=tick_name(at), job="nightly", tick=tick_name(at))
        manifest = build_manifest(spec, {"text": "prompt.template"}, fingerprint, choice)
        layout.storage.create(layout.manifest, to_parquet(manifest))
        return [Path(uri).name for uri in manifest.files], [Path(uri).name for uri, _ in manifest.skipped]

    assert taken_at(TICK) == (["a.jsonl"], ["b.jsonl"])
    assert taken_at(TICK + timedelta(days=1)) == ([], ["b.jsonl"]), "as long as it is bad"
    write_lines(inbox / "b.jsonl", {"text": "b"})
    assert taken_at(TICK + timedelta(days=2)) == (["b.jsonl"], []), "and a.jsonl is not taken again"


def test_what_is_no_note_is_neither_read_nor_overwritten_nor_deleted(tmp_path: Path) -> None:
    root, error = str(tmp_path), InputError("no files", "add some")
    note_failed(root, "nightly", TICK, error, AFTER, {})
    (place,) = (tmp_path / "_schedule" / "nightly.failed").iterdir()
    assert [(a.at, a.because, a.exit_code) for a in failed_attempts(root, "nightly", {})] == [(TICK, "no files", 2)]
    for foreign in ("", "{", "[]", "mine", json.dumps({"job": "nightly"}), "[" * 100_000):
        place.write_text(foreign)
        (tmp_path / "_schedule" / "nightly.turn").write_text(foreign)
        assert list(failed_attempts(root, "nightly", {})) == []
        assert held_since(root, "nightly", {}) is None
        forget_failed(root, "nightly", TICK, {})
        with pytest.raises(StorageError):
            note_failed(root, "nightly", TICK, error, AFTER, {})
        with pytest.raises(StorageError):
            note_turn(root, "nightly", AFTER, {})
        assert (place.read_text(), (tmp_path / "_schedule" / "nightly.turn").read_text()) == (foreign, foreign)

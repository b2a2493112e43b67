"""What a caller sees of a run that goes on, and a run that a cluster makes."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import batchinfer
from batchinfer.accounting.records import ShardRecord
from batchinfer.deploy import ray_jobs
from batchinfer.errors import BatchinferError, EngineError, Stopped
from batchinfer.execution.progress import Progress
from batchinfer.python_api import session
from batchinfer.python_api.run import POLL_SECONDS, Run

PROGRESS = Progress(
    rows_done=30, rows_total=120, shards_done=1, shards_total=4, rows_failed=2, tokens_per_second=1_234.5,
    rows_per_second=1.5, cost_usd=0.25,
)  # fmt: skip


class Shown:
    """IPython's display, and its handle."""

    def __init__(self) -> None:
        self.all: list[dict[str, str]] = []

    def __call__(self, shown: Any, *, raw: bool, display_id: bool) -> Shown:
        assert (raw, display_id, self.all) == (True, True, []), "one output for a run"
        self.all.append(shown)
        return self

    def update(self, shown: dict[str, str], *, raw: bool) -> None:
        self.all.append(shown)


def test_a_notebook_has_one_output_that_is_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Shown()
    monkeypatch.setattr(session, "notebook_display", lambda: shown)
    with session.attended({}, progress=None) as listener:
        listener.event("hint", text="a <b> in a row")
        listener.begin(PROGRESS)
        listener.advance(PROGRESS, cast(ShardRecord, SimpleNamespace(shard_id=3)))
        listener.end()
    assert "&lt;b&gt;" in shown.all[0]["text/html"]
    assert '<progress value="30" max="120"' in shown.all[-1]["text/html"]
    assert shown.all[-1]["text/plain"] == "30 of 120 rows, 2 failed, 1,234 tokens/s, $0.2500, 1:00 left"


def test_events_go_to_the_standard_logger_with_their_values(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, "batchinfer")
    with session.attended({}, progress=False) as listener:
        listener.event("engine restarting", replica_id="r1", restart=1, max_restarts=20)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("batchinfer", "WARNING")
    assert record.getMessage() == "replica r1: engine restart 1 of 20"
    assert record.__dict__["batchinfer_values"]["restart"] == 1
    assert capfd.readouterr() == ("", "")


def test_a_failure_names_the_log_and_an_unforeseen_one_is_of_the_tree(tmp_path: Path) -> None:
    def fails() -> None:
        with session.attended({}, progress=False) as listener:
            listener.event("started", run_id="1", output=str(tmp_path))
            raise EngineError("it died", "look")

    with pytest.raises(EngineError) as failed:
        fails()
    log = tmp_path / "_run" / "run.log"
    assert failed.value.remedy == f"look; the log is {log}"
    assert "batchinfer: started" in log.read_text()
    with pytest.raises(BatchinferError, match="ZeroDivisionError") as odd, session.attended({}, progress=False):
        _ = 1 / 0
    path = Path(odd.value.remedy.rpartition(" ")[2])
    assert "Traceback" in path.read_text()
    path.unlink()


def submitted(states: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """A run that is sent to a cluster whose job is in these states, one after the other."""

    def job(job_id: str) -> Any:
        state = states.pop(0) if len(states) > 1 else states[0]
        return SimpleNamespace(id=job_id, state=state, ended=state in ("failed", "stopped"), message="out of memory")

    client = SimpleNamespace(job=job, stop=lambda job_id: True)
    monkeypatch.setattr(ray_jobs, "connect", lambda address: client)
    monkeypatch.setattr(ray_jobs, "submit", lambda spec, *rest: SimpleNamespace(id=f"{spec.name}-1"))
    monkeypatch.setattr("batchinfer.python_api.run.POLL_SECONDS", POLL_SECONDS / 1000)
    return batchinfer.Job(model="scripted", prompt="{{ text }}").submit("http://head:8265", ["a"], output=tmp_path)


def test_a_submitted_job_is_waited_for_and_its_failure_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = submitted(["pending", "running", "running", "failed"], monkeypatch, tmp_path)
    assert run.job_id == "job-1"
    assert run.status == "pending"
    assert run.stop()
    with pytest.raises(BatchinferError, match="job-1: out of memory"):
        run.wait()
    assert run.status == "failed"
    assert (tmp_path / "_input").is_dir(), "the rows, for the cluster"


def test_a_submitted_job_that_takes_longer_is_not_waited_for_any_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = submitted(["running"], monkeypatch, tmp_path)
    with pytest.raises(TimeoutError):
        run.wait(timeout=0.01)


def test_errors_of_a_thread_are_raised_where_they_are_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stopped(*arguments: Any) -> Any:
        raise Stopped("stopped by a test", "go on")

    monkeypatch.setattr("batchinfer.scheduling.recurring.run", stopped)
    run = batchinfer.Job(model="scripted", prompt="{{ text }}").run(["a"], output=tmp_path, wait=False)
    with pytest.raises(Stopped, match="stopped by a test"):
        run.wait(timeout=30)

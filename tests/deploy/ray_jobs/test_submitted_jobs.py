"""Ids, places and states of submitted jobs, and the entrypoint's check."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from batchinfer.cli.submit import logs
from batchinfer.deploy import ray_jobs
from batchinfer.deploy.ray_jobs import start
from batchinfer.deploy.ray_jobs.jobs import (
    attempt_id,
    attempts,
    local_places,
    metadata_of,
    run_name,
    submitted_job,
    submitted_progress,
    told_error,
)
from batchinfer.deploy.ray_jobs.show import job_document, job_table
from batchinfer.outlet import Outlet
from tests.support.scripted_jobs import scripted_spec

IN, OUT = Path("/data/in"), Path("/data/out")


def test_a_run_has_one_name_whatever_it_runs_on_and_another_where_its_results_differ():
    name = run_name(scripted_spec(IN, OUT))
    assert name.startswith("scripted-")
    assert run_name(scripted_spec(IN, OUT, resources={"replicas": 4}, limits={"max_cost_usd": 5})) == name
    assert run_name(scripted_spec(IN, OUT, labels={"team": "search"})) == name
    assert run_name(scripted_spec(IN, OUT, sampling={"max_tokens": 65})) != name
    assert run_name(scripted_spec(IN, Path("/data/out2"))) != name
    assert run_name(scripted_spec(IN, OUT, name="other")) != name


@given(st.sets(st.integers(1, 200)))
def test_the_attempts_of_a_run_are_found_among_other_jobs(numbers):
    jobs = [submitted_job(attempt_id("tickets-0a", number), "RUNNING", None) for number in numbers]
    others = [submitted_job(name, "RUNNING", None) for name in ("tickets-0ab", "tickets-0a-x", "my-tickets-0a", "")]
    assert attempts("tickets-0a", others + jobs).keys() == numbers


@given(st.dictionaries(st.text(), st.text(), max_size=4))
def test_labels_come_back_from_the_cluster_as_they_went(labels):
    spec = scripted_spec(IN, OUT, labels=labels)
    job = submitted_job("id", "RUNNING", metadata_of(spec, "1.2.3"))
    assert (job.labels, job.name, job.output, job.version) == (labels, "scripted", str(OUT), "1.2.3")


@pytest.mark.parametrize(
    ("status", "exit_code", "state"),
    [
        ("PENDING", None, "pending"),
        ("RUNNING", None, "running"),
        ("SUCCEEDED", 0, "succeeded"),
        ("FAILED", 3, "failed"),
        ("FAILED", 4, "stopped"),
        ("STOPPED", None, "stopped"),
    ],
)
def test_the_state_of_a_job(status, exit_code, state):
    job = submitted_job("id", status, None, exit_code=exit_code)
    assert (job.state, job.ended) == (state, state not in ("pending", "running"))


def test_local_places_are_those_that_a_remote_cluster_cannot_see(tmp_path):
    spec = scripted_spec(tmp_path, OUT, model={"source": str(tmp_path)}, engine={"tokenizer": "./tokens"})
    assert set(local_places(spec)) == {"input.uri", "output.uri", "model.source", "engine.tokenizer"}
    remote = scripted_spec(IN, OUT, model={"source": "Qwen/Qwen3-8B"})
    remote = remote.model_copy(
        update={
            "input": remote.input.model_copy(update={"uri": "s3://bucket/in"}),
            "output": remote.output.model_copy(update={"uri": "s3://bucket/out"}),
        }
    )
    assert local_places(remote) == {}


def test_progress_is_the_newest_line_that_says_it():
    lines = ["{not json, rows_total", json.dumps({"rows_total": 9, "rows_done": 2, "cost_usd": 0.5}), "a: report"]
    assert submitted_progress("\n".join(lines)) == {"rows_total": 9, "rows_done": 2, "cost_usd": 0.5}
    assert submitted_progress("nothing yet") is None


def test_the_status_says_of_how_many_rows_a_job_with_a_selection_runs_its_own():
    job = submitted_job("id", "RUNNING", None)
    told = {"rows_done": 40, "rows_total": 200, "selected_from": 1000}
    assert job_document(job, submitted_progress(json.dumps(told)))["progress"] == told
    assert "40 of 200 (selected from 1,000)" in table_text(job_table(job, submitted_progress(json.dumps(told)), 0))
    everything = {"rows_done": 40, "rows_total": 200}
    assert "selected" not in table_text(job_table(job, submitted_progress(json.dumps(everything)), 0))


def table_text(table: Table) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_the_error_that_a_job_ended_with():
    assert told_error("{}\nerror: no input\n  -> give one\n") == ("no input", "give one")
    assert told_error("error: 2 mistakes:\n  a\n  b\n  -> read\n") == ("2 mistakes:\n  a\n  b", "read")
    assert told_error("all well\n") is None


@pytest.mark.integration
@pytest.mark.parametrize(
    ("python", "version", "says"),
    # -S leaves the installed packages out, -I this folder: a Python that has no batchinfer.
    [(["-I", "-S"], "0.1.0", "the cluster has no batchinfer"), ([], "9.9.9", "this is 9.9.9")],
)
def test_a_cluster_without_this_version_is_told_apart_before_anything_runs(tmp_path, python, version, says):
    done = subprocess.run(
        [sys.executable, *python, start.__file__, version], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (2, "")
    message, remedy = told_error(done.stderr) or ("", "")
    assert says in message
    assert "--with-package" in remedy


@pytest.mark.parametrize(
    ("status", "exit_code", "expected"),
    [
        ("SUCCEEDED", 0, 0), ("FAILED", 3, 3), ("FAILED", 2, 2), ("FAILED", 4, 4), ("FAILED", -9, 1),
        ("FAILED", None, 1), ("STOPPED", None, 4), ("RUNNING", None, 75), ("PENDING", None, 75),
    ],
)  # fmt: skip
def test_the_exit_code_of_a_command_that_followed_the_job(status, exit_code, expected):
    assert submitted_job("id", status, None, exit_code=exit_code).exit_status == expected


@pytest.mark.integration
def test_the_entrypoint_of_a_rayjob_ends_with_the_exit_code_of_its_command():
    command = [sys.executable, "-m", "batchinfer.deploy.ray_jobs.entrypoint"]
    refused = subprocess.run([*command, "run", "no-such.yaml"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "there is no spec at no-such.yaml" in refused.stderr
    assert "a second cluster would not mend that" in refused.stdout
    assert subprocess.run([*command, "--version"], capture_output=True).returncode == 0


def test_a_log_is_followed_until_its_reader_leaves(monkeypatch):
    reader, writer = os.pipe()
    lines = open(reader, "rb")  # noqa: SIM115 - closed by the test, as `head` does

    class Dashboard:
        def follow(self, job_id, show):
            show("first\n")
            assert lines.readline() == b"first\n"
            lines.close()
            show("second\n")
            pytest.fail("the job goes on for hours")

    monkeypatch.setattr(ray_jobs, "connect", lambda address: Dashboard())
    with open(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", Outlet(stdout))
        with pytest.raises(SystemExit) as ended:
            logs("id", follow=True, address="http://127.0.0.1:8265")
        sys.stdout.flush()
    assert ended.value.code == 0

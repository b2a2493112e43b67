"""Submitted jobs as a table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rich.table import Table

from batchinfer.accounting.money import money
from batchinfer.deploy.ray_jobs.jobs import SubmittedJob

Progress = dict[str, int | float]


def job_document(job: SubmittedJob, progress: Progress | None = None) -> dict[str, Any]:
    """The job's values for JSON, times as ISO 8601 in UTC; with `progress` if it is known."""
    document = asdict(job)
    for key in ("started_at", "ended_at"):
        at = document[key]
        document[key] = None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
    return document | ({"progress": progress} if progress is not None else {})


def jobs_table(jobs: Sequence[SubmittedJob], now: float) -> Table:
    """A line a job; `now` in seconds since 1970."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("id", "state", "started (UTC)", "took", "labels", "output"):
        table.add_column(name, overflow="fold")
    for job in jobs:
        table.add_row(job.id, _state(job), _time(job.started_at), _took(job, now), _labels(job), job.output)
    return table


def job_table(job: SubmittedJob, progress: Progress | None, now: float) -> Table:
    """All values of one job; `now` in seconds since 1970."""
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    lines = [("id", job.id), ("state", _state(job)), ("says", job.message), ("rows", _rows(progress))]
    lines += [("started (UTC)", _time(job.started_at)), ("took", _took(job, now)), ("labels", _labels(job))]
    lines += [("output", job.output), ("batchinfer", job.version)]
    for name, value in lines:
        if value:
            table.add_row(name, value)
    return table


def _state(job: SubmittedJob) -> str:
    return f"{job.state} (exit {job.exit_code})" if job.exit_code else job.state


def _time(at: float | None) -> str:
    return "" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _took(job: SubmittedJob, now: float) -> str:
    if job.started_at is None:
        return ""
    seconds = int((job.ended_at or now) - job.started_at)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _labels(job: SubmittedJob) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(job.labels.items()))


def _rows(progress: Progress | None) -> str:
    if progress is None:
        return ""
    told = f"{progress['rows_done']:,} of {progress['rows_total']:,}"
    if "selected_from" in progress:
        told += f" (selected from {progress['selected_from']:,})"
    if "tokens_per_second" in progress:
        told += f", {progress['tokens_per_second']:,.0f} tokens/s, {money(progress.get('cost_usd', 0.0))}"
    return told

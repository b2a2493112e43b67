"""The command line of recurring jobs: the time options of `run`, and the group `schedule`."""

from __future__ import annotations

import sys
from datetime import UTC, date, datetime
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any
from zoneinfo import ZoneInfo

import typer
from rich.table import Table

from batchinfer.cli.app import Address, AsJson, Overrides, app, console, print_json
from batchinfer.errors import BatchinferError, Stopped, UserError

if TYPE_CHECKING:
    from batchinfer.jobspec import JobSpec
    from batchinfer.scheduling.recurring import DueOutcome

schedule_app = typer.Typer(help="Run jobs at the times set in their specs.", no_args_is_help=True)
app.add_typer(schedule_app, name="schedule")

Date = Annotated[
    str | None,
    typer.Option("--date", metavar="DAY", help="Run for the ticks of that day, such as 2026-11-20."),
]
At = Annotated[
    str | None,
    typer.Option(
        "--at", metavar="TIME", help="Run for that time in the schedule's time zone, such as 2026-11-20T02:00, or now."
    ),
]
From = Annotated[str | None, typer.Option("--from", metavar="DAY", help="Run every tick from that day onwards.")]
To = Annotated[str | None, typer.Option("--to", metavar="DAY", help="Last day for --from. Default: today.")]

Specs = Annotated[list[str], typer.Argument(metavar="SPEC...", help="Specs, or folders of them.")]
Number = Annotated[int, typer.Option("-n", min=1, max=10_000, help="Number of ticks.")]


def run_times(spec: JobSpec, day: str | None, at: str | None, first: str | None, last: str | None) -> list[datetime]:
    """The times that the options of `run` name, in order; empty without such an option. Raises UserError."""
    from batchinfer.jobspec.schedule import require_no_tick_blocked, times_on, uses_time

    if sum(value is not None for value in (day, at, first)) > 1 or (last is not None and first is None):
        raise UserError("give one of --date, --at, and --from with --to", "see `batchinfer run --help`")
    if day is None and at is None and first is None:
        return []
    if not uses_time(spec):
        raise UserError(
            "this job runs once: it has no schedule, no variable in its URIs, and no input.incremental",
            "leave --date, --at and --from out",
        )
    now = datetime.now(UTC)
    zone = ZoneInfo(spec.schedule.timezone if spec.schedule else "UTC")
    if at is not None:
        time = _time(at, zone, now)
        require_no_tick_blocked(spec, time)
        return [time]
    begin = _day(day or first or "")
    end = begin if day is not None else now.astimezone(zone).date() if last is None else _day(last)
    return times_on(spec, begin, end, now)


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise UserError(f"{text!r} is not a day", "write it as 2026-11-20") from None


def _time(text: str, zone: ZoneInfo, now: datetime) -> datetime:
    if text == "now":
        return now
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(f"{text!r} is not a time", "write it as 2026-11-20T02:00, or now") from None
    if not 1970 < found.year < 9999:
        raise UserError(f"{text!r} is too far away", "write a time as 2026-11-20T02:00")
    found = (found if found.tzinfo else found.replace(tzinfo=zone)).astimezone(UTC)
    if found > now:
        raise UserError(f"{text} has not come yet", "give a time that is past, or now")
    return found


@schedule_app.command("next")
def next_ticks(specs: Specs, number: Number = 5, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print the coming ticks, on the schedule's clock."""
    from batchinfer.jobspec.schedule import coming, resolve
    from batchinfer.scheduling import recurring

    jobs = recurring.scheduled(specs, overrides or [])
    now = recurring.utc_now()
    rows = []
    for job in jobs:
        for at in islice(coming(job.schedule, now), number):
            rendered, _ = resolve(job.spec, at)
            places = {"input": rendered.input.uri, "output": rendered.output.uri}
            rows.append({"name": job.spec.name, "tick": recurring.local_time(at, job.schedule), **places})
    _show(rows, as_json)


@schedule_app.command("list")
def list_jobs(specs: Specs, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print the state of each job: its last tick and the result, the ticks that are due, and its next tick."""
    from batchinfer.scheduling import recurring

    now = recurring.utc_now()
    rows = [recurring.standing(job, now).model_dump() for job in recurring.scheduled(specs, overrides or [])]
    _show(rows, as_json)


@schedule_app.command("run-due")
def run_due(specs: Specs, overrides: Overrides = None, as_json: AsJson = False, address: Address = None) -> None:
    """Resume unfinished runs, run every tick that is due, and end: for cron, systemd or Kubernetes."""
    from batchinfer.execution import reports
    from batchinfer.reporting import render
    from batchinfer.reporting.console import attending
    from batchinfer.scheduling import recurring

    outcome = recurring.DueOutcome()
    for job in recurring.scheduled(specs, overrides or []):
        try:
            with attending(job.spec.storage) as listener:
                _merge(outcome, recurring.run_due(job.spec, job.schedule, listener, address))
        except Stopped:
            raise
        except BatchinferError as error:
            # The other jobs run anyway.
            outcome.errors.append(error)
    if as_json:
        print_json([report.model_dump(mode="json") for report in outcome.reports])
    else:
        for report in outcome.reports:
            console().print(render(report))
    for other in outcome.errors[1:]:
        print(f"error: {other.message}\n  -> {other.remedy}", file=sys.stderr)
    if outcome.errors:
        raise outcome.errors[0]
    for report in outcome.reports:
        reports.require_limits(report)


def _merge(outcome: DueOutcome, more: DueOutcome) -> None:
    outcome.reports += more.reports
    outcome.errors += more.errors


@schedule_app.command()
def serve(specs: Specs, overrides: Overrides = None, address: Address = None) -> None:
    """Run each tick as it comes due, until SIGTERM; then wait for the shards in flight."""
    from batchinfer.reporting.console import event_log
    from batchinfer.scheduling import recurring
    from batchinfer.scheduling.serve import serve as stay

    jobs = recurring.scheduled(specs, overrides or [])
    options = [part for value in overrides or [] for part in ("--set", value)]
    options += ["--address", address] if address else []
    raise typer.Exit(stay(jobs, options, event_log()))


def _show(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(rows)
        return
    table = Table(box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(name.replace("_", " "))
    for row in rows:
        table.add_row(*(str(value or "-") for value in row.values()))
    console().print(table)

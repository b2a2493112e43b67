"""When a job runs, and the folder of each run, from the spec, the earlier runs and the time. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import islice, pairwise, takewhile
from typing import Literal
from zoneinfo import ZoneInfo

from pydantic import ValidationError

from batchinfer.errors import SpecError, UserError
from batchinfer.jobspec.cron import Tick, latest_tick, latest_ticks, tick_name, ticks_after, ticks_between
from batchinfer.jobspec.input_keys import InputSpec
from batchinfer.jobspec.job_keys import JobSpec
from batchinfer.jobspec.output_keys import OutputSpec
from batchinfer.jobspec.schedule_keys import ScheduleSpec
from batchinfer.jobspec.variables import Moment, fixed_folder, has_variables, render

State = Literal["done", "unfinished", "running", "skipped"]

_TICKS_LOOKED_AT = 60
"""Ticks that are compared for a common folder: two months of a daily job. Fewer miss a collision, more take longer."""


@dataclass(frozen=True, slots=True)
class PastRun:
    """An earlier run of the job: its tick, its folder, and its state."""

    tick: datetime
    root: str
    state: State


@dataclass(frozen=True, slots=True)
class Due:
    """The work that is due, in order: runs to resume first, ticks to start, and ticks to skip."""

    resume: tuple[PastRun, ...] = ()
    start: tuple[datetime, ...] = ()
    skip: tuple[datetime, ...] = ()


def decide(schedule: ScheduleSpec, past: Sequence[PastRun], now: datetime, held_since: datetime | None = None) -> Due:
    """What is due at `now`. `held_since`: the time since which another process holds the job's lock; None if none does.

    That process runs the ticks that were owed when it took the lock, so `skip` leaves out only later ticks.
    """
    missed = owed(schedule, past, now)
    died = tuple(sorted((run for run in past if run.state == "unfinished"), key=lambda run: run.tick))
    if schedule.overlap == "allow":
        return Due(died, missed)
    if held_since is not None:
        return Due(skip=tuple(at for at in missed if at > held_since)) if schedule.overlap == "skip" else Due()
    if any(run.state == "running" for run in past):
        # A process may run a tick without the job's lock, if `overlap` was `allow` when it started.
        return Due(skip=missed[-1:]) if schedule.overlap == "skip" else Due()
    return Due(died, missed)


def owed(schedule: ScheduleSpec, past: Sequence[PastRun], now: datetime) -> tuple[datetime, ...]:
    """The ticks up to `now` without a run of any state, among the latest `catchup` ticks since the first run.

    A job without runs owes its latest tick.
    """
    had = {run.tick for run in past}
    first = min(had, default=None)
    count = schedule.catchup if had else 1
    found = latest_ticks(schedule.cron, schedule.timezone, now, count, first)
    return tuple(at for at in found if at not in had)


def output_template(spec: JobSpec) -> str:
    """`output.uri`; for a job that repeats and has no variable in it, `output.uri` with `run.time` below it."""
    uri = spec.output.uri
    return f"{uri.rstrip('/')}/{{{{ run.time }}}}" if spec.repeats and not has_variables(uri) else uri


def runs_folder(spec: JobSpec) -> str:
    """The folder that contains all runs of the job."""
    return fixed_folder(output_template(spec))


def uses_time(spec: JobSpec) -> bool:
    """Does the run depend on the time that it is for?"""
    return spec.repeats or has_variables(spec.input.uri) or has_variables(spec.output.uri)


def moment(spec: JobSpec, at: datetime) -> Moment:
    """The values of the job's variables for a run at `at`."""
    schedule = spec.schedule
    if schedule is None:
        return Moment(spec.name, at)

    def before(instant: datetime) -> datetime:
        found = latest_tick(schedule.cron, schedule.timezone, instant - timedelta(seconds=1))
        if found is None:
            raise ValueError(f"there is no tick before {instant:%Y-%m-%d %H:%M}")
        return found

    return Moment(spec.name, at, schedule.timezone, before)


def resolve(spec: JobSpec, at: datetime) -> tuple[JobSpec, Tick | None]:
    """The spec with its variables filled in for a run at `at`, and the run's tick; None for a job that runs once.

    Raises SpecError for a variable that has no value at `at`, and for a URI that is invalid once it is filled in.
    """
    at = at.astimezone(UTC).replace(microsecond=0)
    values = moment(spec, at)
    found = {}
    for key, uri in (("input", spec.input.uri), ("output", output_template(spec))):
        try:
            found[key] = render(uri, values)
        except ValueError as error:
            raise SpecError(f"{key}.uri: {error}", "`batchinfer explain output.uri` lists the variables") from None
    try:
        # A filled-in URI may be invalid, so it is validated as a URI of the file is.
        update = {
            "input": InputSpec.model_validate(spec.input.model_dump() | {"uri": found["input"]}),
            "output": OutputSpec.model_validate(spec.output.model_dump() | {"uri": found["output"]}),
        }
    except ValidationError as error:
        raise SpecError(
            f"a uri with its variables filled in {error.errors()[0]['msg'].removeprefix('Value error, ')}",
            "`batchinfer explain output.uri` lists the variables",
        ) from None
    return spec.model_copy(update=update), Tick(at, runs_folder(spec)) if spec.repeats else None


def current_time(spec: JobSpec, now: datetime) -> datetime:
    """The time that a run at `now` is for: the latest tick of the schedule, or `now` without a schedule.

    A scheduled job that is started by hand therefore runs its latest tick, as the schedule would.
    """
    if spec.schedule is None:
        return now
    return latest_tick(spec.schedule.cron, spec.schedule.timezone, now) or now


def times_on(spec: JobSpec, first: date, last: date, now: datetime) -> list[datetime]:
    """The ticks of the local days `first` to `last`, up to `now`; without a schedule, each day's midnight in UTC.

    Raises UserError if there are none.
    """
    if first > last:
        raise UserError(f"{first} is after {last}", "give the earlier day first")
    if spec.schedule is None:
        days = ((first + timedelta(days=n)) for n in range((last - first).days + 1))
        found = [datetime(day.year, day.month, day.day, tzinfo=UTC) for day in days]
        where = "UTC"
    else:
        found = ticks_between(spec.schedule.cron, spec.schedule.timezone, first, last)
        where = f"{spec.schedule.cron!r} in {spec.schedule.timezone}"
    past = [at for at in found if at <= now]
    if not past:
        day = str(first) if first == last else f"{first} to {last}"
        problem = "have not come yet" if found else "have no tick"
        raise UserError(f"{day}: these days {problem} ({where})", "`batchinfer schedule next` shows the ticks")
    return past


def coming(schedule: ScheduleSpec, after: datetime) -> Iterator[datetime]:
    """The ticks after `after`."""
    return ticks_after(schedule.cron, schedule.timezone, after)


def require_distinct_folders(spec: JobSpec, now: datetime) -> None:
    """Raise SpecError if two ticks of the coming year would share a folder.

    Compares the next ticks, and the ticks around each change of the clock, when `run.hour` repeats.
    """
    if spec.schedule is None:
        return
    windows: list[Iterable[datetime]] = [islice(coming(spec.schedule, now), _TICKS_LOOKED_AT)]
    for day in _clock_changes(spec.schedule, now):
        until = day + timedelta(hours=27)
        windows.append(takewhile(until.__ge__, coming(spec.schedule, day - timedelta(hours=3))))
    for ticks in windows:
        seen: dict[str, datetime] = {}
        for at in ticks:
            place = resolve(spec, at)[0].output.uri
            if place in seen:
                raise SpecError(
                    f"output.uri gives the ticks {tick_name(seen[place])} and {tick_name(at)} one folder: {place}",
                    "put {{ run.time }} in it, which no two ticks share",
                )
            seen[place] = at


def require_no_tick_blocked(spec: JobSpec, at: datetime) -> None:
    """Raise UserError if `at` is no tick and its run would occupy the folder of a tick: that tick could not run."""
    schedule = spec.schedule
    if schedule is None:
        return
    latest = latest_tick(schedule.cron, schedule.timezone, at)
    if latest == at:
        return
    place = resolve(spec, at)[0].output.uri
    before = [] if latest is None else [latest]
    for tick in (*before, *islice(coming(schedule, at), _TICKS_LOOKED_AT)):
        if resolve(spec, tick)[0].output.uri == place:
            zone = ZoneInfo(schedule.timezone)
            raise UserError(
                f"{at.astimezone(zone):%Y-%m-%d %H:%M} is no tick, and a run for it would take the folder of the tick "
                f"{tick.astimezone(zone):%Y-%m-%d %H:%M}: {place}",
                f"run that tick, with --at {tick.astimezone(zone):%Y-%m-%dT%H:%M} once it has come; "
                "or put {{ run.time }} in output.uri, which no two runs share",
            )


def _clock_changes(schedule: ScheduleSpec, now: datetime) -> Iterable[datetime]:
    zone = ZoneInfo(schedule.timezone)
    days = [now + timedelta(days=n) for n in range(367)]
    return [a for a, b in pairwise(days) if a.astimezone(zone).utcoffset() != b.astimezone(zone).utcoffset()]

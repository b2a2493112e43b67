"""When a job runs and where each run goes: from values (the spec, what ran before, the time) to values. Pure."""

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
from batchinfer.jobspec.job_keys import InputSpec, JobSpec, OutputSpec
from batchinfer.jobspec.schedule_keys import ScheduleSpec
from batchinfer.jobspec.variables import Moment, fixed_folder, has_variables, render

State = Literal["done", "unfinished", "running", "skipped"]

_TICKS_LOOKED_AT = 60
"""Ticks that are looked at for a folder in common: two months of a daily job, two hours of one each two minutes."""


@dataclass(frozen=True, slots=True)
class PastRun:
    """An earlier run of the job: its tick, its folder, and what became of it."""

    tick: datetime
    root: str
    state: State


@dataclass(frozen=True, slots=True)
class Due:
    """What is to be done now: runs that died, to be resumed first, and ticks to start or to leave out. In order."""

    resume: tuple[PastRun, ...] = ()
    start: tuple[datetime, ...] = ()
    skip: tuple[datetime, ...] = ()


def decide(schedule: ScheduleSpec, past: Sequence[PastRun], now: datetime, held_since: datetime | None = None) -> Due:
    """What is due at `now`. `held_since`: since when another process has held the job, None if none does.

    That process runs what was owed when its turn began, so `skip` leaves out only the ticks that came later.
    """
    missed = owed(schedule, past, now)
    died = tuple(sorted((run for run in past if run.state == "unfinished"), key=lambda run: run.tick))
    if schedule.overlap == "allow":
        return Due(died, missed)
    if held_since is not None:
        return Due(skip=tuple(at for at in missed if at > held_since)) if schedule.overlap == "skip" else Due()
    if any(run.state == "running" for run in past):
        # Another process runs a tick without holding the job, as it does after `overlap` was `allow`.
        return Due(skip=missed[-1:]) if schedule.overlap == "skip" else Due()
    return Due(died, missed)


def owed(schedule: ScheduleSpec, past: Sequence[PastRun], now: datetime) -> tuple[datetime, ...]:
    """The ticks up to `now` that no run has, in whatever state: of the latest `catchup`, those after the first run.

    A job without any run owes its latest tick.
    """
    had = {run.tick for run in past}
    first = min(had, default=None)
    count = schedule.catchup if had else 1
    found = latest_ticks(schedule.cron, schedule.timezone, now, count, first)
    return tuple(at for at in found if at not in had)


def output_template(spec: JobSpec) -> str:
    """`output.uri`; a job that repeats and has no variable in it gets a folder a run below it, by `run.time`."""
    uri = spec.output.uri
    return f"{uri.rstrip('/')}/{{{{ run.time }}}}" if spec.repeats and not has_variables(uri) else uri


def runs_folder(spec: JobSpec) -> str:
    """The folder that all runs of the job lie in."""
    return fixed_folder(output_template(spec))


def uses_time(spec: JobSpec) -> bool:
    """Does it matter which time the job is run for?"""
    return spec.repeats or has_variables(spec.input.uri) or has_variables(spec.output.uri)


def moment(spec: JobSpec, at: datetime) -> Moment:
    """What the job's variables are made from, for a run at `at`."""
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
    """The spec with its variables filled in for a run at `at`, and that run's tick; None for a job that runs once.

    Raises SpecError for what cannot be filled in.
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
        # A variable may render to what no place may hold, which is checked as in the file.
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
    """The time that a run at `now` is for: with a schedule its latest tick, without one now.

    So running a scheduled job by hand does the latest tick, once, as the schedule would.
    """
    if spec.schedule is None:
        return now
    return latest_tick(spec.schedule.cron, spec.schedule.timezone, now) or now


def times_on(spec: JobSpec, first: date, last: date, now: datetime) -> list[datetime]:
    """The ticks from one local day to another that have come by `now`; without a schedule, each day's midnight UTC."""
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
    """Raise SpecError if two ticks of the coming year would go to one folder.

    Looks at the next ticks and at those around each change of the clock, where `run.hour` comes twice.
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
    """Raise UserError if a run for `at`, which is no tick, would take the folder of a tick: that tick could not run."""
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

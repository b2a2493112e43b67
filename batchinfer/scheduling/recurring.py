"""The use cases of a recurring job: run one tick, backfill, run the ticks that are due, show the job's state.

`schedule.decide` decides from the folders of earlier runs (`past_runs`); this module carries the decision out.
A tick that ended with an error stays due. Its note (`attempts`) is only shown by `schedule list`.
A job runs one tick at a time, unless `schedule.overlap` is allow. Its lock ends with the process.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict

from batchinfer.accounting.report import Report
from batchinfer.errors import (
    BatchinferError,
    InputError,
    InputTaken,
    OutputBusy,
    OutputError,
    SpecError,
    Stopped,
    StorageError,
)
from batchinfer.execution import preview, ray_pipeline, runner
from batchinfer.execution.checks import absolute, refusals_are_the_users
from batchinfer.execution.progress import Listener
from batchinfer.jobspec import JobSpec, ScheduleSpec, load
from batchinfer.jobspec.cron import tick_name
from batchinfer.jobspec.schedule import (
    PastRun,
    coming,
    current_time,
    decide,
    owed,
    require_distinct_folders,
    require_no_tick_blocked,
    resolve,
    runs_folder,
)
from batchinfer.rundir.attempts import failed_attempts, forget_failed, held_since, note_failed, note_turn
from batchinfer.rundir.past_runs import note_skipped, past_runs, waiting_lock
from batchinfer.rundir.paths import Layout, reading
from batchinfer.storage import join, storage_for

CLAIM_ATTEMPTS = 3
"""Attempts to begin a run if another run of the job takes some of its files first. Each attempt lists the input
again."""

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The current time in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A spec with a schedule, and the file that it came from."""

    path: str
    spec: JobSpec
    schedule: ScheduleSpec


@dataclass(slots=True)
class DueOutcome:
    """The result of running the due ticks: a report for each run that ended, and the errors of the others."""

    reports: list[Report] = field(default_factory=list)
    errors: list[BatchinferError] = field(default_factory=list)


class JobStanding(BaseModel):
    """The state of a scheduled job. Times are ISO 8601; ticks are in the schedule's time zone.

    `state`: of the last tick, `never` if there is none. `due`: the oldest tick that is due now. `problem`: why the
    last tick failed, and how often it was tried; None if it did not fail."""

    model_config = ConfigDict(frozen=True)

    name: str
    spec: str
    cron: str
    timezone: str
    overlap: str
    last_tick: str | None
    state: str
    output: str | None
    due: str | None
    ticks_due: int
    problem: str | None
    next_tick: str | None


def scheduled(paths: Sequence[str], overrides: Sequence[str] = ()) -> list[Scheduled]:
    """The specs at `paths`, which are files or folders. In a folder, specs without a schedule are ignored.

    Raises SpecError for a wrong spec, for a file without a schedule, and for two schedules of one name.
    """
    found: list[Scheduled] = []
    for path in paths:
        inside = sorted(str(p) for pattern in ("*.yaml", "*.yml") for p in Path(path).glob(pattern))
        for file in inside if Path(path).is_dir() else [path]:
            spec = load(file, overrides)
            if spec.schedule is not None:
                found.append(Scheduled(file, spec, spec.schedule))
            elif not Path(path).is_dir():
                raise SpecError(f"{file} has no schedule", 'add schedule: {cron: "0 2 * * *", timezone: UTC}')
    if not found:
        raise SpecError(f"no spec in {', '.join(paths)} has a schedule", "add schedule.cron to one")
    names: dict[str, str] = {}
    for job in found:
        if job.spec.name in names:
            raise SpecError(
                f"{names[job.spec.name]} and {job.path} are both schedules named {job.spec.name!r}",
                "give one of them another name: it tells their runs apart",
            )
        names[job.spec.name] = job.path
        require_distinct_folders(job.spec, utc_now())
    return found


def run(
    spec: JobSpec,
    listener: Listener,
    cluster: str | None = None,
    fresh: bool = False,
    at: datetime | None = None,
) -> Report:
    """Run the job for the tick `at`. If `at` is None, resume the job's unfinished runs, then run the latest tick, or
    now for a job without a schedule."""
    if not spec.repeats:
        return runner.run(spec, listener, cluster, fresh, at)
    if at is not None:
        require_no_tick_blocked(spec, at)
    with _turn(spec, listener):
        target = at or current_time(spec, utc_now())
        if at is None:
            died = [run for run in _past(spec) if run.state == "unfinished" and run.tick != target]
            for run in died:
                _resume(spec, run, listener, cluster)
        return _run(spec, target, listener, cluster, fresh)


def backfill(
    spec: JobSpec, times: Sequence[datetime], listener: Listener, cluster: str | None = None, fresh: bool = False
) -> list[Report]:
    """Run the job for each of `times`, in order, on one connection to Ray. Finished ticks are not run again."""
    preview.validate(spec, times[0])
    with _turn(spec, listener), ray_pipeline.connected(cluster):
        return [_run(spec, at, listener, cluster, fresh) for at in times]


def run_due(
    spec: JobSpec, schedule: ScheduleSpec, listener: Listener, cluster: str | None = None, clock: Clock = utc_now
) -> DueOutcome:
    """Resume the unfinished runs of the job, then run every tick that is due, oldest first.

    If another process runs the job, `schedule.overlap` decides about the ticks that came since that process began.
    """
    outcome = DueOutcome()
    try:
        with _turn(spec, listener, clock):
            past = _past(spec)
            due = decide(schedule, past, clock())
            start = _free(spec, due.start, past, listener)
            for at in due.skip:
                _skip(spec, at, listener)
            # One connection for all, because a local cluster needs ten seconds to start.
            several = len(due.resume) + len(start) > 1
            with ray_pipeline.connected(cluster) if several else contextlib.nullcontext():
                _make_up(spec, due.resume, start, listener, cluster, clock, outcome)
    except OutputBusy as error:
        past, root = _past(spec), runs_folder(spec)
        since = held_since(root, spec.name, spec.storage) or clock()
        skipped = _free(spec, decide(schedule, past, clock(), since).skip, past, listener)
        for at in skipped:
            _skip(spec, at, listener)
        if not skipped:
            listener.event("runs already", job=spec.name, reason=error.message)
    return outcome


def _make_up(
    spec: JobSpec,
    died: Sequence[PastRun],
    start: Sequence[datetime],
    listener: Listener,
    cluster: str | None,
    clock: Clock,
    outcome: DueOutcome,
) -> None:
    """Resume `died` and run `start`, in order. A tick with a bad input or output does not stop the later ticks."""
    resumes = [(run.tick, partial(_resume, spec, run, listener, cluster)) for run in died]
    starts = [(at, partial(_start, spec, at, listener, cluster)) for at in start]
    for at, work in [*resumes, *starts]:
        try:
            outcome.reports.append(work())
            with contextlib.suppress(StorageError):
                forget_failed(runs_folder(spec), spec.name, at, spec.storage)
        except OutputBusy:
            listener.event("runs already", tick=tick_name(at))
        except Stopped:
            raise
        except BatchinferError as error:
            listener.event("failed", job=spec.name, tick=tick_name(at), reason=error.message)
            outcome.errors.append(error)
            with contextlib.suppress(StorageError):
                note_failed(runs_folder(spec), spec.name, at, error, clock(), spec.storage)
            if not isinstance(error, InputError | OutputError):
                # A lost cluster, store or model would fail the next tick too.
                return


def _start(spec: JobSpec, at: datetime, listener: Listener, cluster: str | None) -> Report:
    listener.event("due", job=spec.name, tick=tick_name(at))
    return _run(spec, at, listener, cluster)


def _free(
    spec: JobSpec, ticks: Sequence[datetime], past: Sequence[PastRun], listener: Listener | None = None
) -> list[datetime]:
    """The ticks whose folder no other run has. After a change of the schedule, a folder named by day may have a run."""
    taken = {run.root: run.tick for run in past}
    found = []
    for at in ticks:
        place = absolute(resolve(spec, at)[0]).output.uri
        if place not in taken:
            found.append(at)
        elif listener is not None:
            ran = tick_name(taken[place])
            listener.event("the schedule changed: its folder has run", tick=tick_name(at), ran=ran, output=place)
    return found


def standing(job: Scheduled, now: datetime) -> JobStanding:
    """The state of the job at `now`."""
    past = _past(job.spec)
    last = past[-1] if past else None
    due = _free(job.spec, owed(job.schedule, past, now), past)
    state: str = last.state if last else "never"
    if last is not None and last.state == "done":
        layout = Layout(last.root, job.spec.storage)
        with reading(
            layout.report, f"`batchinfer report {last.root}` shows it again; delete this file to run the tick again"
        ):
            made = Report.model_validate_json(layout.storage.read(layout.report))
        state = "failed rows" if made.error_rate > made.max_error_rate else "done"
    tick, output = (last.tick, last.root) if last else (None, None)
    failures = list(failed_attempts(runs_folder(job.spec), job.spec.name, job.spec.storage))
    failed = failures[-1] if failures else None
    done = {run.tick for run in past if run.state == "done"}
    if failed is None or failed.at in done or (tick is not None and failed.at < tick):
        failed = None
    elif failed.at != tick:
        tick, output, state = failed.at, None, "failed"
    return JobStanding(
        name=job.spec.name,
        spec=job.path,
        cron=job.schedule.cron,
        timezone=job.schedule.timezone,
        overlap=job.schedule.overlap,
        last_tick=local_time(tick, job.schedule) if tick else None,
        state=state,
        output=output,
        due=local_time(due[0], job.schedule) if due else None,
        ticks_due=len(due),
        problem=f"{failed.because} (tried {failed.attempts}x, last at {failed.tried_at})" if failed else None,
        next_tick=next((local_time(at, job.schedule) for at in coming(job.schedule, now)), None),
    )


def local_time(at: datetime, schedule: ScheduleSpec) -> str:
    """The instant on the schedule's clock, ISO 8601 with the offset from UTC."""
    return at.astimezone(ZoneInfo(schedule.timezone)).isoformat()


@refusals_are_the_users()
def _past(spec: JobSpec) -> list[PastRun]:
    return past_runs(runs_folder(spec), spec.name, spec.storage)


def _run(spec: JobSpec, at: datetime, listener: Listener, cluster: str | None, fresh: bool = False) -> Report:
    for _ in range(CLAIM_ATTEMPTS - 1):
        with contextlib.suppress(InputTaken):
            return runner.run(spec, listener, cluster, fresh, at)
    return runner.run(spec, listener, cluster, fresh, at)


def _resume(spec: JobSpec, run: PastRun, listener: Listener, cluster: str | None) -> Report:
    rendered, _ = resolve(spec, run.tick)
    if absolute(rendered).output.uri != run.root:
        raise OutputError(
            f"the tick {tick_name(run.tick)} is unfinished in {run.root}, where output.uri no longer leads",
            "put output.uri and schedule.timezone back to end it, or delete its folder to give its files back",
        )
    listener.event("resuming", job=spec.name, tick=tick_name(run.tick))
    return _run(spec, run.tick, listener, cluster)


def _skip(spec: JobSpec, at: datetime, listener: Listener) -> None:
    running = ", ".join(tick_name(run.tick) for run in _past(spec) if run.state == "running") or "before it"
    rendered, _ = resolve(spec, at)
    place = absolute(rendered).output.uri
    note_skipped(place, spec.name, at, f"the tick {running} was running", spec.storage)
    listener.event("skipped", job=spec.name, tick=tick_name(at), running=running)


@contextlib.contextmanager
def _turn(spec: JobSpec, listener: Listener, clock: Clock = utc_now) -> Iterator[None]:
    """Hold the job's lock, so that no other tick of the job runs. Raises OutputBusy if one runs and `overlap` is skip.

    With `queue`, one process waits; if one waits already, OutputBusy is raised.
    """
    overlap = spec.schedule.overlap if spec.schedule else "skip"
    if overlap == "allow" or not spec.repeats:
        yield
        return
    root = runs_folder(spec)
    # Checked before the lock is made there, so that a bad folder is reported as the user's mistake.
    storage_for(root, spec.storage).require_writable(root)
    place = join(root, "_schedule", spec.name)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(waiting_lock(f"{place}.lock", 0, spec.storage))
        except OutputBusy:
            if overlap == "skip":
                raise OutputBusy(
                    f"another process is running the job {spec.name}",
                    "wait for it to end; or let ticks wait or run side by side: schedule.overlap",
                ) from None
            with waiting_lock(f"{place}.queue", 0, spec.storage):
                listener.event("queued", job=spec.name)
                held.enter_context(waiting_lock(f"{place}.lock", math.inf, spec.storage))
        with contextlib.suppress(StorageError):
            note_turn(root, spec.name, clock(), spec.storage)
        yield

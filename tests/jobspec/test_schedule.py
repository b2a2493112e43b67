"""When a job runs: decisions from values."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import takewhile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer.errors import SpecError, UserError
from batchinfer.jobspec import JobSpec, ScheduleSpec
from batchinfer.jobspec.cron import ticks_after
from batchinfer.jobspec.schedule import (
    Due,
    PastRun,
    current_time,
    decide,
    require_distinct_folders,
    require_no_tick_blocked,
    resolve,
    times_on,
)
from tests.support.builders import make_spec

NIGHTLY = ScheduleSpec(cron="0 2 * * *")
NOW = datetime(2026, 11, 20, 14, tzinfo=UTC)


def tick(day: int) -> datetime:
    return datetime(2026, 11, day, 2, tzinfo=UTC)


def past(day: int, state: str = "done") -> PastRun:
    return PastRun(tick(day), f"/out/{day}", state)


def scheduled(**changes: object) -> JobSpec:
    return make_spec(**({"schedule": {"cron": "0 2 * * *", "timezone": "Europe/Berlin"}} | changes))


def test_the_latest_tick_is_due_once() -> None:
    assert decide(NIGHTLY, [], NOW) == Due(start=(tick(20),))
    assert decide(NIGHTLY, [past(20)], NOW) == Due()
    assert decide(NIGHTLY, [past(19)], tick(20) - timedelta(seconds=1)) == Due()


def test_every_missed_tick_since_the_first_run_is_due_oldest_first() -> None:
    assert decide(NIGHTLY, [past(11), past(18)], NOW) == Due(start=tuple(map(tick, (*range(12, 18), 19, 20))))


def test_catchup_bounds_the_missed_ticks_from_the_latest_back() -> None:
    for catchup, first in ((1, 20), (3, 18), (100, 12)):
        schedule = NIGHTLY.model_copy(update={"catchup": catchup})
        assert decide(schedule, [past(11)], NOW).start == tuple(map(tick, range(first, 21)))


def test_runs_that_died_are_resumed_first_oldest_first() -> None:
    died = [past(18, "unfinished"), past(17, "unfinished")]
    assert decide(NIGHTLY, died, NOW) == Due(resume=(died[1], died[0]), start=(tick(19), tick(20)))
    assert decide(NIGHTLY, [past(20, "unfinished")], NOW) == Due(resume=(past(20, "unfinished"),))


@pytest.mark.parametrize(
    ("overlap", "expected"),
    [("skip", Due(skip=(tick(20),))), ("queue", Due()), ("allow", Due(start=(tick(20),)))],
)
def test_a_tick_that_comes_while_another_runs(overlap: str, expected: Due) -> None:
    schedule = NIGHTLY.model_copy(update={"overlap": overlap})
    assert decide(schedule, [past(19, "running")], NOW) == expected
    # The run that holds the job is this very tick: it is neither skipped nor started again.
    assert decide(schedule, [past(20, "running")], NOW) == Due()
    before, after = tick(20) - timedelta(hours=1), tick(20) + timedelta(minutes=1)
    assert decide(schedule, [past(19)], NOW, held_since=before) == expected, "it came while the other ran"
    # The holder owed this tick when its turn began, and will run it.
    assert decide(schedule, [past(19)], NOW, held_since=after) == (expected if overlap == "allow" else Due())


def test_a_skipped_tick_stays_skipped() -> None:
    assert decide(NIGHTLY, [past(19), past(20, "skipped")], NOW) == Due()


STEPS = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from(["ends well", "dies", "dies before its manifest", "goes on"])),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS, overlap=st.sampled_from(["skip", "queue", "allow"]))
def test_no_tick_is_started_twice_and_none_since_the_first_is_left_out(
    steps: list[tuple[int, str]], overlap: str
) -> None:
    """A scheduler that looks at random times, over runs that end, die or go on until it looks again."""
    schedule = ScheduleSpec(cron="0 */6 * * *", timezone="Europe/Berlin", overlap=overlap, catchup=1000)
    now = datetime(2026, 10, 20, tzinfo=UTC)
    runs: dict[datetime, str] = {}
    started: list[datetime] = []
    for hours, end in [*steps, (0, "ends well"), (0, "ends well")]:
        now += timedelta(hours=hours)
        due = decide(schedule, [PastRun(at, str(at), state) for at, state in sorted(runs.items())], now)
        assert overlap == "allow" or "running" not in runs.values() or (due.resume, due.start) == ((), ())
        for at in list(runs):
            if runs[at] == "running":
                runs[at] = "done"
        for run in due.resume:
            assert runs[run.tick] == "unfinished"
            runs[run.tick] = "done" if end == "ends well" else "unfinished"
        for at in due.skip:
            assert at not in runs
            runs[at] = "skipped"
        for at in due.start if end != "dies before its manifest" else ():
            started.append(at)
            runs[at] = {"ends well": "done", "dies": "unfinished", "goes on": "running"}[end]
    assert len(started) == len(set(started))
    assert not set(started) & {at for at, state in runs.items() if state == "skipped"}
    assert set(runs.values()) <= {"done", "skipped"}
    assert decide(schedule, [PastRun(at, str(at), state) for at, state in runs.items()], now) == Due()
    every = takewhile(now.__ge__, ticks_after(schedule.cron, schedule.timezone, min(runs) - timedelta(seconds=1)))
    assert sorted(runs) == list(every)


def test_a_job_with_a_schedule_gets_a_folder_a_tick() -> None:
    rendered, found = resolve(scheduled(output={"uri": "/out/"}), tick(20))
    assert rendered.output.uri == "/out/20261120T020000Z"
    assert found is not None
    assert (found.at, found.root) == (tick(20), "/out")


def test_a_variable_in_the_output_is_the_users_own_way_to_name_folders() -> None:
    spec = scheduled(input={"uri": "/in/{{ run.date - 1 }}"}, output={"uri": "/out/{{ run.date }}/x"})
    rendered, found = resolve(spec, datetime(2026, 11, 20, 23, 30, tzinfo=UTC))
    assert (rendered.input.uri, rendered.output.uri) == ("/in/2026-11-20", "/out/2026-11-21/x")
    assert found is not None
    assert found.root == "/out"


def test_a_job_that_runs_once_stays_as_it_is() -> None:
    spec = make_spec()
    assert resolve(spec, NOW) == (spec, None)


def test_by_hand_a_scheduled_job_runs_its_latest_tick_and_another_job_runs_now() -> None:
    assert current_time(scheduled(), NOW) == datetime(2026, 11, 20, 1, tzinfo=UTC)
    assert current_time(make_spec(), NOW) == NOW


def test_a_backfill_is_every_tick_of_its_days_that_has_come() -> None:
    days = date(2026, 11, 18), date(2026, 11, 30)
    assert times_on(scheduled(), *days, NOW) == [datetime(2026, 11, day, 1, tzinfo=UTC) for day in (18, 19, 20)]
    assert times_on(make_spec(), *days, NOW) == [datetime(2026, 11, day, tzinfo=UTC) for day in (18, 19, 20)]


@pytest.mark.parametrize(
    ("first", "last", "cron", "message"),
    [
        (date(2026, 11, 20), date(2026, 11, 19), "0 2 * * *", "2026-11-20 is after 2026-11-19"),
        (date(2027, 1, 1), date(2027, 1, 2), "0 2 * * *", "2027-01-01 to 2027-01-02: these days have not come yet"),
        (date(2026, 11, 19), date(2026, 11, 19), "0 2 1 * *", "2026-11-19: these days have no tick"),
    ],
)
def test_days_without_a_tick_are_a_mistake(first: date, last: date, cron: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        times_on(scheduled(schedule={"cron": cron}), first, last, NOW)


@pytest.mark.parametrize(
    ("cron", "output", "message"),
    [
        ("0 * * * *", "/out/{{ run.date }}", "one folder: /out/2026-11-20"),
        ("0 2 * * *", "/out/{{ run.hour }}", "one folder: /out/02"),
        # Told apart all year but in the hour that the clock shows twice.
        ("0 * * * *", "/out/{{ run.date }}T{{ run.hour }}", "one folder: /out/2027-10-31T02"),
        ("0 * * * *", "/out/{{ run.time }}", None),
        ("0 2 * * *", "/out/{{ run.date }}", None),
        ("0 * * * *", "/out", None),
    ],
)
def test_two_ticks_never_share_a_folder(cron: str, output: str, message: str | None) -> None:
    spec = scheduled(schedule={"cron": cron, "timezone": "Europe/Berlin"}, output={"uri": output})
    if message is None:
        require_distinct_folders(spec, NOW)
    else:
        with pytest.raises(SpecError, match=message):
            require_distinct_folders(spec, NOW)


def test_a_run_between_ticks_may_not_take_the_folder_of_a_tick() -> None:
    by_date = scheduled(output={"uri": "/out/{{ run.date }}"})
    night_before = datetime(2026, 11, 20, 0, 49, tzinfo=UTC)
    with pytest.raises(UserError, match=r"2026-11-20 01:49 is no tick.* the tick 2026-11-20 02:00: /out/2026-11-20"):
        require_no_tick_blocked(by_date, night_before)
    with pytest.raises(UserError, match="the tick 2026-11-20 02:00"):
        require_no_tick_blocked(by_date, NOW)
    require_no_tick_blocked(by_date, datetime(2026, 11, 20, 1, tzinfo=UTC))
    require_no_tick_blocked(scheduled(output={"uri": "/out/{{ run.time }}"}), night_before)
    require_no_tick_blocked(scheduled(output={"uri": "/out"}), night_before)
    require_no_tick_blocked(make_spec(output={"uri": "/out/{{ run.date }}"}), night_before)


@settings(max_examples=40, deadline=None)
@given(
    cron=st.sampled_from(["0 2 * * *", "30 0 * * *", "0 0 1 * *", "15 */6 * * 1-5", "0 1 29 2 *"]),
    output=st.sampled_from(["{{ run.date }}", "{{ run.date }}T{{ run.hour }}", "{{ run.year }}-{{ run.month }}"]),
    at=st.datetimes(datetime(2026, 1, 1), datetime(2028, 12, 31), timezones=st.just(UTC)),
    later=st.timedeltas(timedelta(0), timedelta(days=40)),
)
def test_no_run_by_hand_that_is_let_through_blocks_a_tick(
    cron: str, output: str, at: datetime, later: timedelta
) -> None:
    spec = scheduled(schedule={"cron": cron, "timezone": "Europe/Berlin"}, output={"uri": f"/out/{output}"})
    try:
        require_distinct_folders(spec, at)
        require_no_tick_blocked(spec, at)
    except UserError:
        return
    taken = resolve(spec, at)[0].output.uri
    begin = at - timedelta(days=40)
    ticks = takewhile((at + later).__ge__, ticks_after(cron, "Europe/Berlin", begin))
    assert all(tick == at.replace(microsecond=0) or resolve(spec, tick)[0].output.uri != taken for tick in ticks)


def test_a_place_is_checked_again_once_its_variables_are_filled_in() -> None:
    spec = scheduled(output={"uri": "{{ 's3://user:secret' }}@bucket/{{ run.time }}"})
    with pytest.raises(SpecError, match="holds a user or a password"):
        resolve(spec, NOW)

"""Cron on real clocks: Berlin's changes, and laws over any expression."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer.errors import SpecError
from batchinfer.jobspec.cron import latest_tick, require_cron, tick_name, tick_of, ticks_after, ticks_between
from tests.support.builders import make_spec

BERLIN = "Europe/Berlin"


def local(cron: str, begin: str, count: int, timezone: str = BERLIN) -> list[str]:
    """The next ticks after a local time, as the clock on the wall shows them, with the offset."""
    after = datetime.fromisoformat(begin).replace(tzinfo=ZoneInfo(timezone)).astimezone(UTC)
    ticks = islice(ticks_after(cron, timezone, after), count)
    return [tick.astimezone(ZoneInfo(timezone)).strftime("%d %H:%M%z") for tick in ticks]


@pytest.mark.parametrize(
    ("cron", "begin", "expected"),
    [
        # Spring: 02:00 to 03:00 on 29 March 2026 is not on the clock.
        ("30 2 * * *", "2026-03-28 12:00", ["29 03:00+0200", "30 02:30+0200", "31 02:30+0200"]),
        ("0 2,3 * * *", "2026-03-28 12:00", ["29 03:00+0200", "30 02:00+0200", "30 03:00+0200"]),
        ("0 * * * *", "2026-03-29 00:30", ["29 01:00+0100", "29 03:00+0200", "29 04:00+0200"]),
        ("*/30 2 * * *", "2026-03-28 12:00", ["30 02:00+0200", "30 02:30+0200", "31 02:00+0200"]),
        # Autumn: 02:00 to 03:00 on 25 October 2026 is on the clock twice.
        ("30 2 * * *", "2026-10-24 12:00", ["25 02:30+0200", "26 02:30+0100", "27 02:30+0100"]),
        ("0 * * * *", "2026-10-25 01:30", ["25 02:00+0200", "25 02:00+0100", "25 03:00+0100"]),
        ("*/30 2 * * *", "2026-10-25 01:00", ["25 02:00+0200", "25 02:30+0200", "25 02:00+0100", "25 02:30+0100"]),
        # 0 is Sunday, as in every cron.
        ("0 3 * * 0", "2026-10-24 12:00", ["25 03:00+0100", "01 03:00+0100"]),
    ],
)
def test_at_a_change_of_the_clock_a_daily_job_runs_once_and_an_hourly_one_in_real_time(
    cron: str, begin: str, expected: list[str]
) -> None:
    assert local(cron, begin, len(expected)) == expected


def test_in_the_repeated_hour_a_daily_job_that_ran_does_not_come_again() -> None:
    second_0245 = datetime(2026, 10, 25, 2, 45, fold=1, tzinfo=ZoneInfo(BERLIN)).astimezone(UTC)
    assert next(ticks_after("50 2 * * *", BERLIN, second_0245)) == datetime(2026, 10, 26, 1, 50, tzinfo=UTC)
    assert latest_tick("50 2 * * *", BERLIN, second_0245) == datetime(2026, 10, 25, 0, 50, tzinfo=UTC)


def test_the_days_of_a_range_are_local_and_both_included() -> None:
    found = ticks_between("0 0,23 * * *", BERLIN, date(2026, 3, 29), date(2026, 3, 30))
    assert [tick_name(tick) for tick in found] == [
        "20260328T230000Z", "20260329T210000Z", "20260329T220000Z", "20260330T210000Z",
    ]  # fmt: skip


FIELD = {
    "minute": st.sampled_from(["*", "0", "30", "*/7", "5,59", "10-40/10"]),
    "hour": st.sampled_from(["*", "0", "2", "2,3", "*/5", "1-3", "23"]),
    "day": st.sampled_from(["*", "1", "29", "*/2", "31"]),
    "month": st.sampled_from(["*", "3", "10", "MAR,OCT"]),
    "weekday": st.sampled_from(["*", "0", "1-5", "SUN"]),
}
CRONS = st.builds(lambda **parts: " ".join(parts[name] for name in FIELD), **FIELD)
ZONES = st.sampled_from(["UTC", BERLIN, "Australia/Lord_Howe", "Africa/Cairo", "America/Havana", "Asia/Kathmandu"])
TIMES = st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 31), timezones=st.just(UTC))


@settings(max_examples=60, deadline=None)
@given(cron=CRONS, timezone=ZONES, after=TIMES)
def test_ticks_ascend_and_looking_back_finds_what_looking_ahead_gave(cron: str, timezone: str, after: datetime) -> None:
    ticks = list(islice(ticks_after(cron, timezone, after), 4))
    assert all(after < tick for tick in ticks)
    for one, other in pairwise(ticks):
        assert one < other
        assert latest_tick(cron, timezone, other) == other
        assert latest_tick(cron, timezone, other - timedelta(seconds=1)) == one
        assert next(ticks_after(cron, timezone, one)) == other
    assert all(tick_of(tick_name(tick)) == tick for tick in ticks)


@settings(max_examples=200)
@given(st.text(alphabet="0123456789*/,-#LWMONSUN@? ", max_size=20))
def test_any_text_is_an_expression_or_a_clear_mistake(text: str) -> None:
    problem = ""
    try:
        require_cron(text)
    except ValueError as error:
        problem = str(error)
    if problem:
        assert repr(text) in problem
    else:
        assert next(ticks_after(text, "UTC", datetime(2026, 1, 1, tzinfo=UTC))) > datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"cron": "0 25 * * *"}, "schedule.cron: '0 25 * * *' is not a cron expression (bad hour)"),
        ({"cron": "0 2 * *"}, "schedule.cron: '0 2 * *' is not a cron expression (five fields, not 4)"),
        ({"cron": "0 0 2 * * *"}, "(five fields, not 6)"),
        ({"cron": "0 0 30 2 *"}, "bad day-of-month"),
        ({"cron": "@daily"}, "write '0 0 * * *'"),
        (
            {"cron": "0 2 * * *", "timezone": "Europe/Berln"},
            "schedule.timezone: there is no time zone 'Europe/Berln'",
        ),
        ({"cron": "0 2 * * *", "timezone": "Europe/Berln"}, "did you mean Europe/Berlin?"),
        ({"cron": "0 2 * * *", "timezone": "../etc"}, "there is no time zone '../etc'"),
        ({"cron": "0 2 * * *", "overlap": "wait"}, "schedule.overlap"),
        ({"timezone": "UTC"}, "schedule.cron: this key is missing"),
    ],
)
def test_a_wrong_schedule_names_its_field(schedule: dict[str, str], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        make_spec(schedule=schedule)
    assert message in str(caught.value)

"""A rendered schedule fires at every tick of the job, judged by a restatement of KubeRay's own cron parser."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import takewhile

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from batchinfer.deploy.kubernetes.kuberay_cron import Firing, firings
from batchinfer.jobspec.cron import require_cron, ticks_after
from tests.support.robfig_cron import NoCronError, parse

BERLIN = "Europe/Berlin"
BEGIN = date(2026, 11, 27)


def rendered(cron: str, timezone: str = BERLIN) -> list[Firing]:
    return firings(cron, timezone, BEGIN)


def fired(made: list[Firing], begin: datetime, end: datetime) -> set[datetime]:
    found: set[datetime] = set()
    for one in made:
        schedule = parse(one.cron, one.timezone)
        at = schedule.next(begin)
        while at <= end:
            found.add(at)
            at = schedule.next(at)
    return found


def ticks(cron: str, timezone: str, begin: datetime, end: datetime) -> set[datetime]:
    return set(takewhile(end.__ge__, ticks_after(cron, timezone, begin)))


def test_the_restated_parser_fires_as_kuberay_does_at_a_change_of_the_clock() -> None:
    nightly = parse("0 2 * * *", BERLIN)
    assert nightly.next(datetime(2027, 3, 27, 12, tzinfo=UTC)) == datetime(2027, 3, 29, 0, tzinfo=UTC), (
        "not on the 28th"
    )
    first = nightly.next(datetime(2027, 10, 30, 12, tzinfo=UTC))
    assert (first, nightly.next(first)) == (
        datetime(2027, 10, 31, 0, tzinfo=UTC), datetime(2027, 10, 31, 1, tzinfo=UTC)
    )  # fmt: skip
    tenth_or_monday = parse("0 0 */10 * 1", "UTC")
    assert tenth_or_monday.next(datetime(2026, 11, 26, tzinfo=UTC)) == datetime(2026, 11, 30, tzinfo=UTC)
    assert tenth_or_monday.next(datetime(2026, 11, 30, tzinfo=UTC)) == datetime(2026, 12, 1, tzinfo=UTC)


@pytest.mark.parametrize("cron", ["0 0 * * 7", "0 0 * * 5-7", "0 2 L * *", "0 2 LW * *", "0 2 * * MON#1", "0 2 * * 5L"])
def test_what_kuberay_cannot_read_is_written_so_that_it_can(cron: str) -> None:
    with pytest.raises(NoCronError):
        parse(cron, "UTC")
    begin, end = datetime(2027, 1, 1, tzinfo=UTC), datetime(2032, 1, 1, tzinfo=UTC)
    assert ticks(cron, "UTC", begin, end) <= fired(rendered(cron, "UTC"), begin, end)


@pytest.mark.parametrize(
    ("cron", "timezone", "expected"),
    [
        ("30 1 * * 1-5", "America/New_York", ["30 1 * * 1-5"]),
        ("0 2 * * *", "UTC", ["0 2 * * *"]),
        ("0 4 * * *", BERLIN, ["0 4 * * *"]),
        ("0 2 * * *", BERLIN, ["0 2 * * *", "0 3 25-31 3 *"]),
        ("*/20 * * * *", BERLIN, ["0,20,40 * * * *"]),
        ("0 0 * * 7", "UTC", ["0 0 * * 0"]),
        ("0 0 * * 5-7", "UTC", ["0 0 * * 0,5,6"]),
        ("0 0 1,15 * 1", "UTC", ["0 0 1,15 * 1"]),
        ("0 0 */10 * 1", "UTC", ["0 0 1,11,21,31 * *"]),
        ("0 2 L * *", "UTC", ["0 2 28-31 * *"]),
        ("0 2 * JAN-MAR MON#1", "UTC", ["0 2 * 1-3 1"]),
    ],
)
def test_a_schedule_is_written_with_as_few_firings_as_kuberay_can_be_told(
    cron: str, timezone: str, expected: list[str]
) -> None:
    assert [one.cron for one in rendered(cron, timezone)] == expected


ZONES = [
    "UTC", BERLIN, "America/New_York", "America/Havana", "America/Santiago", "Africa/Cairo", "Africa/Casablanca",
    "Asia/Beirut", "Asia/Kathmandu", "Australia/Lord_Howe", "Pacific/Chatham", "America/Scoresbysund",
]  # fmt: skip
FIELDS = {
    "minute": st.sampled_from(["0", "30", "5,59", "*/20", "10-40/10"]),
    "hour": st.sampled_from(["0", "1", "2", "3", "23", "0,12", "2,3", "*/6", "1-3", "*"]),
    "day": st.sampled_from(["*", "*", "1", "31", "*/10", "25-31", "L", "LW", "1,15"]),
    "month": st.sampled_from(["*", "*", "3", "10", "MAR,APR,OCT", "2"]),
    "weekday": st.sampled_from(["*", "*", "0", "7", "5-7", "1-5", "SUN", "FRI", "MON#1", "5L", "*/2"]),
}
CRONS = st.builds(lambda **parts: " ".join(parts[name] for name in FIELDS), **FIELDS)


@pytest.mark.integration
@settings(max_examples=25, deadline=None)
@given(cron=CRONS, timezone=st.sampled_from(ZONES), year=st.integers(2027, 2040))
@example(cron="0 0 31 2 0", timezone="UTC", year=2027)
def test_a_rendered_schedule_fires_at_every_tick_through_both_changes_of_the_clock(
    cron: str, timezone: str, year: int
) -> None:
    try:
        require_cron(cron)
    except ValueError:
        # A day that never comes.
        assume(False)
    begin = datetime(year, 1, 1, tzinfo=UTC)
    end = begin + timedelta(days=366)
    assert ticks(cron, timezone, begin, end) <= fired(rendered(cron, timezone), begin, end)


@pytest.mark.integration
@pytest.mark.parametrize("timezone", [zone for zone in ZONES if zone != "Australia/Lord_Howe"])
@pytest.mark.parametrize("cron", ["0 2 * * *", "30 0 * * *", "0 5 * * 5"])
def test_no_tick_of_five_years_is_missed_and_few_firings_are_in_vain(cron: str, timezone: str) -> None:
    begin, end = datetime(2027, 1, 1, tzinfo=UTC), datetime(2032, 1, 1, tzinfo=UTC)
    expected = ticks(cron, timezone, begin, end)
    found = fired(rendered(cron, timezone), begin, end)
    assert expected <= found
    # Casablanca's changes follow the moon, so the second expression covers most of the year.
    assert timezone in ("Africa/Casablanca", "Pacific/Chatham") or len(found - expected) <= 10 * 12

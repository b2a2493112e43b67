"""A schedule as KubeRay's cron expressions: they fire at each of the job's ticks. Pure.

KubeRay reads cron with `robfig/cron` v3 (`ParseStandard`), which differs from `jobspec.cron`:

- it fires whenever the wall clock of the time zone shows the time: never if the clock skips it, twice if the clock
  shows it twice;
- day of the month and day of the week are alternatives unless one of them is `*`; `*/10` is not;
- Sunday is 0, not 7, and there is no `L`, `LW` or `#`;
- if midnight is skipped and the day before does not match, `robfig/cron` skips the whole day;
- it adds whole hours, so after a clock change of half an hour (Lord Howe Island) it misses full hours for a day.

An expression that cannot name the same times fires more often. `schedule run-due` finds nothing due at the extra times.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from itertools import pairwise, product, takewhile
from zoneinfo import ZoneInfo

from batchinfer.jobspec.cron import days_named, ticks_after, times_of_day

YEARS = 28
"""Years after which the days of the week fall on the same dates again. Fewer, and a date that falls on a day of the
week, or a change of the clock, may be missed."""

_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Days:
    """The days that match; None instead of a set is `*`."""

    of_month: frozenset[int] | None
    months: frozenset[int]
    of_week: frozenset[int] | None

    def match(self, day: date) -> bool:
        """Whether robfig/cron fires on `day`: day of month and day of week are alternatives unless one is `*`."""
        if day.month not in self.months:
            return False
        either = [day.day in self.of_month] if self.of_month is not None else []
        either += [day.isoweekday() % 7 in self.of_week] if self.of_week is not None else []
        return not either or any(either)


@dataclass(frozen=True, slots=True)
class Expression:
    """The fields of one cron expression."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: Days

    def __str__(self) -> str:
        return " ".join(
            (
                _field(self.minutes, range(60)),
                _field(self.hours, range(24)),
                _field(self.days.of_month, range(1, 32)),
                _field(self.days.months, range(1, 13)),
                _field(self.days.of_week, range(7)),
            )
        )

    def fires(self, local: datetime) -> bool:
        return local.minute in self.minutes and local.hour in self.hours and self.days.match(local.date())


@dataclass(frozen=True, slots=True)
class Firing:
    """The schedule of one RayCronJob: a cron expression and its time zone."""

    cron: str
    timezone: str


def firings(cron: str, timezone: str, begin: date) -> list[Firing]:
    """The expressions that together fire at every tick, the job's own first.

    The second, if there is one, is for the ticks that the first does not fire at when the clock changes.
    """
    minute, hour, of_month, month, of_week = cron.upper().split()
    minutes, hours = times_of_day(cron)
    main = Expression(minutes, hours, _days(of_month, month, of_week))
    own = Firing(str(main), timezone)
    follows_real_time = minute.startswith("*") or hour.startswith("*")
    every_day = main.days.of_month is None and main.days.of_week is None
    zone = ZoneInfo(timezone)
    changes = _changes(zone, begin)
    # KubeRay adds whole hours, so it skips an hour in which the clock changes (Chatham Islands, 2:45).
    if any(change.by % timedelta(hours=1) or _instant(change, zone).astimezone(zone).minute for change in changes):
        return [Firing(str(_in_utc(main, zone, changes)), "UTC")]
    if follows_real_time and every_day:
        return [own]
    forward = [change for change in changes if change.by > timedelta(0)]
    missed = [local for change in forward for local in _missed(main, cron, timezone, change.after)]
    if not missed:
        return [own]
    days = {local.date() for local in missed}
    # With the day before, because KubeRay skips a day without midnight if the day before does not match.
    days |= {day - _DAY for day in days if _skips_midnight(day, zone)}
    extra = Expression(
        frozenset(local.minute for local in missed),
        frozenset(local.hour for local in missed),
        Days(frozenset(day.day for day in days), frozenset(day.month for day in days), None),
    )
    return [own, Firing(str(extra), timezone)]


@dataclass(frozen=True, slots=True)
class _Change:
    """The clock changes by `by` within the day that begins at `after`."""

    after: datetime
    by: timedelta


def _instant(change: _Change, zone: ZoneInfo) -> datetime:
    """The first minute (UTC) of the changed clock."""
    ends = [change.after + timedelta(minutes=n) for n in range(1441)]
    return next(b for a, b in pairwise(ends) if a.astimezone(zone).utcoffset() != b.astimezone(zone).utcoffset())


def _in_utc(main: Expression, zone: ZoneInfo, changes: Sequence[_Change]) -> Expression:
    """An expression that fires every day at every time of day (UTC) at which `main` may tick."""
    offsets = {day.astimezone(zone).utcoffset() for change in changes for day in (change.after, change.after + _DAY)}
    minutes: set[int] = set()
    hours: set[int] = set()
    for offset in offsets:
        for hour, minute in product(main.hours, main.minutes):
            shifted = datetime(2001, 1, 2, hour, minute) - (offset or timedelta(0))
            minutes.add(shifted.minute)
            hours.add(shifted.hour)
    for change in changes:
        # A tick that the clock skips is due at the change.
        at = _instant(change, zone)
        minutes.add(at.minute)
        hours.add(at.hour)
    return Expression(frozenset(minutes), frozenset(hours), Days(None, frozenset(range(1, 13)), None))


def _missed(main: Expression, cron: str, timezone: str, change: datetime) -> Iterable[datetime]:
    """The ticks around a change of the clock that the expression does not fire at, on the zone's clock."""
    zone = ZoneInfo(timezone)
    for tick in takewhile((change + 2 * _DAY).__ge__, ticks_after(cron, timezone, change - 2 * _DAY)):
        local = tick.astimezone(zone)
        passed_over = _skips_midnight(local.date(), zone) and not main.days.match(local.date() - _DAY)
        if passed_over or not main.fires(local):
            yield local


@lru_cache(maxsize=16)
def _changes(zone: ZoneInfo, begin: date) -> tuple[_Change, ...]:
    """Each change of the zone's clock in `YEARS`; `after` is a midnight UTC at most a day before it."""
    first = datetime(begin.year, begin.month, begin.day, tzinfo=UTC)
    days = [first + n * _DAY for n in range(YEARS * 366)]
    offsets = [day.astimezone(zone).utcoffset() or timedelta(0) for day in days]
    found = zip(days, pairwise(offsets), strict=False)
    return tuple(_Change(day, after - before) for day, (before, after) in found if before != after)


def _skips_midnight(day: date, zone: ZoneInfo) -> bool:
    midnight = datetime(day.year, day.month, day.day, tzinfo=zone)
    return midnight.astimezone(UTC).astimezone(zone).replace(tzinfo=None) != midnight.replace(tzinfo=None)


def _days(of_month: str, month: str, of_week: str) -> Days:
    """The smallest set of days that KubeRay can express and that contains all days of the three fields."""
    wanted = _calendar(of_month, month, of_week)
    months = frozenset(day.month for day in wanted)

    def on(days: frozenset[date], whole: int, number: str) -> frozenset[int] | None:
        found = frozenset(day.day if number == "month" else day.isoweekday() % 7 for day in days)
        return None if len(found) == whole else found

    candidates = [Days(on(wanted, 31, "month"), months, None), Days(None, months, on(wanted, 7, "week"))]
    if not of_month.startswith("*") and not of_week.startswith("*"):
        either = (
            on(_calendar(of_month, month, "*"), 31, "month"),
            on(_calendar("*", month, of_week), 7, "week"),
        )
        if None not in either:
            candidates.append(Days(either[0], months, either[1]))
    every = _calendar("*", month, "*")
    fitting = [(sum(map(made.match, every)), made) for made in candidates if all(map(made.match, wanted))]
    return min(fitting, key=lambda pair: pair[0])[1]


@lru_cache(maxsize=16)
def _calendar(of_month: str, month: str, of_week: str) -> frozenset[date]:
    """The days that the fields name, over `YEARS`."""
    return days_named(of_month, month, of_week, date(2001, 1, 1), date(2000 + YEARS, 12, 31))


def _field(values: frozenset[int] | None, every: range) -> str:
    """The values as a field: `*`, or numbers and ranges."""
    if values is None or len(values) == len(every):
        return "*"
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ",".join(
        f"{low}-{high}" if high - low > 1 else ",".join(map(str, range(low, high + 1))) for low, high in runs
    )

"""When KubeRay fires: `robfig/cron` v3 restated, as KubeRay 1.6 uses it.

Sources: github.com/robfig/cron v3.0.1 `parser.go` (`ParseStandard`, `getField`, `getRange`), `spec.go`
(`SpecSchedule.Next`, `dayMatches`); KubeRay `ray-operator/controllers/ray/raycronjob_controller.go`
(`formatSchedule`: `TZ=<timeZone> <schedule>`); Go's `time.Date` for wall times that do not exist, or exist twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

_MONTH_NAMES = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAY_NAMES = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_MONTHS = {name: n for n, name in enumerate(_MONTH_NAMES, 1)}
_WEEKDAYS = {name: n for n, name in enumerate(_WEEKDAY_NAMES)}
_NO_NAMES: dict[str, int] = {}
_BOUNDS = ((0, 59, _NO_NAMES), (0, 23, _NO_NAMES), (1, 31, _NO_NAMES), (1, 12, _MONTHS), (0, 6, _WEEKDAYS))


class NoCronError(ValueError):
    """KubeRay refuses the RayCronJob with an event, and it never runs."""


@dataclass(frozen=True)
class Schedule:
    minutes: set[int]
    hours: set[int]
    days: set[int]
    months: set[int]
    weekdays: set[int]
    star: bool
    zone: ZoneInfo

    def next(self, after: datetime) -> datetime:
        """`SpecSchedule.Next`, but for its limit of five years."""
        t = (after.astimezone(UTC).replace(microsecond=0) + timedelta(seconds=1)).astimezone(self.zone)
        added = False
        while True:
            wrapped = False
            while t.month not in self.months and not wrapped:
                if not added:
                    added, t = True, self._date(t.year, t.month, 1)
                t = self._date(t.year, t.month + 1, t.day, t.hour, t.minute, t.second)
                wrapped = t.month == 1
            while not wrapped and not self._day_matches(t):
                if not added:
                    added, t = True, self._date(t.year, t.month, t.day)
                t = self._date(t.year, t.month, t.day + 1, t.hour, t.minute, t.second)
                if t.hour != 0:
                    t = self._add(t, timedelta(hours=24 - t.hour if t.hour > 12 else -t.hour))
                wrapped = t.day == 1
            while not wrapped and t.hour not in self.hours:
                if not added:
                    added, t = True, self._date(t.year, t.month, t.day, t.hour)
                t = self._add(t, timedelta(hours=1))
                wrapped = t.hour == 0
            while not wrapped and t.minute not in self.minutes:
                if not added:
                    added, t = True, self._add(t, -timedelta(seconds=t.second))
                t = self._add(t, timedelta(minutes=1))
                wrapped = t.minute == 0
            while not wrapped and t.second != 0:
                t = self._add(t, timedelta(seconds=1))
                added, wrapped = True, t.second == 0
            if not wrapped:
                return t.astimezone(UTC)

    def _day_matches(self, t: datetime) -> bool:
        of_month, of_week = t.day in self.days, t.isoweekday() % 7 in self.weekdays
        return of_month and of_week if self.star else of_month or of_week

    def _add(self, t: datetime, by: timedelta) -> datetime:
        return (t.astimezone(UTC) + by).astimezone(self.zone)

    def _date(self, year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> datetime:
        """Go's `time.Date`: looks the offset up as if the wall time were UTC, and again if that was across a change."""
        wall = datetime(year + (month - 1) // 12, (month - 1) % 12 + 1, 1, hour, minute, second, tzinfo=UTC)
        wall += timedelta(days=day - 1)

        def offset(at: datetime) -> timedelta:
            return at.astimezone(self.zone).utcoffset() or timedelta(0)

        guess = wall - offset(wall)
        return (wall - offset(guess)).astimezone(self.zone)


def parse(expression: str, timezone: str) -> Schedule:
    """`cron.ParseStandard` of `TZ=<timezone> <expression>`. Raises NoCronError."""
    fields = expression.split()
    if len(fields) != 5:
        raise NoCronError(f"expected exactly 5 fields, found {len(fields)}")
    parsed = [_field(field, *bounds) for field, bounds in zip(fields, _BOUNDS, strict=True)]
    minutes, hours, days, months, weekdays = (found for found, _ in parsed)
    star = parsed[2][1] or parsed[4][1]
    return Schedule(minutes, hours, days, months, weekdays, star, ZoneInfo(timezone))


def _field(text: str, low: int, high: int, names: dict[str, int]) -> tuple[set[int], bool]:
    found: set[int] = set()
    star = False
    for term in filter(None, text.split(",")):
        values, starred = _range(term, low, high, names)
        found |= values
        star |= starred
    return found, star


def _range(term: str, low: int, high: int, names: dict[str, int]) -> tuple[set[int], bool]:
    span, *steps = term.split("/")
    first, *rest = span.split("-")
    star = first in ("*", "?")
    if star:
        begin, end = low, high
    else:
        begin = _number(first, names)
        end = begin if not rest else _number(rest[0], names)
        if len(rest) > 1:
            raise NoCronError(f"too many hyphens: {term}")
    if len(steps) > 1:
        raise NoCronError(f"too many slashes: {term}")
    step = _number(steps[0], {}) if steps else 1
    if steps and not rest:
        end = high
    if step > 1:
        star = False
    if begin < low or end > high or begin > end or step == 0:
        raise NoCronError(f"out of bounds: {term}")
    return set(range(begin, end + 1, step)), star


def _number(text: str, names: dict[str, int]) -> int:
    if text.lower() in names:
        return names[text.lower()]
    if not text.isdecimal():
        raise NoCronError(f"failed to parse int from {text}")
    return int(text)

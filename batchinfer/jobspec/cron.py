"""Cron: the instants that a schedule names. Pure.

A tick is an instant in UTC, in whole seconds. An expression has the five fields of Vixie cron and is read on the clock
of its time zone. When that clock changes, Debian's rule applies, as in `cronsim`:

- An expression with a fixed minute and hour ticks once a day. A time that the clock skips ticks when the skipped hour
  is over. A time that the clock shows twice ticks the first time.
- An expression whose minute or hour begins with `*` follows real time. It does not tick in a skipped hour, and it
  ticks twice in a repeated hour.
"""

from __future__ import annotations

import difflib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import takewhile
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

_REWIND = timedelta(hours=26)
"""Longer than any change of a clock: Samoa skipped a day in 2011. A shorter time could miss a tick at a change."""

_WINDOWS = tuple(timedelta(days=days) for days in (0.25, 2, 40, 400, 3000, 18000))
_SHOWN = "minute hour day-of-month month day-of-week, as in 0 2 * * *"
_MACROS = {"@hourly": "0 * * * *", "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@weekly": "0 0 * * 0",
           "@monthly": "0 0 1 * *", "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tick:
    """The instant `at` of one run of a job that runs repeatedly, and the folder `root` that holds all its runs."""

    at: datetime
    root: str

    @property
    def name(self) -> str:
        return tick_name(self.at)


def tick_name(at: datetime) -> str:
    """The instant in UTC as 20261120T010000Z: no two ticks share it, and names sort as the ticks do."""
    return at.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")


def tick_of(name: str) -> datetime:
    """The inverse of `tick_name`."""
    return datetime.strptime(name, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)


def require_cron(expression: str) -> None:
    """Raise ValueError unless the expression is valid and names at least one instant. The message is for a person."""
    fields = expression.split()
    if expression.strip().lower() in _MACROS:
        raise ValueError(f"{expression!r} is a shorthand: write {_MACROS[expression.strip().lower()]!r}")
    if len(fields) != 5:
        raise ValueError(f"{expression!r} is not a cron expression (five fields, not {len(fields)}): {_SHOWN}")
    try:
        next(CronSim(expression, datetime(2000, 1, 1)))
    except (CronSimError, ValueError, AssertionError) as error:
        reason = str(error).lower() or "not understood"
        raise ValueError(f"{expression!r} is not a cron expression ({reason}): {_SHOWN}") from None
    except StopIteration:
        raise ValueError(f"{expression!r} names a time that never comes") from None


def require_timezone(name: str) -> None:
    """Raise ValueError, with the nearest name, unless the time zone exists."""
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        near = difflib.get_close_matches(name, available_timezones(), n=1)
        hint = f"did you mean {near[0]}?" if near else "use a name like Europe/Berlin or UTC"
        raise ValueError(f"there is no time zone {name!r}: {hint}") from None


def ticks_after(cron: str, timezone: str, after: datetime) -> Iterator[datetime]:
    """The ticks after the instant `after`, in order; ends if the expression names no later instant."""
    last = after
    # When the clock changes, local order differs from real order, and the first match depends on the start. So start
    # before any change that could matter, and keep only ticks in increasing order.
    for local in CronSim(cron, (after - _REWIND).astimezone(ZoneInfo(timezone))):
        tick = local.astimezone(UTC)
        if tick > last:
            last = tick
            yield tick


def times_of_day(cron: str) -> tuple[frozenset[int], frozenset[int]]:
    """The minutes and the hours that the expression names."""
    parsed = CronSim(cron, datetime(2000, 1, 1))
    return frozenset(parsed.minutes), frozenset(parsed.hours)


def days_named(of_month: str, month: str, of_week: str, first: date, last: date) -> frozenset[date]:
    """The days from `first` to `last` that the three fields name; none if they name no day, as 31 February."""
    try:
        days = CronSim(f"0 12 {of_month} {month} {of_week}", datetime.combine(first, time()))
    except CronSimError:
        # CronSim refuses a day that no month of the field has. Beside a day of the week such a field is valid.
        return frozenset()
    return frozenset(takewhile(last.__ge__, (day.date() for day in days)))


def latest_tick(cron: str, timezone: str, at: datetime) -> datetime | None:
    """The last tick up to and including the instant `at`; None if there is none in 18,000 days (49 years)."""
    return next(iter(latest_ticks(cron, timezone, at, 1)), None)


def latest_ticks(cron: str, timezone: str, at: datetime, count: int, since: datetime | None = None) -> list[datetime]:
    """The last `count` ticks up to and including the instant `at`, in order; ticks before `since` are left out."""
    found: deque[datetime] = deque(maxlen=count)
    for window in _WINDOWS:
        begin = at - window
        all_of_it = since is not None and begin < since
        if since is not None and all_of_it:
            begin = since - timedelta(seconds=1)
        found = deque(takewhile(at.__ge__, ticks_after(cron, timezone, begin)), maxlen=count)
        if len(found) == count or all_of_it:
            break
    return list(found)


def ticks_between(cron: str, timezone: str, first: date, last: date) -> list[datetime]:
    """The ticks from the local day `first` to the local day `last`, both included."""
    zone = ZoneInfo(timezone)
    begin = datetime.combine(first, time(), zone).astimezone(UTC) - timedelta(seconds=1)
    end = datetime.combine(last + timedelta(days=1), time(), zone).astimezone(UTC)
    found = []
    for tick in ticks_after(cron, timezone, begin):
        if tick >= end:
            break
        found.append(tick)
    return found

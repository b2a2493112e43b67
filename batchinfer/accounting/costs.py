"""Costs across runs: each replica's account cut at days, and summed by label, job, model, device, day or month. Pure.

A replica's dollars, rows and tokens are spread evenly over its life. A group's dollars are sums of such shares, so the
groups of one table add up to the dollars of all accounts in the window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from batchinfer.accounting.ledger import ReplicaAccount
from batchinfer.catalog.accelerators import device_cost
from batchinfer.errors import UserError

OWN_KEYS = ("job", "model", "accelerator", "day", "month")
"""Keys that every account has. Any other key is a label's name; `label:NAME` names a label of one of these names."""

NO_LABEL = "(none)"
"""The group of runs that lack the label."""


@dataclass(slots=True)
class Sums:
    """What a group of accounts adds up to. Rows and tokens of a replica that ran over midnight are parts of numbers."""

    usd: float = 0.0
    load_usd: float = 0.0
    work_usd: float = 0.0
    idle_usd: float = 0.0
    waste_usd: float = 0.0
    device_hours: float = 0.0
    rows: float = 0.0
    input_tokens: float = 0.0
    output_tokens: float = 0.0
    runs: int = 0

    def add(self, account: ReplicaAccount, share: float) -> None:
        """Add a share of an account, 0 to 1."""
        self.usd += account.cost_usd * share
        for name, seconds in (
            ("load_usd", account.load_seconds),
            ("work_usd", account.work_seconds),
            ("idle_usd", account.idle_seconds),
            # What is in flight is paid for and not committed: it is work once it is.
            ("waste_usd", account.wasted_seconds + account.in_flight_seconds),
        ):
            setattr(self, name, getattr(self, name) + device_cost(seconds, account.price_per_gpu_hour) * share)
        self.device_hours += account.gpu_seconds / 3600 * share
        self.rows += account.committed.rows * share
        self.input_tokens += account.committed.input_tokens * share
        self.output_tokens += account.committed.output_tokens * share

    def values(self) -> dict[str, float]:
        """The sums by their names."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


@dataclass(frozen=True, slots=True)
class Window:
    """The days that count, in a time zone; None: no limit. `until` is the last day."""

    since: date | None = None
    until: date | None = None
    zone: ZoneInfo = field(default_factory=lambda: ZoneInfo("UTC"))

    def day_of(self, at_us: int) -> date:
        return datetime.fromtimestamp(at_us / 1e6, UTC).astimezone(self.zone).date()

    def begin_us(self, day: date) -> int:
        """Microseconds since 1970 of the day's first instant."""
        return round(datetime.combine(day, time(), self.zone).timestamp() * 1e6)

    def contains(self, day: date) -> bool:
        return (self.since is None or day >= self.since) and (self.until is None or day <= self.until)

    def days(self, account: ReplicaAccount) -> Iterator[tuple[date, float]]:
        """The days of the window on which the replica lived, each with its share of the replica's life."""
        start, end = account.started_at_us, account.finished_at_us
        day = self.day_of(start)
        if end <= start:
            if self.contains(day):
                yield day, 1.0
            return
        while (begin := max(start, self.begin_us(day))) < end:
            stop = min(end, self.begin_us(day + timedelta(days=1)))
            if self.contains(day):
                yield day, (stop - begin) / (end - start)
            day += timedelta(days=1)


class CostTable:
    """Sums by one or more keys. Runs are added one by one, so the memory is that of the groups."""

    def __init__(self, by: Sequence[str], window: Window) -> None:
        self.by = tuple(by)
        self.window = window
        self.groups: dict[tuple[str, ...], Sums] = {}

    def add_run(self, accounts: Iterable[ReplicaAccount]) -> None:
        """Add the accounts of one run."""
        touched: set[tuple[str, ...]] = set()
        for account in accounts:
            for day, share in self.window.days(account):
                key = tuple(_value(account, name, day) for name in self.by)
                self.groups.setdefault(key, Sums()).add(account, share)
                touched.add(key)
        for key in touched:
            self.groups[key].runs += 1

    def rows(self) -> list[tuple[tuple[str, ...], Sums]]:
        """The groups: days and months in order, otherwise the dearest first."""
        in_time = bool(self.by) and self.by[0] in ("day", "month")
        return sorted(self.groups.items(), key=lambda one: one[0] if in_time else (-one[1].usd, one[0]))

    def documents(self) -> Iterator[dict[str, str | float]]:
        """The groups as flat rows: the keys by their names, then the sums."""
        for key, sums in self.rows():
            yield {**dict(zip(self.by, key, strict=True)), **sums.values()}


def _value(account: ReplicaAccount, name: str, day: date) -> str:
    if name == "day":
        return day.isoformat()
    if name == "month":
        return day.isoformat()[:7]
    if name == "job":
        return account.job_name or NO_LABEL
    if name in ("model", "accelerator"):
        return str(getattr(account, name)) or NO_LABEL
    return account.labels.get(name.removeprefix("label:"), NO_LABEL)


@dataclass(slots=True)
class Budget:
    """Dollars for the runs with a value of a label (or of another key), and what they cost."""

    key: str
    value: str
    usd: float
    spent: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Budget:
        """From KEY=VALUE:DOLLARS. Raises UserError."""
        head, _, amount = text.rpartition(":")
        key, sign, value = head.partition("=")
        try:
            usd = float(amount)
        except ValueError:
            usd = -1.0
        if not (key and sign and value) or not 0 <= usd < float("inf"):
            raise UserError(f"--budget {text} is not a budget", "write KEY=VALUE:DOLLARS, as team=search:500")
        return cls(key, value, usd)

    @property
    def passed(self) -> bool:
        return self.spent > self.usd

    def add_run(self, accounts: Iterable[ReplicaAccount], window: Window) -> None:
        """Add what the accounts cost in the window, as far as they are of this budget."""
        for account in accounts:
            for day, share in window.days(account):
                if _value(account, self.key, day) == self.value:
                    self.spent += account.cost_usd * share

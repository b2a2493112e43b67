"""The page of the costs of many runs: what `batchinfer costs --html` writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from batchinfer.accounting.costs import Budget, CostTable, Sums, Window
from batchinfer.accounting.money import money
from batchinfer.pages import pictures
from batchinfer.pages.document import page
from batchinfer.pages.pictures import KINDS, SERIES, Bar, Picture

MOST_COLUMNS = 92
"""Days that have a column each, a quarter of a year. Of a longer time each month has one."""

MOST_ROWS = 200
"""Groups that the page's table has; `--csv` and `--json` have all."""


@dataclass(frozen=True, slots=True)
class CostsStory:
    """Everything that the page tells. `by_day`: by day and one more key; `jobs`: the dearest ones."""

    places: Sequence[str]
    window: Window
    table: CostTable
    total: Sums
    runs: int
    by_day: CostTable
    jobs: Sequence[tuple[tuple[str, ...], Sums]]
    budgets: Sequence[Budget]
    unreadable: Sequence[tuple[str, str]]


def costs_page(story: CostsStory) -> bytes:
    """The page, as one file that needs no other."""
    rows = story.table.rows()
    return page(
        "costs.html",
        "Costs of batchinfer runs",
        places=story.places,
        period=_period(story),
        zone=story.window.zone.key,
        total=story.total,
        runs=story.runs,
        by=story.table.by,
        rows=rows[:MOST_ROWS],
        more=max(0, len(rows) - MOST_ROWS),
        over_days=_over_days(story),
        jobs=_jobs(story),
        trend=_trend(story),
        budgets=story.budgets,
        unreadable=story.unreadable,
    )


def _period(story: CostsStory) -> str:
    days = sorted(day for day, _ in story.by_day.groups)
    if not days:
        return "no costs in this time"
    return days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"


def _over_days(story: CostsStory) -> Picture | None:
    if not story.by_day.groups:
        return None
    series = _series(story)
    first, last = (date.fromisoformat(day) for day in _ends(story))
    count = (last - first).days + 1
    names = [(first + timedelta(days=i)).isoformat() for i in range(count)]
    unit = "day"
    if count > MOST_COLUMNS:
        names, unit = sorted({name[:7] for name in names}), "month"
    place = {name: i for i, name in enumerate(names)}
    heights = {name: [0.0] * len(names) for name in series}
    other = "other" if "other" in heights else None
    for (day, value), sums in story.by_day.groups.items():
        heights[value if value in heights else other or value][place[day if unit == "day" else day[:7]]] += sums.usd
    key = story.by_day.by[1]
    line = None
    if unit == "day" and len(story.budgets) == 1:
        budget = story.budgets[0]
        line = (f"budget of {budget.value} a day", budget.usd / count)
    says = f"Dollars of each {unit}, stacked by {key}: {money(story.total.usd)} in all."
    return pictures.columns_over_days(f"Costs by {unit}", names, heights, says, line)


def _series(story: CostsStory) -> list[str]:
    """The dearest values of the second key, and one for all others if there are more than colours."""
    sums: dict[str, float] = {}
    for (_, value), one in story.by_day.groups.items():
        sums[value] = sums.get(value, 0.0) + one.usd
    names = sorted(sums, key=lambda value: -sums[value])
    return names if len(names) <= len(SERIES) else [*names[: len(SERIES) - 1], "other"]


def _ends(story: CostsStory) -> tuple[str, str]:
    days = [day for day, _ in story.by_day.groups]
    return min(days), max(days)


def _jobs(story: CostsStory) -> Picture | None:
    bars = [Bar(key[0], {kind: getattr(sums, f"{kind}_usd") for kind in KINDS}) for key, sums in story.jobs]
    if not bars:
        return None
    wasted = story.total.waste_usd
    says = f"What the dearest jobs paid for; {money(wasted)} of all was lost in attempts that were not committed."
    return pictures.stacked("Dearest jobs", bars, "$", says)


def _trend(story: CostsStory) -> dict[str, Any] | None:
    """The last seven days beside the seven before them."""
    if not story.by_day.groups:
        return None
    last = date.fromisoformat(_ends(story)[1])

    def week(back: int) -> float:
        days = {(last - timedelta(days=i)).isoformat() for i in range(back, back + 7)}
        return sum(sums.usd for (day, _), sums in story.by_day.groups.items() if day in days)

    now, before = week(0), week(7)
    return {"now": now, "before": before, "change": now / before - 1 if before else None}

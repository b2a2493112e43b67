"""What many runs cost, from their own files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from batchinfer.accounting.costs import Budget, CostTable, Sums, Window
from batchinfer.errors import BudgetPassed, UserError
from batchinfer.execution.checks import refusals_are_the_users
from batchinfer.pages.costs_page import CostsStory
from batchinfer.rundir.find_runs import FoundRun, find_runs
from batchinfer.storage import Stores

TOP_JOBS = 12
"""Jobs that the page names; the table of `--by job` has all."""


@dataclass(slots=True)
class Costs:
    """The groups of one question, the sum of all, and what could not be read."""

    table: CostTable
    total: Sums
    budgets: Sequence[Budget]
    runs: int = 0
    unreadable: list[FoundRun] = field(default_factory=list)

    def require_budgets(self) -> None:
        """Raise BudgetPassed for the budgets that are passed."""
        passed = [budget for budget in self.budgets if budget.passed]
        if passed:
            told = "; ".join(f"{b.key}={b.value} cost ${b.spent:,.2f} of ${b.usd:,.2f}" for b in passed)
            raise BudgetPassed(f"{told}: over budget", "see `batchinfer costs --by job` for what took it")


@refusals_are_the_users()
def costs(
    uris: Sequence[str],
    by: Sequence[str],
    window: Window,
    budgets: Sequence[Budget] = (),
    *,
    stores: Stores | None = None,
    cache: Path | None = None,
    each: Callable[[FoundRun], None] | None = None,
    beside: Sequence[CostTable] = (),
) -> Costs:
    """The costs of all runs at or below `uris` in the window, by the keys `by`. Raises UserError if there is no run.

    `cache`: the file of what was read before. `each` receives every run that could be read; `beside` are further
    tables to fill.
    """
    everything = CostTable((), window)
    made = Costs(CostTable(by, window), Sums(), budgets)
    for run in find_runs(uris, stores or {}, cache):
        if run.problem is not None:
            made.unreadable.append(run)
            continue
        made.runs += 1
        for table in (made.table, everything, *beside):
            table.add_run(run.accounts)
        for budget in budgets:
            budget.add_run(run.accounts, window)
        if each is not None:
            each(run)
    if not made.runs and not made.unreadable:
        raise UserError(f"there is no run at or below {', '.join(uris)}", "name the folders that hold runs")
    made.total = everything.groups.get((), Sums())
    return made


def costs_story(
    uris: Sequence[str],
    by: Sequence[str],
    window: Window,
    budgets: Sequence[Budget],
    *,
    cache: Path | None = None,
    each: Callable[[FoundRun], None] | None = None,
) -> tuple[Costs, CostsStory]:
    """The costs, and what the page of them tells: by day stacked by the first key, and the dearest jobs."""
    first = next((key for key in by if key not in ("day", "month")), "job")
    by_day, by_job = CostTable(("day", first), window), CostTable(("job",), window)
    made = costs(uris, by, window, budgets, cache=cache, each=each, beside=(by_day, by_job))
    story = CostsStory(
        places=tuple(uris),
        window=window,
        table=made.table,
        total=made.total,
        runs=made.total.runs,
        by_day=by_day,
        jobs=by_job.rows()[:TOP_JOBS],
        budgets=budgets,
        unreadable=[(run.root, run.problem or "") for run in made.unreadable],
    )
    return made, story

"""`limits.monthly`: what is left of a label's month, before a run begins."""

from __future__ import annotations

from datetime import UTC, date, datetime

from batchinfer.accounting.costs import Budget, Window
from batchinfer.errors import Stopped
from batchinfer.jobspec import JobSpec
from batchinfer.rundir.accounts import accounts_state, read_accounts
from batchinfer.rundir.find_runs import default_cache, find_runs
from batchinfer.rundir.paths import Layout


def within_month(spec: JobSpec, layout: Layout, now: datetime | None = None) -> JobSpec:
    """The spec with `limits.max_cost_usd` lowered to what is left of the month. Raises Stopped if nothing is left."""
    monthly = spec.limits.monthly
    if monthly is None:
        return spec
    today = (now or datetime.now(UTC)).date()
    window = Window(since=date(today.year, today.month, 1))
    budget = Budget(f"label:{monthly.label}", spec.labels[monthly.label], monthly.usd)
    places = monthly.within or [layout.root.rstrip("/").rpartition("/")[0]]
    for run in find_runs(places, spec.storage, default_cache()):
        if run.problem is not None:
            raise Stopped(
                f"limits.monthly cannot be checked: {run.root}: {run.problem}",
                "repair that run or move it away, or take limits.monthly out",
            )
        budget.add_run(run.accounts, window)
    left = monthly.usd - budget.spent
    if left <= 0:
        raise Stopped(
            f"limits.monthly: runs with {monthly.label}={budget.value} cost ${budget.spent:,.2f} this month, of "
            f"${monthly.usd:,.2f}",
            "raise limits.monthly.usd, or wait for the next month (UTC); `batchinfer costs` shows what took it",
        )
    # `max_cost_usd` counts all sessions of the run, also those of earlier months.
    own = sum(account.cost_usd for account in read_accounts(layout, accounts_state(layout)))
    most = min(own + left, own + left if spec.limits.max_cost_usd is None else spec.limits.max_cost_usd)
    return spec.model_copy(update={"limits": spec.limits.model_copy(update={"max_cost_usd": most})})

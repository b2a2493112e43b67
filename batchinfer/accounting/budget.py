"""Whether a run may start another shard: pure.

Shards cost what the finished ones have cost, by rows. A shard may start while the money already spent,
the rest of what is in flight and the shard itself fit the budget; so what a run spends beyond its budget
is at most the error of that estimate over the shards in flight. Where the budget may not be enough, that is one shard a
replica (`shards_with_budget`). A run that has passed its budget all the same never ends with exit code 0.
"""

from __future__ import annotations

from dataclasses import dataclass

from batchinfer.jobspec import LimitsSpec
from batchinfer.planner import Interval

FAR_ABOVE = 2.0
"""A budget of so many times the high end of the estimate is a safety net: it does not slow the engine down. Lower, and
a run that turns out dearer than its plan may overshoot by all that is in flight."""

LEAST_START_SECONDS = 1.0
"""No engine has started in less. A budget that does not cover that starts nothing."""


@dataclass(frozen=True, slots=True)
class Spending:
    """Where a run stands. Money is in dollars.

    `cost_usd` is what the whole run has cost up to now, load, idle and waste included; `cost_to_start` what the
    replicas take before their first row at the very least, 0 once one has started; `cost_in_flight` the
    part of it that went into shards that are not committed yet. `cost_per_row` and `seconds_per_shard` (wall)
    are means of finished shards, None before there is one. `seconds` is how long this command has run.
    """

    cost_usd: float
    cost_to_start: float
    cost_in_flight: float
    cost_per_row: float | None
    rows_in_flight: int
    rows_of_next: int
    seconds: float
    seconds_per_shard: float | None


def shards_with_budget(held: int, limits: LimitsSpec, cost: Interval | None) -> int:
    """How many of `held` shards a replica holds at a time; `cost`: what the plan expects of the whole job.

    One, unless the budget is far above what is expected: each that is in flight when the budget ends is paid for whole.
    """
    if limits.max_cost_usd is None or (cost is not None and FAR_ABOVE * cost.high <= limits.max_cost_usd):
        return held
    return 1


def over_budget(limits: LimitsSpec, standing: Spending) -> str | None:
    """Why no further shard may start, None if one may."""
    if limits.max_cost_usd is not None:
        ahead = _cost_ahead(standing)
        if standing.cost_usd >= limits.max_cost_usd:
            return f"limits.max_cost_usd of ${limits.max_cost_usd:g} is reached"
        if standing.cost_usd + standing.cost_to_start > limits.max_cost_usd:
            return (
                f"limits.max_cost_usd of ${limits.max_cost_usd:g} does not cover the start of the replicas: "
                f"${standing.cost_usd:.4g} is spent, ${standing.cost_to_start:.4g} would be added"
            )
        if standing.cost_usd + ahead > limits.max_cost_usd:
            return (
                f"limits.max_cost_usd of ${limits.max_cost_usd:g} does not cover another shard: "
                f"${standing.cost_usd:.4g} is spent, ${ahead:.4g} would be added"
            )
    if limits.max_runtime_hours is not None:
        budget = limits.max_runtime_hours * 3600
        if standing.seconds >= budget:
            return f"limits.max_runtime_hours of {limits.max_runtime_hours:g} is reached"
        if standing.seconds + (standing.seconds_per_shard or 0.0) > budget:
            return (
                f"limits.max_runtime_hours of {limits.max_runtime_hours:g} leaves no time for another shard, "
                f"which takes {standing.seconds_per_shard:.1f} s"
            )
    return None


def _cost_ahead(standing: Spending) -> float:
    """What the shards in flight will still cost, and one more; 0 before there is anything to go by."""
    if standing.cost_per_row is None:
        return 0.0
    rest = max(0.0, standing.rows_in_flight * standing.cost_per_row - standing.cost_in_flight)
    return rest + standing.rows_of_next * standing.cost_per_row

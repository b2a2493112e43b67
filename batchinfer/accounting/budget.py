"""Whether a run may start another shard: pure.

The cost of a shard is estimated from the cost of finished rows. A shard starts only if the budget covers the money
spent, the rest of the shards in flight and the shard itself. A run exceeds its budget by at most the error of that
estimate over the shards in flight. If the budget may be too small, that is one shard a replica
(`shards_with_budget`). A run that exceeded its budget never ends with exit code 0.
"""

from __future__ import annotations

from dataclasses import dataclass

from batchinfer.jobspec import LimitsSpec
from batchinfer.planner import Interval

FAR_ABOVE = 2.0
"""Budget over the high end of the estimated cost, from which a replica holds all its shards. Lower, and a run that
costs more than planned may exceed its budget by all shards in flight."""

LEAST_START_SECONDS = 1.0
"""Seconds; no engine starts faster. A budget that does not cover them starts no replica."""


@dataclass(frozen=True, slots=True)
class Spending:
    """A run's costs up to now. Money is in dollars.

    `cost_usd`: cost of the whole run, with load, idle and waste. `cost_to_start`: the least cost of the replicas
    before their first row, 0 once one has started. `cost_in_flight`: the part of `cost_usd` for uncommitted shards.
    `cost_per_row` and `seconds_per_shard` (wall): means of finished shards, None before the first. `seconds`: how
    long this command has run.
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
    """How many of `held` shards a replica holds at a time; `cost`: the plan's estimate for the whole job.

    One, unless the budget is far above the estimate: every shard in flight when the budget ends is still finished.
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
    """The remaining cost of the shards in flight, and of one more; 0 before the first shard is finished."""
    if standing.cost_per_row is None:
        return 0.0
    rest = max(0.0, standing.rows_in_flight * standing.cost_per_row - standing.cost_in_flight)
    return rest + standing.rows_of_next * standing.cost_per_row

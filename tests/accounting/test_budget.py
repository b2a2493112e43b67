from __future__ import annotations

import heapq

from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer.accounting.budget import Spending, over_budget, shards_with_budget
from batchinfer.jobspec import LimitsSpec
from batchinfer.planner import Interval


def standing(**values):
    known = {
        "cost_usd": 0.0,
        "cost_to_start": 0.0,
        "cost_in_flight": 0.0,
        "cost_per_row": None,
        "rows_in_flight": 0,
        "rows_of_next": 100,
        "seconds": 0.0,
        "seconds_per_shard": None,
    }
    return Spending(**(known | values))


def test_without_limits_nothing_is_over_budget():
    assert over_budget(LimitsSpec(), standing(cost_usd=1e9, seconds=1e9)) is None


def test_a_budget_that_is_spent_or_nothing_lets_nothing_start():
    assert "is reached" in over_budget(LimitsSpec(max_cost_usd=0), standing())
    assert "is reached" in over_budget(LimitsSpec(max_cost_usd=2), standing(cost_usd=2.5))
    assert "is reached" in over_budget(LimitsSpec(max_runtime_hours=1), standing(seconds=3600))


def test_a_shard_has_to_fit_beside_the_rest_of_those_in_flight():
    limits = LimitsSpec(max_cost_usd=10)
    # Of the 200 rows in flight half is paid for: 1 is still to come, and 1 for the next hundred rows.
    now = {"cost_per_row": 0.01, "rows_in_flight": 200, "cost_in_flight": 1.0}
    assert over_budget(limits, standing(cost_usd=7.9, **now)) is None
    assert "does not cover another shard" in over_budget(limits, standing(cost_usd=8.1, **now))


def test_before_the_first_shard_has_ended_only_what_is_spent_counts():
    assert over_budget(LimitsSpec(max_cost_usd=10), standing(cost_usd=9.99, rows_in_flight=500)) is None


def test_a_budget_that_does_not_cover_a_start_starts_nothing():
    limits = LimitsSpec(max_cost_usd=1e-9)
    assert "the start of the replicas" in over_budget(limits, standing(cost_to_start=1e-3))
    assert over_budget(LimitsSpec(max_cost_usd=1), standing(cost_to_start=1e-3)) is None


def test_a_replica_runs_one_shard_at_a_time_unless_the_budget_is_far_above_the_estimate():
    expected = Interval(low=1.0, mid=2.0, high=4.0)
    assert shards_with_budget(5, LimitsSpec(), None) == 5
    assert shards_with_budget(5, LimitsSpec(max_cost_usd=100), None) == 1
    assert shards_with_budget(5, LimitsSpec(max_cost_usd=7.9), expected) == 1
    assert shards_with_budget(5, LimitsSpec(max_cost_usd=8), expected) == 5


def test_a_shard_has_to_end_in_time():
    limits = LimitsSpec(max_runtime_hours=1)
    assert over_budget(limits, standing(seconds=3500, seconds_per_shard=90)) is None
    assert "leaves no time" in over_budget(limits, standing(seconds=3511, seconds_per_shard=90))


@given(
    costs=st.lists(st.floats(0.1, 3.0), min_size=1, max_size=60),
    lanes=st.integers(1, 6),
    budget=st.floats(0.0, 60.0),
)
@settings(max_examples=300, deadline=None)
def test_what_is_overspent_is_at_most_what_was_in_flight(costs, lanes, budget):
    """Shards of unlike cost on lanes that spend a dollar a second each, asked about before each one starts."""
    waiting = list(costs)
    running: list[tuple[float, float]] = []
    now = done_cost = 0.0
    done = 0
    in_flight = 0.0
    while waiting or running:
        while waiting and len(running) < lanes:
            partial = sum(now - (end - cost) for end, cost in running)
            asked = standing(
                cost_usd=done_cost + partial,
                cost_in_flight=partial,
                cost_per_row=done_cost / done if done else None,
                rows_in_flight=len(running),
                rows_of_next=1,
            )
            if over_budget(LimitsSpec(max_cost_usd=budget), asked) is not None:
                waiting = []
                break
            cost = waiting.pop(0)
            heapq.heappush(running, (now + cost, cost))
            in_flight = sum(cost for _, cost in running)
        if running:
            now, cost = heapq.heappop(running)
            done_cost += cost
            done += 1
    assert done_cost <= budget + in_flight + 1e-9


@settings(deadline=None)
@given(shards=st.integers(1, 80), lanes=st.integers(1, 5), budget=st.integers(1, 100))
def test_shards_that_cost_alike_never_overspend_once_one_has_ended(shards, lanes, budget):
    in_flight, done, left = min(lanes, shards), 0, shards - min(lanes, shards)
    while in_flight:
        in_flight, done = in_flight - 1, done + 1
        asked = standing(cost_usd=float(done), cost_per_row=1.0, rows_in_flight=in_flight, rows_of_next=1)
        if left and over_budget(LimitsSpec(max_cost_usd=budget), asked) is None:
            in_flight, left = in_flight + 1, left - 1
    assert done <= max(budget, min(lanes, shards))

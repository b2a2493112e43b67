"""The statistics of a comparison, beside a second way to compute each."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinfer.accounting.comparison import (
    Comparison,
    Facts,
    Planned,
    VariantResult,
    against_best,
    concluded,
    pareto_front,
)
from batchinfer.accounting.report import Accuracy
from batchinfer.accounting.scores import judged, scores_against_best
from batchinfer.accounting.significance import (
    MOST_EXACT,
    difference_interval,
    holm,
    mcnemar,
    mean_interval,
    paired_interval,
    randomization_p,
)
from batchinfer.planner import Interval


@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (3, 1), (2, 7), (6, 6)])
def test_the_test_counts_the_coin_flips_that_are_as_uneven(counts):
    flips = sum(counts)
    uneven = abs(counts[0] - counts[1])
    outcomes = [abs(2 * sum(coins) - flips) >= uneven for coins in itertools.product((0, 1), repeat=flips)]
    assert mcnemar(*counts) == pytest.approx(sum(outcomes) / len(outcomes))


def test_the_test_of_a_published_table():
    # Agresti, Categorical Data Analysis, table 10.1: 150 and 86 of 1,600 changed their mind; z = 4.17.
    assert mcnemar(86, 150) == pytest.approx(3.7e-5, rel=0.1)


@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 400))
def test_the_interval_holds_the_difference_and_turns_with_its_sign(only_this, only_other, both):
    rows = only_this + only_other + both + 1
    low, high = paired_interval(only_this, only_other, rows)
    assert -1 <= low <= (only_this - only_other) / (rows + 2) <= high <= 1
    assert paired_interval(only_other, only_this, rows) == (pytest.approx(-high), pytest.approx(-low))


def test_the_interval_holds_the_true_difference_in_95_of_100_samples():
    draw = random.Random(7)
    held = 0
    for _ in range(2000):
        cells = draw.choices(("this", "other", "both"), (0.10, 0.06, 0.84), k=200)
        low, high = paired_interval(cells.count("this"), cells.count("other"), 200)
        held += low <= 0.04 <= high
    assert 0.93 <= held / 2000 <= 0.98


@given(st.lists(st.floats(0, 1), max_size=8))
def test_adjusted_values_are_larger_in_the_same_order_and_at_most_as_bonferronis(p_values):
    adjusted = holm(p_values)
    for (p, a), (q, b) in itertools.combinations(zip(p_values, adjusted, strict=True), 2):
        assert (p < q) <= (a <= b)
    assert all(p <= a <= min(1.0, len(p_values) * p) + 1e-12 for p, a in zip(p_values, adjusted, strict=True))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=6))
def test_each_point_is_on_the_front_or_beaten_by_one_that_is(places):
    points = {str(number): place for number, place in enumerate(places)}
    front = pareto_front(points)
    for name, (cost, quality) in points.items():
        better = [f for f in front if points[f][0] <= cost and points[f][1] >= quality and points[f] != (cost, quality)]
        assert (name in front) != bool(better)


def test_variants_are_paired_by_row():
    beside = against_best("a", {"a": [True, True, True, False], "b": [True, False, False, True]})["b"]
    assert (beside.only_this, beside.only_other, beside.rows, beside.difference) == (1, 2, 4, -0.25)
    assert beside.p_value == mcnemar(1, 2)


def variant(name: str, usd: float, right: list[bool] | None = None, agreement: Accuracy | None = None) -> VariantResult:
    flat = Interval(low=usd, mid=usd, high=usd)
    planned = Planned(
        accelerator="L4", quantization="none", replicas=1, gpus_per_replica=1, rows=1000, hours=flat, cost_usd=flat,
        tokens_per_second=flat, input_tokens=1, output_tokens=1, price_per_gpu_hour=1, price_source="",
    )  # fmt: skip
    return VariantResult(
        name=name, settings={}, model=name, facts=Facts(), planned=planned, usd_per_thousand_rows=usd,
        accuracy=Accuracy.of(sum(right), len(right)) if right else None, agreement=agreement,
    )  # fmt: skip


def comparison(right: dict[str, tuple[float, list[bool]]], margin: float = 0.02) -> Comparison:
    best = max(right, key=lambda name: sum(right[name][1]))
    beside = against_best(best, {name: rows for name, (_, rows) in right.items()})
    made = [
        variant(name, usd, rows).model_copy(update={"against_best": beside.get(name)})
        for name, (usd, rows) in right.items()
    ]
    return concluded(Comparison(job_name="j", dry_run=False, sample_rows=9, margin=margin, variants=tuple(made)))


def rows(right: int, of: int) -> list[bool]:
    return [True] * right + [False] * (of - right)


def test_a_cheaper_variant_is_taken_if_it_is_surely_close_to_the_best():
    made = comparison(
        {"dear": (9.0, rows(1800, 2000)), "close": (2.0, rows(1795, 2000)), "poor": (1.0, rows(1500, 2000))}
    )
    assert made.chosen == "close"
    assert {one.name for one in made.variants if one.on_front} == {"dear", "close", "poor"}


def test_a_small_sample_does_not_make_a_cheaper_variant_good_enough():
    made = comparison({"dear": (9.0, rows(18, 20)), "close": (2.0, rows(17, 20))})
    assert made.chosen == "dear"
    assert "close is cheaper, but may be" in made.rule


def test_without_right_answers_the_cheapest_that_agrees_is_taken():
    made = concluded(
        Comparison(
            job_name="j",
            dry_run=False,
            sample_rows=1000,
            margin=0.02,
            variants=(
                variant("first", 5.0, agreement=Accuracy.of(1000, 1000)),
                variant("same", 2.0, agreement=Accuracy.of(997, 1000)),
                variant("other", 1.0, agreement=Accuracy.of(900, 1000)),
            ),
        )
    )
    assert made.chosen == "same"
    assert "No right answers" in made.rule


def test_agresti_and_min_by_hand():
    # 3 and 1 of 20: the cells with a half each make (3.5 - 1.5) / 22.
    low, high = paired_interval(3, 1, 20)
    assert (low + high) / 2 == pytest.approx(2 / 22)
    spread = math.sqrt((5 / 22 - (2 / 22) ** 2) / 22)
    assert high - low == pytest.approx(2 * 1.959964 * spread, rel=1e-6)


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
def test_the_randomization_test_counts_the_swaps_that_are_as_far_apart(differences):
    swaps = itertools.product((1, -1), repeat=len(differences))
    sums = [abs(sum(sign * value for sign, value in zip(signs, differences, strict=True))) for signs in swaps]
    as_far = sum(one >= abs(sum(differences)) for one in sums) / len(sums)
    assert randomization_p(differences) == pytest.approx(as_far)


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 50))
def test_scores_of_0_and_1_are_right_answers(only_this, only_other, same):
    differences = [1] * only_this + [-1] * only_other + [0] * same
    assert randomization_p(differences) == pytest.approx(mcnemar(only_this, only_other), rel=1e-6, abs=1e-12)
    if differences:
        expected = paired_interval(only_this, only_other, len(differences))
        assert difference_interval(differences, 1) == pytest.approx(expected)


def test_the_normal_limit_agrees_with_the_exact_distribution():
    differences = [1, -2, 1, 0, 2, -1, -1, 1] * 240 + [1] * 60
    assert sum(map(abs, differences)) < MOST_EXACT < 16 * sum(map(abs, differences))
    exact = randomization_p(differences)
    spread = math.sqrt(sum(value * value for value in differences))
    assert exact == pytest.approx(math.erfc(sum(differences) / spread / math.sqrt(2)), rel=0.1)
    normal = math.erfc(16 * sum(differences) / (4 * spread) / math.sqrt(2))
    assert randomization_p(differences * 16) == pytest.approx(normal)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=200))
def test_the_interval_of_a_mean_lies_in_the_scale_and_equal_scores_are_not_certain(scores):
    low, high = mean_interval(scores, 1, 5)
    assert 1 <= low < high <= 5
    fewer = mean_interval([5] * 3, 1, 5)
    assert fewer[0] < mean_interval([5] * 300, 1, 5)[0] < 5


def test_a_row_without_an_answer_scores_lowest_and_an_unreadable_score_is_told_and_in_no_mean():
    scores = {"a": 5, "b": 4, "c": 1, "d": None, "e": None}
    seen = judged(scores, failed=1, unscored={"output_invalid": 2}, low=1, high=5)
    assert (seen.rows, seen.scored, seen.without_answer, seen.unscored) == (5, 3, 1, {"output_invalid": 2})
    assert seen.mean == pytest.approx(10 / 3)
    assert seen.share == pytest.approx((10 / 3 - 1) / 4)
    nothing = judged({"a": None}, failed=0, unscored={"output_invalid": 1}, low=1, high=5)
    assert (nothing.mean, nothing.share, nothing.scored) == (None, None, 0)


def test_two_variants_are_compared_on_the_rows_that_have_a_score_for_both():
    scores = {"a": {1: 5, 2: 4, 3: None, 4: 2}, "b": {1: 3, 2: 4, 3: 5, 4: 1}}
    found = scores_against_best("a", scores, (1, 5))
    assert set(found) == {"b"}
    pair = found["b"]
    assert (pair.rows, pair.lower, pair.higher) == (3, 2, 0)
    assert pair.difference == pytest.approx(-1)
    assert pair.share_low == pytest.approx(pair.low / 4)


def test_with_a_judge_the_cheapest_that_scores_within_the_margin_is_taken():
    rows = range(400)
    scores = {
        "best": {row: 4 + row % 2 for row in rows},
        "alike": {row: 4 + row % 2 for row in rows},
        "poor": {row: 2 + row % 2 for row in rows},
    }
    usd = {"best": 3.0, "alike": 2.0, "poor": 1.0}
    beside = scores_against_best("best", scores, (1, 5))
    variants = tuple(
        VariantResult(
            name=name,
            settings={},
            model=name,
            facts=Facts(),
            usd_per_thousand_rows=usd[name],
            judged=judged(found, 0, {}, 1, 5),
            judged_against_best=beside.get(name),
        )
        for name, found in scores.items()
    )
    made = concluded(Comparison(job_name="j", dry_run=False, sample_rows=400, margin=0.02, variants=variants))
    assert made.chosen == "alike"
    assert "of the scale worse than the best scored" in made.rule
    assert "poor is cheaper, but may be" in made.rule
    assert [one.on_front for one in made.variants] == [False, True, True]

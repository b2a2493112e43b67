"""A plan as a person sees it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from batchinfer.catalog import find_model
from batchinfer.planner import Interval, Plan, PromptSample, Workload, assumed_cluster, make_plan
from batchinfer.reporting import render_plan
from batchinfer.reporting.planned import recommendation
from tests.support.builders import make_spec


def plan(**sections) -> Plan:
    spec = make_spec(model={"source": "llama-3.3-70b"}, resources={"accelerator": "H100"}, **sections)
    entry = find_model("llama-3.3-70b")
    assert entry is not None
    rows = sections.get("rows", 100_000)
    work = Workload(
        rows=rows,
        input_tokens=400.0,
        longest_input_tokens=600,
        output_tokens=Interval(low=50, mid=125, high=200),
        sampled_rows=512,
        source="input: 512 rows sampled",
    )
    return make_plan(spec, assumed_cluster(spec, 2**36), "llama-3.3-70b", shape=entry.shape, entry=entry, workload=work)


def shown(made: Plan, **limits) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render_plan(made, make_spec(limits=limits).limits))
    return console.export_text()


def test_a_plan_says_what_runs_where_for_how_long_and_how_much():
    made = plan()
    text = shown(made)
    assert made.estimate is not None
    assert "Plan for llama-3.3-70b, weights as they are, on H100 GPUs" in text
    assert "the H100 are rented for the run: there is none here" in text
    assert f"{made.max_replicas} replicas of {made.num_gpus} H100 each (tensor parallel {made.tensor_parallel})" in text
    assert "100,000 rows of 400 tokens in and 125 (50 to 200) out" in text
    assert f"${made.estimate.cost_usd.mid:,.2f}" in text
    assert "input: 512 rows sampled" in text


def test_the_assumptions_come_first_then_one_recommended_line_then_the_table():
    made = plan()
    lines = [line.strip() for line in shown(made).splitlines()]
    recommended = [number for number, line in enumerate(lines) if line.startswith("Recommended:")]
    assert len(recommended) == 1
    assert made.estimate is not None
    assert f"${made.estimate.cost_usd.mid:,.2f}" in lines[recommended[0]]
    assert lines.index("It assumes:") < recommended[0]
    before, after = lines[: recommended[0]], lines[recommended[0] :]
    assert f"- $2.69 an hour for each GPU ({made.price_source.removeprefix('$2.69/h, ')})" in before
    assert any("computed from the data sheets" in line for line in before)
    assert any(line.startswith("replicas  GPUs each") for line in after)


def test_a_plan_that_earlier_runs_corrected_says_by_how_much():
    text = shown(plan().model_copy(update={"calibration": 0.8}))
    assert "0.80 times the computed speed, as earlier runs of this model on this GPU had" in text
    assert "data sheets" not in text


def test_the_reason_of_the_choice_is_that_of_its_candidate():
    made = plan()
    assert made.candidates[0].verdict.removeprefix("chosen: ") in recommendation(made)


def test_every_loser_has_its_reason_and_what_does_not_fit_says_by_how_much():
    text = shown(plan())
    assert text.count("chosen:") == 1
    assert "GiB short" in text
    assert "dearer: $" in text


@pytest.mark.parametrize(
    ("share", "verdict"),
    [(2.0, "covers the estimate"), (1.0, "may not cover the estimate"), (0.1, "does not cover the estimate")],
)
def test_a_budget_is_set_beside_the_estimate(share, verdict):
    made = plan()
    assert made.estimate is not None
    budget = made.estimate.cost_usd.high if share > 1 else made.estimate.cost_usd.mid
    assert verdict in shown(made, max_cost_usd=budget * share)


def test_a_plan_says_what_a_day_brings():
    text = shown(plan())
    assert "tokens/s" in text
    assert " a day" in text
    assert "rows a day" in text


def test_a_cache_for_a_few_rows_is_called_slow():
    made = plan()
    assert "at a time: slow" not in shown(made)
    assert "room for about 8 rows at a time: slow" in shown(made.model_copy(update={"kv_cache_tokens": 8 * 525}))


def test_failures_of_the_sample_are_shown_with_a_warning_above_the_limit():
    sample = PromptSample(
        rows=200,
        failed={"prompt_too_long": 177},
        messages={"prompt_too_long": "the prompt has 3,670 tokens"},
        lengths=(),
    )
    made = plan().model_copy(update={"sample": sample})
    text = shown(made)
    assert "88% of the 200 rows sampled will fail with prompt_too_long: the prompt has 3,670 tokens" in text
    assert "warning: 88% is more than limits.max_error_rate allows" in text
    assert "warning" not in shown(made, max_error_rate=0.9)


def test_without_an_estimate_the_plan_says_why():
    text = shown(plan().model_copy(update={"estimate": None}))
    assert "Time and cost are not known before a run: `batchinfer try` measures them" in text

"""A plan as a person sees it."""

from __future__ import annotations

import io

from rich.console import Console

from batchinfer.catalog import find_model
from batchinfer.planner import Interval, Plan, Workload, assumed_cluster, make_plan
from batchinfer.reporting import render_plan
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


def shown(made: Plan) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render_plan(made))
    return console.export_text()


def test_a_plan_says_what_runs_where_for_how_long_and_how_much():
    made = plan()
    text = shown(made)
    assert made.estimate is not None
    assert "llama-3.3-70b, weights as they are, on H100 (assumed: there is none here)" in text
    assert f"{made.max_replicas} replicas of {made.num_gpus} GPUs: tensor parallel {made.tensor_parallel}" in text
    assert "100,000 rows of 400 tokens in and 125 (50 to 200) out" in text
    assert f"${made.estimate.cost_usd.mid:,.2f}" in text
    assert "input: 512 rows sampled" in text


def test_every_loser_has_its_reason_and_what_does_not_fit_says_by_how_much():
    text = shown(plan())
    assert text.count("chosen:") == 1
    assert "GiB short" in text
    assert "dearer: $" in text


def test_without_an_estimate_the_plan_says_why():
    text = shown(plan().model_copy(update={"estimate": None}))
    assert "not known before a run" in text

"""Metrics: what a commit counts, and that the dashboard asks for what there is."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinfer.execution import metrics
from tests.support.builders import make_journal, make_record

DASHBOARD = Path(__file__).parents[2] / "cluster" / "grafana-dashboard.json"


def counted(*records: Any) -> dict[tuple[str, ...], float]:
    """The counters' sums after these commits."""
    sums: Counter[tuple[str, ...]] = Counter()
    for record in records:
        for name, more, value in metrics.increments(record):
            sums[(name, *more.values())] += value
    return dict(sums)


def test_a_commit_counts_rows_tokens_failures_and_money():
    record = make_record(
        rows=10, rows_failed=3, errors={"prompt_empty": 1, "output_invalid": 2}, input_tokens=100, cached_tokens=20,
        output_tokens=50, gpu_seconds=7200.0, price_per_gpu_hour=2.5,
    )  # fmt: skip
    assert counted(record) == {
        ("batchinfer_rows_total",): 10,
        ("batchinfer_rows_failed_total", "prompt_empty"): 1,
        ("batchinfer_rows_failed_total", "output_invalid"): 2,
        ("batchinfer_tokens_total", "input"): 100,
        ("batchinfer_tokens_total", "cached"): 20,
        ("batchinfer_tokens_total", "output"): 50,
        ("batchinfer_shards_total",): 1,
        ("batchinfer_device_seconds_total",): 7200.0,
        ("batchinfer_cost_usd_total",): 5.0,
    }


def test_a_retry_spends_but_adds_no_row():
    retry = counted(make_record(generation=1, rows=3, rows_failed=1, errors={"output_invalid": 1}))
    assert retry[("batchinfer_rows_total",)] == retry[("batchinfer_shards_total",)] == 0
    assert not [key for key in retry if key[0] == "batchinfer_rows_failed_total"]
    assert retry[("batchinfer_cost_usd_total",)] > 0


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 10**6), st.floats(0, 1e5)), max_size=8))
def test_counters_are_the_sums_of_the_records(shards):
    records = [
        make_record(i, rows=rows, output_tokens=tokens, gpu_seconds=seconds)
        for i, (rows, tokens, seconds) in enumerate(shards)
    ]
    sums = counted(*records)
    assert sums.get(("batchinfer_rows_total",), 0) == sum(r.rows for r in records)
    assert sums.get(("batchinfer_tokens_total", "output"), 0) == sum(r.output_tokens for r in records)
    assert sums.get(("batchinfer_cost_usd_total",), 0) == pytest.approx(sum(r.cost_usd for r in records))
    assert all(value >= 0 for value in sums.values()), "a counter only rises"


def test_the_levels_are_those_of_replicas_that_live():
    found = metrics.levels(
        [
            make_journal("a", ready_at_us=None, finished_at_us=None),
            make_journal("b", finished_at_us=None, shards_in_flight=(1, 2, 3)),
            make_journal("c", shards_in_flight=(9,)),
        ]
    )
    assert {(name, *more.values()): value for name, more, value in found} == {
        ("batchinfer_shards_in_flight",): 3,
        ("batchinfer_replicas", "loading"): 1,
        ("batchinfer_replicas", "ready"): 1,
        ("batchinfer_replicas", "ended"): 1,
    }


def dashboard() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return document


def test_the_dashboard_shows_every_metric_and_asks_for_no_other():
    expressions = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])]
    asked = {name for expression in expressions for name in re.findall(r"\bray_(batchinfer_\w+)", expression)}
    assert asked == {*metrics.COUNTERS, *metrics.GAUGES}
    own = {label for _, more in (*metrics.COUNTERS.values(), *metrics.GAUGES.values()) for label in more}
    for expression in expressions:
        used = set(re.findall(r"(\w+)=~?\"", expression))
        for group in re.findall(r"by \(([^)]*)\)", expression):
            used |= set(group.replace(" ", "").split(","))
        assert used <= {*metrics.LABELS, *own}, expression
        for name in re.findall(r"\bray_(batchinfer_\w+_total)", expression):
            assert re.search(rf"(rate|increase)\(\s*ray_{name}", expression), "a counter is shown as a rate or a rise"


def test_the_panels_of_the_dashboard_do_not_overlap_and_have_units():
    panels = [panel for panel in dashboard()["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in dashboard()["panels"]}) == len(dashboard()["panels"])
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        taken = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not taken & cells, panel["title"]
        assert max(x for x, _ in taken) < 24
        cells |= taken
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
    variables = {variable["name"] for variable in dashboard()["templating"]["list"]}
    assert variables >= {"datasource", "job", "model"}


def served() -> dict[str, float]:
    """The run's metrics as Prometheus would read them from this node."""
    import ray

    (port,) = {node["MetricsExportPort"] for node in ray.nodes() if node["Alive"]}
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = [line for line in answer.read().decode().splitlines() if line.startswith("ray_batchinfer")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_ray_serves_what_was_counted_under_the_names_that_the_dashboard_asks_for(ray_cluster):
    record = make_record(job_name="counted", errors={"output_invalid": 2}, rows_failed=2)
    counting = metrics.Metrics({"job": "counted", "run": "r", "model": "a-model", "accelerator": "H100"})
    counting.committed(record)
    counting.observed([make_journal(finished_at_us=None, shards_in_flight=(4,))])
    wanted = {f"ray_{name}" for name in (*metrics.COUNTERS, *metrics.GAUGES)}
    deadline = time.monotonic() + 120
    found: dict[str, float] = {}
    while not wanted <= {line.split("{")[0] for line in found} and time.monotonic() < deadline:
        time.sleep(1)
        found = {line: value for line, value in served().items() if 'job="counted"' in line}
    assert wanted == {line.split("{")[0] for line in found}
    (rows,) = [value for line, value in found.items() if line.startswith("ray_batchinfer_rows_total")]
    assert rows == record.rows
    assert any('direction="output"' in line and value == record.output_tokens for line, value in found.items())
    assert all('accelerator="H100"' in line and 'model="a-model"' in line for line in found)

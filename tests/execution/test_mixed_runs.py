"""A run whose sessions had different prices, layouts and devices: its money is what each session's devices cost."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer.accounting.report import Report
from batchinfer.execution import reports
from batchinfer.execution.plan_job import measurements
from batchinfer.pages import pictures
from batchinfer.pages.pictures import Picture
from batchinfer.planner import Plan
from batchinfer.reporting import render
from tests.support.mixed_runs import PastReplica, PastSession, end_run, write_run

pytestmark = pytest.mark.integration
"""Seconds a test: many small runs."""

seconds = st.integers(0, 400_000).map(lambda quarters: quarters / 4)
past_replicas = st.builds(
    PastReplica,
    begins_at=st.integers(1_790_000_000, 1_800_000_000),
    load=seconds,
    idle=seconds,
    work=st.lists(seconds, max_size=3),
    waste=seconds,
    killed=st.booleans(),
)
whole_or_lost = past_replicas | past_replicas.map(
    lambda replica: PastReplica(replica.begins_at, replica.load, replica.idle, replica.work, journal_lost=True)
)
past_sessions = st.builds(
    PastSession,
    price=st.sampled_from([0.0, 0.0816, 1.25, 2.69, 12.345678]),
    replicas=st.lists(whole_or_lost, max_size=3),
    accelerator=st.sampled_from(["H100", "L4", "cpu"]),
    tensor_parallel=st.sampled_from([1, 2, 4, 8]),
    quantization=st.sampled_from(["none", "fp8"]),
    command=st.sampled_from(["run", "retry"]),
    labels=st.sampled_from([{"team": "search"}, {"team": "ads"}]),
)


def assert_law(made: Report, sessions: list[PastSession]) -> None:
    bill = sum(session.cost_usd for session in sessions)
    assert made.cost_usd == pytest.approx(bill, abs=1e-6)
    assert sum(part.cost_usd for part in made.parts) == pytest.approx(bill, abs=1e-6)
    assert [one.session for one in made.sessions] == list(range(1, len(sessions) + 1))
    for told, session in zip(made.sessions, sessions, strict=True):
        assert told.cost_usd == pytest.approx(session.cost_usd, abs=1e-6)
        assert told.price_per_gpu_hour == session.price
        assert (told.accelerator, told.tensor_parallel) == (session.accelerator, session.tensor_parallel)
        assert told.price_source == f"a list, session {told.session}"
        assert told.seconds.paid == pytest.approx(sum(r.device_seconds for r in session.replicas), abs=1e-6)
    assert sum(one.committed.rows for one in made.sessions) == made.rows
    assert sum(one.committed.input_tokens for one in made.sessions) == made.input_tokens


def assert_law_of_page(html: str, sessions: list[PastSession]) -> None:
    bill = sum(session.cost_usd for session in sessions)
    total = re.search(r'id="cost"><data value="([\d.]+)"', html)
    assert total is not None
    assert float(total[1]) == pytest.approx(bill, abs=1e-6)
    rows = re.findall(r'<tr class="session">.*?<data value="([\d.]+)"', html, re.DOTALL)
    if len(sessions) > 1:
        assert [float(row) for row in rows] == [pytest.approx(session.cost_usd, abs=1e-6) for session in sessions]
    kinds = re.findall(r'<tr><th scope="row"><i .*?<data value="([\d.]+)"', html, re.DOTALL)
    assert sum(map(float, kinds)) == pytest.approx(bill, abs=1e-6)


@pytest.fixture(scope="module")
def no_drawing():
    """Pages without their pictures, which take a second each and hold no figure that is checked here."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("stacked", "gantt", "over_time", "histogram"):
            patch.setattr(pictures, name, lambda title, *_, **__: Picture("<svg></svg>", title, ""))
        yield


@settings(deadline=None, max_examples=20)
@given(st.lists(past_sessions, min_size=1, max_size=4))
def test_a_run_costs_what_each_sessions_devices_cost_at_that_sessions_price(no_drawing, sessions):
    with tempfile.TemporaryDirectory() as folder:
        checked = write_run(Path(folder), sessions)
        assert_law(reports.report(checked.layout.root), sessions)
        end_run(checked)
        assert_law_of_page(checked.layout.storage.read(checked.layout.page).decode(), sessions)
        assert_law(Report.model_validate_json(checked.layout.storage.read(checked.layout.report)), sessions)
        rows = pq.read_table(checked.layout.replicas).to_pylist()
        assert sum(row["cost_usd"] for row in rows) == pytest.approx(sum(s.cost_usd for s in sessions), abs=1e-6)


DEAR_THEN_CHEAP = [
    PastSession(10.0, [PastReplica(1_790_000_000, load=60.0, work=[30.0])], tensor_parallel=4),
    PastSession(1.0, [PastReplica(1_790_090_000, load=20.0, work=[300.0])], accelerator="L4", command="retry"),
]


def test_the_plan_of_each_session_is_kept_and_the_report_names_each(tmp_path):
    checked = write_run(tmp_path, DEAR_THEN_CHEAP)
    kept = sorted((tmp_path / "a-job" / "_run" / "plans").iterdir())
    plans = [Plan.model_validate(json.loads(path.read_text())["plan"]) for path in kept]
    assert [path.name for path in kept] == ["session-0001.json", "session-0002.json"]
    assert [(plan.accelerator, plan.price_per_gpu_hour) for plan in plans] == [("H100", 10.0), ("L4", 1.0)]
    made = reports.report(checked.layout.root)
    assert [(one.command, one.accelerator) for one in made.sessions] == [("run", "H100"), ("retry", "L4")]
    text = printed(made)
    assert "session 1" in text
    assert "session 2, retry" in text


def printed(made: Report) -> str:
    from rich.console import Console

    console = Console(width=200, file=None)
    with console.capture() as captured:
        console.print(render(made))
    return captured.get()


def test_each_session_is_a_measurement_of_its_own(tmp_path):
    made = reports.report(write_run(tmp_path, DEAR_THEN_CHEAP).layout.root)
    first, second = measurements(made)
    assert (first.accelerator, first.devices, first.seconds.work, first.tokens) == ("H100", 4, 30.0, 60)
    assert (second.accelerator, second.devices, second.seconds.work, second.tokens) == ("L4", 1, 300.0, 60)


def test_a_session_that_ended_before_a_replica_began_costs_nothing_and_is_named(tmp_path):
    made = reports.report(write_run(tmp_path, [*DEAR_THEN_CHEAP, PastSession(5.0)]).layout.root)
    assert [(one.session, one.replicas, one.cost_usd) for one in made.sessions][-1] == (3, 0, 0.0)
    assert len(measurements(made)) == 2

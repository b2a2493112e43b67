"""What many runs cost: the same dollars as their own reports, however they are cut."""

from __future__ import annotations

import csv
import io
import json
import re
import tempfile
from datetime import UTC, date, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from batchinfer.accounting.costs import Budget, CostTable, Window
from batchinfer.cli import app
from batchinfer.errors import SpecError, Stopped, UserError
from batchinfer.execution import reports
from batchinfer.execution.costs import costs
from batchinfer.execution.monthly_budget import within_month
from batchinfer.rundir import find_runs
from batchinfer.rundir.paths import Layout
from tests.execution.test_mixed_runs import no_drawing as no_drawing
from tests.execution.test_mixed_runs import past_sessions
from tests.support.builders import make_plan, make_spec
from tests.support.mixed_runs import PastReplica, PastSession, end_run, write_run

NOON = 1_790_078_400
"""2026-09-22, 12:00 UTC, in seconds since 1970."""

KEYS = ["job", "team", "model", "accelerator", "day", "month"]


@pytest.mark.integration
@settings(deadline=None, max_examples=12)
@given(
    st.lists(st.tuples(st.lists(past_sessions, min_size=1, max_size=3), st.booleans()), min_size=1, max_size=3),
    st.lists(st.sampled_from(KEYS), min_size=1, max_size=2, unique=True),
)
def test_the_groups_add_up_to_the_law_of_each_run(no_drawing, runs, by):
    with tempfile.TemporaryDirectory() as folder:
        for number, (sessions, ended) in enumerate(runs):
            checked = write_run(Path(folder), sessions, f"job-{number}")
            if ended:
                end_run(checked)
        made = costs([folder], by, Window())
        assert not made.unreadable
        bill = sum(session.cost_usd for sessions, _ in runs for session in sessions)
        assert made.total.usd == pytest.approx(bill, abs=1e-6)
        assert sum(sums.usd for sums in made.table.groups.values()) == pytest.approx(bill, abs=1e-6)
        parts = made.total
        assert parts.load_usd + parts.work_usd + parts.idle_usd + parts.waste_usd == pytest.approx(bill, abs=1e-6)
        reported = [reports.report(f"{folder}/job-{number}") for number in range(len(runs))]
        assert made.total.usd == pytest.approx(sum(one.cost_usd for one in reported), abs=1e-6)
        assert made.total.rows == pytest.approx(sum(one.rows for one in reported))


def two_teams(folder: Path) -> None:
    """A run of team search from 23:00 to 01:00 UTC for $2, and one of team ads at noon for $1, an hour each device."""
    night = [PastReplica(NOON + 11 * 3600, load=1800.0, work=[5400.0])]
    end_run(write_run(folder, [PastSession(1.0, night, labels={"team": "search"})], "night"))
    day = [PastReplica(NOON, work=[3592.0])]
    end_run(write_run(folder, [PastSession(1.0, day, labels={"team": "ads"})], "noon"))


@pytest.fixture
def teams(tmp_path: Path, no_drawing, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    two_teams(tmp_path)
    return tmp_path


def test_a_run_over_midnight_is_cut_at_the_midnight_of_the_named_zone(teams):
    utc = costs([str(teams)], ["day"], Window()).table
    assert {key[0]: round(sums.usd, 9) for key, sums in utc.groups.items()} == {"2026-09-22": 2.0, "2026-09-23": 1.0}
    berlin = costs([str(teams)], ["day"], Window(zone=ZoneInfo("Europe/Berlin"))).table
    assert {key[0]: round(sums.usd, 9) for key, sums in berlin.groups.items()} == {"2026-09-22": 1.0, "2026-09-23": 2.0}


def test_a_window_counts_the_part_of_a_run_that_lies_in_it(teams):
    made = costs([str(teams)], ["team"], Window(since=date(2026, 9, 23)))
    assert {key: round(sums.usd, 9) for key, sums in made.table.groups.items()} == {("search",): 1.0}
    assert costs([str(teams)], ["team"], Window(until=date(2026, 9, 21))).total.usd == 0


def test_a_budget_that_is_passed_is_named_and_ends_with_exit_code_3(teams):
    run = CliRunner().invoke
    asked = ["costs", str(teams), "--by", "team", "--no-cache", "--json"]
    kept = run(app, [*asked, "--budget", "team=search:2.5"])
    assert kept.exit_code == 0
    assert json.loads(kept.stdout)["budgets"][0]["passed"] is False
    passed = run(app, [*asked, "--budget", "team=search:1.5", "--budget", "team=ads:5"])
    assert "team=search cost $2.00 of $1.50" in str(passed.exception)
    assert passed.exception.exit_code == 3
    assert [one["passed"] for one in json.loads(passed.stdout)["budgets"]] == [True, False]


@pytest.mark.parametrize(
    "text", ["team", "team=search", "team=search:x", "=search:5", "team=:5", "team=a:-1", "a=b:inf"]
)
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(UserError, match="is not a budget"):
        Budget.parse(text)


def test_every_form_has_the_same_groups(teams, tmp_path_factory):
    out = tmp_path_factory.mktemp("forms")
    names = {name: str(out / f"costs.{name}") for name in ("csv", "parquet", "html")}
    options = [word for name, file in names.items() for word in (f"--{name}", file)]
    made = CliRunner().invoke(
        app, ["costs", str(teams), "--by", "team", "--by", "day", "--no-cache", "--json", *options]
    )
    assert made.exit_code == 0, made.exception
    groups = json.loads(made.stdout)["groups"]
    assert [(g["team"], g["day"], round(g["usd"], 6)) for g in groups] == [
        ("ads", "2026-09-22", 1.0),
        ("search", "2026-09-22", 1.0),
        ("search", "2026-09-23", 1.0),
    ]
    with open(names["csv"]) as file:
        assert [(row["team"], float(row["usd"])) for row in csv.DictReader(io.StringIO(file.read()))] == [
            (group["team"], group["usd"]) for group in groups
        ]
    assert pq.read_table(names["parquet"]).to_pylist() == groups
    html = Path(names["html"]).read_text()
    rows = re.findall(r'<tr class="group"><th scope="row">(\w+)</th>.*?<data value="([\d.]+)"', html)
    assert [(name, float(usd)) for name, usd in rows] == [(g["team"], pytest.approx(g["usd"])) for g in groups]
    assert "<script" not in html


def test_a_run_that_has_not_changed_is_not_read_again(teams, tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache") / "costs.sqlite"
    read = find_runs.read_accounts
    seen: list[str] = []
    monkeypatch.setattr(
        find_runs, "read_accounts", lambda layout, state: seen.append(layout.root) or read(layout, state)
    )

    def total() -> float:
        seen.clear()
        return round(costs([str(teams)], ["job"], Window(), cache=cache).total.usd, 9)

    assert total() == 3.0
    assert len(seen) == 2
    assert total() == 3.0
    assert seen == []
    # Another session of one of the runs.
    later = write_run(teams, [PastSession(1.0, [PastReplica(NOON, load=3600.0)])], "again")
    assert total() == 4.0
    assert seen == [later.layout.root]


def test_a_cache_that_is_damaged_is_no_cache(teams, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache") / "costs.sqlite"
    cache.write_text("no database")
    assert costs([str(teams)], ["job"], Window(), cache=cache).total.usd == pytest.approx(3.0)


def test_a_run_that_cannot_be_read_is_named_and_the_others_count(teams):
    broken = write_run(teams, [PastSession(1.0, [PastReplica(NOON)])], "broken")
    (journal,) = Path(broken.layout.journals_folder).iterdir()
    journal.write_text("{")
    made = costs([str(teams)], ["job"], Window())
    assert (made.runs, round(made.total.usd, 9)) == (2, 3.0)
    assert [run.root for run in made.unreadable] == [broken.layout.root]
    assert journal.name in (made.unreadable[0].problem or "")


def test_a_place_without_runs_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no run at or below"):
        costs([str(tmp_path)], ["job"], Window())


def test_a_retry_is_charged_to_the_labels_that_it_ran_with(tmp_path, no_drawing):
    sessions = [
        PastSession(1.0, [PastReplica(NOON, load=3600.0)], labels={"team": "search"}),
        PastSession(2.0, [PastReplica(NOON, load=3600.0)], labels={"team": "ads"}, command="retry"),
    ]
    end_run(write_run(tmp_path, sessions))
    made = costs([str(tmp_path)], ["team"], Window())
    assert {key[0]: (round(sums.usd, 9), sums.runs) for key, sums in made.table.groups.items()} == {
        "search": (1.0, 1),
        "ads": (2.0, 1),
    }


def test_a_label_with_the_name_of_a_key_is_reached_by_its_full_name(tmp_path, no_drawing):
    end_run(write_run(tmp_path, [PastSession(1.0, [PastReplica(NOON)], labels={"model": "mine"})]))
    assert list(costs([str(tmp_path)], ["label:model"], Window()).table.groups) == [("mine",)]
    assert list(costs([str(tmp_path)], ["model"], Window()).table.groups) == [(make_plan().model,)]


def test_days_come_in_their_order_and_other_groups_by_their_cost(teams):
    assert [key for key, _ in costs([str(teams)], ["day"], Window()).table.rows()] == [("2026-09-22",), ("2026-09-23",)]
    assert [key for key, _ in costs([str(teams)], ["team"], Window()).table.rows()] == [("search",), ("ads",)]
    assert CostTable(["job"], Window()).rows() == []


def monthly(teams: Path, usd: float, **limits):
    spec = make_spec(
        labels={"team": "search"},
        limits={"monthly": {"label": "team", "usd": usd}, **limits},
        output={"uri": str(teams / "new")},
    )
    return within_month(spec, Layout(spec.output.uri), datetime(2026, 9, 30, tzinfo=UTC))


def test_what_is_left_of_a_labels_month_limits_a_run(teams):
    assert monthly(teams, 2.5).limits.max_cost_usd == pytest.approx(0.5)
    assert monthly(teams, 2.5, max_cost_usd=0.1).limits.max_cost_usd == pytest.approx(0.1)
    with pytest.raises(Stopped, match=r"team=search cost \$2\.00 this month, of \$2\.00"):
        monthly(teams, 2.0)


def test_another_month_another_label_and_another_folder_count_nothing(teams, tmp_path_factory):
    spec = make_spec(
        labels={"team": "search"},
        limits={"monthly": {"label": "team", "usd": 1.5, "within": [str(tmp_path_factory.mktemp("other"))]}},
        output={"uri": str(teams / "new")},
    )
    layout = Layout(spec.output.uri)
    assert within_month(spec, layout, datetime(2026, 9, 30, tzinfo=UTC)).limits.max_cost_usd == 1.5
    here = spec.model_copy(update={"limits": make_spec(limits={}).limits})
    assert within_month(here, layout) is here
    ads = make_spec(
        labels={"team": "ads"}, limits={"monthly": {"label": "team", "usd": 1.5}}, output={"uri": str(teams / "new")}
    )
    left = within_month(ads, layout, datetime(2026, 9, 30, tzinfo=UTC)).limits.max_cost_usd
    assert left == pytest.approx(0.5, abs=1e-3)
    assert within_month(ads, layout, datetime(2026, 10, 1, tzinfo=UTC)).limits.max_cost_usd == 1.5


def test_a_monthly_budget_needs_its_label():
    with pytest.raises(SpecError, match="label 'team', which labels does not have"):
        make_spec(limits={"monthly": {"label": "team", "usd": 5}})

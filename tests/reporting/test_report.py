from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console

from batchinfer.accounting.ledger import replica_accounts, totals
from batchinfer.accounting.money import money
from batchinfer.accounting.report import Accuracy, Report, make_report
from batchinfer.reporting import render
from tests.support.builders import make_journal, make_plan, make_reading, make_record

RECORDS = [
    make_record(
        0,
        rows=3000,
        rows_failed=30,
        input_tokens=1_000_000,
        cached_tokens=123_456,
        output_tokens=200_000,
        gpu_seconds=40.0,
        errors={"prompt_empty": 10, "output_invalid": 20},
        finish_reasons={"stop": 2960, "length": 10},
        evaluation={"held-out": (90, 100), "none": (0, 0)},
    ),
    make_record(
        1, rows=1000, input_tokens=300_000, output_tokens=100_000, gpu_seconds=20.0, finish_reasons={"stop": 1000}
    ),
]
JOURNALS = [
    # 50 seconds x 2 devices, of which 10 x 2 before it was ready.
    make_journal(
        "r1",
        started_at_us=0,
        ready_at_us=10_000_000,
        meter=make_reading(50_000_000, load=20, busy=70, idle=10),
        finished_at_us=50_000_000,
    ),
    make_journal("r2", started_at_us=0, ready_at_us=None, meter=make_reading(5_000_000, load=10), finished_at_us=None),
]


def report(records=RECORDS, journals=JOURNALS, rows_in_input=4000, **plan) -> Report:
    accounts = replica_accounts(records, journals)
    return make_report(
        job_name="a-job",
        run_id="run",
        output="/somewhere/out",
        plan=make_plan(**plan),
        totals=totals(records, accounts),
        replicas=accounts,
        rows_in_input=rows_in_input,
        shards_in_input=2,
        max_error_rate=0.05,
    )


def text_of(made: Report) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render(made))
    return console.export_text()


def test_the_numbers_follow_from_the_accounts():
    made = report()
    assert (made.rows, made.rows_failed, made.shards, made.complete) == (4000, 30, 2, True)
    assert made.error_rate == 0.0075
    assert (made.input_tokens, made.cached_tokens, made.output_tokens) == (1_300_000, 123_464, 300_000)
    assert made.seconds.model_dump() == {"load": 30, "work": 60, "idle": 10, "waste": 10, "in_flight": 0}
    assert made.cost_usd == pytest.approx(110 * 3.6 / 3600)
    # Ready from second 10 to second 50.
    assert made.tokens_per_second == 1_600_000 / 40
    assert made.rows_per_second == 100
    assert made.cost_per_million_tokens == pytest.approx(0.11 / 1.6)
    assert made.cost_per_thousand_rows == pytest.approx(0.11 / 4)
    assert (made.replicas, made.replicas_killed) == (2, 1)
    assert made.accuracy["held-out"] == Accuracy.of(90, 100)
    assert made.accuracy["held-out"].accuracy == 0.9
    assert list(made.accuracy) == ["held-out"]


def test_the_json_has_the_keys_of_the_contract():
    known = json.loads(report().model_dump_json())
    assert known.keys() >= {
        *("rows", "rows_failed", "input_tokens", "cached_tokens", "output_tokens", "tokens_per_second"),
        *("cost_usd", "cost_per_million_tokens", "seconds", "shards", "replicas"),
    }
    assert known["seconds"].keys() >= {"load", "work", "idle", "waste"}
    assert Report.model_validate(known) == report()


def test_a_run_that_is_not_done_says_how_much_is_left():
    made = report(rows_in_input=10_000)
    assert not made.complete
    assert "6,000 rows still to do" in text_of(made)


def test_a_report_says_of_how_many_rows_a_selection_was_made():
    made = report().model_copy(update={"selected_from": 1_000_000})
    assert re.search(r"selected +4,000 of 1,000,000 rows +\n", text_of(made))
    assert "selected" not in text_of(report())


def test_a_run_without_rows_has_no_rates():
    made = report([], [], rows_in_input=0)
    assert made.complete
    assert (made.error_rate, made.tokens_per_second, made.cost_usd) == (0, 0, 0)
    assert (made.cost_per_million_tokens, made.cost_per_thousand_rows) == (None, None)
    assert "0 of 0" in text_of(made)


@pytest.mark.parametrize(
    "words",
    [
        "a-job: a-model, 2 replicas on H100, 2 x 1 (TP x PP) each, complete",
        "4,000 of 4,000, in 2 shards",
        "30 (0.75%): output_invalid 20, prompt_empty 10",
        "stop 3,960, length 10",
        "accuracy, held-out",
        "90.0% of 100",
        "1,300,000 in (123,464 cached), 300,000 out",
        "40,000 tokens/s, 100.0 rows/s",
        "work 60.0 s (55%), load 30.0 s (27%), idle 10.0 s (9%), waste 10.0 s (9%)",
        "1 of 2 replicas were lost",
        "$0.1100, $0.0688 per million tokens, $0.0275 per thousand rows",
        "$3.6 per device-hour (a price list)",
        "/somewhere/out/data",
    ],
)
def test_the_terminal_shows_the_number(words):
    assert words in text_of(report())


def test_what_did_not_happen_is_not_shown():
    made = report([make_record(0, rows=4000, cached_tokens=0)], JOURNALS[:1], tensor_parallel=1)
    shown = text_of(made)
    assert "1 replica on H100, complete" in shown
    assert not [word for word in ("cached", "accuracy", "lost", "TP x PP") if word in shown]


def test_marks_in_names_are_shown_as_they_are():
    made = report(model="org/[bold]model[/bold]", price_source="[link=x]")
    assert "org/[bold]model[/bold]" in text_of(made)


@pytest.mark.parametrize(
    ("usd", "shown"),
    [
        (0, "$0.0000"),
        (1234.567, "$1,234.57"),
        (12.5, "$12.50"),
        (9.5, "$9.5000"),
        (0.25, "$0.2500"),
        (0.0012345, "$0.00123"),
    ],
)
def test_money_has_the_digits_that_matter(usd, shown):
    assert money(usd) == shown

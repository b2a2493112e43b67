from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer.accounting.ledger import REPLICAS_SCHEMA, replica_accounts, replicas_table, totals
from batchinfer.accounting.meter import Meter
from batchinfer.accounting.records import MeterReading, ReplicaRecord, ShardRecord
from batchinfer.accounting.report import Report, make_report
from batchinfer.execution.metrics import increments
from tests.support.builders import make_journal, make_plan, make_reading, make_record

CONTRACT = [
    *("replica_id", "node", "accelerator", "num_gpus", "started_at", "ready_at", "finished_at", "gpu_seconds"),
    *("load_seconds", "work_seconds", "idle_seconds", "wasted_seconds", "cost_usd"),
]


@dataclass
class History:
    """What a run of several replicas wrote down, and what really happened to their seconds."""

    records: list[ShardRecord] = field(default_factory=list)
    journals: list[ReplicaRecord] = field(default_factory=list)
    lost: dict[str, float] = field(default_factory=dict)


counted_rows = st.fixed_dictionaries(
    {
        "rows": st.integers(0, 50),
        "input_tokens": st.integers(0, 10**6),
        "cached_tokens": st.integers(0, 10**6),
        "output_tokens": st.integers(0, 10**6),
        "rejected_tokens": st.integers(0, 10**6),
    }
)


@st.composite
def histories(draw):
    """Replicas with real meters: attempts begin, run and end; some are committed, some lost, some cut off
    by the replica's death, after which its journal may be older than its last commit."""
    history, committed, generations = History(), set(), {}
    for number in range(draw(st.integers(0, 4))):
        name, devices = f"r{number}", draw(st.integers(1, 8))
        # Each replica may be of another session, in which the price, the labels and the weights were others.
        session = {
            "price_per_gpu_hour": draw(st.sampled_from([0.0, 1.25, 3.6])),
            "labels": draw(st.sampled_from([{}, {"team": "search"}, {"team": "ads"}])),
            "quantization": draw(st.sampled_from(["none", "fp8"])),
        }
        now = [draw(st.integers(10**15, 10**15 + 10**9))]
        meter = Meter(devices, lambda now=now: now[0])
        began = now[0]

        def advance(now=now):
            now[0] += draw(st.integers(0, 10**8))

        advance()
        journal = meter.reading()
        ready = meter.ready() if draw(st.booleans()) else None
        flying: dict[int, int] = {}
        newest: MeterReading = journal
        lost: list[tuple[int, float]] = []
        for step in range(draw(st.integers(0, 12)) if ready else 0):
            advance()
            action = draw(st.sampled_from(["begin", "begin", "end", "end", "journal"]))
            if action == "begin":
                flying[step] = draw(st.integers(0, 30))
                meter.begin(step, flying[step])
            elif action == "journal":
                journal = meter.reading()
            elif flying:
                key = draw(st.sampled_from(sorted(flying)))
                meter.finished(key, flying[key])
                advance()
                gpu_seconds, reading = meter.end(key)
                shard = draw(st.integers(0, 6))
                retried = shard in committed and draw(st.booleans())
                if shard not in committed or retried:
                    generation = generations[shard] = generations.get(shard, -1) + 1
                    committed.add(shard)
                    history.records.append(
                        make_record(
                            shard,
                            replica_id=name,
                            num_gpus=devices,
                            generation=generation,
                            gpu_seconds=gpu_seconds,
                            meter=reading,
                            **draw(counted_rows),
                            **session,
                        )
                    )
                    newest = reading
                else:
                    lost.append((reading.at_us, gpu_seconds))
                del flying[key]
        advance()
        killed = draw(st.booleans())
        if not killed:
            for key, rows in flying.items():
                meter.finished(key, rows)
                lost.append((now[0], meter.end(key)[0]))
            journal = meter.reading()
        newest = journal if journal.at_us >= newest.at_us else newest
        if all(at <= newest.at_us for at, _ in lost) and not (killed and flying):
            history.lost[name] = sum(gpu_seconds for _, gpu_seconds in lost)
        history.journals.append(
            make_journal(
                name,
                num_gpus=devices,
                started_at_us=began,
                ready_at_us=ready,
                finished_at_us=None if killed else journal.at_us,
                meter=journal,
                **session,
            )
        )
    return history


def report_of(history: History, alive: frozenset[str] = frozenset()) -> Report:
    accounts = replica_accounts(history.records, history.journals, alive)
    return make_report(
        job_name="a-job",
        run_id="run",
        output="/out",
        plan=make_plan(),
        totals=totals(history.records, accounts),
        replicas=accounts,
        rows_in_input=100,
        shards_in_input=10,
        max_error_rate=0.1,
    )


@settings(deadline=None, max_examples=150)
@given(histories(), st.data())
def test_every_total_that_is_shown_is_the_fold_of_the_records(history, data):
    unfinished = [journal.replica_id for journal in history.journals if journal.finished_at_us is None]
    alive = frozenset(data.draw(st.lists(st.sampled_from(unfinished), unique=True)) if unfinished else ())
    accounts = replica_accounts(history.records, history.journals, alive)
    made = report_of(history, alive)
    table = replicas_table(accounts).to_pylist()
    close = partial(pytest.approx, abs=1e-6, rel=1e-9)
    paid = sum((a.finished_at_us - a.started_at_us) / 1e6 * a.num_gpus for a in accounts)
    bill = sum(row["cost_usd"] for row in table)
    assert made.cost_usd == close(bill)
    assert made.seconds.paid == close(paid) == close(sum(row["gpu_seconds"] for row in table))
    assert sum(part.cost_usd for part in made.parts) == close(bill)
    assert sum(part.device_seconds for part in made.parts) == close(paid)
    assert made.price_per_gpu_hour * paid / 3600 == close(bill)
    assert sum(part.replicas for part in made.parts) == made.replicas
    assert made.replicas_running == len(alive)
    # By label: the rows of a label are its bill, and all labels' bills are the run's.
    by_label = defaultdict(float)
    for row in table:
        by_label[row["labels"]] += row["cost_usd"]
    for label, cost in by_label.items():
        mine = [j for j in history.journals if j.labels == json.loads(label)]
        assert cost == close(
            sum(a.cost_usd for a in replica_accounts(history.records, mine) if a.labels == mine[0].labels)
        )
    assert sum(by_label.values()) == close(bill)
    # The metrics' counters, added up, and the records' own sums.
    counters = defaultdict(float)
    for record in history.records:
        for name, labels, value in increments(record):
            counters[name, labels.get("direction")] += value
    assert counters["batchinfer_rows_total", None] == made.rows
    assert counters["batchinfer_shards_total", None] == made.shards
    for direction in ("input", "cached", "output"):
        assert counters["batchinfer_tokens_total", direction] == getattr(made, f"{direction}_tokens")
    assert counters["batchinfer_device_seconds_total", None] == close(made.seconds.work)
    assert counters["batchinfer_cost_usd_total", None] == close(sum(r.cost_usd for r in history.records))


@settings(deadline=None, max_examples=100)
@given(histories(), st.data())
def test_a_journal_that_is_lost_is_made_anew_from_the_commits(history, data):
    with_commits = {record.replica_id for record in history.records}
    gone = data.draw(st.sets(st.sampled_from(sorted(with_commits)))) if with_commits else set()
    kept = [journal for journal in history.journals if journal.replica_id not in gone]
    whole = {a.replica_id: a for a in replica_accounts(history.records, history.journals)}
    for account in replica_accounts(history.records, kept):
        before = whole[account.replica_id]
        assert account.work_seconds == before.work_seconds
        assert abs(account.started_at_us - before.started_at_us) <= 2
        assert account.finished_at_us <= before.finished_at_us
        assert account.labels == before.labels


def test_what_a_living_replica_has_in_flight_is_no_waste_and_its_replica_is_not_lost():
    journal = make_journal(finished_at_us=None, meter=make_reading(9_000_000, load=2.0, busy=14.0))
    record = make_record(gpu_seconds=4.0, meter=make_reading(5_000_000, load=2.0, busy=6.0))
    living = report_of(History([record], [journal]), frozenset({"r1"}))
    assert (living.seconds.in_flight, living.seconds.waste) == (10.0, 0.0)
    assert (living.replicas_running, living.replicas_killed) == (1, 0)
    dead = report_of(History([record], [journal]))
    assert (dead.seconds.in_flight, dead.seconds.waste) == (0.0, 10.0)
    assert (dead.replicas_running, dead.replicas_killed) == (0, 1)


def test_a_run_whose_price_changed_shows_both_prices_and_their_mean():
    before = make_journal("r1", price_per_gpu_hour=1.0, quantization="none", price_source="a list")
    after = make_journal("r2", price_per_gpu_hour=3.0, quantization="fp8", price_source="a spec")
    made = report_of(History([], [before, after]))
    assert [(p.price_per_gpu_hour, p.quantization, p.price_source) for p in made.parts] == [
        (1.0, "none", "a list"),
        (3.0, "fp8", "a spec"),
    ]
    assert made.price_per_gpu_hour == pytest.approx(2.0)
    assert made.price_source == "a list; a spec"


def test_tokens_of_rejected_prompts_are_no_work():
    ran = make_record(0, input_tokens=40, output_tokens=20)
    rejected = make_record(
        1,
        rows_failed=4,
        input_tokens=0,
        cached_tokens=0,
        output_tokens=0,
        rejected_tokens=726_072,
        errors={"prompt_too_long": 4},
    )
    made = report_of(History([ran, rejected], [make_journal()]))
    assert (made.rows, made.rows_ran) == (8, 4)
    assert (made.input_tokens, made.rejected_tokens) == (40, 726_072)
    assert made.tokens_per_second == pytest.approx(60 / 8)
    assert made.cost_per_million_tokens == pytest.approx(made.cost_usd / 60 * 1e6)


def test_the_accuracy_over_all_groups_is_always_there():
    record = make_record(evaluation={"ads": (3, 4), "search": (1, 4)})
    made = report_of(History([record], [make_journal()]))
    assert made.overall_accuracy is not None
    assert (made.overall_accuracy.right, made.overall_accuracy.compared) == (4, 8)
    assert set(made.accuracy) == {"ads", "search"}


@settings(deadline=None, max_examples=150)
@given(histories())
def test_every_device_second_of_the_run_is_work_load_idle_or_waste(history):
    accounts = replica_accounts(history.records, history.journals)
    paid = sum((a.finished_at_us - a.started_at_us) / 1e6 * a.num_gpus for a in accounts)
    shards = sum(record.gpu_seconds for record in history.records)
    rest = sum(a.load_seconds + a.idle_seconds + a.wasted_seconds for a in accounts)
    assert shards + rest == pytest.approx(paid, abs=1e-6, rel=1e-12)
    for account in accounts:
        parts = account.load_seconds + account.work_seconds + account.idle_seconds + account.wasted_seconds
        assert parts == pytest.approx(account.gpu_seconds, abs=1e-6, rel=1e-12)
        assert account.wasted_seconds >= 0


@settings(deadline=None, max_examples=100)
@given(histories())
def test_the_money_follows_the_seconds(history):
    accounts = replica_accounts(history.records, history.journals)
    run = totals(history.records, accounts)
    price = {journal.replica_id: journal.price_per_gpu_hour for journal in history.journals}
    unused = sum((a.load_seconds + a.idle_seconds + a.wasted_seconds) * price[a.replica_id] / 3600 for a in accounts)
    assert run.cost_usd == pytest.approx(sum(r.cost_usd for r in history.records) + unused, abs=1e-6)
    seconds = run.load_seconds + run.work_seconds + run.idle_seconds + run.wasted_seconds
    assert seconds == pytest.approx(sum(a.gpu_seconds for a in accounts), abs=1e-6, rel=1e-12)


@settings(deadline=None, max_examples=100)
@given(histories())
def test_waste_is_what_the_attempts_took_that_were_not_committed(history):
    wasted = {a.replica_id: a.wasted_seconds for a in replica_accounts(history.records, history.journals)}
    for replica, lost in history.lost.items():
        assert wasted[replica] == pytest.approx(lost, abs=1e-6, rel=1e-12)


def test_a_killed_replica_lived_until_the_newest_thing_that_is_known_of_it():
    record = make_record(gpu_seconds=6.0, meter=make_reading(9_000_000, load=2, busy=10, idle=4))
    journal = make_journal(finished_at_us=None, meter=make_reading(5_000_000, load=2, busy=4, idle=2))
    account = replica_accounts([record], [journal])[0]
    assert account.killed
    assert account.finished_at_us == 9_000_000
    assert (account.load_seconds, account.work_seconds, account.idle_seconds) == (2, 6, 4)
    assert account.wasted_seconds == 4
    assert account.gpu_seconds == 16


def test_a_late_second_attempt_is_waste():
    winner = make_record(replica_id="r1", gpu_seconds=8.0)
    journals = [
        make_journal("r1", meter=make_reading(5_000_000, busy=8.0)),
        make_journal("r2", meter=make_reading(5_000_000, busy=8.0)),
    ]
    first, second = replica_accounts([winner], journals)
    assert (first.work_seconds, first.wasted_seconds) == (8, 0)
    assert (second.work_seconds, second.wasted_seconds) == (0, 8)


def test_replicas_are_listed_in_the_order_of_their_starts():
    journals = [
        make_journal("b", started_at_us=5),
        make_journal("c", started_at_us=3),
        make_journal("a", started_at_us=5),
    ]
    assert [account.replica_id for account in replica_accounts([], journals)] == ["c", "a", "b"]


def test_a_run_without_replicas_cost_nothing():
    run = totals([], [])
    assert (run.rows, run.shards, run.cost_usd, run.active_seconds) == (0, 0, 0, 0)


def retried():
    """A shard of ten rows of which three failed and then one of the three again, and one without a flaw."""
    return [
        make_record(0, generation=1, rows=3, rows_failed=1, errors={"output_invalid": 1}, evaluation={"x": (1, 2)}),
        make_record(1, rows=5, rows_failed=0, evaluation={"x": (4, 5), "y": (0, 0)}),
        make_record(
            0, rows=10, rows_failed=3, errors={"output_invalid": 2, "prompt_empty": 1}, evaluation={"x": (6, 9)}
        ),
    ]


def test_a_retried_row_is_counted_once_as_it_stands_now():
    run = totals(retried(), [])
    assert (run.rows, run.rows_failed, run.shards) == (15, 1, 2)
    assert run.errors == {"output_invalid": 1}


def test_tokens_count_everything_that_was_spent():
    run = totals(retried(), [])
    assert (run.input_tokens, run.cached_tokens, run.output_tokens) == (120, 24, 60)


def test_a_row_that_a_retry_put_right_is_right_and_compared_once():
    assert totals(retried(), []).evaluation == {"x": (11, 14), "y": (0, 0)}


def test_errors_are_listed_by_their_number():
    records = [make_record(0, errors={"a": 1, "b": 2}), make_record(1, errors={"a": 3})]
    assert list(totals(records, []).errors.items()) == [("a", 4), ("b", 2)]


@pytest.mark.parametrize(
    ("spans", "seconds"),
    [
        ([(1, 5), (3, 8)], 7),
        ([(1, 5), (2, 3)], 4),
        ([(1, 2), (5, 6)], 2),
        ([(1, 5), (None, 9)], 4),
        ([(None, 9)], 0),
    ],
)
def test_active_time_is_when_at_least_one_replica_was_ready(spans, seconds):
    journals = [
        make_journal(
            str(i),
            started_at_us=0,
            ready_at_us=None if ready is None else ready * 10**6,
            meter=make_reading(end * 10**6),
        )
        for i, (ready, end) in enumerate(spans)
    ]
    assert totals([], replica_accounts([], journals)).active_seconds == seconds


def test_the_replicas_table_says_what_the_accounts_say():
    journals = [make_journal("r1"), make_journal("r2", ready_at_us=None, finished_at_us=None, started_at_us=2_000_000)]
    accounts = replica_accounts([make_record(gpu_seconds=3.0, meter=make_reading(busy=5.0))], journals)
    table = replicas_table(accounts)
    assert table.schema == REPLICAS_SCHEMA
    assert set(CONTRACT) <= set(table.column_names)
    for row, account in zip(table.to_pylist(), accounts, strict=True):
        assert row["started_at"].timestamp() * 1e6 == account.started_at_us
        assert row["finished_at"].timestamp() * 1e6 == account.finished_at_us
        assert (row["ready_at"] is None) == (account.ready_at_us is None)
        for name in ("replica_id", "num_gpus", "gpu_seconds", "work_seconds", "wasted_seconds", "cost_usd", "killed"):
            assert row[name] == getattr(account, name)
    assert [row["killed"] for row in table.to_pylist()] == [False, True]


def test_no_replicas_are_a_table_without_rows():
    assert replicas_table([]).schema == REPLICAS_SCHEMA

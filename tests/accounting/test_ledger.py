from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer.accounting.ledger import REPLICAS_SCHEMA, replica_accounts, replicas_table, totals
from batchinfer.accounting.meter import Meter
from batchinfer.accounting.records import MeterReading, ReplicaRecord, ShardRecord
from tests.support.builders import make_journal, make_reading, make_record

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


@st.composite
def histories(draw):
    """Replicas with real meters: attempts begin, run and end; some are committed, some lost, some cut off
    by the replica's death, after which its journal may be older than its last commit."""
    history, committed, generations = History(), set(), {}
    for number in range(draw(st.integers(0, 4))):
        name, devices = f"r{number}", draw(st.integers(1, 8))
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
                            price_per_gpu_hour=1.0 + number,
                            meter=reading,
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
                price_per_gpu_hour=1.0 + number,
                started_at_us=began,
                ready_at_us=ready,
                finished_at_us=None if killed else journal.at_us,
                meter=journal,
            )
        )
    return history


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

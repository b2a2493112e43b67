from __future__ import annotations

import math
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer import events
from batchinfer.accounting.meter import Meter
from batchinfer.engine import start_engine
from batchinfer.engine.supervisor import DEATHS_OF_A_ROW, PARTS, Stall, Supervisor, cut
from batchinfer.errors import EngineError
from tests.support.builders import make_plan, make_spec
from tests.support.fragile_engine import Machine, prompts_of, supervised


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_exactly_the_rows_that_kill_are_set_aside_within_a_bounded_number_of_engines(data):
    rows = [f"{i}" for i in range(data.draw(st.integers(1, 700)))]
    poison = set(data.draw(st.lists(st.sampled_from(rows), max_size=3)))
    machine = Machine(data.draw(st.integers(1, 300)), poison)
    supervisor, meter = supervised(machine)
    outcome = supervisor.run(prompts_of(rows))
    supervisor.close()
    completions = outcome.completed()
    assert [c.texts for c in completions] == [[] if row in poison else [row] for row in rows]
    assert {row for row, c in zip(rows, completions, strict=True) if c.error} == poison
    assert {c.error.code for c in completions if c.error} <= {"engine_killed"}
    levels = math.ceil(math.log(len(rows), PARTS)) if len(rows) > 1 else 0
    assert outcome.deaths <= len(poison) * (1 + levels + DEATHS_OF_A_ROW)
    assert machine.started <= 1 + outcome.deaths
    reading = meter.reading()
    assert 0 <= outcome.gpu_seconds <= reading.busy_seconds + 1e-9


@given(st.integers(1, 60), st.lists(st.integers(1, 6), max_size=8))
@settings(max_examples=60, deadline=None)
def test_an_engine_that_is_killed_from_outside_costs_no_row(count, accidents):
    # An accident that hits one and the same lone row twice cannot be told from its own fault.
    rows = [f"{i}" for i in range(count)]
    machine = Machine(slots=16, poison=set(), accidents=[calls + 1 for calls in accidents])
    supervisor, _ = supervised(machine)
    answers = [supervisor.run(prompts_of(rows)).completed() for _ in range(4)]
    supervisor.close()
    assert [[c.texts for c in one] for one in answers] == [[[row] for row in rows]] * 4


def test_calls_that_share_an_engine_with_poison_come_out_whole():
    machine = Machine(slots=8, poison={"13"})
    supervisor, _ = supervised(machine)
    outcomes = {}

    def ask(name, rows):
        outcomes[name] = supervisor.run(prompts_of(rows))

    calls = {name: [f"{name}{i}" if name else f"{i}" for i in range(64)] for name in ("", "a", "b", "c")}
    threads = [threading.Thread(target=ask, args=call) for call in calls.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    supervisor.close()
    failed = {name: [i for i, c in enumerate(o.completed()) if c.error] for name, o in outcomes.items()}
    assert failed == {"": [13], "a": [], "b": [], "c": []}
    assert max(outcomes[name].deaths for name in "abc") <= 1, "who is innocent runs alone once, and whole"


def test_the_budget_ends_it_for_everybody_who_asks():
    supervisor, _ = supervised(Machine(slots=4, poison={"5"}), max_restarts=2)
    for _ in range(2):
        with pytest.raises(EngineError, match=r"died 3 times.*max_engine_restarts \(2\)"):
            supervisor.run(prompts_of(f"{i}" for i in range(64)))
    supervisor.close()


def test_a_model_that_does_not_load_the_first_time_is_not_tried_again():
    tries = []

    def start():
        tries.append(1)
        raise EngineError("no such model")

    with pytest.raises(EngineError, match="no such model"):
        Supervisor(start, lambda: None, Meter(1, lambda: 0), 5, 600)
    assert len(tries) == 1


def test_time_in_a_dead_engine_is_waste_and_starting_again_is_load():
    now = [0]
    meter = Meter(2, lambda: now[0])
    machine = Machine(slots=4, poison=set(), accidents=[1])

    def start():
        now[0] += 10_000_000
        engine = machine.start()
        generate = engine.generate

        def slow(prompts, begun, finished):
            def later(rows):
                begun(rows)
                now[0] += 3_000_000

            return generate(prompts, later, finished)

        engine.generate = slow
        return engine

    supervisor = Supervisor(start, machine.kill, meter, 3, 600)
    meter.ready()
    outcome = supervisor.run(prompts_of("abc"))
    reading = meter.reading()
    supervisor.close()
    assert outcome.gpu_seconds == 6, "three seconds of two devices in the engine that lived"
    assert (reading.load_seconds, reading.busy_seconds, reading.idle_seconds) == (40, 12, 0)


@pytest.mark.integration
def test_an_engine_that_stands_still_is_killed_and_its_rows_are_run_again():
    spec = make_spec(prompt={"column": "text"}, engine={"max_num_seqs": 4, "scripted": {"hang_on": "row-7"}})
    engines = []

    def start():
        engines.append(start_engine(spec, make_plan()))
        return engines[-1]

    meter = Meter(1, lambda: time.monotonic_ns() // 1000)
    supervisor = Supervisor(start, lambda: engines[-1].close(), meter, 20, timeout_seconds=0.2)
    meter.ready()
    outcome = supervisor.run(prompts_of(f"row-{i}" for i in range(10)))
    supervisor.close()
    assert [i for i, c in enumerate(outcome.completed()) if c.error] == [7]
    assert outcome.completed()[7].error.code == "engine_killed"


def test_only_standing_still_with_rows_counts_as_a_stall():
    stall = Stall()
    assert stall.seconds(0, 5, "a") == 0
    assert stall.seconds(10, 5, "a") == 10
    assert stall.seconds(11, 4, "a") == 0, "a row has left"
    assert stall.seconds(20, 4, "b") == 0, "a step was made"
    assert stall.seconds(29, 4, "b") == 9
    assert stall.seconds(30, 0, "b") == 0, "nothing to do is no stall"
    assert stall.seconds(99, 4, "b") == 0


@settings(deadline=None)
@given(st.lists(st.integers(), min_size=2, max_size=500, unique=True))
def test_a_cut_loses_no_row_and_quarters_at_least(places):
    parts = cut(places)
    assert [place for part in parts for place in part] == places
    assert max(map(len, parts)) <= math.ceil(len(places) / PARTS)
    assert len(parts) <= PARTS


def test_rows_that_waited_when_the_engine_died_are_no_suspects():
    machine = Machine(slots=4, poison={"1"})
    supervisor, _ = supervised(machine)
    outcome = supervisor.run(prompts_of(f"{i}" for i in range(12)))
    supervisor.close()
    assert [i for i, c in enumerate(outcome.completed()) if c.error] == [1]
    innocent = [f"{i}" for i in range(4, 12)]
    assert [rows for rows in machine.asked[1:] if set(rows) & set(innocent)] == [innocent], "asked once more, together"


def test_each_death_split_restart_and_row_set_aside_is_told():
    machine = Machine(slots=4, poison={"bad"})
    heard = []
    with events.heard_by(lambda name, **values: heard.append((name, values))):
        supervisor, _ = supervised(machine, max_restarts=20)
        supervisor.run(prompts_of(["a", "b", "bad", "c", "d"]))
        supervisor.close()
    names = [name for name, _ in heard]
    assert names[:3] == ["engine ready", "engine died", "engine restarting"]
    assert heard[1][1] == {"reason": "dead", "rows": [0, 1, 2, 3], "rows_suspect": 4, "rows_waiting": 1}
    assert ("suspects split", {"rows": [0, 1, 2, 3], "rows_suspect": 4, "parts": 4}) in heard
    assert ("row set aside", {"row": 2, "deaths": DEATHS_OF_A_ROW}) in heard
    restarts = [values["restart"] for name, values in heard if name == "engine restarting"]
    assert restarts == list(range(1, len(restarts) + 1))
    assert names.count("engine died") == len(restarts)


def test_an_engine_that_does_not_load_in_time_is_an_error_that_names_the_limit():
    killed = []
    with pytest.raises(EngineError, match=r"not loaded within limits\.load_timeout_seconds \(0\.2\)"):
        Supervisor(
            lambda: time.sleep(5), lambda: killed.append(1), Meter(1, lambda: 0), 5, timeout_seconds=600,
            load_seconds=0.2,
        )  # fmt: skip
    assert killed == [1]

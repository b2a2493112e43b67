"""Equal requests run once: the answers are those of a run that runs each row, the accounts those of the first ones."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer.engine import Completion
from batchinfer.errors import EngineError, RowError, SpecError
from batchinfer.execution.asked import Asked
from batchinfer.execution.job import RunningJob
from batchinfer.execution.replica import repeats
from batchinfer.execution.result_rows import counts, of_steps, result_table, reuse_counts, step_counts
from batchinfer.execution.reuse import REMEMBERED_BYTES, Reuse, request_keys, reused, size_of
from batchinfer.execution.row_steps import RowSteps
from batchinfer.execution.same_job import changed_keys, shaping
from batchinfer.prompting.job_prompts import JobPrompts
from batchinfer.prompting.prompts import Prompt
from batchinfer.reporting.terminal import render
from batchinfer.rundir.paths import Layout
from tests.support.builders import make_envelope, make_fingerprint, make_plan, make_report_value, make_spec, manifest_of
from tests.support.fragile_engine import Machine, prompts_of, supervised


class Engine:
    """Answers with the text in capitals, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, prompts: Any, places: Any) -> list[Completion]:
        self.asked += [prompt.text for prompt in prompts]
        return [Completion([prompt.text.upper()], ["stop"], 3, 1, 2, seconds=1.0) for prompt in prompts]


def refused(prompts: Any, places: Any) -> list[Completion]:
    return [Completion.failed(RowError("engine_rejected", "no"), 3) for _ in prompts]


def ask(reuse: Reuse, rows: list[str], engine: Any) -> list[Completion]:
    return reuse(prompts_of(rows), range(len(rows)), engine)


WORDS = st.sampled_from([f"w{i}" for i in range(12)])


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(WORDS, max_size=20), min_size=1, max_size=6),
    st.lists(WORDS, max_size=2),
    st.lists(st.integers(2, 6), max_size=4),
    st.sampled_from([0, 1000, REMEMBERED_BYTES]),
    st.integers(1, 8),
)
def test_any_corpus_with_any_kills_has_the_answers_of_a_run_without_dedupe_and_pays_for_the_first_ones(
    shards, poison, accidents, remembered, slots
):
    machine = Machine(slots, poison, accidents)
    supervisor, meter = supervised(machine)
    reuse = Reuse(remembered)
    asked = [Asked(supervisor, make_envelope(shard_id=i), [], reuse) for i in range(len(shards))]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda a, rows: a(prompts_of(rows), range(len(rows))), asked, shards))
    reading = meter.reading()
    supervisor.close()
    rows = [row for shard in shards for row in shard]
    done = [completion for shard in answers for completion in shard]
    assert [c.texts for c in done] == [[] if row in poison else [row] for row in rows]
    assert {row for row, c in zip(rows, done, strict=True) if c.error} == set(poison) & set(rows)
    ran = Counter(row for row, c in zip(rows, done, strict=True) if c.reused_tokens is None and not c.error)
    if remembered == REMEMBERED_BYTES:
        assert ran == Counter(set(rows) - set(poison))
    assert set(ran) == set(rows) - set(poison)
    assert sum(c.input_tokens + c.output_tokens for c in done) == 2 * ran.total()
    # What was not run and what was is what a run without dedupe takes.
    healthy = sum(row not in poison for row in rows)
    assert sum(c.reused_tokens or 0 for c in done) == 2 * (healthy - ran.total())
    work = sum(a.gpu_seconds for a in asked)
    assert work <= reading.busy_seconds + 1e-6
    if machine.started == 1:
        assert work == pytest.approx(reading.busy_seconds, abs=1e-6)
    assert all(0 < a.reading.at_us <= reading.at_us for a in asked)


def test_a_reused_answer_says_all_that_the_first_one_said_and_none_of_what_it_took():
    vector = np.array([1.0], np.float32)
    first = Completion(
        ["a"], ["length"], 7, 4, 5, None, [[[{"token": "a"}]]], vector, {"a": 1.0}, 0.5, 3, 2.0, ["hm"], 2
    )
    again = reused(reused(first))
    told = (
        "texts",
        "finish_reasons",
        "logprobs",
        "embedding",
        "probabilities",
        "score",
        "truncated_tokens",
        "reasoning",
    )
    for name in told:
        assert getattr(again, name) is getattr(first, name)
    took = (again.input_tokens, again.cached_tokens, again.output_tokens, again.reasoning_tokens, again.seconds)
    assert took == (0, 0, 0, 0, 0.0)
    assert again.reused_tokens == 12


def test_a_row_that_draws_its_answer_has_one_of_its_own_unless_the_spec_asks_for_the_same():
    keys = {"sampling_column": "how", "prompt": {"column": "text"}}
    drawn, seeded = '{"temperature": 0.7}', '{"temperature": 0.7, "seed": 3}'
    rows = pa.table({"text": ["a"] * 8, "how": [drawn, drawn, seeded, seeded, None, None, drawn, "{}"]})
    for dedupe, wanted in ((None, [None, None, None, 5, None, 5, None, 5]), (True, [None, 5, None, 5, None, 5, 5, 5])):
        spec = make_spec(dedupe=dedupe, **keys)
        job = RunningJob("r", spec, make_plan(), Layout("/out"), 1, reuses=True, reuses_drawn=spec.dedupe is True)
        prompts = [prompt for prompt in JobPrompts(spec).prompts(rows) if isinstance(prompt, Prompt)]
        engine = Engine()
        made = Reuse(repeats=repeats(job))(prompts, range(8), engine)
        assert [c.reused_tokens for c in made] == wanted
        assert len(engine.asked) == wanted.count(None)


def test_a_request_that_fails_is_asked_by_each_of_its_rows():
    reuse, engine = Reuse(), Engine()
    assert all(c.error for c in ask(reuse, ["a", "a", "a"], refused))
    assert [c.reused_tokens for c in ask(reuse, ["a", "a"], engine)] == [None, 5]
    assert engine.asked == ["a"]


@pytest.mark.parametrize("fails", [True, False])
def test_a_call_that_waits_for_another_asks_itself_if_that_one_fails_or_raises(fails):
    reuse, engine = Reuse(), Engine()
    begun, go_on = threading.Event(), threading.Event()

    def slow(prompts: Any, places: Any) -> list[Completion]:
        begun.set()
        assert go_on.wait(30)
        if not fails:
            raise EngineError("dead")
        return refused(prompts, places)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, reuse, ["a", "b"], slow)
        assert begun.wait(30)
        second = pool.submit(ask, reuse, ["b", "c"], engine)
        while engine.asked != ["c"]:
            assert not second.done()
        go_on.set()
        assert [c.texts for c in second.result(30)] == [["B"], ["C"]]
        if not fails:
            with pytest.raises(EngineError, match="dead"):
                first.result(30)
    assert engine.asked == ["c", "b"]
    assert [c.reused_tokens for c in ask(reuse, ["c"], engine)] == [5]


def test_what_a_replica_remembers_is_bounded_and_the_newest_stays():
    answer = Completion(["x" * 1000], ["stop"], 1, 0, 1)
    reuse = Reuse(3 * size_of(answer))

    def large(prompts: Any, places: Any) -> list[Completion]:
        return [Completion([prompt.text.upper() * 1000], ["stop"], 1, 0, 1) for prompt in prompts]

    for row in "abcd":
        ask(reuse, [row], large)
    ask(reuse, ["b"], large)
    ask(reuse, ["e"], large)
    ran = [c.reused_tokens is None for row in "bdea" for c in ask(reuse, [row], large)]
    assert ran == [False, False, False, True]


MESSAGE = {"role": "user", "content": "hi"}
DIFFERENT = [
    Prompt("a"),
    Prompt("b"),
    Prompt(""),
    Prompt("a", system="s"),
    Prompt("a", system="S"),
    Prompt("sa"),
    Prompt("a", prefill="s"),
    Prompt("a", query="s"),
    Prompt("a", examples=(MESSAGE,)),
    Prompt(messages=(MESSAGE,)),
    Prompt(messages=(MESSAGE, MESSAGE)),
    Prompt(messages=({"role": "user", "content": "ho"},)),
    Prompt("a", row={"text": "a"}),
    Prompt("a", row={"text": None}),
    Prompt("a", step=1),
    Prompt("\ud800"),
]


def test_requests_are_the_same_only_if_every_part_of_the_prompt_is():
    keys = request_keys(DIFFERENT)
    assert len(set(keys)) == len(DIFFERENT)
    assert request_keys(DIFFERENT[::-1]) == keys[::-1]


def test_an_answer_that_does_not_fit_fails_in_each_of_its_rows_with_one_request():
    spec = make_spec(output={"uri": "/out", "choices": ["YES", "NO"]})
    rows = pa.table({"id": [1, 2, 3, 4], "text": ["x", "x", "x", "y"]})
    engine, reuse = Engine(), Reuse()
    answers = RowSteps(spec).run(rows, lambda prompts, places: reuse(prompts, places, engine))
    assert [c.error.code for c in answers[0] if c.error] == ["output_invalid"] * 4
    assert engine.asked == ["Say x", "Say y"]


def test_results_and_counts_tell_which_rows_took_no_tokens():
    spec = make_spec()
    rows = pa.table({"id": [1, 2, 3, 4], "text": ["x", "y", "x", None]})
    engine, reuse = Engine(), Reuse()
    answers = RowSteps(spec).run(rows, lambda prompts, places: reuse(prompts, places, engine))
    made = result_table(spec, rows, make_envelope(), answers)
    assert made.column("reused").to_pylist() == [False, False, True, False]
    assert made.column("output").to_pylist() == ["SAY X", "SAY Y", "SAY X", None]
    assert made.column("input_tokens").to_pylist() == [3, 3, 0, 0]
    assert reuse_counts(made, answers).items() >= {"rows_reused": 1, "tokens_reused": 5}.items()
    assert counts(made)["input_tokens"] == 6
    off = make_spec(dedupe=False)
    assert "reused" not in result_table(off, rows, make_envelope(), answers).column_names


def test_each_step_tells_its_own_and_a_row_took_no_tokens_if_no_step_did():
    spec = make_spec(
        prompt={},
        steps=[
            {"name": "kind", "prompt": "{{ letter }}"},
            {"name": "reply", "when": "kind != 'C'", "prompt": "{{ kind }} {{ text }}"},
        ],
    )
    rows = pa.table({"id": [1, 2, 3, 4, 5], "text": list("xyxzz"), "letter": list("aaacc")})
    engine, reuse = Engine(), Reuse()
    steps = RowSteps(spec)
    answers = steps.run(rows, lambda prompts, places: reuse(prompts, places, engine))
    made = result_table(spec, rows, make_envelope(), answers)
    assert made.column("kind_reused").to_pylist() == [False, True, True, False, True]
    assert made.column("reply_reused").to_pylist() == [False, False, True, False, False]
    assert made.column("reused").to_pylist() == [False, False, True, False, True]
    found = step_counts(steps.jobs, answers, {})
    assert {name: (step.rows_reused, step.tokens_reused) for name, step in found.items()} == {
        "kind": (3, 15),
        "reply": (1, 5),
    }
    assert of_steps(found)["input_tokens"] == sum(made.column("input_tokens").to_pylist())
    assert reuse_counts(made, answers).items() >= {"rows_reused": 2, "tokens_reused": 20}.items()


@pytest.mark.parametrize(
    ("sampling", "dedupe", "on"),
    [
        ({}, None, True),
        ({"temperature": 0.7}, None, False),
        ({"temperature": 0.7, "seed": 1, "n": 3}, None, True),
        ({"temperature": 0.7}, True, True),
        ({}, False, False),
    ],
)
def test_it_is_on_where_equal_requests_have_equal_answers(sampling, dedupe, on):
    spec = make_spec(sampling=sampling, dedupe=dedupe)
    assert spec.reuses_answers is on
    steps = [{"name": "a", "prompt": "{{ text }}"}, {"name": "b", "prompt": "{{ text }}", "sampling": sampling}]
    spec = make_spec(prompt={}, steps=steps, dedupe=dedupe)
    assert [job.reuses_answers for job in spec.step_jobs] == [on, on]


def test_a_column_of_that_name_is_refused_with_both_remedies():
    keys = {"input": {"uri": "/in", "id_column": "id", "columns": ["reused"]}}
    with pytest.raises(SpecError, match=r"'reused' would collide.*or set dedupe: false"):
        make_spec(**keys)
    make_spec(**keys, dedupe=False)


def test_a_run_goes_on_with_the_dedupe_that_it_began_with(tmp_path):
    pq.write_table(pa.table({"id": [1], "text": ["x"]}), tmp_path / "a.parquet")
    on, off = make_spec(), make_spec(dedupe=False)
    known = shaping(on)
    manifest = manifest_of(tmp_path, ["text"])

    def changed(known: Any, spec: Any) -> list[str]:
        begun = replace(manifest, fingerprint=make_fingerprint(spec=known))
        return list(changed_keys(begun, spec))

    assert changed(known, make_spec(dedupe=True)) == []
    assert changed(known, off) == ["dedupe"]
    del known["dedupe"]
    assert changed(known, on) == [], "a run of a version without the key"


def test_the_report_tells_rows_tokens_and_dollars_that_were_saved():
    report = make_report_value(rows_reused=1, tokens_reused=30)
    assert (report.rows_ran, report.rows_reused, report.tokens_reused) == (3, 1, 30)
    work_usd = report.seconds.work / 3600 * report.price_per_gpu_hour
    assert report.saved_usd == pytest.approx(work_usd / 60 * 30)
    assert 0 < report.saved_usd < report.cost_usd / 60 * 30, "load and idle would have been the same"
    shown = " ".join(str(cell) for column in render(report).renderables[1].columns for cell in column.cells)
    assert "1 rows (25.0%), 30 tokens that did not run again, about $" in shown

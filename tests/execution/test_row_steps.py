"""The steps of a row: what they use of one another, what is skipped or fails, and what an earlier attempt left."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer.engine import Completion
from batchinfer.errors import RowError
from batchinfer.execution.result_rows import counts, of_steps, result_table, step_counts
from batchinfer.execution.row_steps import RowSteps, kept_answers
from batchinfer.input.bad_rows import BAD_ROW
from batchinfer.jobspec import JobSpec, parse, to_yaml
from batchinfer.prompting.prompts import Prompt
from tests.support.builders import make_envelope, make_spec

STEPS: list[dict[str, Any]] = [
    {"name": "topic", "prompt": "Topic of {{ text }}", "output": {"choices": ["bill", "other"]}},
    {"name": "facts", "prompt": "Facts of {{ text }}", "output": {"json_schema": {"type": "object", "properties": {}}}},
    {"name": "reply", "when": 'topic == "bill"', "prompt": "Reply on {{ facts.total }}"},
    {"name": "grade", "prompt": "Grade {{ reply | default('none') }}"},
]


def job(steps: list[dict[str, Any]] = STEPS, **changes: Any) -> JobSpec:
    return make_spec(prompt={}, steps=steps, **changes)


def echo(prompts: list[Prompt], answers: list[str]) -> list[Completion]:
    return [Completion([text], ["stop"], len(p.text), 0, len(text)) for p, text in zip(prompts, answers, strict=True)]


class Engine:
    """Answers by a function of the prompt, and keeps what it was asked, in turns."""

    def __init__(self, answer: Any) -> None:
        self.turns: list[list[str]] = []
        self._answer = answer

    def __call__(self, prompts: Any, places: Any) -> list[Completion]:
        self.turns.append([prompt.text for prompt in prompts])
        made = [self._answer(prompt.text) for prompt in prompts]
        return [c if isinstance(c, Completion) else Completion([c], ["stop"], 3, 0, 2) for c in made]


def answered(text: str) -> Any:
    if text.startswith("Topic"):
        return "bill" if "pay" in text else "other"
    if text.startswith("Facts"):
        return '{"total": 7}' if "broken" not in text else "{"
    return text.upper()


def run(texts: list[Any], spec: JobSpec, engine: Engine, kept: Any = None) -> pa.Table:
    rows = pa.table({"id": list(range(len(texts))), "text": pa.array(texts, pa.string())})
    steps = RowSteps(spec)
    earlier = None if kept is None else kept
    answers = steps.run(rows, engine, {} if earlier is None else kept_answers(steps.jobs, earlier))
    return result_table(spec, rows, make_envelope(), answers, earlier=earlier)


def test_a_later_prompt_uses_earlier_answers_and_the_keys_of_a_json_answer():
    made = run(["pay me", "hello"], job(), Engine(answered)).to_pylist()
    assert [row["topic"] for row in made] == ["bill", "other"]
    assert [row["reply"] for row in made] == ["REPLY ON 7", None]
    assert [row["grade"] for row in made] == ["GRADE REPLY ON 7", "GRADE NONE"]
    assert [row["error_code"] for row in made] == [None, None]
    assert [row["output_tokens"] for row in made] == [8, 6]


def test_steps_that_need_no_answer_of_one_another_are_asked_together():
    engine = Engine(answered)
    run(["pay"], job(), engine)
    assert engine.turns == [["Topic of pay", "Facts of pay"], ["Reply on 7"], ["Grade REPLY ON 7"]]


def test_a_step_that_failed_fails_what_uses_it_and_nothing_else():
    made = run(["pay, broken", None], job(), Engine(answered)).to_pylist()
    first, null = made
    assert first["topic"] == "bill"
    assert first["facts_error_code"] == "output_invalid"
    assert first["reply_error_code"] == first["grade_error_code"] == first["error_code"] == "step_failed"
    assert first["error_message"].startswith("step facts: output_invalid: ")
    assert {null[f"{name}_error_code"] for name in ("topic", "facts")} == {"template_error"}
    assert null["error_code"] == "template_error"


def test_a_retry_asks_only_for_what_failed_and_keeps_the_rest():
    spec = job()
    before = run(["pay, broken", "pay"], spec, Engine(answered))
    engine = Engine(lambda text: '{"total": 9}' if text.startswith("Facts") else text.upper())
    made = run(["pay, broken", "pay"], spec, engine, before).to_pylist()
    assert engine.turns == [["Facts of pay, broken"], ["Reply on 9"], ["Grade REPLY ON 9"]]
    assert [row["topic"] for row in made] == ["bill", "bill"]
    assert [row["reply"] for row in made] == ["REPLY ON 9", "REPLY ON 7"]
    assert made[1] == before.to_pylist()[1]
    assert [row["error_code"] for row in made] == [None, None]


def test_a_row_that_cannot_be_read_does_not_count_as_skipped():
    spec = job([{"name": "a", "when": "n > 1", "prompt": "{{ text }}"}])
    rows = pa.table({"id": [1, 2], "text": [None, "x"], "n": [None, 2], BAD_ROW: ["cut", None]})
    (made,) = RowSteps(spec).run(rows, Engine(str.upper))
    assert [c.error.code if c.error else None for c in made] == ["input_invalid", None]


@pytest.mark.parametrize(
    ("when", "asked"),
    [("n > 1", [2]), ("n is defined", [1, 2]), ("n | default(5) > 1", [2, 3]), ("text == 'a' or n > 1", [1, 2, 3])],
)
def test_a_comparison_with_null_is_not_true(when, asked):
    spec = job([{"name": "a", "when": when, "prompt": "{{ id }} {{ text }}"}])
    rows = pa.table({"id": [1, 2, 3], "text": ["a", "b", "a"], "n": [1, 2, None]})
    (made,) = RowSteps(spec).run(rows, Engine(str.upper))
    assert [place + 1 for place, c in enumerate(made) if c.texts] == asked


def test_an_answer_that_is_withheld_is_null_to_later_steps():
    steps = [
        {"name": "a", "prompt": "{{ text }}", "output": {"choices": ["x"], "confidence": True, "abstain_below": 0.8}},
        {"name": "b", "when": "a is defined", "prompt": "{{ a }}"},
    ]
    rows = pa.table({"id": [1, 2], "text": ["0.9", "0.7"]})

    def ask(prompts: Any, places: Any) -> list[Completion]:
        made = echo(list(prompts), ["x"] * len(prompts))
        for prompt, completion in zip(prompts, made, strict=True):
            completion.probabilities = {"x": float(prompt.text)} if prompt.step == 0 else None
        return made

    _, second = RowSteps(job(steps)).run(rows, ask)
    assert [bool(c.texts) for c in second] == [True, False]


NAMES = "abcdef"


@st.composite
def programs(draw: Any) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    for place in range(draw(st.integers(1, 5))):
        used = draw(st.lists(st.sampled_from(NAMES[:place]), max_size=2, unique=True)) if place else []
        prompt = "{{ text }}" + "".join(f"{{{{ {name} | default('-') }}}}" for name in used)
        step: dict[str, Any] = {"name": NAMES[place], "prompt": prompt}
        if draw(st.booleans()):
            of = draw(st.sampled_from(["text", *NAMES[:place]]))
            step["when"] = f"{of} | length is divisibleby {draw(st.integers(2, 3))}"
        steps.append(step)
    return steps


def answer_of(text: str) -> Any:
    if len(text) % 5 == 4:
        return Completion.failed(RowError("engine_rejected", "no"), len(text))
    return text[::-1] + "."


@pytest.mark.integration
@settings(max_examples=60, deadline=None)
@given(programs(), st.lists(st.none() | st.text("xyz", min_size=1, max_size=6), min_size=1, max_size=12), st.data())
def test_any_program_in_any_grouping_answers_as_one_row_at_a_time(steps, texts, data):
    spec = job(steps)
    whole = run(texts, spec, Engine(answer_of)).drop_columns(["id"])
    alone = [run([text], spec, Engine(answer_of)).drop_columns(["id"]) for text in texts]
    assert whole.to_pylist() == [row for table in alone for row in table.to_pylist()]
    rows = pa.table({"id": list(range(len(texts))), "text": pa.array(texts, pa.string())})
    program = RowSteps(spec)
    answers = program.run(rows, Engine(answer_of))
    steps_counted = step_counts(program.jobs, answers, {})
    record = {**counts(result_table(spec, rows, make_envelope(), answers)), **of_steps(steps_counted)}
    assert record["output_tokens"] == sum(whole.column("output_tokens").to_pylist())
    assert record["input_tokens"] + record["rejected_tokens"] == sum(whole.column("input_tokens").to_pylist())
    assert record["rows_failed"] == sum(record["errors"].values())


@pytest.mark.parametrize(("reason", "cut"), [("length", True), ("stop", False)])
def test_an_answer_that_max_tokens_cut_says_so(reason, cut):
    spec = make_spec(output={"uri": "/out", "choices": ["concurrency"]}, sampling={"max_tokens": 3})
    rows = pa.table({"text": ["a"]})
    engine = Engine(lambda _: Completion(["concur"], [reason], 5, 0, 3))
    ((checked,),) = RowSteps(spec).run(rows, engine)
    assert checked.error is not None
    assert checked.error.code == "output_invalid"
    assert "none of the choices" in checked.error.message
    assert ("cut at sampling.max_tokens (3)" in checked.error.message) is cut


def test_a_spec_with_steps_comes_back_from_its_yaml():
    spec = job()
    assert parse(to_yaml(spec)) == spec

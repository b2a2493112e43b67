"""Rows that are asked chunk by chunk: nothing is left out, every prompt fits, and one answer is made of all."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer.engine import Completion
from batchinfer.errors import RowError, SpecError
from batchinfer.execution.result_rows import result_table
from batchinfer.execution.row_chunks import ChunkedRows, folding, packed, require_room_to_combine
from batchinfer.execution.token_counter import counter
from batchinfer.jobspec import JobSpec
from tests.support.builders import make_envelope, make_spec

MERGE = {"template": "Merge:{% for a in answers %} [{{ a }}]{% endfor %}"}
CONTEXT = 100


def job(combine: Any = MERGE, **changes: Any) -> JobSpec:
    values: dict[str, Any] = {
        "prompt": {"template": "Of: {{ text }}"},
        "chunk": {"column": "text", "tokens": 40},
        "combine": combine,
        "sampling": {"max_tokens": 10},
    }
    return make_spec(**(values | changes))


class Engine:
    """Answers with a function of the prompt, and keeps the prompts."""

    def __init__(self, answer: Any) -> None:
        self.prompts: list[str] = []
        self._answer = answer

    def __call__(self, prompts: Any, places: Any) -> list[Completion]:
        self.prompts += [prompt.text for prompt in prompts]
        made = [self._answer(prompt.text) for prompt in prompts]
        return [c if isinstance(c, Completion) else Completion([c], ["stop"], 7, 1, 2) for c in made]


def run(texts: list[Any], spec: JobSpec, engine: Engine) -> list[dict[str, Any]]:
    rows = pa.table({"id": list(range(len(texts))), "text": pa.array(texts)})
    program = ChunkedRows(spec, [counter(None, step) for step in spec.step_jobs], CONTEXT)
    return result_table(spec, rows, make_envelope(), program.run(rows, engine)).to_pylist()


def short(text: str) -> str:
    return text.partition(": ")[2][:12] if text.startswith("Of") else "merged"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.none() | st.text("ab .\n", max_size=3000), min_size=1, max_size=4))
def test_every_character_is_in_a_prompt_that_fits_and_each_row_has_one_answer(texts):
    spec, engine = job(), Engine(short)
    made = run(texts, spec, engine)
    assert [row["id"] for row in made] == list(range(len(texts)))
    count = counter(None, spec)
    assert all(count.text_tokens(prompt) <= CONTEXT - 10 for prompt in engine.prompts)
    asked = "".join(prompt.removeprefix("Of: ") for prompt in engine.prompts if prompt.startswith("Of: "))
    assert "".join(asked.split()) == "".join("".join(text or "" for text in texts).split())
    for text, row in zip(texts, made, strict=True):
        assert (row["error_code"] is None) == (text is not None)
        assert (row["levels"] > 0) == (row["chunks"] > 1)
    assert sum(row["output_tokens"] for row in made) == 2 * len(engine.prompts)
    assert sum(row["input_tokens"] for row in made) == 7 * len(engine.prompts)


def test_answers_are_combined_level_by_level_until_one_is_left():
    engine = Engine(short)
    (row,) = run(["word " * 20_000], job(), engine)
    assert row["output"] == "merged"
    assert row["levels"] >= 2
    assert row["chunks"] == sum(prompt.startswith("Of") for prompt in engine.prompts)
    merges = [prompt.count("[") for prompt in engine.prompts if prompt.startswith("Merge")]
    assert min(merges) >= 2
    assert sum(merges) - len(merges) == row["chunks"] - 1


@pytest.mark.parametrize(
    ("combine", "answer"),
    [("first", "a1"), ("majority", "b"), ("list", ["", "a1", "b", "b"])],
)
def test_answers_are_folded_without_the_model(combine, answer):
    answers = iter(["", "a1", "b", "b"])
    (row,) = run(["x" * 600], job(combine), Engine(lambda _: next(answers)))
    assert (row["output"], row["chunks"], row["levels"]) == (answer, 4, 0)


def test_the_label_of_the_surest_chunk_counts():
    spec = job("max_confidence", output={"uri": "/out", "choices": ["a", "b"], "confidence": True})
    sure = iter([0.6, 0.9, 0.7])

    def answer(_: str) -> Completion:
        found = next(sure)
        label = "b" if found > 0.8 else "a"
        made = Completion([label], ["stop"], 7, 0, 2)
        made.probabilities = {label: found}
        return made

    (row,) = run(["x" * 450], spec, Engine(answer))
    assert (row["output"], row["output_confidence"], row["chunks"]) == ("b", 0.9, 3)


def test_a_chunk_that_fails_fails_its_row_and_says_which():
    def answer(text: str) -> Any:
        return Completion.failed(RowError("engine_killed", "died"), 7) if "BAD" in text else "fine"

    bad, good = run(["x " * 200 + "BAD" + " y" * 200, "x"], job(), Engine(answer))
    assert bad["error_code"] == "engine_killed"
    assert bad["error_message"].startswith("chunk 3 of ")
    assert bad["output"] is None
    assert bad["output_tokens"] > 0, "the other chunks ran, and count"
    assert good["output"] == "fine"


def test_a_prompt_without_room_for_a_text_is_too_long():
    spec = job(prompt={"template": "{{ text }}" + "x" * 400})
    (row,) = run(["a text"], spec, Engine(short))
    assert row["error_code"] == "prompt_too_long"
    assert "without 'text'" in row["error_message"]


def test_a_list_of_texts_is_one_text():
    engine = Engine(short)
    (row,) = run([["one", "two", None]], job(), engine)
    assert engine.prompts == ["Of: one\n\ntwo"]
    assert row["chunks"] == 1


@given(st.lists(st.floats(0, 50), max_size=30), st.floats(1, 60))
def test_packed_keeps_the_order_and_the_room(lengths, room):
    groups = packed(lengths, room)
    assert [place for group in groups for place in group] == list(range(len(lengths)))
    assert all(len(group) == 1 or sum(lengths[i] for i in group) <= room + 1e-9 for group in groups)


@given(st.integers(0, 2000), st.integers(2, 50))
def test_folding_ends_and_reads_each_answer_but_the_last(answers, fit):
    requests, read = folding(answers, fit)
    assert read - requests == max(0, answers - 1)


def test_answers_of_which_two_do_not_fit_are_refused_before_the_start():
    spec = job(sampling={"max_tokens": 40})
    with pytest.raises(SpecError, match="two answers of 40 tokens") as caught:
        require_room_to_combine(spec, counter(None, spec.step_jobs[1]), CONTEXT)
    assert "lower sampling.max_tokens to" in caught.value.remedy


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"combine": None}, "chunk needs combine"),
        ({"chunk": None}, "set chunk.column"),
        ({"chunk": {"column": "body"}}, "the prompt is made of text"),
        ({"chunk": {"column": "text", "tokens": 40, "overlap": 20}}, "must be less than half"),
        ({"combine": {"template": "no list"}}, "must use answers"),
        ({"combine": {"template": "{{ answers }} {{ text }}"}}, "which is cut into chunks"),
        ({"combine": "max_confidence"}, "needs output.confidence"),
        ({"sampling": {"n": 2, "temperature": 1}}, "sampling.n above 1"),
        ({"prompt": {"template": "{{ text }}", "too_long": "truncate"}}, "too_long: truncate"),
    ],
)
def test_keys_that_contradict_chunk_are_refused(changes, words):
    with pytest.raises(SpecError, match=words):
        job(**({"combine": MERGE} | changes))

"""A row's own sampling: what a column may hold, what of it holds, and what is that row's mistake."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer.errors import InputError, RowError, SpecError
from batchinfer.input.column_types import PARSED
from batchinfer.jobspec import SamplingSpec
from batchinfer.prompting.job_prompts import JobPrompts
from batchinfer.prompting.prompts import Prompt, needed_columns
from batchinfer.prompting.row_sampling import RowSampling, require_sampling_columns
from tests.support.builders import make_spec

USUAL = {"max_tokens": 64, "temperature": 0.5}


def spec_with(**keys: Any) -> Any:
    return make_spec(**({"sampling": USUAL, "sampling_column": "how"} | keys))


def found(values: Any, **keys: Any) -> list[SamplingSpec | RowError]:
    """The sampling of rows whose column holds `values`, an Arrow array or JSON texts."""
    spec = spec_with(**keys)
    column = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, pa.string())
    rows = pa.table({"id": range(len(column)), "text": ["a"] * len(column), "how": column})
    sampling = RowSampling(spec)
    prompts = JobPrompts(spec).prompts(rows)
    return [sampling.of(prompt) if isinstance(prompt, Prompt) else prompt for prompt in prompts]


FIELDS = [("max_tokens", pa.int64()), ("temperature", pa.float32()), ("stop", pa.list_(pa.string()))]
ROWS = [{"max_tokens": 3, "temperature": 0.1, "stop": ["x", "y"]}, None, {"max_tokens": None, "temperature": 0.0}, {}]
DOUBLES = [{"max_tokens": 3.0, "temperature": 0.1}, {}]


@pytest.mark.parametrize(
    ("column", "wanted"),
    [
        (pa.array(ROWS, pa.struct(FIELDS)), ROWS),
        (pa.array([None if row is None else json.dumps(row) for row in ROWS], pa.large_string()), ROWS),
        (pa.array([json.dumps(row).encode() for row in ROWS], pa.binary()), ROWS),
        (pa.array([json.dumps(row) for row in ROWS]).dictionary_encode(), ROWS),
        (pa.array([list(row.items()) for row in DOUBLES], pa.map_(pa.string(), pa.float64())), DOUBLES),
        (pa.nulls(2), [{}, {}]),
    ],
    ids=["struct", "text", "bytes", "dictionary", "map", "null"],
)
def test_structs_maps_and_json_say_the_same_and_a_null_leaves_the_jobs_value(column: Any, wanted: Any) -> None:
    given = [{key: value for key, value in (row or {}).items() if value is not None} for row in wanted]
    assert found(column) == [SamplingSpec(**(USUAL | row)) for row in given]


def test_objects_of_json_lines_with_differing_keys_are_read() -> None:
    field = pa.field("how", pa.string(), metadata=PARSED)
    rows = pa.table([["a"], ['{"top_k": 3}']], schema=pa.schema([pa.field("text", pa.string()), field]))
    spec = spec_with()
    (prompt,) = JobPrompts(spec).prompts(rows)
    assert isinstance(prompt, Prompt)
    assert RowSampling(spec).of(prompt).top_k == 3


PRINTED = st.characters(min_codepoint=33, max_codepoint=126)
KEYS = st.fixed_dictionaries(
    {},
    optional={
        "max_tokens": st.integers(1, 500),
        "temperature": st.floats(0, 2),
        "top_p": st.floats(0.1, 1),
        "seed": st.none() | st.integers(-(2**63), 2**63 - 1),
        "stop": st.lists(st.text(PRINTED, min_size=1), max_size=2),
        "logit_bias": st.dictionaries(st.integers(0, 500), st.floats(-100, 100), max_size=2),
        "repetition_detection": st.fixed_dictionaries({"max_pattern_size": st.integers(1, 20)}),
        "ignore_eos": st.booleans(),
    },
)


@settings(max_examples=40, deadline=None)
@given(KEYS, KEYS)
def test_any_override_over_any_job_is_the_sampling_of_both_keys(usual: dict[str, Any], row: dict[str, Any]) -> None:
    set_keys = {key: value for key, value in row.items() if value is not None}
    (mine,) = found([json.dumps(row)], sampling=usual)
    assert mine == SamplingSpec(**(usual | set_keys))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"temprature": 1}', "there is no key 'temprature': did you mean 'temperature'?"),
        ('{"temperature": 3}', "temperature: input should be less than or equal to 2, not 3"),
        ('{"max_tokens": "many"}', "max_tokens: input should be a valid integer"),
        ('{"max_tokens": 2.5}', "max_tokens: input should be a valid integer"),
        ('{"max_tokens": true}', "max_tokens: true is not a number"),
        ('{"min_tokens": 65}', "min_tokens is above max_tokens"),
        ('{"n": 2}', "n holds for all rows"),
        ('{"logprobs": 1}', "logprobs holds for all rows"),
        ('{"temperature": NaN}', "it is not JSON: NaN is not a number of JSON"),
        ('{"top_k": 1, "top_k": 2}', "it is not JSON: a key is there twice"),
        ("[1]", "it is not an object with keys and values"),
        ("hot", "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
    ],
)
def test_what_a_row_may_not_say_is_the_mistake_of_that_row(text: str, told: str) -> None:
    before, bad, after = found(['{"seed": 1}', text, None])
    assert isinstance(bad, RowError)
    assert bad.code == "sampling_invalid"
    assert bad.message.startswith(f"sampling_column: {told}")
    assert "pydantic" not in bad.message
    assert (before, after) == (SamplingSpec(**USUAL, seed=1), SamplingSpec(**USUAL))


@pytest.mark.parametrize(
    ("keys", "text", "told"),
    [
        ({"output": {"uri": "/out", "choices": ["yes", "never"]}}, '{"stop": ["e"]}', "sampling.stop 'e' would cut"),
        ({"reasoning": {"max_tokens": 32}}, '{"max_tokens": 32}', r"reasoning.max_tokens (32) leaves no answer"),
    ],
)
def test_what_contradicts_the_job_is_the_mistake_of_that_row(keys: Any, text: str, told: str) -> None:
    fine, bad = found(["{}", text], **keys)
    assert fine == SamplingSpec(**USUAL)
    assert isinstance(bad, RowError)
    assert bad.message.startswith(f"sampling_column: {told}")


def test_rows_that_say_what_the_job_says_are_the_same_request() -> None:
    spec = spec_with()
    texts = ['{"temperature": 0.5}', '{"max_tokens": 64.0, "temperature": 0.5}', None, '{"seed": 2}', '{"seed":  2}']
    rows = pa.table({"text": ["a"] * 5, "how": texts})
    prompts = JobPrompts(spec).prompts(rows)
    assert prompts[0] == prompts[1] == prompts[2] != prompts[3] == prompts[4]


def test_each_step_has_a_column_of_its_own_or_that_of_the_job() -> None:
    steps = [
        {"name": "a", "prompt": "{{ text }}"},
        {"name": "b", "prompt": "{{ a }}", "sampling": {"max_tokens": 9}, "sampling_column": "other"},
    ]
    spec = spec_with(prompt={}, steps=steps)
    assert [job.sampling_column for job in spec.step_jobs] == ["how", "other"]
    named = needed_columns(spec)
    assert (named["how"], named["other"]) == ("sampling_column of step a", "sampling_column of step b")
    rows = pa.table({"text": ["x"], "how": ['{"max_tokens": 2}'], "other": ['{"seed": 4}']})
    prompts = [JobPrompts(job, i).prompts(rows, {"a": ["y"]})[0] for i, job in enumerate(spec.step_jobs)]
    mine = [RowSampling(job).of(p) for job, p in zip(spec.step_jobs, prompts, strict=True) if isinstance(p, Prompt)]
    assert [(s.max_tokens, s.seed) for s in mine] == [(2, None), (9, 4)]


@pytest.mark.parametrize("kind", [pa.int64(), pa.list_(pa.string()), pa.bool_(), pa.timestamp("us")])
def test_a_column_that_cannot_hold_keys_is_refused_before_the_start(kind: pa.DataType) -> None:
    with pytest.raises(InputError, match=f"sampling_column names 'how', a column of {kind}".replace("[", r"\[")):
        require_sampling_columns(spec_with(), pa.schema([("how", kind)]))


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"reduce": {"key": "id"}, "input": {"uri": "/in"}}, "sampling_column is for a row"),
        ({"chunk": {"column": "text", "tokens": 100}, "combine": "first"}, "chunk does not go with sampling_column"),
        ({"task": "embed", "sampling": {}, "model": {"source": "/m"}}, "leave sampling_column out"),
        (
            {"prompt": {}, "steps": [{"name": "how", "prompt": "{{ text }}"}]},
            "step how: sampling_column names 'how', a step",
        ),
    ],
)
def test_a_job_whose_requests_are_not_of_one_row_refuses_the_column(keys: Any, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        spec_with(**keys)

"""Sampling that an answer of a fixed shape could not survive is a mistake of the spec."""

from __future__ import annotations

import pytest

from batchinfer.errors import SpecError
from batchinfer.jobspec.constraints import advice
from tests.support.builders import make_spec

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


def made(output, **sampling):
    return make_spec(output={"uri": "/out"} | output, sampling=sampling)


@pytest.mark.parametrize(
    ("output", "sampling", "words"),
    [
        ({"json_schema": SCHEMA}, {"stop": ["}"]}, "sampling.stop '}' would cut an answer in JSON"),
        ({"json_schema": SCHEMA}, {"stop": "###"}, "sampling.stop '###' would cut"),
        ({"choices": ["yes", "never"]}, {"stop": ["e"]}, "sampling.stop 'e' would cut the choice 'yes'"),
        ({"choices": ["yes"]}, {"stop": ["yes"]}, "would cut the choice 'yes'"),
        ({"choices": ["yesterday"]}, {"stop": ["yes"], "include_stop_str_in_output": True}, "'yesterday'"),
        ({"regex": "[a-z]{3}"}, {"stop": ["ab"]}, "would cut an answer that matches output.regex"),
        ({"choices": ["a", "b"]}, {"ignore_eos": True}, "sampling.ignore_eos does not go with output.choices"),
        ({"json_schema": SCHEMA}, {"ignore_eos": True}, "does not go with output.json_schema"),
        ({"regex": "a"}, {"ignore_eos": True}, "does not go with output.regex"),
        ({"choices": ["yes", "no"]}, {"bad_words": ["es"]}, "sampling.bad_words 'es' forbids the choice 'yes'"),
        ({"json_schema": SCHEMA}, {"bad_words": ["{"]}, "forbids every answer in JSON"),
        ({"regex": "x[0-9]"}, {"bad_words": [" x"]}, "forbids every answer that matches"),
        ({"choices": [""]}, {}, "choices holds a text without characters"),
        ({"choices": ["a", ""]}, {}, "choices holds a text without characters"),
        ({}, {"stop": [""]}, "stop holds a text without characters"),
        ({}, {"bad_words": ["a", " "]}, "bad_words holds a text without characters"),
        ({}, {"allowed_token_ids": []}, "allowed_token_ids is empty"),
        ({}, {"stop_token_ids": [-1]}, "stop_token_ids holds -1"),
        ({}, {"logit_bias": {-5: 1.0}}, "logit_bias holds -5"),
        ({}, {"seed": 2**64}, "sampling.seed"),
        ({"json_schema": {"type": "string", "pattern": r"\ba"}}, {}, r"its pattern '\\ba' holds '\\b'"),
        ({"json_schema": {"patternProperties": {"(?!a)": {}}}}, {}, "look-ahead"),
        ({"json_schema": {"pattern": "("}}, {}, "'(' is not a 'regex'"),
        ({"json_schema": {"patternProperties": {"a": {}}, "unevaluatedProperties": False}}, {}, "additionalProperties"),
        ({"regex": r"\A(yes|no)\Z"}, {}, "reads as a letter"),
    ],
)
def test_what_no_answer_could_satisfy_is_refused(output, sampling, words):
    with pytest.raises(SpecError) as caught:
        made(output, **sampling)
    assert words in str(caught.value)


def test_a_schema_deeper_than_an_engine_takes_is_refused():
    schema = {"type": "object"}
    for _ in range(40):
        schema = {"properties": {"a": schema}}
    with pytest.raises(SpecError, match="an engine takes 64 levels"):
        made({"json_schema": schema})


@pytest.mark.parametrize(
    ("output", "sampling"),
    [
        ({}, {"stop": ["}"], "ignore_eos": True, "bad_words": ["{"]}),
        ({"choices": ["yes", "no"]}, {"stop": ["\n", "x"], "bad_words": ["maybe"], "min_tokens": 2}),
        ({"choices": ["yes"]}, {"stop": ["yes"], "include_stop_str_in_output": True}),
        ({"json_schema": SCHEMA}, {"stop": ["\n\n"]}),
        ({"regex": "[a-z]{3};"}, {"stop": [";"], "include_stop_str_in_output": True}),
        ({"regex": "[a-z]{3}"}, {"stop": ["\n", "9"], "bad_words": ["abc"]}),
        ({"json_schema": {"enum": [{"pattern": "("}], "properties": {"pattern": {"type": "string"}}}}, {}),
    ],
)
def test_what_an_answer_can_satisfy_is_fine(output, sampling):
    made(output, **sampling)


def test_an_expression_without_an_upper_length_is_pointed_out():
    spec = made({"regex": "a.*?b"}, max_tokens=40)
    assert "has no upper length" in advice(spec.output, spec.sampling)
    assert "(40)" in advice(spec.output, spec.sampling)
    for output in ({"regex": "a.{0,40}b"}, {"choices": ["a"]}, {}):
        assert advice(made(output).output, spec.sampling) is None

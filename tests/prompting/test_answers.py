"""An answer fits its shape or says why not, within a second; what JSON wants escaped is stored escaped."""

from __future__ import annotations

import json
import time

import pytest

from batchinfer.jobspec import OutputSpec
from batchinfer.prompting.answers import OutputCheck


def problem(text, **output):
    return OutputCheck(OutputSpec(uri="/out", **output)).problem(text)


@pytest.mark.parametrize(("text", "fits"), [("yes", True), ("no", True), ("Yes", False), ("yes ", False), ("", False)])
def test_an_answer_is_one_of_the_choices_or_wrong(text, fits):
    assert (problem(text, choices=["yes", "no"]) is None) == fits


@pytest.mark.parametrize(("text", "fits"), [("ab12", True), ("ab", False), ("ab12 ", False), ("1ab12", False)])
def test_an_answer_matches_the_regex_as_a_whole(text, fits):
    assert (problem(text, regex="[a-z]+[0-9]+") is None) == fits


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"n": 1}', None),
        ('  {"n": 1}\n', None),
        ('{"n": 1', "not JSON"),
        ("", "not JSON"),
        ("   \n", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"n": NaN}', "not JSON: NaN is no JSON"),
        ('{"n": "1"}', "at $.n: '1' is not of type 'integer'"),
        ("{}", "'n' is a required property"),
        ('{"n": 1, "m": 2}', "Additional properties are not allowed"),
        ("[1]", "is not of type 'object'"),
    ],
)
def test_an_answer_fits_the_json_schema_or_says_where_not(text, words):
    found = problem(text, json_schema=SCHEMA)
    assert found is None if words is None else words in found


@pytest.mark.parametrize("ref", ["#"])
def test_a_schema_that_cannot_be_applied_makes_the_row_invalid_and_harms_nobody_else(ref):
    assert "the JSON schema cannot be applied" in problem('{"a": 1}', json_schema={"$ref": ref})


def test_a_long_misfit_is_told_in_short():
    assert len(problem("x" * 10_000, choices=["a"])) < 200
    assert len(problem(json.dumps({"n": "x" * 10_000}), json_schema=SCHEMA)) <= 500


def test_where_no_shape_is_asked_for_any_answer_fits():
    check = OutputCheck(OutputSpec(uri="/out"))
    assert check.trivial
    assert check.problem("anything") is None
    assert not OutputCheck(OutputSpec(uri="/out", regex="a")).trivial


def checked(text, reason="stop", **output):
    return OutputCheck(OutputSpec(uri="/out", **output), 8).check(text, reason)


NOTE = {"type": "object", "properties": {"note": {"type": "string"}}, "required": ["note"]}


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ('{"note": "a\nb\tc"}', r'{"note": "a\nb\tc"}'),
        ('{"note": "\x00\x1f"}', r'{"note": "\u0000\u001f"}'),
        ('{\n "note": "a\nb"\n}', '{\n "note": "a' + r"\n" + 'b"\n}'),
        ('{"note": "a \\" b\r"}', r'{"note": "a \" b\r"}'),
        ('{"a\tb": 1, "note": ""}', r'{"a\tb": 1, "note": ""}'),
        ('{"note":"plain"}', '{"note":"plain"}'),
    ],
)
def test_a_control_character_in_a_text_is_read_and_stored_escaped(text, stored):
    assert checked(text, json_schema=NOTE)[:2] == (stored, None)
    assert json.loads(stored) == json.loads(text, strict=False)


def test_control_characters_of_an_answer_that_does_not_fit_are_kept():
    assert checked('{"note": "a\n', json_schema=NOTE)[0] == '{"note": "a\n'


def test_an_answer_of_white_space_says_so_and_that_it_was_cut():
    text, problem, _ = checked(" \n" * 40, "length", json_schema=NOTE)
    assert text == " \n" * 40
    assert problem == (
        "the answer was cut at sampling.max_tokens (8), which may be too few: not JSON: white space only"
    )


@pytest.mark.parametrize(
    "output", [{"choices": ["abcdef"]}, {"regex": "abcdef"}, {"json_schema": {"const": "abcdef"}}], ids=str
)
def test_an_answer_that_max_tokens_cut_says_so(output):
    assert "cut at sampling.max_tokens (8)" in checked("abc", "length", **output).problem
    assert "cut" not in checked("abc", "stop", **output).problem


def test_an_answer_that_had_no_token_left_says_so():
    assert "found no token that was allowed" in checked("", "error", json_schema=NOTE).problem


def test_an_answer_of_the_right_shape_is_right_whatever_ended_it():
    assert checked("abc", "length", choices=["abc"])[:2] == ("abc", None)


@pytest.mark.parametrize("text", ['{"note":"a","note":"b"}', '{"note":"a","x":{"b":1,"b":1}}'])
def test_a_key_twice_is_no_answer(text):
    assert "is there twice" in checked(text, json_schema=NOTE).problem


def test_a_message_about_half_a_surrogate_pair_is_a_text():
    schema = {"type": "object", "additionalProperties": {"type": "integer"}}
    problem = checked('{"\\ud800": "x"}', json_schema=schema).problem
    assert "is not of type 'integer'" in problem
    problem.encode()


BRANCHES = {
    "$defs": {f"l{i}": {"anyOf": [{"type": "array", "items": {"$ref": f"#/$defs/l{i + 1}"}, "minItems": n}
                                  for n in range(1, 5)]} for i in range(12)}
    | {"l12": {"type": "integer"}},
    "$ref": "#/$defs/l0",
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ("word " * 400, {"regex": r"(\w+\s?)+\."}),
        ("a" * 5000, {"regex": "(a|aa)+b"}),
        ("ab" * 5000, {"regex": "(a|b)*a(a|b){3000}"}),
        (json.dumps("a" * 5000 + "!"), {"json_schema": {"type": "string", "pattern": "^(a+)+$"}}),
        (json.dumps({"a" * 5000 + "!": 1}), {"json_schema": {"patternProperties": {"^(a+)+$": {"type": "null"}},
                                                             "additionalProperties": {"type": "string"}}}),
        ("[" * 12 + '"x"' + "]" * 12, {"json_schema": BRANCHES}),
    ],
    ids=["words", "ambiguous", "counted", "pattern", "property", "branches"],
)  # fmt: skip
def test_no_answer_holds_up_the_rows_behind_it(text, output):
    check = OutputCheck(OutputSpec(uri="/out", **output))
    began = time.process_time()
    assert check.check(text).problem is not None
    assert time.process_time() - began < 15, "a second on a quiet machine; without the limit, hours"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"x1": 1}, None),
        ({"x1": "a"}, "'a' is not of type 'integer'"),
        ({"y": 1}, "Additional properties are not allowed ('y' unexpected)"),
        ({"name": "ab"}, None),
        ({"name": "1"}, "'1' does not match '^[a-z]+$'"),
    ],
)
def test_patterns_of_a_schema_mean_what_json_schema_says(value, words):
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "pattern": "^[a-z]+$"}},
        "patternProperties": {"^x": {"type": "integer"}},
        "additionalProperties": False,
    }
    found = checked(json.dumps(value), json_schema=schema).problem
    assert found is None if words is None else words in found


def test_an_answer_that_was_ended_for_repeating_itself_says_so():
    check = OutputCheck(OutputSpec(uri="/out", json_schema=SCHEMA), 96)
    assert "sampling.repetition_detection" in check.check('{"n": 1111111', "repetition").problem
    assert "sampling.repetition_detection" not in check.check('{"n": 1111111', "stop").problem

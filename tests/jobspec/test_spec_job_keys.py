import pytest
from pydantic import ValidationError

from batchinfer.errors import SpecError
from batchinfer.jobspec.output_keys import RESULT_COLUMNS
from tests.support.builders import make_spec


def refusal(**sections):
    with pytest.raises(SpecError) as caught:
        make_spec(**sections)
    return str(caught.value)


def test_the_least_spec_has_the_documented_defaults():
    spec = make_spec()
    assert (spec.sampling.max_tokens, spec.sampling.temperature, spec.sampling.n) == (256, 0.0, 1)
    assert (spec.output.column, spec.input.format, spec.shards.rows) == ("output", "parquet", "auto")
    assert (spec.resources.accelerator, spec.resources.replicas) == ("auto", "auto")
    assert (spec.limits.max_error_rate, spec.limits.max_engine_restarts) == (0.05, 20)


def test_a_spec_cannot_be_changed():
    spec = make_spec()
    with pytest.raises(ValidationError, match="frozen"):
        spec.name = "other"


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "a" * 101, "ä"])
def test_a_name_that_no_file_could_have_is_refused(name):
    assert "name: " in refusal(name=name)


@pytest.mark.parametrize("name", ["a", "A-1_b.c", "a" * 100])
def test_a_plain_name_is_fine(name):
    assert make_spec(name=name).name == name


@pytest.mark.parametrize("prompt", [{}, {"system": "x"}, {"template": "{{ a }}", "column": "a"}])
def test_a_prompt_comes_from_exactly_one_source(prompt):
    assert "needs exactly one of template, column, messages_column" in refusal(prompt=prompt)


def test_messages_need_a_chat_template():
    assert "leave chat out" in refusal(prompt={"messages_column": "m", "chat": False})


@pytest.mark.parametrize("template", ["{{ text", "{% if a %}", "{{ a b }}", "{% nope %}"])
def test_a_template_that_does_not_parse_is_refused_with_its_line(template):
    message = refusal(prompt={"template": "first\n" + template})
    assert "prompt.template: is not a valid Jinja2 template" in message
    assert "its line 2" in message


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"n": 3}, "n > 1 with temperature 0"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens is above max_tokens"),
    ],
)
def test_sampling_that_contradicts_itself_is_refused(sampling, message):
    assert f"sampling: {message}" in refusal(sampling=sampling)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"choices": ["a"], "regex": "a"}, "at most one of choices, json_schema, regex"),
        ({"choices": ["a", "b", "a"]}, "the same choice twice"),
        ({"choices": []}, "at least 1 item"),
        ({"regex": "(a"}, "output.regex: is not a valid regular expression"),
        ({"json_schema": {"type": "objekt"}}, "output.json_schema: is not a valid JSON Schema"),
        ({"json_schema": {"pattern": "("}}, "output.json_schema: is not a valid JSON Schema"),
        ({"json_schema": {"$schema": 5}}, "output.json_schema: is not a valid JSON Schema"),
        ({"json_schema": {"$ref": "#/$defs/a"}}, "refers to '#/$defs/a', which is not in it"),
        ({"json_schema": {"items": {"$ref": "other.json"}}}, "refers to 'other.json', which is not in it"),
        ({"column": ""}, "output.column"),
        *(({"column": name}, f"{name!r} is the name of a result column") for name in RESULT_COLUMNS),
    ],
)
def test_an_output_that_cannot_be_is_refused(output, message):
    assert message in refusal(output={"uri": "/out", **output})


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"input": {"uri": "/in", "columns": ["output"]}}, "set output.column to another name"),
        ({"input": {"uri": "/in", "id_column": "output"}}, "set output.column to another name"),
        ({"input": {"uri": "/in", "columns": ["error_code"]}}, "do not pass it through"),
        ({"input": {"uri": "/in", "id_column": "finish_reason"}}, "do not pass it through"),
        ({"input": {"uri": "/in", "columns": ["row_number"]}}, "the name of the generated id"),
        ({"input": {"uri": "/in"}, "output": {"uri": "/out", "column": "row_number"}}, "set output.column"),
        ({"input": {"uri": "/in", "columns": ["logprobs"]}, "sampling": {"logprobs": 1}}, "do not pass it through"),
        ({"output": {"uri": "/out", "column": "logprobs"}, "sampling": {"logprobs": 1}}, "choose another"),
    ],
)
def test_two_columns_of_one_name_are_refused(sections, message):
    assert message in refusal(**sections)


def test_columns_that_only_look_alike_are_fine():
    make_spec(input={"uri": "/in", "columns": ["logprobs", "Output", "output_text"]})
    make_spec(output={"uri": "/out", "column": "logprobs"})
    spec = make_spec(input={"uri": "/in", "id_column": "row_number", "columns": ["row_number"]})
    assert spec.id_column == "row_number"


def test_a_column_passed_through_twice_is_refused():
    assert "input.columns: names a column twice" in refusal(input={"uri": "/in", "columns": ["a", "b", "a"]})


def test_without_an_id_column_rows_are_numbered():
    assert make_spec(input={"uri": "/in"}).id_column == "row_number"
    assert make_spec(input={"uri": "/in", "id_column": "doc"}).id_column == "doc"


def test_comparing_needs_one_output_a_row():
    message = refusal(evaluate={"expected": "area"}, sampling={"n": 2, "temperature": 1})
    assert "evaluate compares one output with one column" in message


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"sampling": {"max_tokens": 5}}, "sampling"),
        ({"output": {"uri": "/out", "choices": ["a"]}}, "output.choices"),
        ({"model": {"source": "scripted"}}, "scripted"),
    ],
)
def test_what_makes_sense_of_a_text_only_is_refused_beside_embed(sections, key):
    with pytest.raises(SpecError, match=rf"a vector, not a text: leave .*{key} out"):
        make_spec(**({"model": {"source": "/m"}, "task": "embed"} | sections))


def test_a_vector_is_compared_with_nothing():
    with pytest.raises(SpecError, match="evaluate is for task generate and classify: leave it out"):
        make_spec(model={"source": "/m"}, task="embed", evaluate={"expected": "topic"})


def test_answers_that_repeat_themselves_are_ended_unless_the_spec_says_null():
    assert make_spec().sampling.repetition_detection.min_count == 20
    assert make_spec(sampling={"repetition_detection": None}).sampling.repetition_detection is None
    told = refusal(sampling={"repetition_detection": {"min_pattern_size": 9, "max_pattern_size": 4}})
    assert "min_pattern_size is above max_pattern_size" in told

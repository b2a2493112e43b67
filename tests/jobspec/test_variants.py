"""The variants of a comparison: every combination of values, with names and folders."""

from __future__ import annotations

import pytest

from batchinfer.errors import SpecError
from batchinfer.jobspec import JobSpec
from batchinfer.jobspec.variants import values_of, variants

SPEC = JobSpec.model_validate(
    {
        "name": "j",
        "model": {"source": "scripted"},
        "input": {"uri": "in"},
        "prompt": {"template": "{{ text }}"},
        "sampling": {"max_tokens": 8},
        "output": {"uri": "out"},
    }
)


def test_every_combination_is_a_variant():
    made = variants({"model.source": ["org/a", "org/b"], "sampling.temperature": [0, 0.5]})
    assert [one.name for one in made] == ["a, 0", "a, 0.5", "b, 0", "b, 0.5"]
    spec = made[3].of(SPEC)
    assert (spec.model.source, spec.sampling.temperature, spec.prompt) == ("org/b", 0.5, SPEC.prompt)


def test_a_folder_depends_on_the_settings_alone():
    alone = variants({"model.source": ["org/a"]})[0]
    beside = variants({"model.source": ["org/b", "org/a"]})[1]
    assert alone.folder == beside.folder != variants({"model.source": ["org/b"]})[0].folder


def test_values_of_one_last_part_are_told_apart():
    assert [one.name for one in variants({"model.source": ["x/model", "y/model"]})] == ["x/model", "y/model"]


def test_a_prompt_file_is_a_template_or_the_keys_of_a_prompt(tmp_path):
    (tmp_path / "plain.txt").write_text("Say: {{ text }}\n")
    (tmp_path / "full.yaml").write_text("template: '{{ text }}'\nsystem: Be short.\n")
    plain, full = variants({}, [str(tmp_path / "plain.txt"), str(tmp_path / "full.yaml")])
    assert (plain.name, plain.of(SPEC).prompt.template) == ("plain.txt", "Say: {{ text }}")
    assert full.of(SPEC).prompt.system == "Be short."


@pytest.mark.parametrize(
    ("text", "values"),
    [("a,b", ["a", "b"]), ('"a, b",c', ["a, b", "c"]), ("1,2.5,true", [1, 2.5, True]), ("s3://b/x", ["s3://b/x"])],
)
def test_values_are_a_list_of_yaml(text, values):
    assert values_of(text) == values


@pytest.mark.parametrize("text", ["", "{", "a: [b"])
def test_what_is_no_list_of_values_is_refused(text):
    with pytest.raises(SpecError, match="not a list of values"):
        values_of(text)


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        ({}, "0 variants"),
        ({"sampling.seed": list(range(101))}, "101 variants"),
        ({"input.uri": ["a", "b"]}, "have that in common"),
        ({"model.source": ["a", "a"]}, "two variants are the same"),
    ],
)
def test_mistakes_in_the_variants_are_refused(axes, says):
    with pytest.raises(SpecError, match=says):
        variants(axes)


def test_a_prompt_file_that_is_gone_is_refused(tmp_path):
    with pytest.raises(SpecError, match="cannot be read"):
        variants({}, [str(tmp_path / "none.txt")])

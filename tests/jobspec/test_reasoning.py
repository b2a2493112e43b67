"""`reasoning`: its keys, its columns and its accounting, and which parser `auto` is."""

from __future__ import annotations

import pyarrow as pa
import pytest

from batchinfer.catalog import models
from batchinfer.engine import Completion
from batchinfer.engine.base import set_apart
from batchinfer.errors import RowError, SpecError
from batchinfer.execution.result_rows import counts, result_table
from batchinfer.jobspec.reasoning_keys import REASONING_PARSERS
from batchinfer.model.thinking import parser_of_template, reasoning_parser, thinking_line
from tests.support.builders import make_envelope, make_spec

OPENS = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<think>\n{% endif %}"
STRIPS = "{% set c = m.content.split('</think>')[-1] %}{% if add_generation_prompt %}<|assistant|>{% endif %}"


@pytest.mark.parametrize(
    ("reasoning", "words"),
    [
        ({"parser": "qwen-3"}, "did you mean qwen3"),
        ({"parser": "deepseek"}, "did you mean deepseek_"),
        ({"parser": ""}, "it takes auto, none,"),
        ({"max_tokens": 256}, "leaves no answer of sampling.max_tokens (256)"),
        ({"column": "output"}, "'output' is the name of another column"),
        ({"column": "id"}, "'id' is the name of another column"),
        ({"column": "reasoning_tokens"}, "is the name of another column"),
        ({"tokens": 3}, "did you mean 'max_tokens'?"),
    ],
)
def test_a_reasoning_that_cannot_be_is_refused(reasoning, words):
    with pytest.raises(SpecError) as caught:
        make_spec(reasoning=reasoning)
    assert words in str(caught.value)


def test_thinking_is_no_part_of_an_embedding():
    with pytest.raises(SpecError, match="leave reasoning out"):
        make_spec(task="embed", model={"source": "some/model"}, reasoning={})


@pytest.mark.parametrize(
    ("template", "parser"),
    [
        (OPENS.replace("<think>", "<think></think>{# enable_thinking #}"), "qwen3"),
        (OPENS, "deepseek_r1"),
        (OPENS + "{{ '</think>' }}", "deepseek_r1"),
        ("<think>" + STRIPS, None),
        ("{{ messages }}", None),
        ("<|channel|>analysis", "openai_gptoss"),
    ],
)
def test_a_template_says_how_its_model_thinks(template, parser, tmp_path):
    (tmp_path / "chat_template.jinja").write_text(template)
    assert parser_of_template(template) == parser
    spec = make_spec(model={"source": str(tmp_path)}, reasoning={})
    assert reasoning_parser(spec, str(tmp_path)) == parser


def test_the_catalog_says_how_its_models_think():
    thinking = {model.name: model.thinking for model in models().values() if model.thinking}
    assert {"qwen3-8b", "deepseek-r1", "gpt-oss-20b"} <= thinking.keys()
    assert {facts.parser for facts in thinking.values()} <= set(REASONING_PARSERS)
    assert reasoning_parser(make_spec(model={"source": "qwen3-8b"}, reasoning={}), None) == "qwen3"
    assert reasoning_parser(make_spec(model={"source": "qwen2.5-7b"}, reasoning={}), None) is None


def test_auto_that_cannot_tell_asks_for_a_name():
    with pytest.raises(SpecError, match="auto cannot tell how some/model thinks"):
        reasoning_parser(make_spec(model={"source": "some/model"}, reasoning={}), None)
    assert reasoning_parser(make_spec(model={"source": "some/model"}, reasoning={"parser": "step3"}), None) == "step3"
    assert reasoning_parser(make_spec(model={"source": "some/model"}, reasoning={"parser": "none"}), None) is None


def test_validate_says_that_a_model_thinks():
    line = thinking_line(make_spec(model={"source": "qwen3-8b"}), None)
    assert "qwen3-8b thinks before it answers" in line
    assert "{enable_thinking: false}" in line
    assert thinking_line(make_spec(model={"source": "qwen2.5-7b"}), None) is None
    kept = thinking_line(make_spec(model={"source": "qwen3-8b"}, reasoning={"column": "why"}), None)
    assert kept == "vLLM's parser qwen3 tells the thinking from the answer; the thinking goes to the column why"


def test_thinking_has_a_column_of_its_own_and_a_share_of_the_tokens():
    spec = make_spec(reasoning={"column": "why"})
    done = set_apart(Completion(["<think>so</think>yes"], ["stop"], 5, 0, 9), ["so"], ["yes"], 7)
    cut = set_apart(Completion(["<think>so, o"], ["length"], 5, 0, 9), ["so, o"], [None], 9)
    refused = Completion.failed(RowError("prompt_empty", "it is empty"))
    made = result_table(spec, pa.table({"id": [1, 2, 3]}), make_envelope(), [[done, cut, refused]])
    assert made.column("output").to_pylist() == ["yes", None, None]
    assert made.column("why").to_pylist() == ["so", "so, o", None]
    assert made.column("reasoning_tokens").to_pylist() == [7, 9, 0]
    assert made.column("error_code").to_pylist() == [None, "reasoning_unfinished", "prompt_empty"]
    found = counts(made)
    assert (found["output_tokens"], found["reasoning_tokens"], found["finish_reasons"]) == (18, 16, {"stop": 1})


def test_without_reasoning_there_is_no_column_of_it():
    made = result_table(make_spec(), pa.table({"id": [1]}), make_envelope(), [[Completion(["a"], ["stop"], 1, 0, 1)]])
    assert "reasoning_tokens" not in made.column_names
    assert "reasoning_tokens" not in counts(made)

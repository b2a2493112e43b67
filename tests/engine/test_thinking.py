"""A model that thinks: the real engine on a random checkpoint with `<think>`, and the scripted one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from batchinfer.engine.scripted import ScriptedEngine
from batchinfer.jobspec.reasoning_keys import REASONING_PARSERS
from batchinfer.prompting.prompts import Prompt
from tests.support.builders import make_spec
from tests.support.engine_process import in_one_process, spec_values

SCRIPT = """
from pathlib import Path
from transformers import AutoTokenizer
from batchinfer.engine import start_engine
from batchinfer.engine.vllm_private import ThinkingParser
from batchinfer.errors import BatchinferError
from batchinfer.jobspec import JobSpec
from batchinfer.prompting.prompts import Prompt
from tests.support.builders import make_plan
from tests.support.engine_process import forget_groups
from tests.support.tiny_models import make_checkpoint
from vllm.reasoning import ReasoningParserManager

folder = Path(given["folder"])
make_checkpoint("Qwen3ForCausalLM", folder, vocab_size=328)
tokenizer = AutoTokenizer.from_pretrained(folder)
tokenizer.add_tokens(["<think>", "</think>"])
tokenizer.chat_template = given["template"]
tokenizer.save_pretrained(folder)
plan = make_plan(accelerator="cpu", tensor_parallel=1, num_gpus=0, price_per_gpu_hour=0.0)
found = {"parsers": ReasoningParserManager.list_registered()}
marks = {mark for _, *both, _ in given["marks"] for mark in both if mark[0] == "<"}
tokenizer.add_tokens(["<|CHATBOT_TOKEN|>", *sorted(marks)])
found["split"] = {}
for name, start, end, kwargs in given["marks"]:
    parser = ThinkingParser(name, tokenizer, kwargs)
    texts = [f"{start}so it is{end}yes", f"{start}so it, or"]
    tokens = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    thought = len(tokens[0]) - len(tokenizer.encode("yes", add_special_tokens=False))
    found["split"][name] = [*(parser.split(*pair) for pair in zip(texts, tokens)), thought, len(tokens[1])]
for name, case in given["cases"].items():
    try:
        engine = start_engine(JobSpec.model_validate(case), plan)
    except BatchinferError as error:
        found[name] = {"error": str(error), "exit_code": error.exit_code}
        continue
    answers = engine.generate([Prompt(text=text) for text in given["texts"]], lambda n: None, lambda n: None)
    found[name] = [
        {"texts": a.texts, "reasoning": a.reasoning, "tokens": a.reasoning_tokens, "output_tokens": a.output_tokens,
         "error": a.error and a.error.code}
        for a in answers
    ]
    engine.close()
    del engine
    forget_groups()
report(found)
"""

MARKS = [
    *(
        (name, "<think>", "</think>", None)
        for name in (
            *("qwen3", "deepseek_r1", "deepseek_v4", "deepseek_v41", "glm45", "glm47", "minimax_m2", "nemotron_v3"),
            *(
                "ernie45",
                "granite_thinking_parser",
                "holo2",
                "hy_v4",
                "kimi_k2",
                "ling3",
                "mimo",
                "minicpmv",
                "step3p5",
            ),
        )
    ),
    ("deepseek_v3", "<think>", "</think>", {"thinking": True}),
    ("hy_v3", "<think>", "</think>", {"reasoning_effort": "high"}),
    ("cohere_command3", "<|START_THINKING|>", "<|END_THINKING|>", None),
    ("cohere_command4", "<|START_THINKING|>", "<|END_THINKING|>", None),
    ("gemma4", "<|channel>", "<channel|>", None),
    ("seed_oss", "<seed:think>", "</seed:think>", None),
    ("minimax_m3", "<mm:think>", "</mm:think>", None),
    # Its marks are words, which the parser looks for in the text.
    ("granite", "Here is my thought process:", "Here is my response:", None),
]
"""Parsers of several families, with the marks of thinking, and what the chat template is told."""

OPENED = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: <think>\n{% endif %}"
)
TEXTS = ["the sum of all numbers", "a connection to a host", "x"]
YES_OR_NO = {"choices": ["yes", "no"]}
NUMBER = {"json_schema": {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
                          "required": ["n"], "additionalProperties": False}}  # fmt: skip


def thinking(folder: str, reasoning: dict[str, Any], output: dict[str, Any], max_tokens: int = 40) -> Any:
    values = spec_values({"source": folder}, {"max_tokens": max_tokens}, output)
    return values | {"reasoning": reasoning}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("model")
    budget = {"parser": "auto", "max_tokens": 12}
    cases = {
        "choices": thinking(str(folder), budget, YES_OR_NO),
        "json": thinking(str(folder), budget | {"parser": "qwen3"}, NUMBER),
        "cut": thinking(str(folder), {"parser": "deepseek_r1"}, YES_OR_NO),
        "wrong": thinking(str(folder), {"parser": "seed_oss"}, YES_OR_NO),
    }
    given = {"folder": str(folder), "template": OPENED, "cases": cases, "texts": TEXTS, "marks": MARKS}
    return in_one_process(SCRIPT, given, tmp_path_factory.mktemp("engine"))


@pytest.mark.end_to_end
def test_the_answer_has_its_shape_after_the_thinking_was_ended(found: Any) -> None:
    for row in found["choices"]:
        assert row["error"] is None
        assert row["texts"][0] in ("yes", "no")
        assert row["reasoning"][0]
    for row in found["json"]:
        assert 0 <= json.loads(row["texts"][0])["n"] <= 9


@pytest.mark.end_to_end
def test_tokens_of_the_thinking_are_a_part_of_the_output(found: Any) -> None:
    for row in found["choices"] + found["json"]:
        # The mark that ends the thinking counts as thinking.
        assert 12 <= row["tokens"] <= 14
        assert row["tokens"] < row["output_tokens"]


@pytest.mark.end_to_end
def test_a_row_that_is_cut_while_it_thinks_has_no_answer(found: Any) -> None:
    for row in found["cut"]:
        assert (row["error"], row["texts"]) == ("reasoning_unfinished", [])
        assert row["tokens"] == row["output_tokens"] == 40
        assert row["reasoning"][0]


@pytest.mark.end_to_end
def test_a_parser_that_is_made_for_another_model_is_the_jobs_mistake(found: Any) -> None:
    assert found["wrong"]["exit_code"] == 2
    assert "reasoning.parser seed_oss is not made for" in found["wrong"]["error"]


@pytest.mark.end_to_end
@pytest.mark.parametrize("name", [name for name, *_ in MARKS])
def test_every_familys_parser_tells_the_thinking_from_the_answer(name: str, found: Any) -> None:
    done, cut, thought, of_cut = found["split"][name]
    assert done == ["so it is", "yes", thought]
    assert cut == ["so it, or", None, of_cut]


@pytest.mark.end_to_end
def test_the_names_of_parsers_are_those_of_vllm(found: Any) -> None:
    assert sorted(REASONING_PARSERS) == found["parsers"]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("answer", "texts", "thought", "error"),
    [
        ("<think>so it is</think>yes", ["yes"], "so it is", None),
        ("<think>so it is, or", [], "so it is, or", "reasoning_unfinished"),
        ("<think></think>no", ["no"], "", None),
    ],
)
def test_the_scripted_engine_thinks_as_its_script_says(answer, texts, thought, error):
    spec = make_spec(engine={"scripted": {"answer": answer}}, reasoning={"column": "thought"})
    engine = ScriptedEngine(spec)
    try:
        (made,) = engine.generate([Prompt(text="a")], lambda n: None, lambda n: None)
    finally:
        engine.close()
    assert (made.texts, made.reasoning, made.error and made.error.code) == (texts, [thought], error)
    assert 0 < made.reasoning_tokens <= made.output_tokens

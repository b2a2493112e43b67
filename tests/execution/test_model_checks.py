"""A task needs a model with the head for it: refused before an engine starts, with what the model allows."""

from __future__ import annotations

from typing import Any

import pytest

from batchinfer.engine.installed import engine_argument_names, require_engine_arguments
from batchinfer.errors import ModelError, SpecError
from batchinfer.execution.model_checks import require_head
from batchinfer.jobspec import JobSpec
from batchinfer.model.resolve import ModelFacts

LABELS = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "a", "1": "b"}}
ONE = LABELS | {"id2label": {"0": "LABEL_0"}}
TEXTS = {"architectures": ["Qwen3ForCausalLM"], "hidden_size": 64}


def spec(**keys: Any) -> JobSpec:
    base = {"name": "x", "model": {"source": "m"}, "input": {"uri": "in"}, "prompt": {"column": "text"}}
    return JobSpec.model_validate(base | {"output": {"uri": "out"}} | keys)


def check(config: dict[str, Any], **keys: Any) -> None:
    require_head(spec(**keys), ModelFacts("m", "m", None, None, "none", None, config))


SCORE = {"task": "score", "prompt": {"column": "text", "query": "{{ q }}"}}


@pytest.mark.parametrize(
    ("config", "keys", "remedy"),
    [
        (TEXTS, {"task": "classify"}, "ForSequenceClassification"),
        (ONE, {"task": "classify"}, "task: score"),
        (LABELS, SCORE, "task: classify"),
        (TEXTS, {"task": "embed", "embed": {"dimensions": 32}}, "is_matryoshka"),
        (TEXTS | {"is_matryoshka": True}, {"task": "embed", "embed": {"dimensions": 65}}, "1 to 64"),
        (TEXTS | {"matryoshka_dimensions": [16, 32]}, {"task": "embed", "embed": {"dimensions": 20}}, "16, 32"),
    ],
)
def test_what_the_model_cannot_do_is_refused_with_what_it_can(
    config: dict[str, Any], keys: dict[str, Any], remedy: str
) -> None:
    with pytest.raises(ModelError) as error:
        check(config, **keys)
    assert error.value.remedy is not None
    assert remedy in error.value.remedy


def test_what_the_model_can_do_passes() -> None:
    check(LABELS, task="classify")
    check(ONE, **SCORE)
    check(TEXTS | {"matryoshka_dimensions": [16, 32]}, task="embed", embed={"dimensions": 16})
    overrides = {"extra": {"hf_overrides": {"is_matryoshka": True}}}
    check(TEXTS, task="embed", embed={"dimensions": 32}, engine=overrides)


def test_an_engine_argument_that_vllm_lacks_is_refused_with_the_nearest() -> None:
    require_engine_arguments(spec(engine={"extra": {"hf_overrides": {}}}))
    with pytest.raises(SpecError) as error:
        require_engine_arguments(spec(engine={"extra": {"hf_override": {}}}))
    assert error.value.remedy == "did you mean hf_overrides?"


def test_the_engines_arguments_are_read_without_importing_it() -> None:
    assert {"max_model_len", "hf_overrides", "cpu_offload_gb"} <= set(engine_argument_names())

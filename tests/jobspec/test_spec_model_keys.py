"""The keys of `model`: what goes with what."""

from __future__ import annotations

from typing import Any

import pytest

from batchinfer.errors import SpecError
from tests.support.builders import make_spec

NGRAM = {"method": "ngram", "num_speculative_tokens": 3}


def model(**keys: Any) -> dict[str, Any]:
    return {"source": "org/model"} | keys


def refusal(**sections: Any) -> str:
    with pytest.raises(SpecError) as caught:
        make_spec(**sections)
    return str(caught.value)


def test_neither_is_on_by_itself() -> None:
    spec = make_spec(model=model())
    assert (spec.model.lora, spec.model.speculative, spec.model.trust_remote_code) == (None, None, False)


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        ({}, "model.lora.path"),
        ({"path": ""}, "model.lora.path"),
        ({"path": "a", "rank": 8}, "model.lora.rank"),
        ({"path": "a", "max_lora_rank": 20}, "model.lora.max_lora_rank"),
        ({"path": "a", "max_lora_rank": True}, "model.lora.max_lora_rank"),
    ],
)
def test_a_lora_key_that_is_wrong_is_named(lora: Any, words: str) -> None:
    assert words in refusal(model=model(lora=lora))


@pytest.mark.parametrize(
    ("speculative", "words"),
    [
        ({"method": "magic", "num_speculative_tokens": 3}, "model.speculative.method"),
        ({"method": "ngram"}, "model.speculative.num_speculative_tokens"),
        ({"method": "ngram", "num_speculative_tokens": 0}, "model.speculative.num_speculative_tokens"),
        (NGRAM | {"model": "org/draft"}, "leave model out"),
        (NGRAM | {"prompt_lookup_min": 5, "prompt_lookup_max": 2}, "prompt_lookup_min is above prompt_lookup_max"),
        ({"method": "draft_model", "num_speculative_tokens": 3}, "needs model"),
        ({"method": "eagle3", "num_speculative_tokens": 3}, "method eagle3 needs model"),
        (
            {"method": "draft_model", "num_speculative_tokens": 3, "model": "org/draft", "prompt_lookup_max": 2},
            "prompt_lookup_max is for method ngram",
        ),
    ],
)
def test_a_speculative_key_that_is_wrong_is_named(speculative: Any, words: str) -> None:
    assert words in refusal(model=model(speculative=speculative))


@pytest.mark.parametrize("sampling", [{"min_p": 0.1}, {"min_tokens": 2}, {"logit_bias": {7: 1.0}}])
def test_speculation_takes_no_sampling_that_vllm_refuses_with_it(sampling: Any) -> None:
    make_spec(model=model(), sampling=sampling)
    message = refusal(model=model(speculative=NGRAM), sampling=sampling)
    assert f"sampling.{next(iter(sampling))} does not go with model.speculative" in message


@pytest.mark.parametrize("keys", [{"lora": {"path": "a"}}, {"speculative": NGRAM}])
def test_the_scripted_engine_has_no_weights_to_adapt(keys: Any) -> None:
    assert "the scripted engine has no model" in refusal(model={"source": "scripted"} | keys)

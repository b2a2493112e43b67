"""Conditions on the models of the catalog."""

from __future__ import annotations

import pytest

from batchinfer.catalog import models
from batchinfer.catalog.choose import chosen_models
from batchinfer.errors import UserError


def test_all_conditions_hold_for_the_chosen_models_and_not_for_the_others():
    chosen = chosen_models("context>=32768 and licence=commercial and size<=30e9")
    names = {model.name for model in chosen}
    assert names
    for model in models().values():
        fits = model.shape.context >= 32768 and model.shape.parameters().total <= 30e9
        expected = fits and model.licence.commercial_use is True and model.engine.until is None
        assert (model.name in names) == (expected and model.task == "generate")


def test_a_task_takes_the_models_that_are_trained_for_it():
    families = {
        task: {model.name for model in chosen_models("size>0", task)} for task in ("generate", "embed", "score")
    }
    assert {"qwen3-embedding-0.6b", "qwen3-embedding-8b"} <= families["embed"]
    assert {"qwen3-reranker-4b"} <= families["score"]
    assert not any("embedding" in name or "reranker" in name for name in families["generate"])
    assert not families["generate"] & (families["embed"] | families["score"])
    assert not chosen_models("size>0", "classify")


def test_texts_are_equal_or_not():
    assert {model.family for model in chosen_models("family=qwen3")} == {"qwen3"}
    assert "qwen3" not in {model.family for model in chosen_models("family != qwen3")}


@pytest.mark.parametrize("text", ["", "size", "speed>3", "size<=big", "licence>=commercial", "size<=1e9 or size>1e12"])
def test_a_mistake_in_a_condition_names_the_keys(text):
    with pytest.raises(UserError, match="--catalog"):
        chosen_models(text)

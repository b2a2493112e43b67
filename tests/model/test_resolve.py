"""What a model source is taken for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from batchinfer.errors import ModelError
from batchinfer.jobspec import ModelSpec
from batchinfer.model.resolve import model_facts, require_access
from tests.support import ROOT


def test_a_folder_tells_by_its_config():
    facts = model_facts(ModelSpec(source=str(ROOT / "jobs/demo/model")))
    config = json.loads((ROOT / "jobs/demo/model/config.json").read_text())
    assert facts.entry is None
    assert facts.shape is not None
    assert facts.shape.layers == config["num_hidden_layers"]
    assert facts.shape.parameters().total == pytest.approx(2.88e6, rel=0.01)
    assert facts.location == facts.folder == str(ROOT / "jobs/demo/model")


def test_a_short_name_means_the_catalogs_repository():
    facts = model_facts(ModelSpec(source="llama-3.1-8b"))
    assert facts.location == "meta-llama/Llama-3.1-8B-Instruct"
    assert facts.quantization == "none"
    assert facts.shape is not None
    assert facts.shape.parameters().total == 8_030_261_248


def test_a_quantized_checkpoints_repository_says_how_it_is_quantized():
    facts = model_facts(ModelSpec(source="nvidia/Llama-3.3-70B-Instruct-FP8"))
    assert (facts.location, facts.quantization) == ("nvidia/Llama-3.3-70B-Instruct-FP8", "fp8")


def test_an_unknown_architecture_is_left_to_the_engine(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"architectures": ["SomethingNewForCausalLM"]}')
    facts = model_facts(ModelSpec(source=str(tmp_path)))
    assert facts.shape is None


@pytest.mark.parametrize(
    ("source", "says"),
    [("llama-3.1-8", "llama-3.1-8b"), ("mixtral-8x7", "mixtral-8x7b"), ("nothing at all", "batchinfer models")],
)
def test_a_name_that_is_none_is_answered_with_the_nearest(source, says):
    with pytest.raises(ModelError) as caught:
        model_facts(ModelSpec(source=source))
    assert says in caught.value.remedy


@pytest.mark.parametrize("content", [None, "{", "[1]"])
def test_a_folder_without_a_readable_config_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"config\.json"):
        model_facts(ModelSpec(source=str(tmp_path)))


def test_a_repository_that_cannot_be_reached_is_refused_before_anything_starts(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    facts = model_facts(ModelSpec(source="llama-3.1-8b"))
    with pytest.raises(ModelError, match="cannot"):
        require_access(facts, None)

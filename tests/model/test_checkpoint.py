"""What may be loaded: weights, LoRA adapters and draft models, decided from their files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from batchinfer.engine.vllm_arguments import engine_arguments
from batchinfer.errors import ModelError
from batchinfer.execution.model_checks import require_model
from batchinfer.jobspec import LoraSpec, ModelSpec, SpeculativeSpec
from batchinfer.model.checkpoint import local_adapter, require_adapter, require_draft, require_weights
from batchinfer.model.resolve import model_facts
from tests.support import ROOT
from tests.support.builders import make_plan, make_spec

MODEL = ROOT / "jobs" / "demo" / "model"


def weights_in(folder, load_format):
    require_weights(folder, os.listdir(folder), load_format)


def folder_with(folder: Path, *names: str) -> str:
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"")
    return str(folder)


def refusal(call: Any, *values: Any) -> str:
    with pytest.raises(ModelError) as caught:
        call(*values)
    assert caught.value.exit_code == 2
    return f"{caught.value} -> {caught.value.remedy}"


def save_adapter(folder: Path, weights: str = "adapter_model.safetensors", **config: Any) -> LoraSpec:
    folder.mkdir()
    values = {"peft_type": "LORA", "r": 12, "lora_alpha": 24, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(values | config))
    (folder / weights).write_bytes(b"weights")
    return LoraSpec(path=str(folder))


def copied_model(folder: Path, **config: Any) -> str:
    shutil.copytree(MODEL, folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | config))
    return str(folder)


def test_safetensors_are_what_is_loaded_unless_the_spec_asks_for_more(tmp_path: Path) -> None:
    weights_in(folder_with(tmp_path / "safe", "model.safetensors", "pytorch_model.bin"), None)
    pickled = folder_with(tmp_path / "pickled", "pytorch_model.bin", "training_args.bin")
    message = refusal(weights_in, pickled, None)
    assert "pickles (pytorch_model.bin), which can run any code" in message
    assert "engine.load_format: auto" in message
    weights_in(pickled, "auto")
    weights_in(pickled, "npcache")
    assert "no weights that engine.load_format pt reads" in refusal(weights_in, pickled, "pt")
    assert "no weights that engine.load_format safetensors reads" in refusal(weights_in, pickled, "safetensors")


def test_a_folder_without_weights_is_fine_for_random_ones_only(tmp_path: Path) -> None:
    empty = folder_with(tmp_path / "empty", "config.json")
    assert "has no weights (*.safetensors)" in refusal(weights_in, empty, None)
    weights_in(empty, "dummy")


def test_the_engine_is_told_so() -> None:
    model = {"source": str(MODEL)}
    plain = engine_arguments(make_spec(model=model), make_plan())
    assert (plain["load_format"], plain["trust_remote_code"]) == ("safetensors", False)
    asked = make_spec(model=model, engine={"load_format": "auto"})
    assert engine_arguments(asked, make_plan())["load_format"] == "auto"


def test_a_job_on_pickles_is_refused_before_it_starts(tmp_path: Path) -> None:
    folder = Path(copied_model(tmp_path / "model"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "engine.load_format" in refusal(require_model, make_spec(model={"source": str(folder)}))
    require_model(make_spec(model={"source": str(folder)}, engine={"load_format": "auto"}))


@pytest.mark.parametrize(("rank", "room"), [(1, 1), (8, 8), (12, 16), (65, 128), (300, 320), (512, 512)])
def test_the_engine_has_room_for_the_adapters_rank(rank: int, room: int, tmp_path: Path) -> None:
    lora = save_adapter(tmp_path / "adapter", r=rank)
    adapter = local_adapter(lora, str(tmp_path))
    assert (adapter.folder, adapter.max_rank) == (str(tmp_path / "adapter"), room)


def test_one_modules_higher_rank_counts(tmp_path: Path) -> None:
    lora = save_adapter(tmp_path / "adapter", rank_pattern={"layers.0.q_proj": 40})
    assert local_adapter(lora, str(tmp_path)).max_rank == 64


def test_a_rank_above_the_one_asked_for_is_refused(tmp_path: Path) -> None:
    lora = save_adapter(tmp_path / "adapter").model_copy(update={"max_lora_rank": 8})
    assert "has rank 12, above model.lora.max_lora_rank 8" in refusal(require_adapter, lora, None)
    wider = lora.model_copy(update={"max_lora_rank": 64})
    assert local_adapter(wider, str(tmp_path)).max_rank == 64


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "IA3"}, "type IA3, not LORA"),
        ({"r": 513}, "vLLM runs up to 512"),
        ({"r": None}, "names no rank"),
        ({"use_dora": True}, "use_dora: True, which vLLM does not run"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias: 'all'"),
    ],
)
def test_an_adapter_that_vllm_would_refuse_is_refused_first(config: Any, words: str, tmp_path: Path) -> None:
    assert words in refusal(require_adapter, save_adapter(tmp_path / "adapter", **config), None)


def test_what_is_no_adapter_is_said_to_be_none(tmp_path: Path) -> None:
    assert "has no adapter_config.json" in refusal(require_adapter, LoraSpec(path=str(MODEL)), None)
    pickled = save_adapter(tmp_path / "pickled", weights="adapter_model.bin")
    assert "its weights are a pickle" in refusal(require_adapter, pickled, None)
    missing = LoraSpec(path=str(tmp_path / "none"))
    assert "neither a folder here nor a Hugging Face repository id" in refusal(require_adapter, missing, None)
    broken = save_adapter(tmp_path / "broken")
    (tmp_path / "broken" / "adapter_config.json").write_text("{")
    assert "is not a JSON object" in refusal(require_adapter, broken, None)


def test_an_architecture_without_lora_is_refused(tmp_path: Path) -> None:
    falcon = {"architectures": ["FalconForCausalLM"], "model_type": "falcon", "multi_query": True}
    facts = model_facts(ModelSpec(source=copied_model(tmp_path / "falcon", **falcon)))
    message = refusal(require_adapter, save_adapter(tmp_path / "adapter"), facts.shape)
    assert "vLLM runs FalconForCausalLM without LoRA" in message


def test_a_draft_model_speaks_the_models_vocabulary(tmp_path: Path) -> None:
    shape = model_facts(ModelSpec(source=str(MODEL))).shape
    assert shape is not None

    def draft(source: str) -> SpeculativeSpec:
        return SpeculativeSpec(method="draft_model", model=source, num_speculative_tokens=2)

    require_draft(draft(str(MODEL)), shape)
    require_draft(SpeculativeSpec(method="ngram", num_speculative_tokens=2), shape)
    other = copied_model(tmp_path / "other", vocab_size=6000)
    assert "a vocabulary of 6000 tokens, the model 6144" in refusal(require_draft, draft(other), shape)
    assert "no readable config.json" in refusal(require_draft, draft(str(tmp_path)), shape)
    assert "neither a folder here nor a repository id" in refusal(require_draft, draft("./nowhere"), shape)
    pickled = Path(copied_model(tmp_path / "pickled"))
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    assert "pickles" in refusal(require_draft, draft(str(pickled)), shape)


def test_validation_finds_a_wrong_adapter_and_a_wrong_draft(tmp_path: Path) -> None:
    lora = {"source": str(MODEL), "lora": {"path": str(MODEL)}}
    assert "adapter_config.json" in refusal(require_model, make_spec(model=lora))
    speculative = {"method": "draft_model", "model": str(tmp_path), "num_speculative_tokens": 2}
    assert "config.json" in refusal(require_model, make_spec(model={"source": str(MODEL), "speculative": speculative}))


def test_the_engine_gets_the_adapters_room_and_the_speculation(tmp_path: Path) -> None:
    speculative = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}
    spec = make_spec(model={"source": str(MODEL), "speculative": speculative})
    adapter = local_adapter(save_adapter(tmp_path / "adapter"), str(tmp_path))
    arguments = engine_arguments(spec, make_plan(), adapter)
    assert (arguments["enable_lora"], arguments["max_loras"], arguments["max_lora_rank"]) == (True, 1, 16)
    assert arguments["speculative_config"] == speculative
    assert "enable_lora" not in engine_arguments(spec, make_plan())

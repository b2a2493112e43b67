"""What benchmarks/gpu.py measures on a GPU, as far as it can be known without one: its model folders, its prompts, the
records that it compares with, and how many rows it takes."""

from __future__ import annotations

import json
from pathlib import Path

import dummy_models
import gpu
import gpu_cases
import pytest
from tokenizers import Tokenizer

from batchinfer.catalog import models, quantization_of_config, shape_from_config

CASES = gpu_cases.cases_of(gpu_cases.GPU_MODELS, gpu_cases.GPU_CASES)


def settings(folder: Path, seconds: float = 60.0) -> gpu.Settings:
    return gpu.Settings(
        on_cpu=False,
        accelerator="H200",
        tensor_parallel=1,
        seconds=seconds,
        rows=None,
        timeout=60.0,
        overrides=(),
        folder=folder,
    )


@pytest.mark.parametrize("name", dummy_models.ROPE)
def test_a_folder_is_the_model_of_the_catalog_without_its_weights(name, tmp_path, torch, transformers):
    shape = models()[name].shape
    written = dummy_models.write_model(name, shape, False, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == written
    assert shape_from_config(written) == shape
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    assert sum(weight.numel() for weight in model.parameters()) == shape.parameters().total
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).get_vocab_size() == shape.vocab_size
    rope = config.rope_parameters
    assert rope["rope_theta"] == dummy_models.ROPE[name]["rope_theta"]
    assert (rope["rope_type"] == "llama3") == name.startswith("llama-3")


def test_weights_in_fp8_are_read_as_such():
    shape = models()["llama-2-70b"].shape
    assert quantization_of_config(dummy_models.config_of("llama-2-70b", shape, fp8=True)) == "fp8"
    assert quantization_of_config(dummy_models.config_of("llama-2-70b", shape, fp8=False)) == "none"


def test_prompts_have_exactly_the_tokens_asked_for(tmp_path, transformers):
    shape = models()["mistral-7b"].shape
    dummy_models.write_model("mistral-7b", shape, False, tmp_path)
    texts, ids = dummy_models.prompts(shape.vocab_size, rows=20, tokens=300, seed=1)
    # As the engine has it, and as the planner reads it.
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)(texts)["input_ids"] == ids
    assert [found.ids for found in Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode_batch(texts)] == ids
    assert {len(row) for row in ids} == {300}
    assert len({tuple(row[:16]) for row in ids}) == 20, "no two share what a prefix cache could keep"


def test_the_records_are_those_of_the_same_weights_lengths_and_gpu():
    def of(case, accelerator="H200"):
        record = gpu_cases.record_of(case, accelerator, 1)
        return None if record is None else (record.model, record.tokens_per_second)

    eight = ("llama-3.1-8b", True)
    assert of(gpu_cases.Case(*eight, 1000, 1000)) == ("llama-3.1-8b", 17744)
    assert of(gpu_cases.Case(*eight, 1000, 1000), "H100") == ("llama-3.1-8b", 15220)
    assert of(gpu_cases.Case(*eight, 778, 128)) == ("llama-3.1-8b", 8254.6)
    assert of(gpu_cases.Case("llama-3.1-8b", False, 1000, 1000)) is None
    assert of(gpu_cases.Case("llama-2-70b", True, 294, 294)) == ("llama-2-70b", 4351.5)
    assert of(gpu_cases.Case("llama-2-70b", True, 2048, 128)) == ("llama-3.3-70b", 442)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_fits_one_gpu_and_takes_as_long_as_it_may(case, tmp_path):
    config = dummy_models.config_of(case.model, models()[case.model].shape, case.fp8)
    longest = max(one.input_tokens + one.output_tokens for one in CASES if one.model == case.model)
    rows = gpu.rows_for(case, longest, config, settings(tmp_path), tmp_path)
    spec = gpu.spec_of(case, rows, longest, settings(tmp_path), tmp_path)
    plan = gpu.plan_of(case, spec, config, rows, settings(tmp_path))
    assert plan.num_gpus == 1
    assert plan.kv_cache_tokens >= 16 * (case.input_tokens + case.output_tokens)
    assert rows * case.output_tokens / gpu.output_rate(plan, case) == pytest.approx(60.0, rel=0.1)


@pytest.mark.parametrize(("name", "length"), [("gpt-5", "128/128"), ("llama-2-13b", "4000/1000"), ("mistral-7b", "12")])
def test_a_case_that_cannot_be_is_refused_before_anything_runs(name, length):
    with pytest.raises(ValueError, match=name):
        gpu_cases.cases_of([name], [length])

"""Against engines that were measured, and the laws of any fit."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer.catalog import GIB, QUANTIZATIONS, accelerator, models
from batchinfer.planner.layout import pays_expert_parallel, tensor_sizes
from batchinfer.planner.memory import fit, stages, weight_bytes
from batchinfer.planner.values import EngineSettings

# What `vllm serve` takes on an H100 by itself, and the context that the measured engines were given.
SERVED = EngineSettings(max_model_len=16384, max_num_seqs=1024, max_num_batched_tokens=8192)
NAMES = sorted(models())


def shape(name):
    return models()[name].shape


# silybench-data runs.csv (2026-09-24), vLLM 0.30 on one H100 of 81,559 MiB at 0.9.
@pytest.mark.parametrize(("quantization", "measured"), [("none", 377_024), ("fp8", 430_272)])
def test_the_kv_cache_of_a_measured_engine_is_met_within_five_percent(quantization, measured):
    made = fit(shape("qwen3-8b"), QUANTIZATIONS[quantization], accelerator("H100"), 1, 1, False, SERVED, 16384)
    assert made.kv_cache_tokens == pytest.approx(measured, rel=0.05)
    # Five percent of the cache is most of what is fitted: the working memory itself is measured too.
    measured_overhead = 81_559 * 2**20 * 0.9 - made.weight_bytes_per_gpu - measured * 147_456
    assert made.overhead_bytes_per_gpu == pytest.approx(measured_overhead, rel=0.15)


@pytest.mark.parametrize(
    ("name", "quantization", "gib"),
    [
        ("mistral-7b", "none", 13.50),
        ("mixtral-8x7b", "none", 86.99),
        ("mistral-large", "none", 228.4),
        ("llama-3.1-70b", "none", 131.4),
        ("llama-4-maverick", "none", 746.4),
        # Experts in 4.25 bits, the rest in 16: 114.66e9 x 4.25 / 8 + 2.17e9 x 2 bytes.
        ("gpt-oss-120b", "mxfp4", 60.8),
    ],
)
def test_weights_on_one_gpu_are_the_size_of_the_checkpoint(name, quantization, gib):
    (stage,) = stages(shape(name), 1)
    assert weight_bytes(shape(name), QUANTIZATIONS[quantization], 1, False, stage) / GIB == pytest.approx(
        gib, rel=0.005
    )


def test_quantization_leaves_embedding_head_router_and_norms_in_16_bits():
    mixtral = shape("mixtral-8x7b")
    count, (stage,) = mixtral.parameters(), stages(mixtral, 1)
    whole = weight_bytes(mixtral, QUANTIZATIONS["none"], 1, False, stage)
    half = weight_bytes(mixtral, QUANTIZATIONS["fp8"], 1, False, stage)
    assert whole - half == count.attention + count.experts


def test_mxfp4_takes_the_experts_alone():
    gpt = shape("gpt-oss-20b")
    count, (stage,) = gpt.parameters(), stages(gpt, 1)
    whole = weight_bytes(gpt, QUANTIZATIONS["none"], 1, False, stage)
    small = weight_bytes(gpt, QUANTIZATIONS["mxfp4"], 1, False, stage)
    assert whole - small == pytest.approx(count.experts * (2 - 4.25 / 8), rel=1e-9)


def test_kv_heads_fewer_than_gpus_are_copied_weights_and_cache_alike():
    qwen, facts = shape("qwen2.5-1.5b"), accelerator("L4")
    four = fit(qwen, QUANTIZATIONS["none"], facts, 4, 1, False, EngineSettings(), 4096)
    two = fit(qwen, QUANTIZATIONS["none"], facts, 2, 1, False, EngineSettings(), 4096)
    keys_and_values = 2 * 28 * 1536 * 2 * 128 * 2
    copied = (two.weight_bytes_per_gpu - 0.5 * keys_and_values) / 2 + 0.5 * keys_and_values
    assert four.weight_bytes_per_gpu == pytest.approx(copied, rel=0.001)
    # Two KV heads: four GPUs hold for a token no less than two do.
    assert four.kv_cache_bytes_per_gpu / four.kv_cache_tokens == pytest.approx(28 * 2 * 128 * 2, rel=0.001)
    assert two.kv_cache_bytes_per_gpu / two.kv_cache_tokens == pytest.approx(28 * 2 * 128 * 2, rel=0.001)


@pytest.mark.parametrize(
    ("name", "pipeline", "layers"),
    [
        ("llama-3.1-70b", 4, [20, 20, 20, 20]),
        # vLLM gives what is left over to the middle, then to all but the last.
        ("deepseek-v3", 2, [31, 30]),
        ("deepseek-v3", 4, [15, 15, 16, 15]),
        ("llama-3.1-405b", 4, [31, 32, 32, 31]),
    ],
)
def test_layers_are_dealt_to_stages_as_the_engine_does(name, pipeline, layers):
    made = stages(shape(name), pipeline)
    assert [stage.layers for stage in made] == layers
    assert [stage.first for stage in made] == [True] + [False] * (pipeline - 1)
    assert [stage.last for stage in made] == [False] * (pipeline - 1) + [True]


def test_dense_layers_that_come_first_leave_the_later_stages_the_heavier():
    deepseek = shape("deepseek-v3")
    first, second = stages(deepseek, 2)
    assert (first.expert_layers, second.expert_layers) == (28, 30)
    assert weight_bytes(deepseek, QUANTIZATIONS["fp8"], 8, False, second) > weight_bytes(
        deepseek, QUANTIZATIONS["fp8"], 8, False, first
    )


def test_an_fp8_cache_holds_twice_the_tokens_and_eager_mode_more():
    of = (shape("llama-3.1-8b"), QUANTIZATIONS["none"], accelerator("H100"), 1, 1, False)
    plain = fit(*of, EngineSettings(), 4096)
    small = fit(*of, EngineSettings(kv_cache_dtype="fp8"), 4096)
    eager = fit(*of, EngineSettings(enforce_eager=True), 4096)
    assert small.kv_cache_tokens == pytest.approx(2 * plain.kv_cache_tokens, abs=2)
    assert eager.kv_cache_tokens > plain.kv_cache_tokens


def test_windowed_layers_hold_their_window_and_so_more_long_sequences():
    scout, facts = shape("llama-4-scout"), accelerator("H100")
    long = fit(scout, QUANTIZATIONS["w4a16"], facts, 2, 1, False, EngineSettings(), 1_000_000)
    # 12 of 48 layers see all: a million tokens cost little over a quarter of what 48 would take.
    assert long.kv_cache_bytes_per_gpu / long.kv_cache_tokens == pytest.approx(12 * 2 * 4 * 128 * 2, rel=0.05)


@settings(deadline=None, max_examples=150)
@given(
    name=st.sampled_from(NAMES),
    quantization=st.sampled_from(sorted(QUANTIZATIONS)),
    gpu=st.sampled_from(["L4", "A100-80GB", "H200", "MI300X"]),
    pipeline=st.integers(1, 4),
    tokens=st.integers(1, 20_000),
    data=st.data(),
)
def test_a_fit_stays_within_the_memory_and_more_gpus_never_hold_less(name, quantization, gpu, pipeline, tokens, data):
    model, facts, how = shape(name), accelerator(gpu), EngineSettings()
    sizes = tensor_sizes(model, QUANTIZATIONS[quantization], 8)
    tensor = data.draw(st.sampled_from(sizes))

    def at(tensor, pipeline):
        expert = pays_expert_parallel(model, QUANTIZATIONS[quantization], tensor)
        return fit(model, QUANTIZATIONS[quantization], facts, tensor, pipeline, expert, how, tokens)

    made = at(tensor, pipeline)
    usable = facts.memory_bytes * 0.9
    if made.fits:
        taken = made.weight_bytes_per_gpu + made.overhead_bytes_per_gpu + made.kv_cache_bytes_per_gpu
        assert taken <= usable
        assert made.sequences >= 1
        assert made.kv_cache_tokens >= tokens - 1
        assert at(sizes[-1], pipeline).fits
        assert at(tensor, pipeline + 1).fits
    else:
        assert made.sequences < 1

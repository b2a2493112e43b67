"""Whether a model fits its GPUs: weights, working memory and KV cache of the fullest GPU of a replica. Pure.

The formula is vLLM's own (`determine_available_memory` in v1/worker/gpu_worker.py, 0.32). From
`gpu_memory_utilization` x the GPU's memory, vLLM subtracts the weights, what CUDA and its libraries hold, and the
CUDA graphs. It also subtracts the peak of a profile run of `max_num_batched_tokens` tokens and `max_num_seqs` sampled
rows. The rest is KV cache.
"""

from __future__ import annotations

from dataclasses import dataclass

from batchinfer.catalog.accelerators import GIB, MIB, Accelerator
from batchinfer.catalog.quantization import Quantization
from batchinfer.catalog.shape import ModelShape
from batchinfer.planner.values import EngineSettings, Fit

VOCABULARY_PADDING = 64
"""vLLM pads the rows of embedding and head to a multiple of this (DEFAULT_VOCAB_PADDING_SIZE)."""

# Bytes that no formula below covers: CUDA's context, cuBLAS and attention workspaces, and the allocator's reserve.
# Set in the middle between two measured engines: Qwen3-8B with vLLM 0.30 on an H100 used 4.65 GiB (bf16) and
# 3.81 GiB (fp8 weights) besides weights and KV cache (silybench-data runs.csv, 2026-09-24).
CONTEXT_BYTES = int(1.35 * GIB)

# CUDA graphs grow with the layers: vLLM 0.9.2 logged 1.40 GiB for Llama 4 Maverick (48 layers; sglang #8538),
# 0.21 GiB for Llama 3.2 1B (16 layers; vllm #11349).
GRAPH_BYTES_PER_LAYER = 20 * MIB

# Measured NCCL buffers: aiconfigurator-core 0.12, systems/*.yaml.
NCCL_BYTES_FOR_TWO = 342 * MIB
NCCL_BYTES_FOR_MORE = 392 * MIB

# The sampler's peak, for each sampled row and token of the vocabulary: the head's logits in 16 bits, and in 32 bits
# a copy of the logits, the probabilities and the noise (vLLM, `_dummy_sampler_run` and `random_sample`).
SAMPLER_BYTES = 2 + 3 * 4


@dataclass(frozen=True, slots=True)
class Stage:
    """One pipeline stage: its layers, how many of them are mixtures of experts, and what ends it holds."""

    layers: int
    expert_layers: int
    first: bool
    last: bool


def stages(shape: ModelShape, pipeline: int) -> list[Stage]:
    """The layers of each pipeline stage, as vLLM distributes them (`get_pp_indices` in distributed/utils.py)."""
    counts = [shape.layers // pipeline] * pipeline
    for i in range(2, shape.layers % pipeline + 2):
        counts[-i] += 1
    made, dense_left = [], shape.layers - (shape.experts.layers if shape.experts else 0)
    interleaved = shape.experts is not None and 2 * shape.experts.layers <= shape.layers
    for i, count in enumerate(counts):
        if interleaved:
            assert shape.experts is not None
            expert = -(-count * shape.experts.layers // shape.layers)
        else:
            # If only a few layers are dense, they are the first ones (DeepSeek's first_k_dense_replace).
            dense = min(count, dense_left)
            dense_left -= dense
            expert = count - dense
        made.append(Stage(count, expert, i == 0, i == pipeline - 1))
    return made


def weight_bytes(
    shape: ModelShape,
    quantization: Quantization,
    tensor: int,
    expert_parallel: bool,
    stage: Stage,
    value_bytes: float = 2.0,
) -> int:
    """Bytes of weights on one GPU of a tensor-parallel group that holds `stage`.

    `value_bytes`: bytes of a weight that is not quantized. The group splits linear layers, embedding and head. Each
    GPU has a copy of router, norms and latent attention's down projections; also of keys and values if there are
    fewer KV heads than GPUs.
    """
    count = shape.parameters()
    quantized = quantization.bits / 8 if quantization.name != "none" else value_bytes
    linear = value_bytes if quantization.experts_only else quantized
    part = stage.layers / shape.layers
    total = _attention_on_each(shape, tensor) * part * linear
    dense_layers = shape.layers - (shape.experts.layers if shape.experts else 0)
    if dense_layers:
        total += count.dense_mlp / tensor * (stage.layers - stage.expert_layers) / dense_layers * linear
    if shape.experts:
        experts_part = stage.expert_layers / shape.experts.layers
        share = -(-shape.experts.count // tensor) / shape.experts.count if expert_parallel else 1 / tensor
        total += count.experts * share * experts_part * quantized
        total += count.shared_experts / tensor * experts_part * linear
        total += count.router * experts_part * value_bytes
    if shape.latent is not None:
        # vLLM keeps the up projections of keys and values a second time, in 16 bits, for decoding.
        m = shape.latent
        up = m.kv_lora_rank * shape.attention_heads * (m.qk_nope_head_dim + m.v_head_dim)
        total += stage.layers * up / tensor * value_bytes
    total += count.other * part * value_bytes
    padded = -(-shape.vocab_size // VOCABULARY_PADDING) * VOCABULARY_PADDING
    matrices = stage.first + (stage.last and not (shape.tied_embeddings and stage.first))
    return int(total + matrices * padded * shape.hidden_size / tensor * value_bytes)


def _attention_on_each(shape: ModelShape, tensor: int) -> float:
    """Weights of all layers' attention on one GPU of the group."""
    attention = shape.parameters().attention
    if shape.latent is None:
        copied = 2 * shape.attention_layers * shape.hidden_size * shape.kv_heads * shape.head_dim
        return (attention - copied) / tensor + copied * _kv_heads_on_each(shape, tensor) / shape.kv_heads
    m = shape.latent
    down = shape.layers * shape.hidden_size * ((m.q_lora_rank or 0) + m.kv_lora_rank + m.qk_rope_head_dim)
    return (attention - down) / tensor + down


def _kv_heads_on_each(shape: ModelShape, tensor: int) -> int:
    return -(-shape.kv_heads // tensor)


def activation_bytes(shape: ModelShape, tensor: int, expert_parallel: bool, tokens: int) -> int:
    """Peak bytes of one layer's forward pass over `tokens` tokens, in 16 bits: hidden states and residual, plus the
    widest of attention, the dense MLP and the experts' workspaces."""
    hidden, kv = shape.hidden_size, _kv_heads_on_each(shape, tensor)
    queries = shape.attention_heads * shape.head_dim
    widest = hidden + 2 * queries / tensor + 2 * kv * shape.head_dim
    if shape.latent is not None:
        m = shape.latent
        widest = hidden + shape.attention_heads / tensor * (
            2 * (m.qk_nope_head_dim + m.qk_rope_head_dim) + m.v_head_dim
        )
    up = 3 if shape.gated_mlp else 2
    dense_layers = shape.layers - (shape.experts.layers if shape.experts else 0)
    if dense_layers:
        widest = max(widest, hidden + up * shape.intermediate_size / tensor)
    if shape.experts:
        # The two workspaces of vLLM's fused experts: one row for each pair of token and expert.
        inner = shape.experts.intermediate_size / (1 if expert_parallel else tensor)
        pairs = shape.experts.active * (max(2 * inner, hidden) + inner)
        widest = max(widest, 2 * hidden + pairs + up * shape.experts.shared_size / tensor)
    return int(tokens * 2 * (2 * hidden + widest))


def overhead_bytes(
    shape: ModelShape,
    tensor: int,
    pipeline: int,
    expert_parallel: bool,
    stage: Stage,
    settings: EngineSettings,
) -> int:
    """Bytes that vLLM uses on a GPU besides weights and KV cache."""
    length = settings.max_model_len or shape.context
    tokens = min(settings.max_num_batched_tokens, settings.max_num_seqs * length)
    peak = activation_bytes(shape, tensor, expert_parallel, tokens)
    if stage.last:
        # The head runs after the layers: their peaks do not add up.
        sampler = settings.max_num_seqs * shape.vocab_size * SAMPLER_BYTES + 4 * tokens * shape.hidden_size
        peak = max(peak, sampler)
    graphs = 0 if settings.enforce_eager else stage.layers * GRAPH_BYTES_PER_LAYER
    group = tensor * pipeline
    nccl = 0 if group == 1 else NCCL_BYTES_FOR_TWO if group == 2 else NCCL_BYTES_FOR_MORE
    return CONTEXT_BYTES + peak + graphs + nccl


def kv_value_bytes(settings: EngineSettings, value_bytes: float = 2.0) -> float:
    """Bytes of one number in the KV cache, by `kv_cache_dtype`; `value_bytes` if it is auto."""
    return 1.0 if settings.kv_cache_dtype.startswith("fp8") else value_bytes


def fit(
    shape: ModelShape,
    quantization: Quantization,
    accelerator: Accelerator,
    tensor: int,
    pipeline: int,
    expert_parallel: bool,
    settings: EngineSettings,
    sequence_tokens: int,
    value_bytes: float = 2.0,
) -> Fit:
    """Lay one replica on `tensor` x `pipeline` GPUs and see what is left for the KV cache.

    A replica fits if at least one sequence of `sequence_tokens` fits; otherwise vLLM refuses to start. Every figure
    is of the fullest stage, the one that holds the fewest sequences.
    """
    assert accelerator.memory_bytes is not None, "a host's memory is not in the catalog: see host.py"
    usable = int(accelerator.memory_bytes * settings.gpu_memory_utilization)
    sequence = shape.kv_bytes(sequence_tokens, kv_value_bytes(settings, value_bytes), tensor)
    fullest: tuple[float, int, int, int, int] | None = None
    for stage in stages(shape, pipeline):
        weights = weight_bytes(shape, quantization, tensor, expert_parallel, stage, value_bytes)
        overhead = overhead_bytes(shape, tensor, pipeline, expert_parallel, stage, settings)
        one = max(1, -int(-sequence * stage.layers // shape.layers))
        free = usable - weights - overhead
        if fullest is None or free / one < fullest[0]:
            fullest = (free / one, free, weights, overhead, one)
    assert fullest is not None
    held, free, weights, overhead, one = fullest
    sequences = max(0.0, held)
    return Fit(
        weight_bytes_per_gpu=weights,
        overhead_bytes_per_gpu=overhead,
        kv_cache_bytes_per_gpu=max(0, free),
        kv_cache_tokens=int(sequences * sequence_tokens),
        sequences=sequences,
        shortfall=max(0, one - free),
    )

"""How fast a replica works and what the job takes: a roofline of continuous batching in steady state. Pure.

One step of the engine produces one token for each of B running rows. It also prefills the prompts of the rows that
replace finished ones: B x input / output tokens (chunked prefill). The time of a step is the sum of

- the matrix products: the root of the sum of the squares of compute and of the read of the weights. It is close to
  the larger of the two, except if both are alike, because neither hides the other completely;
- the attention: the read of the batch's KV cache, and the scores of the prompts;
- the all-reduces of tensor parallelism, the hand-over between the stages of pipeline parallelism;
- the engine's fixed time for each layer, each running row and each new row.

The roofline is Williams, Waterman and Patterson (2009); the floating-point operations of a transformer are
counted as in Kaplan et al. (2020) and Pope et al. (2022).
"""

from __future__ import annotations

from dataclasses import dataclass

from batchinfer.catalog.accelerators import Accelerator
from batchinfer.catalog.quantization import Quantization
from batchinfer.catalog.shape import ModelShape
from batchinfer.planner.memory import kv_value_bytes
from batchinfer.planner.values import EngineSettings, Estimate, Fit, Interval, ReplicaSpeed, Workload


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Shares of a data sheet's peak that engines reach, and the seconds that an engine adds.

    The values were set on the rows of benchmarks/published_throughput.yaml that say "constants", and rounded by
    hand. The terms were chosen with all rows of that file in view (benchmarks/RESULTS.md). "perf-overview" is NVIDIA's
    TensorRT-LLM perf-overview v1.0, "silybench" the curves of vLLM 0.30 from 1 to 512 rows in flight for
    Qwen3-8B on an H100 (tgarg01/silybench-data, 2026-09-24).

    matmul_16bit, matmul_8bit, matmul_4bit: share of peak dense FLOP/s in large matrix products; the power limit
    lowers the share the more a cycle computes. 16 bits: silybench's bf16; 8 bits: perf-overview's Llama 8B
    and 70B fp8 on H100 and H200, silybench's fp8; 4 bits: perf-overview's Llama 70B nvfp4 on B200.
    experts: share of the matmul rate that the grouped products of experts reach; perf-overview's Llama 4 Scout and
    Qwen3-235B fp8 on H200.
    attention: share of the 16-bit peak in the scores of prompts; general knowledge of FlashAttention, not fitted.
    memory: share of the peak bandwidth in reads of weights and KV cache; silybench.
    link: share of one direction of NVLink in ring all-reduces of some MB; general knowledge of NCCL, lowered on
    perf-overview's tensor-parallel rows.
    pipeline: share of the time in which no stage waits; stages wait because prompts differ in length. Assumed.
    layer_seconds: for each layer in a step, whatever its size: launches and small kernels. sequence_seconds: for
    each running row in a step: sampling, scheduling, output. row_seconds: for each new row: tokenizing,
    admission, answer. All three are from silybench, whose steps with one row take 4.7 ms (fp8) and 6.9 ms (bf16).
    The difference is the read of 6.9 GB, so some 2 ms of a step are not reads.
    latency_seconds: for one all-reduce inside a node, whatever its size; assumed.
    """

    matmul_16bit: float = 0.72
    matmul_8bit: float = 0.65
    matmul_4bit: float = 0.42
    experts: float = 0.65
    attention: float = 0.5
    memory: float = 0.86
    link: float = 0.7
    pipeline: float = 0.9
    layer_seconds: float = 45e-6
    sequence_seconds: float = 7.5e-6
    row_seconds: float = 1e-3
    latency_seconds: float = 10e-6


VLLM = Efficiency()

PCIE_GB_S = 64.0
"""Both directions of PCIe 4 x16: between GPUs without NVLink. (PCI-SIG: 16 GT/s x 16 lanes.)"""

RATE_SPREAD = Interval(low=0.65, mid=1.0, high=1.15)
"""Measured speed over estimated speed: a tenth of the published rows lies below the interval and a tenth above
(benchmarks/estimator.py; a test compares both). Set on all rows; two thirds of the held-out mixtures of experts lie
inside."""

CALIBRATED_SPREAD = Interval(low=0.85, mid=1.0, high=1.17)
"""The same ratio if other rows of the same model, GPU, quantization and layout calibrated the estimate."""

EXPERT_TILE = 128
"""Rows of a matrix tile: the rows of each expert are padded to whole tiles (CUTLASS's grouped products)."""

ACTIVATION_PASSES = 2.0
"""Matrix products read their input and write their output; the norms, rotations, gates and casts between
them do the same once more."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """One replica, with everything that the time of a step depends on."""

    shape: ModelShape
    quantization: Quantization
    accelerator: Accelerator
    tensor: int
    pipeline: int
    kv_bytes_per_value: float
    efficiency: Efficiency

    def flops(self, quantized: bool) -> float:
        """FLOP/s that one GPU sustains in matrix products of the quantized layers, or of the others."""
        tflops, e = self.accelerator.tflops, self.efficiency
        computed = self.quantization.compute if quantized else "16bit"
        if computed == "fp4" and "fp4" in tflops:
            return tflops["fp4"] * 1e12 * e.matmul_4bit
        if computed in ("fp8", "int8") and computed in tflops:
            return tflops[computed] * 1e12 * e.matmul_8bit
        # Weight-only: the GPU has no such unit, so weights are widened to 16 bits on the way.
        return self.peak_16bit * e.matmul_16bit

    @property
    def peak_16bit(self) -> float:
        """FLOP/s; GPUs before Ampere have only fp16."""
        tflops = self.accelerator.tflops
        return (tflops["bf16"] if "bf16" in tflops else tflops["fp16"]) * 1e12

    @property
    def bandwidth(self) -> float:
        """Bytes/s that one GPU sustains from its memory."""
        assert self.accelerator.bandwidth_gb_s is not None, "a CPU has no figures to estimate from"
        return self.accelerator.bandwidth_gb_s * 1e9 * self.efficiency.memory

    def link(self, gpus: int) -> float:
        """Bytes/s in one direction that one of `gpus` GPUs sustains towards the next."""
        a = self.accelerator
        if gpus <= a.nvlink_domain and a.nvlink_gb_s is not None:
            direction = a.nvlink_gb_s / 2
        elif gpus <= a.node_gpus or a.internode_gb_s is None:
            direction = PCIE_GB_S / 2
        else:
            direction = a.internode_gb_s
        return direction * 1e9 * self.efficiency.link


@dataclass(frozen=True, slots=True)
class _Step:
    """Seconds of one step of one pipeline stage, by cause."""

    compute: float
    weights: float
    matmul: float
    scores: float
    cache: float
    activations: float
    communication: float
    engine: float

    @property
    def seconds(self) -> float:
        return self.matmul + self.scores + self.cache + self.activations + self.communication + self.engine


def replica_speed(
    shape: ModelShape,
    quantization: Quantization,
    accelerator: Accelerator,
    tensor: int,
    pipeline: int,
    fit: Fit,
    settings: EngineSettings,
    workload: Workload,
    efficiency: Efficiency = VLLM,
) -> ReplicaSpeed:
    """The steady state of one replica of tensor x pipeline GPUs, at workload.output_tokens.mid.

    Expert parallelism changes neither the bytes nor the operations of a GPU, so the estimate does not depend on it.
    All rates are of the whole replica.
    """
    requests, workload = workload.sequences, workload.of_sequences
    output = max(1.0, workload.output_tokens.mid)
    layout = _Layout(shape, quantization, accelerator, tensor, pipeline, kv_value_bytes(settings), efficiency)
    # A request holds its prompt and, on average over its life, half its output.
    cached = fit.kv_cache_tokens / (workload.input_tokens + output / 2)
    budget = pipeline * settings.max_num_batched_tokens / (1 + workload.input_tokens / output)
    limit = min(float(settings.max_num_seqs), cached, budget, float(workload.rows))
    batch = max(1.0, limit)
    # Few rows run in waves, and the last wave takes as long as the others.
    waves = max(1.0, workload.rows / batch)
    batch = workload.rows / (waves + (1 - 1 / waves) / 2)
    step = _step(layout, batch / pipeline, workload.input_tokens, output)
    # Each stage works on one pipeline-th of the batch while the others work on theirs.
    output_rate = batch / pipeline / step.seconds * (efficiency.pipeline if pipeline > 1 else 1.0)
    compute, memory = step.compute + step.scores, step.weights + step.cache
    bound = "compute" if compute >= memory else "kv cache" if cached == limit else "bandwidth"
    return ReplicaSpeed(
        tokens_per_second=output_rate * (workload.input_tokens + output) / output,
        output_tokens_per_second=output_rate,
        rows_per_second=output_rate / output / requests,
        batch=batch,
        bound=bound,
    )


def _step(layout: _Layout, running: float, input_tokens: float, output_tokens: float) -> _Step:
    """One step of one stage with `running` rows, each new one of `input_tokens`."""
    shape, e = layout.shape, layout.efficiency
    gpus = layout.tensor * layout.pipeline
    prompt = running * input_tokens / output_tokens
    tokens = running + prompt
    compute, weights, matmul = _matmul(layout, running, tokens)
    context = input_tokens + output_tokens / 2
    layer = shape.layer_kv_bytes(layout.kv_bytes_per_value, layout.tensor)
    # A step reads and writes the states of linear attention, and reads what attention sees.
    state = 2 * shape.linear.state_bytes / layout.tensor if shape.linear else 0.0
    cache = running * (shape.layers * layer * _seen(shape, context) + state) / layout.pipeline / layout.bandwidth
    activations = tokens * _activation_bytes(shape) / gpus / layout.bandwidth
    attention = layout.peak_16bit * e.attention * gpus
    scores = prompt * _score_flops(shape) * _seen(shape, input_tokens / 2) / attention
    # Latent attention reads one vector for all heads, so its scores may take longer than its read.
    cache = max(cache, running * _score_flops(shape) * _seen(shape, context) / attention)
    layers = shape.layers / layout.pipeline
    return _Step(
        compute=compute,
        weights=weights,
        matmul=matmul,
        scores=scores,
        cache=cache,
        activations=activations,
        communication=_communication(layout, tokens, layers),
        engine=layers * e.layer_seconds + running * e.sequence_seconds + running / output_tokens * e.row_seconds,
    )


def _seen(shape: ModelShape, context: float) -> float:
    """Tokens that a token's attention reads in a layer, on average over the layers."""
    windowed, attending = shape.windowed_layers / shape.layers, shape.attention_layers / shape.layers
    return (attending - windowed) * context + windowed * min(context, shape.window or context)


def _activation_bytes(shape: ModelShape) -> float:
    """Bytes of memory traffic of a token's activations: each matrix product reads its input and writes
    its output in 16 bits, and the norms, rotations and gates between products do the same once more."""
    m, e = shape.latent, shape.experts
    width = shape.hidden_size
    queries, kv = shape.attention_heads * shape.head_dim, 2 * shape.kv_heads * shape.head_dim
    if m is not None:
        queries, kv = shape.attention_heads * (m.qk_nope_head_dim + m.qk_rope_head_dim), m.kv_lora_rank
    gates = 2 if shape.gated_mlp else 1
    attention = 2 * width + 2 * queries + kv
    mlp = 2 * width + (gates + 1) * shape.intermediate_size
    values = shape.layers * (attention + mlp)
    if e is not None:
        routed = e.active * (2 * width + (gates + 1) * e.intermediate_size)
        shared = (2 * width + (gates + 1) * e.shared_size) if e.shared_size else 0
        values += e.layers * (routed + shared - mlp)
    return ACTIVATION_PASSES * 2.0 * values


def _score_flops(shape: ModelShape) -> float:
    """Operations of all layers' attention for one token and one token that it sees: the product of query
    and key and that of score and value, each 2 x heads x width."""
    if shape.latent is not None:
        width = 2 * shape.latent.kv_lora_rank + shape.latent.qk_rope_head_dim
        return 2.0 * shape.layers * shape.attention_heads * width
    return 4.0 * shape.layers * shape.attention_heads * shape.head_dim


def _matmul(layout: _Layout, running: float, tokens: float) -> tuple[float, float, float]:
    """Seconds of a step's matrix products on one GPU: their compute, their weights' read, both joined.

    In each mixture layer, a step reads the experts to which the router sends at least one token. If the router
    spreads tokens evenly, that is a share of 1 - (1 - active / count) ** tokens.
    """
    shape, p, gpus = layout.shape, layout.shape.parameters(), layout.tensor * layout.pipeline
    experts_only, bits = layout.quantization.experts_only, layout.quantization.bits
    parts = [(p.attention + p.dense_mlp + p.shared_experts, 1.0, tokens, not experts_only, 1.0)]
    # The head computes only sampled tokens. Head and router stay in 16 bits.
    parts += [(shape.vocab_size * shape.hidden_size, 1.0, running, False, 1.0), (p.router, 1.0, tokens, False, 1.0)]
    if shape.experts:
        share = shape.experts.active / shape.experts.count
        read = 1 - (1 - share) ** tokens
        # The rows of each expert fill tiles; the last one is half empty on average.
        padded = tokens * share + read * EXPERT_TILE / 2
        parts.append((p.experts, read, padded, True, layout.efficiency.experts))
    compute = weights = joined = 0.0
    for parameters, read, factor, quantized, slower in parts:
        c = 2.0 * parameters * factor / gpus / (layout.flops(quantized) * slower)
        w = parameters * read * (bits / 8 if quantized else 2.0) / gpus / layout.bandwidth
        compute, weights, joined = compute + c, weights + w, joined + (c**2 + w**2) ** 0.5
    return compute, weights, joined


def _communication(layout: _Layout, tokens: float, layers: float) -> float:
    """Seconds of a step in which a stage's GPUs wait for each other: two all-reduces a layer and one hand-over
    to the next stage. An all-reduce sends 2 (t - 1) / t of its tokens x hidden values of 16 bits."""
    size = tokens * layout.shape.hidden_size * 2.0
    seconds = 0.0
    if layout.tensor > 1:
        sent = 2.0 * (layout.tensor - 1) / layout.tensor * size
        seconds += 2 * layers * (sent / layout.link(layout.tensor) + layout.efficiency.latency_seconds)
    if layout.pipeline > 1:
        seconds += size / layout.link(layout.tensor * layout.pipeline)
    return seconds


def job_estimate(
    speed: ReplicaSpeed,
    replicas: int,
    num_gpus: int,
    workload: Workload,
    price_per_gpu_hour: float,
    load_seconds: Interval,
    calibration: float | None,
    ends: tuple[ReplicaSpeed, ReplicaSpeed] | None = None,
) -> Estimate:
    """Time and money of the whole job on `replicas` replicas of `num_gpus` GPUs each, which load side by side.

    `calibration`: see `planner/calibrate.py`; a calibration narrows the interval. `ends`: the speeds at the
    shortest and the longest outputs of `workload.output_tokens`; None: both have the tokens a second of `speed`.
    """
    spread = RATE_SPREAD if calibration is None else CALIBRATED_SPREAD
    outputs = workload.output_tokens
    lengths = {length: workload.input_tokens + length for length in (outputs.low, outputs.mid, outputs.high)}
    rates = dict.fromkeys(lengths, speed.tokens_per_second)
    if ends is not None:
        rates |= {outputs.low: ends[0].tokens_per_second, outputs.high: ends[1].tokens_per_second}
    rates[outputs.mid] = speed.tokens_per_second
    rates = {length: rate * replicas * (calibration or 1.0) for length, rate in rates.items()}

    def hours(length: float, load: float, factor: float) -> float:
        return (load + workload.rows * lengths[length] / (rates[length] * factor)) / 3600

    mid = hours(outputs.mid, load_seconds.mid, 1.0)
    taken = Interval(
        low=min(mid, hours(outputs.low, load_seconds.low, spread.high)),
        mid=mid,
        high=max(mid, hours(outputs.high, load_seconds.high, spread.low)),
    )
    hourly = replicas * num_gpus * price_per_gpu_hour
    million = {length: workload.rows * tokens / 1e6 for length, tokens in lengths.items()}
    best = [hours(length, load_seconds.low, spread.high) * hourly / million[length] for length in lengths]
    worst = [hours(length, load_seconds.high, spread.low) * hourly / million[length] for length in lengths]
    return Estimate(
        hours=taken,
        cost_usd=taken.scaled(hourly),
        tokens_per_second=Interval(
            low=min(rates.values()) * spread.low, mid=rates[outputs.mid], high=max(rates.values()) * spread.high
        ),
        usd_per_million_tokens=Interval(low=min(best), mid=mid * hourly / million[outputs.mid], high=max(worst)),
    )

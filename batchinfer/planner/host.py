"""Planning without a GPU: what vLLM's CPU build can run, and whether it fits the host's memory. Pure.

Time and cost are not estimated, because the catalog does not have the speed of host CPUs.
"""

from __future__ import annotations

from typing import Any

from batchinfer.catalog import FOUR_BIT_GROUPS, GIB, ModelShape, accelerators
from batchinfer.errors import ResourceError
from batchinfer.jobspec import JobSpec, ReplicaRange
from batchinfer.planner.cluster import Cluster
from batchinfer.planner.layout import tensor_problem, tensor_sizes
from batchinfer.planner.memory import kv_value_bytes, stages, weight_bytes
from batchinfer.planner.quantize import Source, Weights, by_quality, runs_not, usable
from batchinfer.planner.values import Candidate, EngineSettings, Fit

CPU_KV_CACHE_BYTES = 4 * GIB
"""Bytes of a replica's KV cache on a large machine. The smaller of this and the share below applies."""

CPU_KV_CACHE_SHARE = 0.25
"""Share of the smallest node's memory for the KV caches of all replicas. vLLM 0.32 refuses to start if the KV cache is
larger than the free memory."""

SHORTEST_CONTEXT = 256
"""Tokens of the shortest context that a refusal proposes as a remedy. Lower, and the remedy leaves no room for usual
prompts."""

SMALL_TASK_CPUS = 0.1
"""Ray CPUs of a task that reads or commits, which mostly waits for the store. Above 0.25, a replica, a reader and a
committer do not fit on a single core."""

CPU_REPLICA_CPUS = 0.5
"""Ray CPUs of a replica without a GPU, whose engine uses all cores whatever this says. Above 0.8, a replica, a reader
and a committer do not fit on a single core."""

CACHE_MARGIN = 1.1
"""KV cache over the longest sequence. With less, vLLM's rounding to blocks may leave that sequence without room."""


def default_kv_cache(spec: JobSpec, cluster: Cluster, replicas: int) -> int | None:
    """Bytes of a CPU replica's KV cache; None if the spec sets it. vLLM's own default of 0.9 of the machine's memory
    fails if that much is not free."""
    if spec.engine.gpu_memory_utilization is not None or spec.engine.kv_cache_memory_bytes is not None:
        return None
    return int(min(CPU_KV_CACHE_BYTES, CPU_KV_CACHE_SHARE * cluster.memory_bytes / replicas))


def plan_on_host(
    spec: JobSpec, cluster: Cluster, shape: ModelShape, source: Source, settings: EngineSettings, needed: int
) -> dict[str, Any]:
    """The fields of the plan that depend on the model's dimensions, for a replica on CPU.

    `needed`: tokens of the longest sequence that the replica must hold. Raises SpecError, ModelError or ResourceError.
    """
    weights = usable(source, spec.model.quantization, accelerators()["cpu"])[0]
    require_avx512(source.name, weights.quantization.name, cluster.avx512)
    resources = spec.resources
    tensor = 1 if resources.tensor_parallel == "auto" else resources.tensor_parallel
    pipeline = 1 if resources.pipeline_parallel == "auto" else resources.pipeline_parallel
    require_cut(shape, source.name, weights, tensor, tensor)
    value = 4.0 if spec.model.dtype == "float32" else 2.0
    of_part = max(weight_bytes(shape, weights.quantization, tensor, False, s, value) for s in stages(shape, pipeline))
    own = default_kv_cache(spec, cluster, _replicas(spec))
    parts = tensor * pipeline

    def cache_of(tokens: int) -> float:
        return shape.kv_bytes(tokens, kv_value_bytes(settings, value), tensor) / pipeline

    def missing(tokens: int) -> int:
        return int((of_part + cache_of(tokens) * CACHE_MARGIN) * parts - cluster.memory_bytes)

    one = cache_of(needed)
    if missing(needed) > 0:
        shorter = needed
        while shorter and missing(shorter) > 0:
            shorter //= 2
        raise _too_large(cluster, source, weights, of_part * parts, missing(needed), shorter)
    if own is not None:
        own = max(int(one * CACHE_MARGIN), min(own, cluster.memory_bytes // parts - of_part))
    cache = own or spec.engine.kv_cache_memory_bytes or int(settings.gpu_memory_utilization * cluster.memory_bytes)
    sequences = cache / one
    fit = Fit(
        weight_bytes_per_gpu=of_part,
        overhead_bytes_per_gpu=0,
        kv_cache_bytes_per_gpu=cache,
        kv_cache_tokens=int(sequences * needed),
        sequences=sequences,
        shortfall=max(0, int(one) - cache),
    )
    longest = settings.max_model_len
    if longest is None and fit.kv_cache_tokens < CACHE_MARGIN * shape.context:
        longest = max(needed, int(fit.kv_cache_tokens / CACHE_MARGIN))
    return {
        "quantization": weights.quantization.name,
        "checkpoint": weights.checkpoint,
        "weight_bytes_per_gpu": of_part,
        "kv_cache_tokens": fit.kv_cache_tokens,
        "kv_cache_memory_bytes": own,
        "engine": settings.model_copy(update={"max_model_len": longest}),
        "candidates": (_candidate(weights, tensor, pipeline, _replicas(spec), fit),),
    }


def _candidate(weights: Weights, tensor: int, pipeline: int, replicas: int, fit: Fit) -> Candidate:
    return Candidate(
        quantization=weights.quantization.name,
        checkpoint=weights.checkpoint,
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        expert_parallel=False,
        replicas=replicas,
        num_gpus=0,
        nodes_per_replica=1,
        fit=fit,
        estimate=None,
        verdict="chosen: no GPU; what a CPU takes is not estimated",
    )


def require_cut(shape: ModelShape, name: str, weights: Weights, tensor: int, limit: int) -> None:
    """Raise ResourceError if the model cannot be cut in `tensor` parts. The error names the possible numbers up to
    `limit`."""
    problem = None if tensor == 1 else tensor_problem(shape, weights.quantization, tensor)
    if problem:
        good = ", ".join(map(str, tensor_sizes(shape, weights.quantization, limit)))
        raise ResourceError(
            f"resources.tensor_parallel {tensor} cannot cut {name}: {problem}",
            f"set it to auto or to one that does: {good}",
        )


def require_avx512(model: str, quantization: str, avx512: bool) -> None:
    """Raise ResourceError for 4-bit weights on a CPU without AVX-512: vLLM 0.32 loads such weights and crashes at the
    first request."""
    if quantization in FOUR_BIT_GROUPS and not avx512:
        raise ResourceError(
            f"{model} has {quantization} weights; vLLM's CPU kernel for 4 bits needs AVX-512, "
            "which this machine does not have",
            "take a w8a8 or 16-bit checkpoint, or run on a CPU with AVX-512 or on a GPU",
        )


def require_cpus(spec: JobSpec, cluster: Cluster) -> None:
    """Raise ResourceError if the replicas need every CPU: their readers would stay queued, and the run would hang."""
    asked = _replicas(spec)
    most = int((cluster.cpus - 2 * SMALL_TASK_CPUS) / CPU_REPLICA_CPUS) if cluster.cpus < float("inf") else asked
    if asked > most and not cluster.may_grow:
        raise ResourceError(
            f"resources.replicas {asked} need {asked * CPU_REPLICA_CPUS + 2 * SMALL_TASK_CPUS:g} CPUs with those who "
            f"read and commit; the cluster has {cluster.cpus:g}",
            f"set resources.replicas to {max(1, most)} or less",
        )


def _replicas(spec: JobSpec) -> int:
    asked = spec.resources.replicas
    return 1 if asked == "auto" else asked.max if isinstance(asked, ReplicaRange) else asked


def _too_large(
    cluster: Cluster, source: Source, weights: Weights, size: int, missing: int, shorter: int
) -> ResourceError:
    cpu, linear = accelerators()["cpu"], weights.quantization.bits
    remedies = [
        f"model.quantization: {other.quantization.name}"
        for other in by_quality(source)
        if other.quantization.bits < linear
        and runs_not(other.quantization, cpu) is None
        and size * (1 - other.quantization.bits / linear) > missing
    ][:1]
    remedies.append(f"a machine with {-(-(cluster.memory_bytes + missing) // GIB)} GiB for it")
    if shorter >= SHORTEST_CONTEXT:
        remedies.append(f"engine.max_model_len: {shorter}")
    return ResourceError(
        f"{source.name} does not fit this machine: weights of {size / GIB:.1f} GiB and the KV cache of one sequence "
        f"are {missing / GIB:.1f} GiB more than the {cluster.memory_bytes / GIB:.1f} GiB that there are",
        "the smallest changes that would fit: " + "; ".join(remedies),
    )

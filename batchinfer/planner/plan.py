"""The plan: which weights, which device, how many to a replica, how many replicas, at what price."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from batchinfer.catalog import GIB, Accelerator, Model, ModelShape, QuantizationName, accelerators
from batchinfer.errors import ModelError, ResourceError
from batchinfer.jobspec import EngineSpec, JobSpec, ReplicaRange
from batchinfer.planner.choose import (
    UNKNOWN_PROMPT_TOKENS,
    LayoutChoice,
    LayoutRequest,
    choose,
    fitting_layouts,
    longest_sequence,
)
from batchinfer.planner.cluster import Cluster, accelerator_name, price_of
from batchinfer.planner.host import default_kv_cache, plan_on_host, require_cpus, require_cut
from batchinfer.planner.layout import Nodes, machine_gpus
from batchinfer.planner.quantize import AUTO, Source, Weights, explicit, usable
from batchinfer.planner.refuse import MOST_NODES, refuse
from batchinfer.planner.values import Candidate, EngineSettings, Estimate, PromptSample, Workload

DEFAULT_SLOTS = 256
"""Rows that an engine runs at a time if the model's dimensions are unknown: vLLM's default of `max_num_seqs`, except on
GPUs of 70 GiB and more (1024). Lower than the engine's own, and a replica holds too few shards to fill it."""

LENGTH_SPREAD = 3
"""Duration of a shard's longest answer over the mean answer. A shard stays in flight until its longest answer ends.
Lower, and the other shards in flight run out before that."""

CONTEXT_MARGIN = 1.15
"""KV cache over a context that the plan sets. The fit is an estimate: with less, one sequence of `max_model_len` may
not fit, and vLLM refuses to start."""


class Plan(BaseModel):
    """The layout of a run. A replica uses `num_gpus` = tensor x pipeline parallel GPUs, none on CPU.

    checkpoint: what the engine loads. online: the engine quantizes the checkpoint while loading. Fields from
    expert_parallel on are None or empty if the model's dimensions are unknown. engine: the arguments that the fit
    was computed for. first_estimate: the estimate of the first plan, for a resumed run. sample: lengths and failures
    of the sampled rows. assumed: the GPUs do not exist yet. bill: what is paid for (`resources.bill`);
    price_per_gpu_hour has the share of idle GPUs in it with `machine`. machine_gpus: GPUs of all machines that the
    replicas are on, used or not; None on the CPU. calibration: measured speed over computed speed of earlier runs, by
    which the estimate is corrected; None without such a run, and on the CPU.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str
    quantization: str
    accelerator: str
    tensor_parallel: PositiveInt
    pipeline_parallel: PositiveInt
    min_replicas: NonNegativeInt
    max_replicas: NonNegativeInt
    num_gpus: NonNegativeInt
    price_per_gpu_hour: float = Field(ge=0, allow_inf_nan=False)
    price_source: str
    kv_cache_memory_bytes: int | None
    checkpoint: str | None = None
    online: bool = False
    expert_parallel: bool = False
    nodes_per_replica: int = 1
    weight_bytes_per_gpu: int | None = None
    kv_cache_tokens: int | None = None
    engine: EngineSettings | None = None
    workload: Workload | None = None
    estimate: Estimate | None = None
    first_estimate: Estimate | None = None
    candidates: tuple[Candidate, ...] = ()
    sample: PromptSample | None = None
    assumed: bool = False
    bill: Literal["gpu", "machine"] = "gpu"
    machine_gpus: int | None = None
    calibration: float | None = None

    @property
    def idle_gpus(self) -> int:
        """GPUs of the replicas' machines that no replica uses."""
        return 0 if self.machine_gpus is None else self.machine_gpus - self.num_gpus * self.max_replicas

    @property
    def devices(self) -> int:
        """Devices that a replica is charged for: its GPUs, or 1 for a CPU replica."""
        return max(1, self.num_gpus)

    def document(self) -> dict[str, Any]:
        """What `plan --json` prints: the plan with the chosen layout gathered under `chosen`."""
        values = self.model_dump(mode="json")
        gathered = ("tensor_parallel", "pipeline_parallel", "num_gpus", "weight_bytes_per_gpu", "kv_cache_tokens")
        chosen = {key: values.pop(key) for key in (*gathered, "expert_parallel", "nodes_per_replica")}
        return values | {"chosen": chosen | {"replicas": self.max_replicas}}


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the model: its dimensions and available weights, and the work."""

    shape: ModelShape
    source: Source
    workload: Workload | None
    calibration: float | None


def make_plan(
    spec: JobSpec,
    cluster: Cluster,
    model: str,
    *,
    shape: ModelShape | None = None,
    entry: Model | None = None,
    checkpoint_quantization: QuantizationName = "none",
    workload: Workload | None = None,
    calibration: float | None = None,
) -> Plan:
    """Lay the job out on the cluster; raises UserError if that is impossible.

    `model` is what the accounting calls the model: the source as the user wrote it. `shape`: the model's dimensions;
    without them the layout is that of the spec, with one GPU for auto. `entry`: the model's catalog entry.
    `checkpoint_quantization`: of the weights that `spec.model.source` names. `workload`: the rows' lengths, needed
    for estimates. `calibration`: measured speed over estimated, of earlier runs.
    """
    accelerator = accelerator_name(spec, cluster)
    if accelerator == "cpu":
        require_cpus(spec, cluster)
    if shape is None:
        return _as_asked(spec, cluster, model, accelerator)
    known = Known(shape, source_of(spec, model, entry, checkpoint_quantization), workload, calibration)
    require_consistent(spec, shape, known.source)
    needed = _needed_tokens(spec, known)
    if accelerator == "cpu":
        made = plan_on_host(spec, cluster, shape, known.source, engine_settings(spec.engine), needed)
        return _as_asked(spec, cluster, model, accelerator).model_copy(update=made | {"workload": workload})
    if accelerator not in accelerators():
        return _as_asked(spec, cluster, model, accelerator)
    return _on_gpus(spec, cluster, known, needed, model, accelerator)


def source_of(spec: JobSpec, name: str, entry: Model | None, native: QuantizationName) -> Source:
    """The weights that the spec names, and the catalog's other quantizations of the model. A quantized checkpoint
    that the spec names has no others, because naming it chose the quantization."""
    if entry is None or native != entry.native:
        return Source(name, spec.model.source, native, {})
    published: dict[str, str] = {entry.native: entry.repository}
    published |= {quantization: checkpoint.repository for quantization, checkpoint in entry.checkpoints.items()}
    unverified = frozenset(q for q, checkpoint in entry.checkpoints.items() if not checkpoint.verified)
    short = spec.model.source.lower() == entry.name.lower()
    checkpoint = entry.repository if short else spec.model.source
    return Source(name, checkpoint, native, published, unverified)


def require_consistent(spec: JobSpec, shape: ModelShape, source: Source) -> None:
    """Raise UserError if spec and model contradict each other, whatever the job runs on."""
    asked, context = spec.engine.max_model_len, shape.context
    if asked is not None and asked > context:
        raise ModelError(
            f"engine.max_model_len {asked:,} is longer than the context of {source.name}: {context:,} tokens",
            f"set it to {context} or less, or take a model with a longer context",
        )
    if spec.model.quantization != AUTO:
        explicit(source, spec.model.quantization)


def _needed_tokens(spec: JobSpec, known: Known) -> int:
    """Tokens of the longest sequence that a replica must hold: the user's number, or the longest prompt and answer."""
    asked, context = spec.engine.max_model_len, known.shape.context
    if asked is not None:
        return asked
    prompt = UNKNOWN_PROMPT_TOKENS if known.workload is None else known.workload.longest_input_tokens
    answers = [job.sampling.max_tokens for job in spec.step_jobs] if spec.generates else [0]
    if known.workload is not None and known.workload.longest_output_tokens is not None:
        answers.append(known.workload.longest_output_tokens)
    return min(context, prompt + max(answers))


def engine_settings(engine: EngineSpec, facts: Accelerator | None = None) -> EngineSettings:
    """The engine arguments that memory and time depend on: the spec's, otherwise vLLM's defaults for offline work on
    the accelerator of `facts`."""
    given = engine.model_dump(include=set(EngineSettings.model_fields), exclude_none=True)
    return EngineSettings(**(_large_batches(facts) | given))


def _large_batches(facts: Accelerator | None) -> dict[str, int]:
    """vLLM 0.32's larger defaults, for a GPU of 70 GiB or more that is no A100 and for any of 160 GiB or more
    (EngineArgs, the defaults of `LLM`)."""
    memory = facts.memory_bytes or 0 if facts else 0
    ampere = facts is not None and facts.capability == 80
    if memory >= 160 * GIB or (memory >= 70 * GIB and not ampere):
        return {"max_num_seqs": 1024, "max_num_batched_tokens": 16384}
    return {}


def _on_gpus(spec: JobSpec, cluster: Cluster, known: Known, needed: int, model: str, accelerator: str) -> Plan:
    facts = accelerators()[accelerator]
    if spec.model.dtype == "bfloat16" and "bf16" not in facts.tflops:
        raise ResourceError(f"{accelerator} has no bfloat16", "set model.dtype to auto or float16")
    price, price_source = price_of(spec, accelerator)
    resources = spec.resources
    request = LayoutRequest(
        shape=known.shape,
        source=known.source,
        accelerator=facts,
        accelerator_name=accelerator,
        nodes=_nodes(cluster, facts),
        settings=engine_settings(spec.engine, facts),
        needed_tokens=needed,
        workload=known.workload,
        calibration=known.calibration,
        price_per_gpu_hour=price,
        deadline_hours=spec.limits.max_runtime_hours,
        replicas=None if resources.replicas == "auto" else resources.replicas,
        tensor=None if resources.tensor_parallel == "auto" else resources.tensor_parallel,
        pipeline=None if resources.pipeline_parallel == "auto" else resources.pipeline_parallel,
        value_bytes=4.0 if spec.model.dtype == "float32" else 2.0,
        may_grow=cluster.may_grow,
        per_machine=_per_machine(cluster, facts.node_gpus),
        by_machine=resources.bill == "machine",
    )
    weights = usable(known.source, spec.model.quantization, facts)
    _require_room(request)
    if request.tensor is not None:
        require_cut(known.shape, known.source.name, weights[0], request.tensor, request.nodes.per_node)
    request, choice = _choose(request, weights)
    taken, layout = choice.taken, choice.taken.layout
    low = resources.replicas.min if isinstance(resources.replicas, ReplicaRange) else taken.replicas
    return Plan(
        model=model,
        quantization=taken.weights.quantization.name,
        accelerator=accelerator,
        tensor_parallel=layout.tensor,
        pipeline_parallel=layout.pipeline,
        min_replicas=low,
        max_replicas=taken.replicas,
        num_gpus=layout.gpus,
        **_paid_for(spec, price, price_source, layout.gpus, layout.nodes, taken.replicas, request.per_machine),
        kv_cache_memory_bytes=None,
        checkpoint=taken.weights.checkpoint,
        online=taken.weights.online,
        expert_parallel=layout.expert_parallel,
        nodes_per_replica=layout.nodes,
        weight_bytes_per_gpu=taken.fit.weight_bytes_per_gpu,
        kv_cache_tokens=taken.fit.kv_cache_tokens,
        engine=_with_context(request, choice),
        workload=known.workload,
        estimate=taken.estimate,
        candidates=choice.candidates,
        assumed=cluster.assumed,
        calibration=known.calibration if taken.estimate is not None else None,
    )


def _per_machine(cluster: Cluster, of_kind: int) -> int:
    """GPUs of one machine as it is rented: the cluster's largest, or the kind's if the cluster is not there yet."""
    return of_kind if cluster.assumed or not cluster.gpus else cluster.largest_node_gpus


def _paid_for(
    spec: JobSpec, price: float, source: str, gpus: int, nodes: int, replicas: int, per_machine: int
) -> dict[str, Any]:
    """The fields of a plan that say what a used GPU costs, and which GPUs are paid for."""
    used, paid = gpus * replicas, machine_gpus(gpus, nodes, replicas, per_machine)
    if spec.resources.bill == "machine" and paid > used:
        price, source = price * paid / used, f"{source}, for {paid} GPUs of which {used} are used"
    return {
        "price_per_gpu_hour": price, "price_source": source, "bill": spec.resources.bill, "machine_gpus": paid
    }  # fmt: skip


def _nodes(cluster: Cluster, facts: Accelerator) -> Nodes:
    """A cluster that can grow from nothing is counted as one node of the catalog's size."""
    if cluster.gpus == 0:
        return Nodes(facts.node_gpus, facts.node_gpus)
    return Nodes(cluster.gpus, min(cluster.largest_node_gpus, facts.node_gpus))


def _require_room(request: LayoutRequest) -> None:
    """Raise ResourceError if the layout that the user asked for needs more GPUs than the cluster can have."""
    tensor, pipeline = request.tensor or 1, request.pipeline or 1
    if pipeline > request.shape.layers:
        raise ResourceError(
            f"resources.pipeline_parallel {pipeline} is more than the {request.shape.layers} layers of the model",
            "lower it: a stage holds one layer or more",
        )
    if tensor > request.nodes.per_node and (request.may_grow or tensor <= request.nodes.gpus):
        raise ResourceError(
            f"a replica of {tensor} GPUs does not fit on any node: the largest has {request.nodes.per_node}",
            "lower resources.tensor_parallel: a tensor parallel group lives on one node",
        )
    asked = request.replicas
    _require_gpus(1 if asked is None else asked if isinstance(asked, int) else asked.min, tensor * pipeline, request)


def _require_gpus(replicas: int, size: int, request: LayoutRequest) -> None:
    if replicas * size > request.nodes.gpus and not request.may_grow:
        raise ResourceError(
            f"{replicas} replica(s) of {size} GPU(s) need {replicas * size} GPUs; the cluster has {request.nodes.gpus}",
            "lower resources.replicas or resources.tensor_parallel, or run on a larger cluster",
        )


def _choose(request: LayoutRequest, weights: list[Weights]) -> tuple[LayoutRequest, LayoutChoice]:
    """The choice on the present GPUs; if none fits and the cluster may grow, on as many more nodes as needed."""
    sizes = [request.nodes.gpus]
    if request.may_grow:
        node = request.nodes.per_node
        sizes += [node * count for count in range(1, MOST_NODES + 1) if node * count > request.nodes.gpus]
    for gpus in sizes:
        grown = replace(request, nodes=Nodes(gpus, request.nodes.per_node))
        choice = choose(grown, weights)
        if choice is not None:
            return grown, choice
    asked = request.replicas
    if asked is not None:
        for one in weights:
            sizes = [layout.gpus for layout in fitting_layouts(request, one)]
            if sizes:
                _require_gpus(asked if isinstance(asked, int) else asked.min, min(sizes), request)
    raise refuse(request, weights, accelerators())


def _with_context(request: LayoutRequest, choice: LayoutChoice) -> EngineSettings:
    """The engine's settings, with a shorter context if the KV cache does not hold the model's own."""
    settings, context = request.settings, request.shape.context
    if settings.max_model_len is not None:
        return settings
    of = (request, choice.taken.weights, choice.taken.layout)
    if not request.holds(*of[1:], int(context * CONTEXT_MARGIN)):
        held = longest_sequence(*of, context, CONTEXT_MARGIN)
        return settings.model_copy(update={"max_model_len": max(held, request.needed_tokens)})
    return settings


def _as_asked(spec: JobSpec, cluster: Cluster, model: str, accelerator: str) -> Plan:
    """The layout as the spec has it, for a model of unknown dimensions and for the CPU."""
    resources = spec.resources
    tensor = 1 if resources.tensor_parallel == "auto" else resources.tensor_parallel
    pipeline = 1 if resources.pipeline_parallel == "auto" else resources.pipeline_parallel
    num_gpus = 0 if accelerator == "cpu" else tensor * pipeline
    fits = 1 if accelerator == "cpu" else cluster.gpus // num_gpus
    if isinstance(resources.replicas, ReplicaRange):
        low, high = resources.replicas.min, resources.replicas.max
    else:
        low = high = max(1, fits) if resources.replicas == "auto" else resources.replicas
    if num_gpus and low > fits and not cluster.may_grow:
        raise ResourceError(
            f"{low} replica(s) of {num_gpus} GPU(s) need {low * num_gpus} GPUs; the cluster has {cluster.gpus}",
            "lower resources.replicas or resources.tensor_parallel, or run on a larger cluster",
        )
    if num_gpus and tensor > cluster.largest_node_gpus and cluster.gpus:
        raise ResourceError(
            f"a replica of {num_gpus} GPUs does not fit on any node: the largest has {cluster.largest_node_gpus}",
            "lower resources.tensor_parallel: a tensor parallel group lives on one node",
        )
    on_each = max(1, cluster.largest_node_gpus // tensor)
    price, price_source = price_of(spec, accelerator)
    nodes = -(-pipeline // on_each) if num_gpus else 1
    paid: dict[str, Any] = {"price_per_gpu_hour": price, "price_source": price_source, "bill": resources.bill}
    if num_gpus:
        of_kind = accelerators()[accelerator].node_gpus if accelerator in accelerators() else num_gpus
        paid = _paid_for(spec, price, price_source, num_gpus, nodes, high, _per_machine(cluster, of_kind))
    return Plan(
        model=model,
        quantization=spec.model.quantization,
        accelerator=accelerator,
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        min_replicas=low,
        max_replicas=high,
        num_gpus=num_gpus,
        **paid,
        kv_cache_memory_bytes=default_kv_cache(spec, cluster, high) if accelerator == "cpu" else None,
        nodes_per_replica=nodes,
        assumed=cluster.assumed,
    )


def shards_in_flight(slots: int, rows_per_shard: int, sharing: bool) -> int:
    """How many shards a replica holds so that its engine never runs empty between two.

    While one shard ends, the others must fill the engine's slots and keep as many rows queued, for LENGTH_SPREAD
    mean answers. That needs 1 + 2 x LENGTH_SPREAD x slots / rows shards, between 3 and 16. If rows that lie apart
    share a prefix (`sharing`), it is 16: such rows hit the prefix cache only if one replica has them in flight
    together.
    """
    return 16 if sharing else max(3, min(16, 1 + -(-2 * LENGTH_SPREAD * slots // max(1, rows_per_shard))))

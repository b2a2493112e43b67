"""The plan: which device, how many to a replica, how many replicas, at what price."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from batchinfer.catalog import accelerators, list_price
from batchinfer.errors import ResourceError
from batchinfer.spec import JobSpec, ReplicaRange

DEFAULT_SLOTS = 256
CPU_KV_CACHE_BYTES = 4 * 2**30
CPU_KV_CACHE_SHARE = 0.25

_RAY_NAMES = {
    "A100-40G": "A100-40GB",
    "A100-80G": "A100-80GB",
    "A100": "A100-80GB",
    "AMD-Instinct-MI300X-OAM": "MI300X",
    "AMD-Instinct-MI325X-OAM": "MI325X",
}
"""Ray's names for accelerators that differ from the catalog's."""


class Cluster(BaseModel):
    """What there is to run on: GPUs in all and on the largest node, their Ray accelerator type if it is
    one, and memory in bytes of the smallest node."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpus: int
    largest_node_gpus: int
    accelerator_type: str | None
    memory_bytes: int


class Plan(BaseModel):
    """The layout of a run. A replica takes `num_gpus` = tensor x pipeline parallel GPUs, none on CPU."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str
    quantization: str
    accelerator: str
    tensor_parallel: int
    pipeline_parallel: int
    min_replicas: int
    max_replicas: int
    num_gpus: int
    price_per_gpu_hour: float
    price_source: str
    kv_cache_memory_bytes: int | None

    @property
    def devices(self) -> int:
        """Devices that a replica is charged for: its GPUs, or 1 for a CPU replica."""
        return max(1, self.num_gpus)


def make_plan(spec: JobSpec, cluster: Cluster, model: str) -> Plan:
    """Lay the job out on the cluster; raises ResourceError where it cannot be.

    `model` is what the accounting calls the model: the source as the user wrote it.
    """
    accelerator = _accelerator(spec, cluster)
    resources = spec.resources
    tensor = 1 if resources.tensor_parallel == "auto" else resources.tensor_parallel
    pipeline = 1 if resources.pipeline_parallel == "auto" else resources.pipeline_parallel
    num_gpus = 0 if accelerator == "cpu" else tensor * pipeline
    fits = 1 if accelerator == "cpu" else cluster.gpus // num_gpus
    if isinstance(resources.replicas, ReplicaRange):
        low, high = resources.replicas.min, resources.replicas.max
    else:
        low = high = max(1, fits) if resources.replicas == "auto" else resources.replicas
    if num_gpus and low > fits:
        raise ResourceError(
            f"{low} replica(s) of {num_gpus} GPU(s) need {low * num_gpus} GPUs; the cluster has {cluster.gpus}",
            "lower resources.replicas or resources.tensor_parallel, or run on a larger cluster",
        )
    if num_gpus > cluster.largest_node_gpus:
        raise ResourceError(
            f"a replica of {num_gpus} GPUs does not fit on any node: the largest has {cluster.largest_node_gpus}",
            "lower resources.tensor_parallel x resources.pipeline_parallel: a replica lives on one node",
        )
    price, price_source = _price(spec, accelerator)
    return Plan(
        model=model,
        quantization=spec.model.quantization,
        accelerator=accelerator,
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        min_replicas=low,
        max_replicas=high,
        num_gpus=num_gpus,
        price_per_gpu_hour=price,
        price_source=price_source,
        kv_cache_memory_bytes=_cpu_kv_cache(spec, cluster, high) if accelerator == "cpu" else None,
    )


def _accelerator(spec: JobSpec, cluster: Cluster) -> str:
    asked = spec.resources.accelerator
    found = cluster.accelerator_type and _RAY_NAMES.get(cluster.accelerator_type, cluster.accelerator_type)
    if asked == "auto":
        if cluster.gpus == 0:
            return "cpu"
        if found is None:
            raise ResourceError(
                "the cluster has GPUs of no kind that Ray knows, or of several",
                "set resources.accelerator to the one that the job shall run on",
            )
        return found
    if asked != "cpu" and cluster.gpus == 0:
        raise ResourceError(
            f"resources.accelerator is {asked}, but there is no GPU here",
            "run on a cluster that has them, or set resources.accelerator: cpu",
        )
    # Ray says A100 and H100 for every kind of them.
    family = asked.startswith(f"{cluster.accelerator_type}-")
    if asked != "cpu" and found in accelerators() and found != asked and not family:
        raise ResourceError(
            f"resources.accelerator is {asked}, but the GPUs here are {found}",
            "set resources.accelerator: auto, or run on a cluster that has them",
        )
    return asked


def _price(spec: JobSpec, accelerator: str) -> tuple[float, str]:
    if spec.resources.price_per_gpu_hour is not None:
        return spec.resources.price_per_gpu_hour, "resources.price_per_gpu_hour"
    try:
        price = list_price(accelerator)
    except KeyError:
        price = None
    if price is None:
        raise ResourceError(
            f"the catalog knows no price for {accelerator}",
            "set resources.price_per_gpu_hour (and resources.accelerator where the GPU was not recognised)",
        )
    return price.usd_per_hour, str(price)


def _cpu_kv_cache(spec: JobSpec, cluster: Cluster, replicas: int) -> int | None:
    """vLLM's own default on CPU takes 0.9 of the machine's memory and fails when that is not free."""
    if spec.engine.gpu_memory_utilization is not None or spec.engine.kv_cache_memory_bytes is not None:
        return None
    return int(min(CPU_KV_CACHE_BYTES, CPU_KV_CACHE_SHARE * cluster.memory_bytes / replicas))


def shards_in_flight(slots: int, rows_per_shard: int) -> int:
    """How many shards a replica holds so that its engine never drains between two.

    While one shard ends, the others must fill the engine's slots, with as many rows again waiting to
    take over: 1 + 2 x slots / rows, between 3 and 16.
    """
    return max(3, min(16, 1 + -(-2 * slots // max(1, rows_per_shard))))

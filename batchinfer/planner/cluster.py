"""What a job is planned for: the machines of a cluster, or assumed ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from batchinfer.catalog import accelerators, list_price
from batchinfer.errors import ResourceError
from batchinfer.jobspec import JobSpec

_RAY_NAMES = {
    "A100-40G": "A100-40GB",
    "A100-80G": "A100-80GB",
    "A100": "A100-80GB",
    "AMD-Instinct-MI300X-OAM": "MI300X",
    "AMD-Instinct-MI325X-OAM": "MI325X",
}
"""Ray's names for accelerators that differ from the catalog's."""


class Cluster(BaseModel):
    """The machines to run on: GPUs in total and on the largest node, their Ray accelerator type if all share
    one, and bytes of memory of the smallest node.

    may_grow: an autoscaler can add nodes. assumed: the GPUs do not exist yet. cpus: CPU cores in total.
    avx512: False if a CPU is known to lack AVX-512, which vLLM's 4-bit kernels for CPUs need.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpus: int
    largest_node_gpus: int
    accelerator_type: str | None
    memory_bytes: int
    may_grow: bool = False
    assumed: bool = False
    cpus: float = float("inf")
    avx512: bool = True


def cluster_of(nodes: Sequence[Mapping[str, float]], may_grow: bool = False, avx512: bool = True) -> Cluster:
    """The cluster of one or more nodes, each given by its resources under Ray's names."""
    types = {
        name.removeprefix("accelerator_type:")
        for resources in nodes
        for name in resources
        if name.startswith("accelerator_type:")
    }
    gpus = [int(resources.get("GPU", 0)) for resources in nodes]
    return Cluster(
        gpus=sum(gpus),
        largest_node_gpus=max(gpus),
        accelerator_type=types.pop() if len(types) == 1 else None,
        memory_bytes=int(min(resources.get("memory", 0) for resources in nodes)),
        may_grow=may_grow,
        cpus=sum(resources.get("CPU", 0) for resources in nodes),
        avx512=avx512,
    )


def autoscaled(node_types: Iterable[str]) -> bool:
    """Whether an autoscaler launched one of these nodes. Ray gives a node that was started by hand the type
    `node_<id>`."""
    return any(not name.startswith("node_") for name in node_types)


def shortage(needs: Mapping[str, float], free: Mapping[str, float]) -> dict[str, float]:
    """The free amount of each resource that is below `needs`; empty if nothing has to wait."""
    return {name: free.get(name, 0.0) for name, amount in needs.items() if free.get(name, 0.0) < amount}


def assumed_cluster(spec: JobSpec, memory_bytes: int, gpus: int | None = None) -> Cluster:
    """The cluster for a plan on a machine without the GPU that `resources.accelerator` names.

    It has `gpus` GPUs; if `gpus` is None, one node of the catalog's size, and may grow. If the spec names no GPU, it
    is this machine as CPU."""
    name = spec.resources.accelerator
    if name in ("auto", "cpu"):
        return Cluster(
            gpus=0, largest_node_gpus=0, accelerator_type=None, memory_bytes=memory_bytes, assumed=name == "auto"
        )
    node = accelerators()[name].node_gpus
    return Cluster(
        gpus=gpus or node,
        largest_node_gpus=min(gpus or node, node),
        accelerator_type=name,
        memory_bytes=memory_bytes,
        may_grow=gpus is None,
        assumed=True,
    )


def accelerator_name(spec: JobSpec, cluster: Cluster) -> str:
    """The catalog's name of the device that the job runs on; raises ResourceError if the cluster lacks it."""
    asked = spec.resources.accelerator
    found = cluster.accelerator_type and _RAY_NAMES.get(cluster.accelerator_type, cluster.accelerator_type)
    if asked == "auto":
        if cluster.gpus == 0:
            return "cpu"
        if found is None:
            raise ResourceError(
                "the cluster has GPUs of an unknown kind, or of several kinds",
                "set resources.accelerator to the one that the job should run on",
            )
        return found
    if asked != "cpu" and cluster.gpus == 0 and not cluster.may_grow:
        raise ResourceError(
            f"resources.accelerator is {asked}, but there is no GPU here",
            "run on a cluster that has them, or set resources.accelerator: cpu",
        )
    # Ray says A100 and H100 for every variant.
    family = asked.startswith(f"{cluster.accelerator_type}-")
    if asked != "cpu" and found in accelerators() and found != asked and not family:
        raise ResourceError(
            f"resources.accelerator is {asked}, but the GPUs here are {found}",
            "set resources.accelerator: auto, or run on a cluster that has them",
        )
    return asked


def price_of(spec: JobSpec, accelerator: str) -> tuple[float, str]:
    """USD for one device and hour, and where the figure comes from."""
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

"""The error for a model that does not fit: the missing bytes, and the smallest changes that would fit. Pure.

Every remedy is computed with the same fit as the refusal: fewer bits, more GPUs, another GPU, a shorter context.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from batchinfer.catalog.accelerators import GIB, Accelerator
from batchinfer.errors import ResourceError
from batchinfer.planner.choose import LayoutRequest, fitting_layouts, longest_sequence
from batchinfer.planner.host import SHORTEST_CONTEXT
from batchinfer.planner.layout import Nodes, ReplicaLayout, nodes_of, pays_expert_parallel, tensor_sizes
from batchinfer.planner.quantize import Weights, by_quality, runs_not

MOST_NODES = 16
"""Nodes of the largest cluster that is searched for a layout beyond the present GPUs, if an autoscaler may add nodes or
for a remedy. A model that needs more is refused."""


def refuse(request: LayoutRequest, tried: list[Weights], catalog: Mapping[str, Accelerator]) -> ResourceError:
    """The error for a request none of whose `tried` weights fits; `catalog`: the accelerators to propose."""
    weights, layout = _nearest(request, tried)
    of = request.fit(weights, layout)
    gpus = request.nodes.gpus
    size = request.accelerator.memory_bytes
    assert size is not None
    remedies = [remedy for remedy in _remedies(request, tried, catalog) if remedy]
    return ResourceError(
        f"{request.source.name} {_in(weights)} does not fit {gpus} x {request.accelerator_name}: at {layout} each GPU "
        f"is {of.shortfall / GIB:.1f} GiB short (weights {of.weight_bytes_per_gpu / GIB:.1f}, working memory "
        f"{of.overhead_bytes_per_gpu / GIB:.1f}, of {size * request.settings.gpu_memory_utilization / GIB:.1f} GiB, "
        f"with room for one sequence of {request.needed_tokens:,} tokens)",
        "the smallest changes that would fit: " + "; ".join(remedies) if remedies else "take a smaller model",
    )


def _nearest(request: LayoutRequest, tried: list[Weights]) -> tuple[Weights, ReplicaLayout]:
    """The tried weights and layout with the smallest shortfall."""
    made: list[tuple[int, int, Weights, ReplicaLayout]] = []
    for weights in tried:
        most = min(request.nodes.gpus, request.nodes.per_node)
        sizes = [request.tensor] if request.tensor else tensor_sizes(request.shape, weights.quantization, most)
        widest = max((size for size in sizes if size <= most), default=sizes[0])
        stages = request.pipeline or max(1, min(request.shape.layers, request.nodes.gpus // widest))
        expert = pays_expert_parallel(request.shape, weights.quantization, widest)
        layout = ReplicaLayout(widest, stages, expert, nodes_of(widest, stages, request.nodes.per_node))
        made.append((request.fit(weights, layout).shortfall, len(made), weights, layout))
    _, _, weights, layout = min(made)
    return weights, layout


def _remedies(request: LayoutRequest, tried: list[Weights], catalog: Mapping[str, Accelerator]) -> Iterator[str]:
    fewest = tried[-1]
    yield _fewer_bits(request, tried)
    yield _more_gpus(request, fewest)
    yield _another_gpu(request, fewest, catalog)
    yield _shorter(request, tried)


def _fewer_bits(request: LayoutRequest, tried: list[Weights]) -> str:
    for weights in by_quality(request.source):
        if weights in tried or runs_not(weights.quantization, request.accelerator):
            continue
        if fitting_layouts(request, weights):
            return f"model.quantization: {weights.quantization.name}"
    return ""


def _more_gpus(request: LayoutRequest, weights: Weights) -> str:
    free = replace(request, tensor=None, pipeline=None, replicas=None)
    node = request.accelerator.node_gpus
    for gpus in [*range(1, node), *(node * count for count in range(1, MOST_NODES + 1))]:
        if gpus <= request.nodes.gpus and request.tensor is None:
            continue
        found = fitting_layouts(replace(free, nodes=Nodes(gpus, node)), weights)
        if found:
            best = min(found, key=lambda layout: (layout.gpus, layout.pipeline))
            where = f" on {best.nodes} nodes" if best.nodes > 1 else ""
            return f"{best.gpus} x {request.accelerator_name}{where} ({best}{_bits(request, weights)})"
    return ""


def _another_gpu(request: LayoutRequest, weights: Weights, catalog: Mapping[str, Accelerator]) -> str:
    """The accelerator with the least memory that fits with the same number of GPUs."""
    for name, other in sorted(catalog.items(), key=lambda item: item[1].memory_bytes or 0):
        if other.memory_bytes is None or other.vendor == "cpu" or name == request.accelerator_name:
            continue
        if runs_not(weights.quantization, other):
            continue
        gpus = request.nodes.gpus
        nodes = Nodes(gpus, min(request.nodes.per_node, other.node_gpus))
        found = fitting_layouts(replace(request, accelerator=other, accelerator_name=name, nodes=nodes), weights)
        if found:
            return f"{min(layout.gpus for layout in found)} x {name}{_bits(request, weights)}"
    return ""


def _shorter(request: LayoutRequest, tried: list[Weights]) -> str:
    weights, layout = _nearest(request, tried)
    longest = longest_sequence(request, weights, layout, request.needed_tokens)
    return f"engine.max_model_len: {longest}" if longest >= SHORTEST_CONTEXT else ""


def _in(weights: Weights) -> str:
    name = weights.quantization.name
    return "in 16 bits" if name == "none" else f"in {name}"


def _bits(request: LayoutRequest, weights: Weights) -> str:
    name = weights.quantization.name
    return "" if name == request.source.native else f", {_in(weights)}"

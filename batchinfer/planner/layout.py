"""The ways to cut one replica over GPUs: tensor, pipeline and expert parallel. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from batchinfer.catalog.quantization import FOUR_BIT_GROUPS, Quantization
from batchinfer.catalog.shape import ModelShape
from batchinfer.planner.memory import VOCABULARY_PADDING

BLOCK = 128
"""Weights that share a scale: fp8's blocks are 128 x 128, AWQ, GPTQ and W4A16 group 128 of an input.

vLLM refuses a part of a matrix that is not a whole number of blocks ("not divisible by weight quantization
block_n = 128", and the same for groups), such as an eighth of Qwen3-235B's experts of 1536.
"""

_BLOCKED_EXPERTS = ("fp8", *FOUR_BIT_GROUPS)


@dataclass(frozen=True, slots=True)
class Nodes:
    """The GPUs to lay out on: of one kind, `gpus` in all, at most `per_node` of them joined by NVLink."""

    gpus: int
    per_node: int

    @property
    def count(self) -> int:
        """Whole nodes, at least 1."""
        return max(1, self.gpus // self.per_node)


@dataclass(frozen=True, slots=True)
class ReplicaLayout:
    """One replica: `pipeline` stages of `tensor` GPUs each, over `nodes` nodes."""

    tensor: int
    pipeline: int
    expert_parallel: bool
    nodes: int

    @property
    def gpus(self) -> int:
        return self.tensor * self.pipeline

    def __str__(self) -> str:
        return f"TP{self.tensor}" + (f" PP{self.pipeline}" if self.pipeline > 1 else "")


def tensor_problem(shape: ModelShape, quantization: Quantization, tensor: int) -> str | None:
    """Why the model cannot be cut in `tensor` parts; None if it can. The rules are vLLM's."""
    if shape.attention_heads % tensor:
        return f"{shape.attention_heads} attention heads do not divide by {tensor}"
    if shape.linear is not None and shape.linear.key_heads % tensor:
        return f"{shape.linear.key_heads} heads of linear attention do not divide by {tensor}"
    if shape.latent is None and shape.kv_heads % tensor and tensor % shape.kv_heads:
        return f"{shape.kv_heads} KV heads do not divide by {tensor}"
    padded = -(-shape.vocab_size // VOCABULARY_PADDING) * VOCABULARY_PADDING
    if padded % tensor:
        return f"a vocabulary of {shape.vocab_size:,} does not divide by {tensor}"
    dense = shape.experts is None or shape.experts.layers < shape.layers
    if dense and (problem := _uneven(shape.intermediate_size, tensor, quantization.name in FOUR_BIT_GROUPS)):
        return f"the MLP's {problem}"
    if shape.experts:
        if problem := _uneven(shape.experts.shared_size, tensor, quantization.name in FOUR_BIT_GROUPS):
            return f"the shared experts' {problem}"
        problem = _uneven(shape.experts.intermediate_size, tensor, quantization.name in _BLOCKED_EXPERTS)
        if problem and shape.experts.count % tensor:
            return f"the experts' {problem}"
    return None


def _uneven(size: int, parts: int, blocks: bool) -> str | None:
    if size % parts:
        return f"intermediate size {size:,} does not divide by {parts}"
    # If the uncut size is no multiple of BLOCK, the matrix was quantized in another way and the rule does not apply.
    if blocks and size % BLOCK == 0 and (size // parts) % BLOCK:
        return f"intermediate size {size:,} cut in {parts} leaves no whole blocks of {BLOCK} quantized weights"
    return None


def tensor_sizes(shape: ModelShape, quantization: Quantization, limit: int) -> list[int]:
    """Every number of parts, up to `limit`, that the model can be cut in; 1 is always among them."""
    return [n for n in range(1, limit + 1) if n == 1 or tensor_problem(shape, quantization, n) is None]


def pays_expert_parallel(shape: ModelShape, quantization: Quantization, tensor: int) -> bool:
    """Whether whole experts on each GPU are better than a part of every expert.

    Whole experts are better if a cut breaks the experts' quantization blocks, which vLLM refuses. They are also
    better if a part is no whole matrix tile of 128, because a GPU computes the rest of the tile for nothing.
    Otherwise, or if the experts do not divide by the GPUs, parts are better: all GPUs share every expert's work
    evenly, whatever the router does.
    """
    if shape.experts is None or tensor == 1 or shape.experts.count % tensor:
        return False
    size = shape.experts.intermediate_size
    return bool(size % tensor) or (size % BLOCK == 0 and bool((size // tensor) % BLOCK))


def nodes_of(tensor: int, pipeline: int, per_node: int) -> int:
    """Nodes of a replica whose tensor-parallel groups each lie on one node."""
    return -(-pipeline // max(1, per_node // tensor))


def replicas_that_fit(layout: ReplicaLayout, nodes: Nodes) -> int:
    """How many replicas the GPUs hold, each as compact as it can be."""
    if layout.nodes > 1:
        return nodes.gpus // nodes.per_node // layout.nodes
    whole, rest = divmod(nodes.gpus, nodes.per_node)
    return whole * (nodes.per_node // layout.gpus) + rest // layout.gpus


def machine_gpus(gpus: int, nodes: int, replicas: int, per_machine: int) -> int:
    """GPUs of all machines that `replicas` replicas of `gpus` GPUs over `nodes` nodes each are on, used or not.

    Replicas that fit one machine share it."""
    machines = replicas * nodes if nodes > 1 else -(-replicas // max(1, per_machine // gpus))
    return max(machines * per_machine, replicas * gpus)


def layouts(
    shape: ModelShape,
    quantization: Quantization,
    nodes: Nodes,
    fits: Callable[[ReplicaLayout], bool],
    tensor: int | None = None,
    pipeline: int | None = None,
) -> Iterator[ReplicaLayout]:
    """The layouts worth comparing. Some do not fit, so that a reader sees how far off they are.

    Each tensor-parallel size has the shortest pipeline that fits one node: more stages only wait for each other.
    A replica spans nodes only if no layout fits one node. Its pipeline then runs over the nodes, and each node is
    cut in as many parts as the model allows (vLLM's advice for many nodes: tensor parallel inside a node, pipeline
    parallel between nodes). `tensor` and `pipeline`: as the user asked, None to choose.
    """
    on_node = min(nodes.per_node, nodes.gpus)
    sizes = [tensor] if tensor is not None else tensor_sizes(shape, quantization, on_node)
    found = False
    for size in sizes:
        longest = min(shape.layers, on_node // size)
        for stages in [pipeline] if pipeline is not None else range(1, longest + 1):
            layout = _layout(shape, quantization, size, stages, nodes)
            room = layout.nodes <= nodes.count and layout.gpus <= nodes.gpus and stages <= shape.layers
            good = room and fits(layout)
            found = found or good
            if room and (good or stages == 1 or pipeline is not None):
                yield layout
            if good:
                break
    if found or pipeline is not None:
        return
    widest = max((size for size in sizes if size <= nodes.per_node), default=None)
    if widest is None:
        return
    on_each = nodes.per_node // widest
    for count in range(2, nodes.count + 1):
        if on_each * count > shape.layers:
            return
        layout = _layout(shape, quantization, widest, on_each * count, nodes)
        if fits(layout):
            yield layout
            return


def _layout(shape: ModelShape, quantization: Quantization, tensor: int, pipeline: int, nodes: Nodes) -> ReplicaLayout:
    return ReplicaLayout(
        tensor,
        pipeline,
        pays_expert_parallel(shape, quantization, tensor),
        nodes_of(tensor, pipeline, nodes.per_node),
    )

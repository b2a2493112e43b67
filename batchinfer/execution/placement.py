"""Placement of a replica that needs more GPUs than one node has: a Ray placement group for each replica.

A tensor parallel group communicates after every layer and must lie on one node. Pipeline stages communicate once
a step and may lie on different nodes. Ray may split a placement group anywhere, so each bundle is pinned to a node.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from batchinfer.errors import ResourceError
from batchinfer.execution import ray_private
from batchinfer.planner import Plan

_NODE = "ray.io/node-id"


def nodes_for(free: Mapping[str, int], tensor: int, pipeline: int) -> list[str] | None:
    """The node of each pipeline stage, for the free GPUs of each node; None if the GPUs do not suffice.

    Nodes with the most free GPUs are filled first, so the stages lie on the fewest nodes.
    """
    chosen: list[str] = []
    for node, gpus in sorted(free.items(), key=lambda item: (-item[1], item[0])):
        chosen += [node] * min(gpus // tensor, pipeline - len(chosen))
    return chosen if len(chosen) == pipeline else None


class Placements:
    """Makes the placement group of each replica that starts, and removes them all."""

    def __init__(self, plan: Plan, cpus: float) -> None:
        self._plan = plan
        self._cpus = cpus
        self._groups: list[PlacementGroup] = []

    def __call__(self) -> dict[str, Any]:
        """Ray's arguments for the next replica's actor, which runs in the first bundle and reserves no GPU itself."""
        group = self._make()
        return {
            "num_gpus": 0,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=0, placement_group_capture_child_tasks=True
            ),
        }

    def _make(self) -> PlacementGroup:
        tensor, pipeline = self._plan.tensor_parallel, self._plan.pipeline_parallel
        # vLLM takes one GPU from a bundle; the actor beside the first worker needs its share of a CPU.
        bundles: list[dict[str, float]] = [{"GPU": 1} for _ in range(tensor * pipeline)]
        bundles[0]["CPU"] = self._cpus
        nodes = nodes_for(_free_gpus(), tensor, pipeline)
        pinned = None if nodes is None else [{_NODE: node} for node in nodes for _ in range(tensor)]
        # Without free GPUs the group is queued and an autoscaler adds nodes; whole nodes keep the group together.
        group = placement_group(bundles, strategy="PACK", bundle_label_selector=pinned)
        self._groups.append(group)
        ray.get(group.ready())
        self._require_whole_groups(group, tensor)
        return group

    def _require_whole_groups(self, group: PlacementGroup, tensor: int) -> None:
        on: dict[str, int] = {}
        for node in placement_group_table(group)["bundles_to_node_id"].values():
            on[node] = on.get(node, 0) + 1
        if any(count % tensor for count in on.values()):
            shares = ", ".join(str(count) for count in sorted(on.values()))
            raise ResourceError(
                f"Ray gave a replica {shares} GPUs on {len(on)} nodes, and splits a tensor parallel group of {tensor}",
                f"free whole nodes of {tensor} GPUs, or lower resources.tensor_parallel",
            )

    def remove(self) -> None:
        for group in self._groups:
            remove_placement_group(group)


def _free_gpus() -> dict[str, int]:
    free = ray_private.free_resources_of_nodes()
    return {node: int(resources.get("GPU", 0)) for node, resources in free.items()}


@contextlib.contextmanager
def replica_arguments(plan: Plan, gpu_cpus: float, cpu_cpus: float) -> Iterator[dict[str, Any]]:
    """Ray Data's arguments for the replicas' actors: GPUs of one node, or a placement group for each replica."""
    if not plan.num_gpus:
        yield {"num_cpus": cpu_cpus}
    elif plan.nodes_per_replica == 1:
        yield {"num_gpus": plan.num_gpus, "num_cpus": gpu_cpus}
    else:
        placements = Placements(plan, gpu_cpus)
        try:
            yield {"num_cpus": gpu_cpus, "ray_remote_args_fn": placements}
        finally:
            placements.remove()

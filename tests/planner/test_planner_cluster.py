"""What a cluster of given nodes is, and what it lacks."""

from __future__ import annotations

import pytest

from batchinfer.planner import Cluster, autoscaled, cluster_of, shortage

GPU_NODE = {"CPU": 16.0, "GPU": 8.0, "memory": 2e11, "accelerator_type:H100": 1.0}


def test_a_cluster_is_what_its_nodes_have():
    nodes = [GPU_NODE, {"CPU": 4.0, "memory": 1e10}, GPU_NODE | {"GPU": 4.0}]
    assert cluster_of(nodes, may_grow=True) == Cluster(
        gpus=12, largest_node_gpus=8, accelerator_type="H100", memory_bytes=10**10, may_grow=True, cpus=36
    )


def test_gpus_of_two_kinds_have_no_kind():
    other = {"GPU": 4.0, "memory": 1e11, "accelerator_type:L4": 1.0}
    assert cluster_of([GPU_NODE, other]).accelerator_type is None
    assert cluster_of([{"CPU": 2.0}]) == Cluster(
        gpus=0, largest_node_gpus=0, accelerator_type=None, memory_bytes=0, cpus=2
    )


@pytest.mark.parametrize(
    ("types", "grows"),
    [
        ([], False),
        (["node_b045cd4902795b56510512ca"], False),
        (["node_b045cd4902795b56510512ca", "gpu-workers"], True),
        (["ray.head.default"], True),
    ],
)
def test_only_an_autoscaler_gives_nodes_a_type_with_a_name(types, grows):
    assert autoscaled(types) is grows


def test_a_shortage_names_what_is_not_free_and_how_much_of_it_is():
    assert shortage({"GPU": 8, "CPU": 0.3}, {"GPU": 4, "CPU": 2, "memory": 1}) == {"GPU": 4}
    assert shortage({"GPU": 1}, {}) == {"GPU": 0}
    assert shortage({"GPU": 2, "CPU": 0.3}, {"GPU": 2, "CPU": 0.3}) == {}

"""Plans of real catalog entries for clusters that nobody has."""

from __future__ import annotations

from typing import Any

from batchinfer.catalog import find_model
from batchinfer.planner import Cluster, Plan, make_plan
from batchinfer.planner.values import Interval, Workload
from tests.support.builders import make_spec

WORK = Workload(
    rows=100_000,
    input_tokens=500,
    longest_input_tokens=1500,
    output_tokens=Interval(low=100, mid=200, high=256),
    sampled_rows=1000,
    source="a test",
)


def plan(
    name: str,
    gpu: str,
    gpus: int,
    quantization: str = "auto",
    work: Workload | None = None,
    node: int = 8,
    limits: dict[str, Any] | None = None,
    engine: dict[str, Any] | None = None,
    calibration: Any = None,
    **resources: Any,
) -> Plan:
    """The plan of a catalog entry on `gpus` devices, at most `node` of them in one machine."""
    entry = find_model(name)
    assert entry is not None, name
    cluster = Cluster(
        gpus=gpus,
        largest_node_gpus=min(gpus, node),
        accelerator_type=gpu,
        memory_bytes=2**36,
        may_grow=resources.pop("may_grow", False),
    )
    spec = make_spec(
        model={"source": name, "quantization": quantization},
        resources={"accelerator": gpu, "price_per_gpu_hour": 2.0, **resources},
        limits=limits or {},
        engine=engine or {},
    )
    return make_plan(
        spec,
        cluster,
        name,
        shape=entry.shape,
        entry=entry,
        checkpoint_quantization=entry.stored_as(name),
        workload=work,
        calibration=calibration,
    )

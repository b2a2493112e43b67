"""Pure planning: from spec, model and cluster to the layout that runs, with its speed and price."""

from batchinfer.planner.calibrate import Reading, calibration_from
from batchinfer.planner.cluster import Cluster, assumed_cluster, autoscaled, cluster_of, shortage
from batchinfer.planner.estimate import job_estimate, replica_speed
from batchinfer.planner.memory import fit
from batchinfer.planner.plan import Plan, engine_settings, make_plan, shards_in_flight
from batchinfer.planner.values import (
    Candidate,
    EngineSettings,
    Estimate,
    Fit,
    Interval,
    PromptSample,
    ReplicaSpeed,
    TooLong,
    Workload,
)

__all__ = [
    "Candidate",
    "Cluster",
    "EngineSettings",
    "Estimate",
    "Fit",
    "Interval",
    "Plan",
    "PromptSample",
    "Reading",
    "ReplicaSpeed",
    "TooLong",
    "Workload",
    "assumed_cluster",
    "autoscaled",
    "calibration_from",
    "cluster_of",
    "engine_settings",
    "fit",
    "job_estimate",
    "make_plan",
    "replica_speed",
    "shards_in_flight",
    "shortage",
]

"""From the spec and what the cluster has to the layout that runs. Pure."""

from batchinfer.planner.plan import Cluster, Plan, make_plan, shards_in_flight

__all__ = ["Cluster", "Plan", "make_plan", "shards_in_flight"]

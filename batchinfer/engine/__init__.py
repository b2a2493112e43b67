"""Engines: turn prompts into completions, for many shards at once."""

from __future__ import annotations

import os

from batchinfer.engine.base import Completion, Engine, EngineDied
from batchinfer.engine.host import HostedEngine, host_processes, load_engine
from batchinfer.jobspec import SCRIPTED, JobSpec
from batchinfer.planner import Plan

__all__ = ["Completion", "Engine", "EngineDied", "host_processes", "start_engine"]


def start_engine(spec: JobSpec, plan: Plan) -> Engine:
    """Load the model and return the engine of the spec. Raises EngineError, ResourceError."""
    # Workers on several nodes are Ray actors, which must start in the placement group of this actor. A user who
    # disables vLLM's multiprocessing wants the engine in this process.
    here = plan.nodes_per_replica > 1 or os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0"
    if here or spec.model.source == SCRIPTED:
        return load_engine(spec, plan)
    return HostedEngine(spec, plan)

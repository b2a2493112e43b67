"""Engines: prompts go in, completions come out, many shards at once."""

from __future__ import annotations

import os

from batchinfer.engine.base import Completion, Engine, EngineDied
from batchinfer.engine.host import HostedEngine, host_processes, load_engine
from batchinfer.jobspec import SCRIPTED, JobSpec
from batchinfer.planner import Plan

__all__ = ["Completion", "Engine", "EngineDied", "host_processes", "start_engine"]


def start_engine(spec: JobSpec, plan: Plan) -> Engine:
    """Load the model and return the engine that the spec asks for."""
    # Workers on several nodes are Ray actors in the placement group of the actor that starts them. And who tells
    # vLLM to stay in one process wants the engine in this one.
    here = plan.nodes_per_replica > 1 or os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0"
    if here or spec.model.source == SCRIPTED:
        return load_engine(spec, plan)
    return HostedEngine(spec, plan)

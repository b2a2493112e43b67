"""Engines: prompts in, completions out, many shards at once."""

from __future__ import annotations

from batchinfer.engine.base import Completion, Engine, EngineDied
from batchinfer.planner import Plan
from batchinfer.spec import SCRIPTED, JobSpec

__all__ = ["Completion", "Engine", "EngineDied", "start_engine"]


def start_engine(spec: JobSpec, plan: Plan) -> Engine:
    """Load the model and return the engine that the spec asks for."""
    # Imported here: vLLM takes seconds to import, and only the replica needs it.
    if spec.model.source == SCRIPTED:
        from batchinfer.engine.scripted import ScriptedEngine

        return ScriptedEngine(spec)
    from batchinfer.engine.vllm import VllmEngine

    return VllmEngine(spec, plan)

"""The job spec: what one YAML file says, validated. `load` reads it, `JobSpec` is the value."""

from batchinfer.spec.load import load, parse, to_yaml
from batchinfer.spec.model import (
    AcceleratorName,
    EngineSpec,
    EvaluateSpec,
    InputSpec,
    JobSpec,
    LimitsSpec,
    ModelSpec,
    OutputSpec,
    PromptSpec,
    ReplicaRange,
    ResourcesSpec,
    SamplingSpec,
    ScriptedSpec,
    ShardsSpec,
)
from batchinfer.spec.storage import StoreSpec

__all__ = [
    "AcceleratorName",
    "EngineSpec",
    "EvaluateSpec",
    "InputSpec",
    "JobSpec",
    "LimitsSpec",
    "ModelSpec",
    "OutputSpec",
    "PromptSpec",
    "ReplicaRange",
    "ResourcesSpec",
    "SamplingSpec",
    "ScriptedSpec",
    "ShardsSpec",
    "StoreSpec",
    "load",
    "parse",
    "to_yaml",
]

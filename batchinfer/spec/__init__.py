"""The job spec: what one YAML file says, validated. `load` reads it, `JobSpec` is the value."""

from batchinfer.spec.load import key_values, load, parse, to_yaml
from batchinfer.spec.model import (
    AcceleratorName,
    EngineSpec,
    EvaluateSpec,
    InputSpec,
    JobSpec,
    LimitsSpec,
    OutputSpec,
    PromptSpec,
    ReplicaRange,
    ResourcesSpec,
    SamplingSpec,
    ScriptedSpec,
    ShardsSpec,
)
from batchinfer.spec.recurrence import IncrementalSpec, ScheduleSpec
from batchinfer.spec.storage import StoreSpec
from batchinfer.spec.weights import SCRIPTED, LoraSpec, ModelSpec, SpeculativeSpec

__all__ = [
    "SCRIPTED",
    "AcceleratorName",
    "EngineSpec",
    "EvaluateSpec",
    "IncrementalSpec",
    "InputSpec",
    "JobSpec",
    "LimitsSpec",
    "LoraSpec",
    "ModelSpec",
    "OutputSpec",
    "PromptSpec",
    "ReplicaRange",
    "ResourcesSpec",
    "SamplingSpec",
    "ScheduleSpec",
    "ScriptedSpec",
    "ShardsSpec",
    "SpeculativeSpec",
    "StoreSpec",
    "key_values",
    "load",
    "parse",
    "to_yaml",
]

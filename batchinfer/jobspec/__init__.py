"""The job spec: parses YAML into a validated `JobSpec`, with its templates, variables and ticks."""

from batchinfer.jobspec.job_keys import (
    AcceleratorName,
    EmbedSpec,
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
from batchinfer.jobspec.load import key_values, load, parse, to_yaml
from batchinfer.jobspec.model_keys import SCRIPTED, LoraSpec, ModelSpec, SpeculativeSpec
from batchinfer.jobspec.schedule_keys import IncrementalSpec, ScheduleSpec
from batchinfer.jobspec.store_keys import StoreSpec

__all__ = [
    "SCRIPTED",
    "AcceleratorName",
    "EmbedSpec",
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

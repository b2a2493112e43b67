"""The job spec: parses YAML into a validated `JobSpec`, with its templates, variables and ticks."""

from batchinfer.jobspec.job_keys import (
    AcceleratorName,
    CsvSpec,
    EmbedSpec,
    EngineSpec,
    EvaluateSpec,
    ExampleSpec,
    InputSpec,
    JobSpec,
    LimitsSpec,
    OutputSpec,
    PromptSpec,
    RepetitionSpec,
    ReplicaRange,
    ResourcesSpec,
    SampleSpec,
    SamplingSpec,
    ScriptedSpec,
    ShardsSpec,
    TruncateSpec,
)
from batchinfer.jobspec.load import key_values, load, parse, to_yaml
from batchinfer.jobspec.model_keys import SCRIPTED, LoraSpec, ModelSpec, SpeculativeSpec
from batchinfer.jobspec.reasoning_keys import ReasoningSpec
from batchinfer.jobspec.schedule_keys import IncrementalSpec, ScheduleSpec
from batchinfer.jobspec.store_keys import StoreSpec

__all__ = [
    "SCRIPTED",
    "AcceleratorName",
    "CsvSpec",
    "EmbedSpec",
    "EngineSpec",
    "EvaluateSpec",
    "ExampleSpec",
    "IncrementalSpec",
    "InputSpec",
    "JobSpec",
    "LimitsSpec",
    "LoraSpec",
    "ModelSpec",
    "OutputSpec",
    "PromptSpec",
    "ReasoningSpec",
    "RepetitionSpec",
    "ReplicaRange",
    "ResourcesSpec",
    "SampleSpec",
    "SamplingSpec",
    "ScheduleSpec",
    "ScriptedSpec",
    "ShardsSpec",
    "SpeculativeSpec",
    "StoreSpec",
    "TruncateSpec",
    "key_values",
    "load",
    "parse",
    "to_yaml",
]

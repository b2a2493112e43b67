"""The job spec: parses YAML into a validated `JobSpec`, with its templates, variables and ticks."""

from batchinfer.jobspec.cache_keys import CacheSpec
from batchinfer.jobspec.chunk_keys import ChunkSpec, CombinePrompt
from batchinfer.jobspec.engine_keys import EngineSpec, ScriptedSpec
from batchinfer.jobspec.evaluate_keys import EvaluateSpec
from batchinfer.jobspec.input_keys import CsvSpec, InputSpec, SampleSpec
from batchinfer.jobspec.job_keys import JobSpec
from batchinfer.jobspec.lineage_keys import LineageSpec
from batchinfer.jobspec.load import from_keys, key_values, load, parse, to_yaml
from batchinfer.jobspec.model_keys import SCRIPTED, LoraSpec, ModelSpec, SpeculativeSpec
from batchinfer.jobspec.notify_keys import NotifySpec
from batchinfer.jobspec.output_keys import AnswerSpec, EmbedSpec, OutputSpec
from batchinfer.jobspec.prompt_keys import ExampleSpec, PromptSpec, TruncateSpec
from batchinfer.jobspec.reasoning_keys import ReasoningSpec
from batchinfer.jobspec.reduce_keys import ReduceSpec
from batchinfer.jobspec.run_keys import AcceleratorName, LimitsSpec, ReplicaRange, ResourcesSpec, ShardsSpec
from batchinfer.jobspec.sampling_keys import RepetitionSpec, SamplingSpec
from batchinfer.jobspec.schedule_keys import IncrementalSpec, ScheduleSpec
from batchinfer.jobspec.step_keys import StepSpec
from batchinfer.jobspec.store_keys import StoreSpec
from batchinfer.jobspec.table_keys import CatalogSpec, PublishSpec

__all__ = [
    "SCRIPTED",
    "AcceleratorName",
    "AnswerSpec",
    "CacheSpec",
    "CatalogSpec",
    "ChunkSpec",
    "CombinePrompt",
    "CsvSpec",
    "EmbedSpec",
    "EngineSpec",
    "EvaluateSpec",
    "ExampleSpec",
    "IncrementalSpec",
    "InputSpec",
    "JobSpec",
    "LimitsSpec",
    "LineageSpec",
    "LoraSpec",
    "ModelSpec",
    "NotifySpec",
    "OutputSpec",
    "PromptSpec",
    "PublishSpec",
    "ReasoningSpec",
    "ReduceSpec",
    "RepetitionSpec",
    "ReplicaRange",
    "ResourcesSpec",
    "SampleSpec",
    "SamplingSpec",
    "ScheduleSpec",
    "ScriptedSpec",
    "ShardsSpec",
    "SpeculativeSpec",
    "StepSpec",
    "StoreSpec",
    "TruncateSpec",
    "from_keys",
    "key_values",
    "load",
    "parse",
    "to_yaml",
]

"""Distributed batch inference: every shard runs exactly once and is accounted for.

    import batchinfer

    job = batchinfer.Job(model="qwen2.5-7b", prompt="Which queue? {{ body }}", choices=["billing", "outage"])
    run = job.run(frame, output="runs/tickets")
    run.to_pandas()

The names of `__all__` are the public Python API; every other module may change. Errors are those of
`batchinfer.errors`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchinfer import errors
    from batchinfer.jobspec import (
        AnswerSpec,
        CacheSpec,
        CatalogSpec,
        ChunkSpec,
        CombinePrompt,
        CsvSpec,
        EmbedSpec,
        EngineSpec,
        EvaluateSpec,
        ExampleSpec,
        IncrementalSpec,
        InputSpec,
        LimitsSpec,
        LineageSpec,
        LoraSpec,
        ModelSpec,
        NotifySpec,
        OutputSpec,
        PromptSpec,
        PublishSpec,
        ReasoningSpec,
        ReduceSpec,
        RepetitionSpec,
        ReplicaRange,
        ResourcesSpec,
        SampleSpec,
        SamplingSpec,
        ScheduleSpec,
        ScriptedSpec,
        ShardsSpec,
        SpeculativeSpec,
        StepSpec,
        StoreSpec,
        TruncateSpec,
    )
    from batchinfer.python_api.compare import JobComparison, compare
    from batchinfer.python_api.job import Job
    from batchinfer.python_api.run import Run
    from batchinfer.python_api.run import open_run as open  # noqa: A004 # the contract's name
    from batchinfer.python_api.shown import JobPlan, JobTry

__version__ = "0.1.0"

__all__ = [
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
    "Job",
    "JobComparison",
    "JobPlan",
    "JobTry",
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
    "Run",
    "SampleSpec",
    "SamplingSpec",
    "ScheduleSpec",
    "ScriptedSpec",
    "ShardsSpec",
    "SpeculativeSpec",
    "StepSpec",
    "StoreSpec",
    "TruncateSpec",
    "__version__",
    "compare",
    "errors",
    "open",
]

_PLACES = {
    "Job": ("batchinfer.python_api.job", "Job"),
    "JobComparison": ("batchinfer.python_api.compare", "JobComparison"),
    "JobPlan": ("batchinfer.python_api.shown", "JobPlan"),
    "JobTry": ("batchinfer.python_api.shown", "JobTry"),
    "Run": ("batchinfer.python_api.run", "Run"),
    "compare": ("batchinfer.python_api.compare", "compare"),
    "open": ("batchinfer.python_api.run", "open_run"),
}
"""Where a public name is that is no section of the spec."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: without Ray and pyarrow, `import batchinfer` takes milliseconds."""
    if name not in __all__:
        raise AttributeError(f"module 'batchinfer' has no attribute {name!r}")
    if name == "errors":
        return importlib.import_module("batchinfer.errors")
    module, attribute = _PLACES.get(name, ("batchinfer.jobspec", name))
    found = getattr(importlib.import_module(module), attribute)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

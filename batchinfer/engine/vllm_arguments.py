"""What vLLM is told of a job: the arguments of its engine, and the parameters of every request."""

from __future__ import annotations

import json
from typing import Any

from batchinfer.jobspec import JobSpec, SamplingSpec
from batchinfer.jobspec.regex import compile_regex
from batchinfer.model.checkpoint import SAFE_FORMAT, Adapter
from batchinfer.planner import Plan
from batchinfer.prompting.answers import label_grammar


def engine_arguments(
    spec: JobSpec, plan: Plan, adapter: Adapter | None = None, thinking: str | None = None
) -> dict[str, Any]:
    """The keyword arguments for vLLM's EngineArgs. Keys of the spec override the plan; vLLM chooses the rest.

    `thinking`: the name of vLLM's reasoning parser.
    """
    arguments: dict[str, Any] = {
        "model": plan.checkpoint or spec.model.source,
        "tokenizer": spec.engine.tokenizer,
        "revision": spec.model.revision,
        "dtype": spec.model.dtype,
        "quantization": _quantization(plan),
        "trust_remote_code": spec.model.trust_remote_code,
        "load_format": SAFE_FORMAT,
        "tensor_parallel_size": plan.tensor_parallel,
        "pipeline_parallel_size": plan.pipeline_parallel,
        "kv_cache_memory_bytes": plan.kv_cache_memory_bytes,
        "disable_log_stats": True,
    }
    if plan.engine is not None:
        # On a GPU all values for which the plan's fit was computed, because vLLM's defaults differ from them.
        arguments |= plan.engine.model_dump(include=None if plan.num_gpus else {"max_model_len"})
    if plan.expert_parallel:
        arguments["enable_expert_parallel"] = True
    if plan.nodes_per_replica > 1:
        # The workers are Ray actors in the placement group of this replica.
        arguments["distributed_executor_backend"] = "ray"
    elif plan.tensor_parallel * plan.pipeline_parallel > 1:
        # Ray has assigned the GPUs to this actor, so the workers are its child processes, not further Ray actors.
        arguments["distributed_executor_backend"] = "mp"
    jobs = spec.step_jobs
    if plan.accelerator == "cpu" and any(
        job.sampling.seed is not None or job.sampling_column is not None or job.takes_requests for job in jobs
    ):
        # vLLM 0.32 dies on a CPU if the prefill of a seeded request is chunked: vLLM then rewinds the request's
        # random generator, which torch's CPU generator cannot do. A whole prefill needs no rewind. A row may bring a
        # seed of its own.
        arguments["enable_chunked_prefill"] = False
    if adapter is not None:
        arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": adapter.max_rank}
    if not spec.generates:
        # `convert` makes a generative model return the hidden state of the last token, or the scores of its head.
        arguments |= {"runner": "pooling", "convert": "embed" if spec.task == "embed" else "classify"}
    if spec.model.speculative is not None:
        arguments["speculative_config"] = spec.model.speculative.model_dump(exclude_none=True)
    typed = [job.output for job in jobs if job.output.json_schema is not None]
    if typed:
        # For the whole engine: vLLM 0.32 has the same field for a request, which does nothing with xgrammar.
        compact = all(output.compact_json for output in typed)
        arguments["structured_outputs_config"] = {"backend": "xgrammar", "disable_any_whitespace": compact}
    elif spec.takes_requests and spec.generates:
        # Requests bring their schemas. vLLM would take the backend of the first one for all.
        compact = spec.output.compact_json
        arguments["structured_outputs_config"] = {"backend": "xgrammar", "disable_any_whitespace": compact}
    if thinking is not None:
        # The grammar of an answer begins after the thinking, and vLLM can end the thinking.
        arguments["reasoning_parser"] = thinking
    arguments.update(spec.engine.model_dump(exclude={"scripted", "extra"}, exclude_none=True))
    arguments.update(spec.engine.extra)
    return {name: value for name, value in arguments.items() if value is not None}


def _quantization(plan: Plan) -> str | None:
    """vLLM's `quantization`, only to quantize while loading: a quantized checkpoint names its own in config.json."""
    return plan.quantization if plan.online or (plan.checkpoint is None and plan.quantization == "fp8") else None


def sampling_arguments(sampling: SamplingSpec) -> dict[str, Any]:
    """The keyword arguments for vLLM's SamplingParams, without the structured outputs."""
    arguments = sampling.model_dump(exclude_none=True)
    if sampling.ignore_eos:
        # Whoever measures speed wants max_tokens tokens, whatever they are.
        arguments.pop("repetition_detection", None)
    for name in ("stop", "stop_token_ids", "allowed_token_ids", "bad_words"):
        if isinstance(arguments.get(name), tuple):
            arguments[name] = list(arguments[name])
    # vLLM's processes exchange integers of at most 64 bits, and no context is longer than 2^31.
    arguments["max_tokens"] = min(sampling.max_tokens, 2**31)
    return arguments


def answer_grammar(schema: str) -> Any:
    """vLLM's structured outputs for `Prompt.schema`."""
    from vllm.sampling_params import StructuredOutputsParams

    wanted = json.loads(schema)
    return StructuredOutputsParams(json_object=True) if wanted is True else StructuredOutputsParams(json=wanted)


def request_parameters(spec: JobSpec, thinking: str | None) -> Any:
    """vLLM's parameters for every request of the job."""
    from vllm.pooling_params import PoolingParams
    from vllm.sampling_params import (
        RepetitionDetectionParams,
        RequestOutputKind,
        SamplingParams,
        StructuredOutputsParams,
    )

    if spec.task == "embed":
        return PoolingParams(task="embed", dimensions=spec.embed.dimensions, use_activation=spec.embed.normalize)
    if not spec.generates:
        return PoolingParams(task="classify")
    output = spec.output
    structured = None
    if output.choices is not None:
        labels = list(output.choices)
        structured = (
            StructuredOutputsParams(grammar=label_grammar(labels))
            if output.multi_label
            else StructuredOutputsParams(choice=labels)
        )
    elif output.json_schema is not None:
        structured = StructuredOutputsParams(json=output.json_schema)
    elif output.regex is not None:
        structured = StructuredOutputsParams(regex=compile_regex(output.regex).grammar)
    arguments = sampling_arguments(spec.sampling)
    if "repetition_detection" in arguments:
        arguments["repetition_detection"] = RepetitionDetectionParams(**arguments["repetition_detection"])
    if thinking is not None:
        # The marks around the thinking may be special tokens. Those of the answer are taken out later.
        arguments["skip_special_tokens"] = False
        arguments["thinking_token_budget"] = spec.reasoning.max_tokens if spec.reasoning is not None else None
    return SamplingParams(
        **arguments,
        structured_outputs=structured,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )

"""The keys of `engine`: vLLM's engine arguments, and what the scripted engine does."""

from __future__ import annotations

import json
from typing import Any

from pydantic import Field, field_validator

from batchinfer.jobspec.base import Keys, Place


class ScriptedSpec(Keys):
    """The scripted engine (`model.source: scripted`): deterministic answers without a model, with scripted time and
    failures, to try a job or its recovery. A token is four characters.
    """

    answer: str | None = None
    """The answer to every row.

    null: one of `output.choices`, picked by a hash of the prompt; without choices the first `sampling.max_tokens`
    tokens of the prompt."""
    load_seconds: float = Field(default=0.0, ge=0)
    """Seconds that the engine takes to start."""
    seconds_per_batch: float = Field(default=0.0, ge=0)
    """Seconds that the engine takes for a shard, however many tokens it has."""
    seconds_per_token: float = Field(default=0.0, ge=0)
    """Seconds that the engine takes for each token, of prompts and answers."""
    kill_on: str | None = None
    """A row whose prompt contains this text kills the engine. null: none does."""
    hang_on: str | None = None
    """A row whose prompt contains this text makes the engine hang. null: none does."""
    reject_on: str | None = None
    """A row whose prompt contains this text fails with `engine_rejected`. null: none does."""


_OTHERWISE = {
    "model": "model.source",
    "revision": "model.revision",
    "dtype": "model.dtype",
    "quantization": "model.quantization",
    "trust_remote_code": "model.trust_remote_code",
    "tensor_parallel_size": "resources.tensor_parallel",
    "pipeline_parallel_size": "resources.pipeline_parallel",
    "data_parallel_size": "resources.replicas",
    "speculative_config": "model.speculative",
    "enable_lora": "model.lora",
    "max_loras": "model.lora",
    "max_lora_rank": "model.lora.max_lora_rank",
    "runner": "task",
    "convert": "task",
}
"""Engine arguments of vLLM that keys outside `engine` set."""

_FIXED = {
    "distributed_executor_backend": "by the plan's layout",
    "enable_expert_parallel": "by the plan's layout",
    "disable_log_stats": "nobody reads them",
    "structured_outputs_config": "by output.*",
    "logprobs_mode": "output.confidence needs vLLM's own",
    "skip_tokenizer_init": "prompts need the tokenizer",
    "enable_prompt_embeds": "a prompt is a text",
}
"""Engine arguments of vLLM that no job may set, and why."""


class EngineSpec(Keys):
    """vLLM's engine arguments by vLLM's names. null leaves the choice to the plan, or to vLLM if the plan makes
    none.
    """

    max_model_len: int | None = Field(default=None, ge=1)
    """The longest sequence, prompt and answer together, in tokens.

    A prompt that leaves no room for an answer fails with `prompt_too_long`. A shorter context leaves room for more
    rows at a time. null: the model's own context, or as much of it as the planned KV cache holds."""
    gpu_memory_utilization: float | None = Field(default=None, gt=0.0, le=1.0)
    """The share of a GPU's memory that the engine may use, weights and KV cache together.

    null: 0.9 if the plan knows the model's dimensions, otherwise vLLM's default. On a CPU it is the share of the
    machine's memory; null there: see `kv_cache_memory_bytes`."""
    max_num_seqs: int | None = Field(default=None, ge=1)
    """The most rows that one engine runs at a time.

    null: 1024 on GPUs with much memory (from 70 GiB, A100 from 160 GiB), otherwise 256; on a CPU vLLM's default."""
    max_num_batched_tokens: int | None = Field(default=None, ge=1)
    """The most tokens that one step of the engine computes, of prompts and answers.

    null: 16384 on GPUs with much memory (from 70 GiB, A100 from 160 GiB), otherwise 8192; on a CPU vLLM's default."""
    enforce_eager: bool | None = None
    """Whether to run without `torch.compile` and CUDA graphs: the engine starts sooner and runs slower.

    null: false."""
    enable_prefix_caching: bool | None = None
    """Whether the KV cache of a prompt's beginning is kept for other rows that begin alike.

    null: vLLM's default, which is on for models that generate."""
    enable_chunked_prefill: bool | None = None
    """Whether vLLM may read a long prompt in several steps, between the tokens of other rows.

    null: vLLM's default, which is on for models that generate; off on a CPU with `sampling.seed`."""
    kv_cache_dtype: str | None = None
    """The type in which the KV cache is stored, as `auto`, `bfloat16`, `fp8`, `fp8_e4m3` or `fp8_e5m2`.

    8 bits hold twice the tokens of 16, at some loss of quality. null: `auto`, the type of the model."""
    kv_cache_memory_bytes: int | None = Field(default=None, ge=1)
    """Bytes of KV cache for each GPU, or for each worker on a CPU. `gpu_memory_utilization` does not apply then.

    null: what `gpu_memory_utilization` leaves. On a CPU the smaller of 4 GiB and a quarter of the memory over the
    number of replicas, but enough for one sequence."""
    num_gpu_blocks_override: int | None = Field(default=None, ge=1)
    """How many blocks the KV cache has, instead of what fits. vLLM has it for tests."""
    block_size: int | None = Field(default=None, ge=1)
    """Tokens in a block of the KV cache; only whole blocks of a prefix are shared. null: vLLM's default."""
    load_format: str | None = None
    """The format in which the weights are read, by vLLM's names, as `safetensors`, `auto`, `pt` or `dummy`.

    null: `safetensors` only. `auto` also reads pickles (`.bin`, `.pt`), which can run any code when they are loaded:
    set it only for weights that you trust."""
    tokenizer: Place | None = None
    """The folder or the Hugging Face repository id of the tokenizer. null: the model's own."""
    seed: int | None = None
    """The seed of the engine's own random generator. null: vLLM's default. For a seed a row see `sampling.seed`."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Any other engine argument of vLLM, by its name, as in `{attention_backend: TRITON_ATTN}`.

    A name that vLLM does not have is refused, and so is one that has a key here or that the plan computes."""
    scripted: ScriptedSpec = ScriptedSpec()
    """What the scripted engine does. Has no effect unless `model.source` is `scripted`."""

    @field_validator("extra")
    @classmethod
    def _has_no_other_key(cls, extra: dict[str, Any]) -> dict[str, Any]:
        for name, value in extra.items():
            key = f"engine.{name}" if name in cls.model_fields else _OTHERWISE.get(name)
            if key is not None:
                raise ValueError(f"holds {name}, which has a key of its own: set {key}")
            if name in _FIXED:
                raise ValueError(f"holds {name}, which batchinfer sets itself: {_FIXED[name]}")
            try:
                json.dumps(value)
            except (TypeError, ValueError, RecursionError):
                raise ValueError(f"holds {name} with a value that JSON cannot say") from None
        return extra

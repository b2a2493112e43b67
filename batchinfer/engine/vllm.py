"""The vLLM engine: runs in a separate process, for many shards at once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from batchinfer.engine import vllm_private
from batchinfer.engine.base import Completion, EngineDied, set_apart
from batchinfer.engine.conversations import EngineTokenizer, prompt_writer
from batchinfer.engine.installed import not_importable, require_engine_arguments
from batchinfer.engine.pump import Pump, Request
from batchinfer.engine.vllm_arguments import engine_arguments, request_parameters
from batchinfer.errors import EngineError, RowError, SpecError, WrongRelease
from batchinfer.jobspec import JobSpec
from batchinfer.model.checkpoint import local_adapter
from batchinfer.model.resolve import model_facts
from batchinfer.model.thinking import reasoning_parser
from batchinfer.planner import Plan
from batchinfer.planner.host import require_avx512
from batchinfer.prompting.answers import require_whole_choices
from batchinfer.prompting.choices import described
from batchinfer.prompting.label_probabilities import LabelTree
from batchinfer.prompting.prompts import Prompt
from batchinfer.prompting.tokens import Tokenized, tokens_of
from batchinfer.storage import local_path

MAX_LABEL_TOKENS = 128
"""Tokens whose probabilities vLLM 0.32 reports for one request (MAX_LOGPROB_TOKEN_IDS); it refuses more."""

LINGER_SECONDS = 0.25
"""Seconds that an idle engine waits for further shards if rows share prefixes. Shorter misses shards that arrive
together, longer leaves the engine idle."""


class VllmEngine:
    """See `engine.base.Engine`. Raises EngineError if the model cannot be loaded.

    `fork`: fork vLLM's engine process from this one, which saves its imports, unless other Python threads run.
    """

    def __init__(self, spec: JobSpec, plan: Plan, fork: bool = False) -> None:
        fork = fork and "VLLM_WORKER_MULTIPROC_METHOD" not in os.environ
        _prepare_environment(plan)
        require_vllm()
        vllm_private.require()
        from vllm.lora.request import LoRARequest

        require_engine_arguments(spec)
        _require_kernels(spec, plan)
        self._task = spec.task
        self._pools = not spec.generates
        thinking = None if spec.reasoning is None else reasoning_parser(spec, _tokenizer_folder(spec, plan))
        self._params = request_parameters(spec, thinking)
        self._fetched = tempfile.TemporaryDirectory(prefix="batchinfer-adapter-")
        adapter = (
            local_adapter(spec.model.lora, self._fetched.name, spec.storage) if spec.model.lora is not None else None
        )
        lora = LoRARequest(lora_name="adapter", lora_int_id=1, lora_path=adapter.folder) if adapter else None
        arguments = engine_arguments(spec, plan, adapter, thinking)
        # On a CPU vLLM starts the worker in another process, to set its threads by the environment. This environment
        # is set already, and another process would import vLLM for 12 seconds, so the worker shares the engine's.
        if spec.output.json_schema is not None:
            structured = arguments["structured_outputs_config"]
            structured["backend"] = vllm_private.json_backend(spec.output.json_schema)
            # xgrammar writes no key that the schema does not name, guidance does: a typed answer has no column for it.
            structured["disable_additional_properties"] = (
                structured["backend"] == "guidance" and spec.output.kind is not None
            )
        here = plan.accelerator == "cpu" and "distributed_executor_backend" not in arguments
        if fork:
            vllm_private.fork_engines()
            vllm_private.import_model(arguments["model"])
        try:
            engine = vllm_private.new_engine(arguments, worker_in_engine=here)
            if lora is not None:
                # Added before the first request: with a request, an adapter that does not fit would kill the engine.
                engine.add_lora(lora)
        except WrongRelease:
            raise
        except Exception as error:
            # vLLM raises many types of errors here: ValueError, OSError, RuntimeError from its process.
            raise EngineError(
                f"vLLM did not start with {spec.model.source}: {_brief(error)}",
                "its own messages in the log say why; check the model and the engine keys",
            ) from error
        self._logprobs = spec.sampling.logprobs is not None
        self._tokenizer = engine.get_tokenizer()
        # A choice or a text that matches an expression may begin or end with an empty line.
        self._verbatim = spec.output.choices is not None or spec.output.regex is not None
        self._special = [token for token in self._tokenizer.all_special_tokens if spec.sampling.skip_special_tokens]
        self._context: int = vllm_private.context_length(engine)
        has_template = bool(spec.prompt.chat_template or getattr(self._tokenizer, "chat_template", None))
        chat = spec.wants_chat and (has_template or spec.prompt.chat is True)
        if (chat or spec.prompt.needs_chat) and not has_template:
            raise EngineError(
                f"{spec.model.source} has no chat template", "set prompt.chat: false, or take a chat model"
            )
        try:
            self._thinking = None if thinking is None else _thinking(spec, thinking, engine)
            _require_accepted(spec, engine, self._params)
            writer = prompt_writer(described(spec), self._tokenizer, chat)
            # A chat template writes its own special tokens.
            self._tokens = tokens_of(spec, EngineTokenizer(self._tokenizer), writer, not chat, self._context)
        except SpecError:
            vllm_private.Core(engine).shutdown()
            raise
        self._names = vllm_private.label_names(engine) if spec.task == "classify" else []
        self._labels: LabelTree | None = None
        if spec.output.confidence:
            self._labels = self._label_tree(spec, engine)
        sharing = plan.workload is not None and plan.workload.shares_apart
        self._pump = Pump(engine, lora, LINGER_SECONDS if sharing else 0.0)

    def generate(
        self, prompts: Sequence[Prompt], begun: Callable[[int], None], finished: Callable[[int], None]
    ) -> list[Completion]:
        completions: list[Completion | None] = [None] * len(prompts)
        requests, places = [], []
        made = self._tokens(prompts)
        for i, prompt in enumerate(made):
            if isinstance(prompt, RowError):
                completions[i] = Completion.failed(prompt)
            elif len(prompt.ids) + (not self._pools) > self._context:
                room = "fit into" if self._pools else "leave room for an answer in"
                message = f"{len(prompt.ids)} tokens do not {room} a context of {self._context}"
                completions[i] = Completion.failed(RowError("prompt_too_long", message), len(prompt.ids))
            else:
                ids = list(prompt.ids)
                requests.append(
                    Request({"type": "token", "prompt_token_ids": ids}, self._parameters(prompt), prompt.text)
                )
                places.append(i)
        batch = self._pump.run(requests, begun, finished)
        for i, result, seconds in zip(places, batch.results, batch.seconds, strict=True):
            prompt = made[i]
            if result is not None and not isinstance(prompt, RowError):
                completions[i] = completion = self._completion(result)
                completion.truncated_tokens, completion.seconds = prompt.truncated, seconds
        if None in completions:
            running = [places[i] for i in batch.running()]
            raise EngineDied(self._pump.death or "the engine gave no answer", completions, running)
        return [completion for completion in completions if completion is not None]

    @property
    def steps(self) -> int:
        return self._pump.steps

    def _parameters(self, prompt: Tokenized) -> Any:
        if prompt.second is None:
            return self._params
        mine = self._params.clone()
        mine.extra_kwargs = {"compressed_token_type_ids": prompt.second}
        return mine

    def _completion(self, result: Any) -> Completion:
        if isinstance(result, Exception):
            return Completion.failed(RowError("engine_rejected", _brief(result)))
        if self._pools:
            return self._pooled(result)
        if self._labels is not None:
            return self._label(result, self._labels)
        outputs = sorted(result.outputs, key=lambda output: output.index)
        made = Completion(
            texts=[output.text for output in outputs],
            finish_reasons=[str(output.finish_reason) for output in outputs],
            input_tokens=len(result.prompt_token_ids),
            cached_tokens=result.num_cached_tokens or 0,
            output_tokens=sum(len(output.token_ids) for output in outputs),
            logprobs=[_logprobs(output) for output in outputs] if self._logprobs else None,
        )
        return made if self._thinking is None else self._without_thinking(made, self._thinking, result, outputs)

    def _without_thinking(
        self, made: Completion, thinking: vllm_private.ThinkingParser, result: Any, outputs: Sequence[Any]
    ) -> Completion:
        """The completion with the thinking taken out of its texts."""
        split: list[tuple[str | None, str | None, int]]
        if thinking.is_over(result.prompt_token_ids):
            split = [(None, output.text, 0) for output in outputs]
        else:
            split = [thinking.split(output.text, output.token_ids) for output in outputs]
        answers = [None if answer is None else self._plain(answer) for _, answer, _ in split]
        return set_apart(made, [thought and self._plain(thought) for thought, _, _ in split], answers,
                         sum(tokens for *_, tokens in split))  # fmt: skip

    def _plain(self, text: str) -> str:
        """The text without special tokens, unless the spec keeps them, and without the empty lines around it."""
        for token in self._special:
            text = text.replace(token, "") if token in text else text
        return text if self._verbatim else text.strip("\n")

    def _pooled(self, result: Any) -> Completion:
        """A vector, a label with the probabilities of all, or a score."""
        tokens, cached = len(result.prompt_token_ids), result.num_cached_tokens or 0
        values = result.outputs.data.float().flatten().numpy()
        made = Completion([], ["stop"], tokens, cached, 0)
        if self._task == "embed":
            made.embedding = values
        elif self._task == "score":
            made.score = float(values[0])
        else:
            made.probabilities = dict(zip(self._names, values.tolist(), strict=True))
            made.texts = [self._names[int(values.argmax())]]
        return made

    def _label_tree(self, spec: JobSpec, engine: Any) -> LabelTree:
        """The labels as tokens. The requests then ask for the probabilities of these tokens, and leave texts to us.

        vLLM computes these probabilities after the grammar and before temperature, penalties and top_p.
        """
        labels = spec.output.choice_texts or ()
        usual = [self._tokenizer.encode(label, add_special_tokens=False) for label in labels]
        vocabulary, ends = vllm_private.grammar_tokens(engine)
        tree = LabelTree(labels, vocabulary, ends, usual, MAX_LABEL_TOKENS)
        params = self._params
        params.logprob_token_ids = list(tree.tokens) or [ends[0]]
        # vLLM would write the text of each of these tokens for each token of an answer, in Python.
        params.detokenize, params.flat_logprobs, params.stop = False, True, []
        return tree

    def _label(self, result: Any, labels: LabelTree) -> Completion:
        (output,) = result.outputs
        tokens = tuple(output.token_ids)
        steps = []
        flat = output.logprobs
        for start, end in zip(flat.start_indices, flat.end_indices, strict=True):
            # The chosen token comes first, and may occur twice.
            steps.append(dict(zip(flat.token_ids[start:end], flat.logprobs[start:end], strict=True)))
        return Completion(
            texts=[labels.text(tokens)],
            finish_reasons=[str(output.finish_reason)],
            input_tokens=len(result.prompt_token_ids),
            cached_tokens=result.num_cached_tokens or 0,
            output_tokens=len(tokens),
            probabilities=dict(zip(labels.names, labels.probabilities(tokens, steps), strict=True)),
        )

    def close(self) -> None:
        self._pump.close()
        self._fetched.cleanup()


def _tokenizer_folder(spec: JobSpec, plan: Plan) -> str | None:
    """The folder with the model's chat template, if it lies on this machine."""
    source = local_path(spec.engine.tokenizer or plan.checkpoint or spec.model.source)
    return source if os.path.isdir(source) else model_facts(spec.model, spec.storage).folder


def _thinking(spec: JobSpec, name: str, engine: Any) -> vllm_private.ThinkingParser:
    """vLLM's parser. Raises SpecError if it is not made for this model."""
    try:
        found = vllm_private.ThinkingParser(name, engine.get_tokenizer(), spec.prompt.chat_template_kwargs)
    except ValueError as error:
        raise SpecError(
            f"reasoning.parser {name} is not made for {spec.model.source}: {error}",
            "name the parser of this model, or say none",
        ) from error
    if (
        spec.reasoning is not None
        and spec.reasoning.max_tokens is not None
        and not vllm_private.has_thinking_budget(engine)
    ):
        raise SpecError(f"vLLM cannot end the thinking of parser {name}", "leave reasoning.max_tokens out")
    return found


def _require_accepted(spec: JobSpec, engine: Any, params: Any) -> None:
    """Raise SpecError for parameters that vLLM would refuse for every row, and for choices longer than `max_tokens`."""
    try:
        if not spec.generates:
            params.clone().verify(engine.model_config)
            return
        vllm_private.require_accepted(engine, params)
    except WrongRelease:
        raise
    except Exception as error:
        # The errors have many types: vLLM's own, those of grammar compilers, ValueError.
        raise SpecError(
            f"vLLM refuses every row of this job: {_brief(error)}", "change what it names: output or sampling"
        ) from error
    tokenizer = engine.get_tokenizer()
    require_whole_choices(spec, lambda text: len(tokenizer.encode(text, add_special_tokens=False)))


def require_vllm() -> None:
    """Raise EngineError if vLLM cannot be imported; the message names the packages that prevent it."""
    try:
        # This module imports transformers. A wrong build of torchvision raises RuntimeError, OSError or ImportError.
        import vllm.engine.arg_utils  # noqa: F401
    except Exception as error:
        raise not_importable(error) from error


def _require_kernels(spec: JobSpec, plan: Plan) -> None:
    """Raise ResourceError for 4-bit weights on a CPU without AVX-512: vLLM 0.32 loads them, then dies with the first
    request. vLLM must be imported before, which loads the kernels that this CPU can run."""
    if plan.accelerator == "cpu":
        require_avx512(spec.model.source, plan.quantization, vllm_private.has_four_bit_kernel())


def _logprobs(output: Any) -> list[list[dict[str, Any]]]:
    return [
        [
            {"token": entry.decoded_token, "token_id": token, "logprob": entry.logprob, "rank": entry.rank}
            for token, entry in position.items()
        ]
        for position in output.logprobs or []
    ]


def _prepare_environment(plan: Plan) -> None:
    """Set the variables that vLLM reads from the environment, unless the user has set them."""
    if not os.environ.get("VLLM_PORT", "0").isdigit():
        # Kubernetes sets VLLM_PORT=tcp://... for every Service called vllm, but vLLM expects a number.
        del os.environ["VLLM_PORT"]
    # The engine runs in a spawned process: a fork of a Ray worker would share its sockets.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if plan.accelerator == "cpu":
        if plan.tensor_parallel * plan.pipeline_parallel * plan.max_replicas > 1:
            # On one NUMA node, binding assigns the same cores to every rank, or fails.
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        else:
            # By default vLLM reserves one core for other work, because its idle threads spin. Threads that sleep
            # (OMP_WAIT_POLICY) can share all cores, and one core is half of a small machine.
            os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        # Ray sets this to the actor's CPU share, which is not the engine's.
        os.environ.pop("OMP_NUM_THREADS", None)


def _brief(error: BaseException) -> str:
    """The last line with content, at most 500 characters: pydantic ends its errors with a link and the input."""
    lines = [line.strip() for line in str(error).splitlines()]
    lines = [line for line in lines if line and not line.startswith("For further information visit")]
    return (lines[-1].partition(" [type=")[0] if lines else type(error).__name__)[:500]

"""What vLLM is asked for one step of a job, and what becomes of its outputs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from batchinfer.engine import vllm_private
from batchinfer.engine.base import Completion, set_apart
from batchinfer.engine.conversations import EngineTokenizer, prompt_writer
from batchinfer.engine.vllm_arguments import answer_grammar, request_parameters
from batchinfer.errors import EngineError, RowError, SpecError, WrongRelease
from batchinfer.jobspec import JobSpec
from batchinfer.jobspec.sampling_keys import NO_LIMIT
from batchinfer.prompting.answers import require_whole_choices
from batchinfer.prompting.choices import described
from batchinfer.prompting.label_probabilities import LabelTree
from batchinfer.prompting.prompts import Prompt
from batchinfer.prompting.row_sampling import REMEMBERED, RowSampling
from batchinfer.prompting.tokens import Tokenized, tokens_of

MAX_LABEL_TOKENS = 128
"""Tokens whose probabilities vLLM 0.32 reports for one request (MAX_LOGPROB_TOKEN_IDS); it refuses more."""


class StepRequests:
    """The tokens and parameters of a step's requests, and the completions of vLLM's outputs.

    `spec`: one of `JobSpec.step_jobs`. `params`: see `request_parameters`. `thinking`: the name of vLLM's parser.
    `context`: the longest sequence, in tokens. Raises SpecError for what vLLM refuses for every row, EngineError if
    the model cannot do what the step asks.
    """

    def __init__(self, spec: JobSpec, engine: Any, params: Any, thinking: str | None, context: int) -> None:
        self._task = spec.task
        self._pools = not spec.generates
        self._params = params
        self._logprobs = spec.sampling.logprobs is not None
        self._tokenizer = engine.get_tokenizer()
        # A choice or a text that matches an expression may begin or end with an empty line.
        self._verbatim = spec.output.choices is not None or spec.output.regex is not None
        self._special = [token for token in self._tokenizer.all_special_tokens if spec.sampling.skip_special_tokens]
        has_template = bool(spec.prompt.chat_template or getattr(self._tokenizer, "chat_template", None))
        chat = spec.wants_chat and (has_template or spec.prompt.chat is True)
        if (chat or spec.prompt.needs_chat) and not has_template and not spec.takes_requests:
            raise EngineError(
                f"{spec.model.source} has no chat template", "set prompt.chat: false, or take a chat model"
            )
        self._thinking = None if thinking is None else _thinking(spec, thinking, engine)
        _require_accepted(spec, engine, params)
        writer = prompt_writer(described(spec), self._tokenizer, chat)
        # A chat template writes its own special tokens.
        self._spec, self._engine, self._parser = spec, engine, thinking
        self._sampling = RowSampling(spec)
        self._of_rows = functools.lru_cache(REMEMBERED)(self._parameters)
        self._tokens = tokens_of(spec, EngineTokenizer(self._tokenizer), writer, not chat, context)
        self._lacks_template = spec.prompt.messages_column is not None and not has_template
        self._names = vllm_private.label_names(engine) if spec.task == "classify" else []
        self._labels = self._label_tree(spec, engine) if spec.output.confidence else None

    def tokens(self, prompts: Sequence[Prompt]) -> list[Tokenized | RowError]:
        """The tokens of each prompt."""
        if self._lacks_template:
            # The other requests of a batch file may be texts, which need none.
            return [RowError("request_invalid", "the model has no chat template: send texts to /v1/completions")] * len(
                prompts
            )
        return self._tokens(prompts)

    def least_answer(self, prompt: Prompt) -> int:
        """Tokens of the context that a prompt must leave for its answer.

        OpenAI's API and vLLM's server refuse a request whose `max_tokens` may not fit.
        """
        if self._pools:
            return 0
        most = self._sampling.of(prompt).max_tokens if self._spec.takes_requests else 1
        return 1 if most == NO_LIMIT else most

    def parameters(self, prompt: Prompt, tokens: Tokenized) -> Any:
        """vLLM's parameters for a prompt, or a RowError if vLLM refuses those of its row."""
        own = prompt.sampling, prompt.schema, prompt.dimensions
        if own != (None, None, None):
            return self._of_rows(*own)
        if tokens.second is None:
            return self._params
        mine = self._params.clone()
        mine.extra_kwargs = {"compressed_token_type_ids": tokens.second}
        return mine

    def _parameters(self, sampling: str | None, schema: str | None, dimensions: int | None) -> Any:
        """vLLM's parameters for rows that override these keys, or why it refuses them."""
        mine = self._spec.sampling if sampling is None else self._sampling.read(sampling)
        unknown = mine.unknown_token(vllm_private.vocabulary_size(self._engine))
        if unknown is not None:
            return self._refused(f"{unknown[0]} names token {unknown[1]}, which the model does not have")
        embed = self._spec.embed.model_copy(update={"dimensions": dimensions or self._spec.embed.dimensions})
        params = request_parameters(self._spec.model_copy(update={"sampling": mine, "embed": embed}), self._parser)
        plain = params.clone()
        if schema is not None:
            params.structured_outputs = answer_grammar(schema)
            plain = params
        elif not self._pools:
            # Compiled once, with the parameters of the job.
            plain.structured_outputs = None
        try:
            _verify(self._engine, plain)
        except WrongRelease:
            raise
        except Exception as error:
            # As in `_require_accepted`.
            return self._refused(brief(error))
        if self._labels is not None:
            _ask_for_labels(params, self._params.logprob_token_ids)
        return params

    def _refused(self, why: str) -> RowError:
        if self._spec.takes_requests:
            return RowError("request_invalid", why)
        return RowError("sampling_invalid", f"sampling_column: {why}"[:500])

    def completion(self, result: Any) -> Completion:
        """The completion of vLLM's output, or of the exception with which it refused the request."""
        if isinstance(result, Exception):
            return Completion.failed(RowError("engine_rejected", brief(result)))
        if self._pools:
            return self._pooled(result)
        if self._labels is not None:
            return self._label(result, self._labels)
        outputs = sorted(result.outputs, key=lambda output: output.index)
        tells = self._logprobs or (self._spec.takes_requests and outputs[0].logprobs is not None)
        made = Completion(
            texts=[output.text for output in outputs],
            finish_reasons=[str(output.finish_reason) for output in outputs],
            input_tokens=len(result.prompt_token_ids),
            cached_tokens=result.num_cached_tokens or 0,
            output_tokens=sum(len(output.token_ids) for output in outputs),
            logprobs=[_logprobs(output) for output in outputs] if tells else None,
            stop_reasons=[output.stop_reason for output in outputs] if self._spec.takes_requests else None,
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
        _ask_for_labels(self._params, list(tree.tokens) or [ends[0]])
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


def _ask_for_labels(params: Any, tokens: list[int]) -> None:
    """Change the parameters so that vLLM reports the probabilities of these tokens."""
    params.logprob_token_ids = tokens
    # vLLM would write the text of each of these tokens for each token of an answer, in Python.
    params.detokenize, params.flat_logprobs, params.stop = False, True, []


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
        _verify(engine, params)
        if not spec.generates:
            return
    except WrongRelease:
        raise
    except Exception as error:
        # The errors have many types: vLLM's own, those of grammar compilers, ValueError.
        raise SpecError(
            f"vLLM refuses every row of this job: {brief(error)}", "change what it names: output or sampling"
        ) from error
    tokenizer = engine.get_tokenizer()
    require_whole_choices(spec, lambda text: len(tokenizer.encode(text, add_special_tokens=False)))


def _verify(engine: Any, params: Any) -> None:
    """Raise what vLLM raises for these parameters of each request."""
    if hasattr(params, "structured_outputs"):
        vllm_private.require_accepted(engine, params)
    else:
        params.clone().verify(engine.model_config)


def _logprobs(output: Any) -> list[list[dict[str, Any]]]:
    return [
        [
            {"token": entry.decoded_token, "token_id": token, "logprob": entry.logprob, "rank": entry.rank}
            for token, entry in position.items()
        ]
        for position in output.logprobs or []
    ]


def brief(error: BaseException) -> str:
    """The last line with content, at most 500 characters: pydantic ends its errors with a link and the input."""
    lines = [line.strip() for line in str(error).splitlines()]
    lines = [line for line in lines if line and not line.startswith("For further information visit")]
    return (lines[-1].partition(" [type=")[0] if lines else type(error).__name__)[:500]

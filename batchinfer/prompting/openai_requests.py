"""Requests of OpenAI's API, as the lines of a batch file have them: what each asks of the engine.

A request that cannot be run as it says is an error of its row. No key that would change an answer is passed over.
"""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
from pydantic import ValidationError

from batchinfer.errors import RowError
from batchinfer.input.bad_rows import BAD_ROW
from batchinfer.jobspec import JobSpec
from batchinfer.jobspec.output_keys import AnswerSpec
from batchinfer.prompting.prompts import Prompt, prompt_of_messages, prompt_of_text
from batchinfer.prompting.row_sampling import REMEMBERED, RowSampling, first_mistake

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"

MOST_PROMPTS = 2048
"""Prompts of one request, which OpenAI's API allows. All of them are in one row of the results."""

COMPLETION_TOKENS = 16
"""`max_tokens` of `/v1/completions` if the body has none, as OpenAI's API and vLLM have it."""

_SHOWN = 500

_SAMPLING = (
    *("n", "temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty"),
    *("repetition_penalty", "repetition_detection", "stop", "stop_token_ids", "include_stop_str_in_output"),
    *("ignore_eos", "min_tokens", "skip_special_tokens", "spaces_between_special_tokens", "logit_bias"),
    *("allowed_token_ids", "bad_words"),
)
"""Keys of a body that are keys of `sampling` by the same names."""

IGNORED = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *("parallel_tool_calls", "stream_options", "request_id", "priority"),
)
"""Keys of a body that change no answer."""

_AS_IF_LEFT_OUT: Mapping[str, tuple[Any, ...]] = {
    "stream": (False,),
    "tools": (),
    "tool_choice": ("none",),
    "functions": (),
    "function_call": ("none",),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": (),
    "verbosity": (),
    "echo": (False,),
    "best_of": (1,),
    "suffix": ("",),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "add_special_tokens": (),
    "chat_template": (),
    "chat_template_kwargs": (),
    "structured_outputs": (),
    "prompt_logprobs": (),
    "logprob_token_ids": (),
    "truncate_prompt_tokens": (),
    "truncation_side": (),
    "thinking_token_budget": (),
    "include_reasoning": (True,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "cache_salt": (),
    "documents": (),
    "vllm_xargs": (),
    "use_activation": (True,),
}
"""Keys of OpenAI's API and of vLLM's server that are not supported, each with the values that mean nothing."""

_OF_URL = {
    CHAT: ("messages", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "response_format"),
    COMPLETIONS: ("prompt", "max_tokens", "logprobs", "response_format"),
    EMBEDDINGS: ("input", "dimensions", "encoding_format"),
}


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """A request of a batch file: its prompts, one but for lists of texts, and how its response is written.

    `top_logprobs`: how many alternatives a conversation's response has for each token; None: no log probabilities.
    """

    url: str
    prompts: tuple[Prompt, ...]
    top_logprobs: int | None = None
    encoding: Literal["float", "base64"] = "float"


class _Wrong(Exception):
    """What is wrong with a request."""


@dataclass(frozen=True, slots=True)
class _Settings:
    """What a body says besides its texts, as `Prompt` holds it."""

    sampling: str | None
    schema: str | None
    top_logprobs: int | None


class BatchRequests:
    """Reads the rows of a batch file. Safe to use from several threads.

    `spec`: a job with `JobSpec.takes_requests`.
    """

    def __init__(self, spec: JobSpec) -> None:
        self._spec = spec
        self._models = spec.input.models
        self._plain_step = len(spec.step_jobs) - 1
        self._sampling = RowSampling(spec)
        self._settings = functools.lru_cache(REMEMBERED)(self._read_settings)

    def read(self, rows: pa.Table) -> list[BatchRequest | RowError]:
        """The request of each row, or why there is none."""
        bad = rows.column(BAD_ROW).to_pylist() if BAD_ROW in rows.column_names else [None] * rows.num_rows
        columns = (rows.column(name).to_pylist() for name in ("method", "url", "body"))
        return [
            _error("input_invalid", problem) if problem is not None else self.request(*row)
            for problem, *row in zip(bad, *columns, strict=True)
        ]

    def request(self, method: str | None, url: str | None, body: str | None) -> BatchRequest | RowError:
        """The request of one row, or why there is none. `body`: JSON text."""
        try:
            return self._request(method, url, body)
        except _Wrong as wrong:
            return _error("request_invalid", str(wrong))

    def _request(self, method: str | None, url: str | None, body: str | None) -> BatchRequest | RowError:
        if method != "POST":
            raise _Wrong(f"method is {method!r:.40}: a batch file has POST requests only")
        allowed = (CHAT, COMPLETIONS) if self._spec.generates else (EMBEDDINGS,)
        if url is None or url not in allowed:
            raise _Wrong(f"url is {url!r:.100}, and this job (task: {self._spec.task}) answers {' and '.join(allowed)}")
        try:
            # The reader of lines has checked keys that are there twice and numbers that JSON does not have.
            given = json.loads(body or "null")
        except (ValueError, RecursionError) as error:
            raise _Wrong(f"body is not JSON: {error}") from None
        if not isinstance(given, dict):
            raise _Wrong("body is not an object")
        given = {key: value for key, value in given.items() if value is not None}
        model = given.pop("model", None)
        if self._models is not None and model is not None and model not in self._models:
            return _error(
                "model_not_found",
                f"there is no model {model!r:.200}, only {' and '.join(self._models)}: "
                "input.models, or --served-model-name of run-batch, names what this one answers to",
            )
        _refuse_unsupported(given, url)
        if url == EMBEDDINGS:
            return self._embedding(given)
        texts = given.pop("messages" if url == CHAT else "prompt", None)
        # Not sorted: an answer has the keys of its schema in this order.
        found = self._settings(url, json.dumps(given))
        if isinstance(found, str):
            raise _Wrong(found)
        made = (
            [prompt_of_messages(texts)] if url == CHAT else [prompt_of_text(text) for text in _texts("prompt", texts)]
        )
        step = 0 if url == CHAT else self._plain_step
        prompts = []
        for prompt in made:
            if isinstance(prompt, RowError):
                return prompt
            prompts.append(prompt._replace(step=step, sampling=found.sampling, schema=found.schema))
        return BatchRequest(url, tuple(prompts), found.top_logprobs)

    def _embedding(self, given: dict[str, Any]) -> BatchRequest | RowError:
        encoding, dimensions = given.get("encoding_format", "float"), given.get("dimensions")
        if encoding not in ("float", "base64"):
            raise _Wrong(f"encoding_format is {encoding!r:.40}: it is float or base64")
        if dimensions is not None and (not _is_number(dimensions) or dimensions < 1):
            raise _Wrong("dimensions is not a number from 1")
        prompts = []
        for text in _texts("input", given.get("input")):
            prompt = prompt_of_text(text)
            if isinstance(prompt, RowError):
                return prompt
            prompts.append(prompt._replace(step=self._plain_step, dimensions=dimensions))
        return BatchRequest(EMBEDDINGS, tuple(prompts), None, encoding)

    def _read_settings(self, url: str, text: str) -> _Settings | str:
        """What a body says besides its texts, or what is wrong with it; `text`: JSON of the body without them."""
        given = json.loads(text)
        try:
            keys = {key: given[key] for key in _SAMPLING if key in given}
            # OpenAI's clients send lists without elements for what is not set.
            keys = {key: value for key, value in keys.items() if value not in ([], {})}
            if "logit_bias" in keys:
                keys["logit_bias"] = _biases(keys["logit_bias"])
            keys |= _longest(given, url)
            top = _logprobs(given, url)
            if top is not None:
                keys["logprobs"] = top
            try:
                mine = self._sampling.with_keys(keys)
            except ValidationError as error:
                raise _Wrong(first_mistake(error)) from None
            return _Settings(self._sampling.difference(mine), _schema(given.get("response_format")), top)
        except _Wrong as wrong:
            return str(wrong)


def _refuse_unsupported(given: Mapping[str, Any], url: str) -> None:
    """Raise _Wrong for a key that this product does not act on."""
    known = _OF_URL[url] if url == EMBEDDINGS else (*_OF_URL[url], *_SAMPLING)
    for key, value in given.items():
        if key in known or key in IGNORED:
            continue
        if key in _AS_IF_LEFT_OUT:
            # 1 equals True.
            if any(value == nothing and type(value) is type(nothing) for nothing in _AS_IF_LEFT_OUT[key]):
                continue
            raise _Wrong(f"{key} is not supported in a batch")
        near = difflib.get_close_matches(key, [*known, *IGNORED], n=1, cutoff=0.6)
        raise _Wrong(f"{url} has no key {key!r:.60}" + (f": did you mean {near[0]}?" if near else ""))


def _texts(key: str, value: Any) -> Sequence[str]:
    """The prompts of a body: a text, or a list of texts."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise _Wrong(f"{key} is not a text or a list of texts")
    if len(texts) > MOST_PROMPTS:
        raise _Wrong(f"{key} has {len(texts):,} texts, and one request at most {MOST_PROMPTS:,}")
    return texts


def _longest(given: Mapping[str, Any], url: str) -> dict[str, Any]:
    """The key `max_tokens` of `sampling`, unless the job's own holds."""
    both = [given[key] for key in ("max_completion_tokens", "max_tokens") if key in given]
    if both:
        return {"max_tokens": both[0]}
    return {"max_tokens": COMPLETION_TOKENS} if url == COMPLETIONS else {}


def _logprobs(given: Mapping[str, Any], url: str) -> int | None:
    """How many alternatives for each token the response has; None: no log probabilities."""
    asked = given.get("logprobs")
    if url == COMPLETIONS:
        if asked is not None and not _is_number(asked):
            raise _Wrong("logprobs is not a number")
        return asked
    if asked is not None and not isinstance(asked, bool):
        raise _Wrong("logprobs is not true or false; top_logprobs says how many")
    top = given.get("top_logprobs", 0)
    if not _is_number(top):
        raise _Wrong("top_logprobs is not a number")
    if top and not asked:
        raise _Wrong("top_logprobs needs logprobs: true")
    return top if asked else None


def _biases(given: Any) -> dict[int, float]:
    """OpenAI's biases, from -100 to 100; vLLM cuts others to that, too."""
    try:
        return {int(token): min(100.0, max(-100.0, float(bias))) for token, bias in given.items()}
    except (AttributeError, TypeError, ValueError):
        raise _Wrong("logit_bias is not an object of numbers by token ids") from None


def _schema(given: Any) -> str | None:
    """`Prompt.schema` for a `response_format`."""
    if given is None:
        return None
    kind = given.get("type") if isinstance(given, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return "true"
    if kind != "json_schema":
        raise _Wrong(f"response_format is {kind!r:.40}: it is text, json_object or json_schema")
    named = given.get("json_schema")
    schema = named.get("schema") if isinstance(named, dict) else None
    if not isinstance(schema, dict):
        raise _Wrong("response_format.json_schema has no schema that is an object")
    try:
        AnswerSpec(json_schema=schema)
    except ValidationError as error:
        raise _Wrong(f"response_format: {first_mistake(error)}") from None
    return json.dumps(schema)


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _error(code: str, message: str) -> RowError:
    return RowError(code, message.encode(errors="backslashreplace").decode()[:_SHOWN])

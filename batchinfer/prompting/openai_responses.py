"""Responses in the shapes of OpenAI's API, with the keys that vLLM's server adds."""

from __future__ import annotations

import base64
import itertools
import json
import time
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from batchinfer.prompting.openai_requests import CHAT, EMBEDDINGS, BatchRequest

LEAST_LOGPROB = -9999.0
"""What OpenAI's API has for a probability of 0, whose logarithm JSON has no number for."""


class EngineAnswer(Protocol):
    """The answer to one prompt, as `engine.base.Completion` has it."""

    texts: list[str]
    finish_reasons: list[str]
    stop_reasons: list[int | str | None] | None
    input_tokens: int
    output_tokens: int
    logprobs: list[list[list[dict[str, Any]]]] | None
    embedding: npt.NDArray[np.float32] | None
    reasoning: list[str | None] | None


_EMPTY = {
    "service_tier": None,
    "system_fingerprint": None,
    "kv_transfer_params": None,
    "ec_transfer_params": None,
    "metrics": None,
}
"""Keys of vLLM's responses that have no value here."""

_EMPTY_CHAT = {"prompt_logprobs": None, "prompt_token_ids": None, "prompt_text": None}
_EMPTY_CHOICE = {"token_ids": None, "routed_experts": None}
_EMPTY_TEXT = {**_EMPTY_CHOICE, "prompt_logprobs": None, "prompt_token_ids": None}
_EMPTY_MESSAGE = {"refusal": None, "annotations": None, "audio": None, "function_call": None}


def response_body(request: BatchRequest, model: str, answers: Sequence[EngineAnswer]) -> str:
    """The body of the response as JSON.

    `answers`: to the request's prompts, none of them failed. `model`: the name that the response has.
    """
    read, written = (sum(getattr(a, name) for a in answers) for name in ("input_tokens", "output_tokens"))
    usage: dict[str, Any] = {
        "prompt_tokens": read,
        "total_tokens": read + written,
        "completion_tokens": written,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }
    common: dict[str, Any] = {"created": int(time.time()), "model": model, "usage": usage}
    if request.url == EMBEDDINGS:
        data = [
            {"index": i, "object": "embedding", "embedding": _vector(answer.embedding, request.encoding)}
            for i, answer in enumerate(answers)
        ]
        usage["completion_tokens"] = 0
        body = {"id": _id("embd"), "object": "list", **common, "data": data}
    else:
        written = _message if request.url == CHAT else _text
        places = [(answer, i) for answer in answers for i in range(len(answer.texts))]
        choices = [
            {
                "index": index,
                **written(answer, i, request.top_logprobs),
                "finish_reason": answer.finish_reasons[i],
                "stop_reason": None if answer.stop_reasons is None else answer.stop_reasons[i],
                **(_EMPTY_CHOICE if request.url == CHAT else _EMPTY_TEXT),
            }
            for index, (answer, i) in enumerate(places)
        ]
        if request.url == CHAT:
            body = {"id": _id("chatcmpl"), "object": "chat.completion", **common, "choices": choices, **_EMPTY}
            body |= _EMPTY_CHAT
        else:
            body = {"id": _id("cmpl"), "object": "text_completion", **common, "choices": choices, **_EMPTY}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))


def _id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"


def _message(answer: EngineAnswer, i: int, top: int | None) -> dict[str, Any]:
    thought = None if answer.reasoning is None else answer.reasoning[i]
    message = {"role": "assistant", "content": answer.texts[i], **_EMPTY_MESSAGE, "reasoning": thought}
    if top is None or answer.logprobs is None:
        return {"message": message, "logprobs": None}
    content = [
        {**_token(entries[0]), "top_logprobs": [_token(entry) for entry in entries[:top]]}
        for entries in answer.logprobs[i]
    ]
    return {"message": message, "logprobs": {"content": content}}


def _token(entry: dict[str, Any]) -> dict[str, Any]:
    token = entry["token"] or ""
    bytes_ = list(token.encode(errors="replace"))
    return {"token": token, "logprob": max(entry["logprob"], LEAST_LOGPROB), "bytes": bytes_}


def _text(answer: EngineAnswer, i: int, top: int | None) -> dict[str, Any]:
    if top is None or answer.logprobs is None:
        return {"text": answer.texts[i], "logprobs": None}
    steps = answer.logprobs[i]
    tokens = [entries[0]["token"] or "" for entries in steps]
    ends = list(itertools.accumulate(map(len, tokens)))
    found = {
        "text_offset": [0, *ends[:-1]] if ends else [],
        "token_logprobs": [max(entries[0]["logprob"], LEAST_LOGPROB) for entries in steps],
        "tokens": tokens,
        # The chosen token comes first, and may stand beside `top` others.
        "top_logprobs": [{e["token"] or "": max(e["logprob"], LEAST_LOGPROB) for e in entries[: top + 1]}
                         for entries in steps],
    }  # fmt: skip
    return {"text": answer.texts[i], "logprobs": found}


def _vector(vector: npt.NDArray[np.float32] | None, encoding: str) -> list[float] | str:
    """A vector as numbers, or as OpenAI's base64: float32 in little-endian order."""
    numbers = np.zeros(0, np.float32) if vector is None else vector
    if encoding == "base64":
        return base64.b64encode(numbers.astype("<f4").tobytes()).decode()
    listed: list[float] = numbers.tolist()
    return listed

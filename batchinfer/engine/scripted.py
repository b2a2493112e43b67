"""A deterministic engine without a model: for the pipeline's own speed, for scale, and for faults.

The answer to a prompt is `engine.scripted.answer`, or the choice that the prompt's hash picks, or the
first `max_tokens` tokens of the prompt; a token is four characters.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable, Sequence

from batchinfer.engine.base import Completion
from batchinfer.errors import RowError
from batchinfer.prompts import Prompt
from batchinfer.spec import JobSpec

TOKEN_CHARACTERS = 4


class ScriptedEngine:
    """See `engine.base.Engine` and the keys of `engine.scripted`."""

    def __init__(self, spec: JobSpec) -> None:
        self._script = spec.engine.scripted
        self._choices = spec.output.choices
        self._n = spec.sampling.n
        self._max_characters = spec.sampling.max_tokens * TOKEN_CHARACTERS
        self._context = (spec.engine.max_model_len or 2**31) * TOKEN_CHARACTERS
        self.slots = spec.engine.max_num_seqs or 256
        time.sleep(self._script.load_seconds)

    def generate(
        self, prompts: Sequence[Prompt], begun: Callable[[int], None], finished: Callable[[int], None]
    ) -> list[Completion]:
        script = self._script
        begun(len(prompts))
        completions = [self._complete(prompt) for prompt in prompts]
        seconds = script.seconds_per_batch
        if script.seconds_per_token:
            seconds += script.seconds_per_token * sum(c.input_tokens + c.output_tokens for c in completions)
        if seconds:
            time.sleep(seconds)
        finished(len(prompts))
        return completions

    def _complete(self, prompt: Prompt) -> Completion:
        text = prompt.text if prompt.messages is None else prompt.messages[-1]["content"]
        script = self._script
        if script.kill_on is not None and script.kill_on in text:
            os._exit(1)
        if script.reject_on is not None and script.reject_on in text:
            return Completion.failed(RowError("engine_rejected", "refused by the script"), _tokens(text))
        if len(text) >= self._context:
            return Completion.failed(RowError("prompt_too_long", f"{_tokens(text)} tokens do not fit"), _tokens(text))
        if script.answer is not None:
            answer = script.answer
        elif self._choices is not None:
            answer = self._choices[zlib.crc32(text.encode()) % len(self._choices)]
        else:
            answer = text
        reason = "length" if len(answer) > self._max_characters else "stop"
        answer = answer[: self._max_characters]
        n = self._n
        return Completion([answer] * n, [reason] * n, _tokens(text), 0, _tokens(answer) * n)

    def close(self) -> None:
        pass


def _tokens(text: str) -> int:
    return -(-len(text) // TOKEN_CHARACTERS)

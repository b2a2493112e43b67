"""A deterministic engine without a model, to measure the pipeline itself and to test scale and faults.

The answer to a prompt is `engine.scripted.answer`, or the choices that a hash of the prompt picks, or the first
`max_tokens` tokens of the prompt. A token is four characters. Like vLLM's engine, it has a separate process, which is
idle: if that process is killed, the engine is dead.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Sequence

from batchinfer.engine.base import Completion, EngineDied, set_apart
from batchinfer.errors import RowError
from batchinfer.jobspec import JobSpec
from batchinfer.prompting.answers import label_list
from batchinfer.prompting.prompts import Prompt
from batchinfer.prompting.row_sampling import RowSampling

TOKEN_CHARACTERS = 4
_THINK_END = "</think>"
"""Ends the thinking of a scripted answer, whatever the parser's name."""

PROCESS_NAME = "scripted-engine"
"""The last argument of the engine's process, by which `benchmarks/chaos.py` finds it."""


class ScriptedEngine:
    """See `engine.base.Engine` and the keys of `engine.scripted`. A call runs `max_num_seqs` rows at a time."""

    def __init__(self, spec: JobSpec) -> None:
        self._script = script = spec.engine.scripted
        self._steps = [_StepScript(job) for job in spec.step_jobs]
        self._has_faults = any(mark is not None for mark in (script.kill_on, script.hang_on, script.reject_on))
        self._slots = spec.engine.max_num_seqs or 256
        self.steps = 0
        self._hangs = False
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", "import sys; sys.stdin.read()", PROCESS_NAME], stdin=subprocess.PIPE
        )
        time.sleep(self._script.load_seconds)

    def generate(
        self, prompts: Sequence[Prompt], begun: Callable[[int], None], finished: Callable[[int], None]
    ) -> list[Completion]:
        completions: list[Completion] = []
        while len(completions) < len(prompts):
            running = prompts[len(completions) : len(completions) + self._slots]
            begun(len(running))
            began = time.monotonic()
            new = [self._complete(prompt) for prompt in running]
            if not self._lives_through(self._seconds(new, len(running) / len(prompts))):
                missing = [None] * (len(prompts) - len(completions))
                places = range(len(completions), len(completions) + len(running))
                raise EngineDied("the engine's process is gone", [*completions, *missing], places)
            self.steps += 1
            for completion in new:
                completion.seconds = time.monotonic() - began
            completions += new
            finished(len(new))
        return completions

    def _seconds(self, completions: Sequence[Completion], share: float) -> float:
        tokens = sum(c.input_tokens + c.output_tokens for c in completions) if self._script.seconds_per_token else 0
        return self._script.seconds_per_batch * share + self._script.seconds_per_token * tokens

    def _lives_through(self, seconds: float) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(None if self._hangs else seconds)
        # Another call may have made the engine hang while this call slept.
        return self._process.wait() is None if self._hangs else self._process.poll() is None

    def _complete(self, prompt: Prompt) -> Completion:
        text = prompt.text if prompt.messages is None else prompt.messages[-1]["content"]
        if self._has_faults and self._meets_fault(text):
            return Completion.failed(RowError("engine_rejected", "refused by the script"), _tokens(text))
        return self._steps[prompt.step].complete(text, prompt)

    def _meets_fault(self, text: str) -> bool:
        """Kill or hang the engine if the script says so for this text. Returns whether the row is refused."""
        script = self._script
        if script.kill_on is not None and script.kill_on in text:
            self._process.kill()
            self._process.wait()
        if script.hang_on is not None and script.hang_on in text:
            self._hangs = True
        return script.reject_on is not None and script.reject_on in text

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class _StepScript:
    """The answers to the prompts of one of the job's steps."""

    def __init__(self, spec: JobSpec) -> None:
        self._answer = spec.engine.scripted.answer
        self._choices = spec.output.choice_texts
        self._many = spec.output.multi_label
        self._tells_confidence = spec.output.confidence
        self._thinks = spec.reasoning is not None and spec.reasoning.parser != "none"
        self._sampling = RowSampling(spec)
        self._context = (spec.engine.max_model_len or 2**31) * TOKEN_CHARACTERS

    def complete(self, text: str, prompt: Prompt) -> Completion:
        """The answer to a prompt with this text."""
        sampling = self._sampling.of(prompt)
        longest = sampling.max_tokens * TOKEN_CHARACTERS
        tokens = _tokens(text)
        if len(text) >= self._context:
            return Completion.failed(RowError("prompt_too_long", f"{tokens} tokens do not fit"), tokens)
        if self._answer is not None:
            answer = self._answer
        elif self._choices is not None:
            hashed = zlib.crc32(text.encode())
            answer = self._choices[hashed % len(self._choices)]
            if self._many:
                answer = label_list(label for i, label in enumerate(self._choices) if hashed >> i % 32 & 1)
        else:
            answer = text
        reason = "stop"
        if len(answer) > longest:
            answer, reason = answer[:longest], "length"
        n = sampling.n
        made = Completion([answer] * n, [reason] * n, tokens, 0, -(-len(answer) // TOKEN_CHARACTERS) * n)
        if self._tells_confidence and self._choices is not None:
            made.probabilities = self._scripted_probabilities(answer, text)
        if not self._thinks:
            return made
        before, ended, after = answer.partition(_THINK_END)
        length = -(-len(before + ended) // TOKEN_CHARACTERS)
        return set_apart(made, [before.removeprefix("<think>")] * n, [after if ended else None] * n, length * n)

    def _scripted_probabilities(self, answer: str, text: str) -> dict[str, float]:
        """The answer has between half of the probability and all of it, by a hash of the prompt."""
        assert self._choices is not None
        rest = [label for label in self._choices if label != answer]
        sure = 0.5 + zlib.crc32(text.encode()[::-1]) % 1000 / 2000 if rest else 1.0
        return {label: sure if label == answer else (1 - sure) / max(1, len(rest)) for label in self._choices}


def _tokens(text: str) -> int:
    return -(-len(text) // TOKEN_CHARACTERS)

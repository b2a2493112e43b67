"""The interface of every engine."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from batchinfer.errors import RowError
from batchinfer.prompting.prompts import Prompt


@dataclass(slots=True)
class Completion:
    """The answer to one prompt: `n` texts with their finish reasons, or a vector (float32, one dimension), or an error.

    `logprobs`, if the spec asks for it, has a list for each text, with a list for each token of
    {token, token_id, logprob, rank}.
    """

    texts: list[str]
    finish_reasons: list[str]
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    error: RowError | None = None
    logprobs: list[list[list[dict[str, Any]]]] | None = None
    embedding: npt.NDArray[np.float32] | None = None
    probabilities: dict[str, float] | None = None
    """The probability of each label, for a job that asks for it."""
    score: float | None = None
    """How well the prompt answers the query, for `task: score`."""
    truncated_tokens: int = 0
    """By how many tokens the prompt was cut."""
    seconds: float = 0.0
    """How long the engine had the row."""
    reasoning: list[str | None] | None = None
    """The thinking before each text; None if the text is kept whole."""
    reasoning_tokens: int = 0
    """Tokens of the thinking, a part of `output_tokens`."""
    values: list[Any] | None = None
    """The texts as values of the answer's type, once they were checked; None where answers are kept as text."""
    reused_tokens: int | None = None
    """Tokens that the engine did not run, in and out, since the answer is that of an equal request. None: it ran."""
    saved_usd: float | None = None
    """Dollars that the answer cost in an earlier run, if it comes from `cache`. None: it does not."""
    stop_reasons: list[int | str | None] | None = None
    """For each text the token or the text of `sampling` that ended it; None: another reason. None: nobody asks."""
    response: str | None = None
    """The body of the response to a request of a batch file, as JSON; made outside the engine."""
    chunks: int = 0
    """Into how many chunks the row's text was cut."""
    levels: int = 0
    """How often answers to chunks were combined until one was left."""

    @classmethod
    def failed(cls, error: RowError, input_tokens: int = 0) -> Completion:
        """A row that the engine did not run."""
        return cls([], [], input_tokens, 0, 0, error)

    @classmethod
    def skipped(cls) -> Completion:
        """A row without this step, or one whose answer is there already."""
        return cls([], [], 0, 0, 0)


def set_apart(
    made: Completion, thoughts: Sequence[str | None], answers: Sequence[str | None], tokens: int
) -> Completion:
    """The completion with its thinking beside the answers. None in `answers`: the thinking did not end, and the row has
    no answer, whatever else it has."""
    made.reasoning, made.reasoning_tokens = list(thoughts), tokens
    unfinished = next((place for place, answer in enumerate(answers) if answer is None), None)
    if unfinished is None:
        made.texts = [answer or "" for answer in answers]
        return made
    cut = made.finish_reasons[unfinished] == "length"
    made.error = RowError(
        "reasoning_unfinished",
        f"sampling.max_tokens cut it after {tokens} tokens of thinking: raise it, or set reasoning.max_tokens"
        if cut
        else f"it ended ({made.finish_reasons[unfinished]}) after {tokens} tokens of thinking, without an answer",
    )
    made.texts = []
    return made


class EngineDied(Exception):
    """The engine died and cannot be used again.

    `completions`: one entry for each prompt of the call, in order; None if the prompt was not finished. `running`: the
    positions of the prompts that were in the engine when it died.
    """

    def __init__(self, message: str, completions: Sequence[Completion | None], running: Collection[int]) -> None:
        super().__init__(message)
        self.completions = completions
        self.running = running


class Engine(Protocol):
    """A loaded model, safe to use from several threads at once."""

    @property
    def steps(self) -> int:
        """A counter of progress. An engine that has rows and does not increase it hangs."""

    def generate(
        self, prompts: Sequence[Prompt], begun: Callable[[int], None], finished: Callable[[int], None]
    ) -> list[Completion]:
        """The completions, in order. Raises EngineDied.

        Calls `begun(rows)` with the number of rows that enter the engine, and `finished(rows)` with the number that
        leave it. Rows that are refused before they enter count in neither.
        """

    def close(self) -> None:
        """End the engine and all its processes, also if the engine is dead."""

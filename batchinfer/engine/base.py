"""What batchinfer asks of an engine."""

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
    """The answer to one prompt: `n` texts with their finish reasons, or a vector, or an error.

    `logprobs`, where asked for, holds for each text a list over its tokens of lists of
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
    reasoning: list[str | None] | None = None
    """The thinking before each text; None if the text is kept whole."""
    reasoning_tokens: int = 0
    """Tokens of the thinking, a part of `output_tokens`."""
    values: list[Any] | None = None
    """The texts as values of the answer's type, once they were checked; None where answers are kept as text."""

    @classmethod
    def failed(cls, error: RowError, input_tokens: int = 0) -> Completion:
        """A row that the engine did not run."""
        return cls([], [], input_tokens, 0, 0, error)


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
    """The engine is gone and will not answer again. `completions` are what it had finished of the prompts
    that it was asked for, in their order, None for the others; `running` are the places of those that were in
    it when it died."""

    def __init__(self, message: str, completions: Sequence[Completion | None], running: Collection[int]) -> None:
        super().__init__(message)
        self.completions = completions
        self.running = running


class Engine(Protocol):
    """A loaded model that any number of threads may ask at once."""

    @property
    def steps(self) -> int:
        """Grows whenever it gets on with any row: an engine that has rows and stands still hangs."""

    def generate(
        self, prompts: Sequence[Prompt], begun: Callable[[int], None], finished: Callable[[int], None]
    ) -> list[Completion]:
        """The completions, in order. Calls `begun(rows)` as rows enter the engine and `finished(rows)` as they
        leave it; rows refused before they enter count in neither. Raises EngineDied.
        """

    def close(self) -> None:
        """End the engine and all its processes; also one that is dead."""

"""The keys of `chunk` and `combine`: a text that is longer than the context, in parts, and one answer of them all."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from batchinfer.jobspec.base import Keys
from batchinfer.jobspec.sampling_keys import SamplingSpec
from batchinfer.jobspec.templates import compile_template, is_template

ANSWERS = "answers"
"""The name of the partial answers in the templates of `combine`."""


class ChunkSpec(Keys):
    """How a long text is cut. The prompt is made of each chunk in turn, and `combine` makes one answer of all."""

    column: str
    """The column whose text is cut, one that the prompt names. A list of texts is joined with an empty line between."""
    tokens: int = Field(default=3000, ge=16)
    """The most tokens of a chunk. A chunk has fewer if the context has no room for more.

    A chunk ends where a paragraph, a sentence, a line or a word ends, in this order."""
    overlap: int = Field(default=0, ge=0)
    """Tokens that a chunk shares with the one before. Less than half of `tokens`."""

    @model_validator(mode="after")
    def _advances(self) -> Self:
        if self.overlap * 2 >= self.tokens:
            raise ValueError(f"overlap ({self.overlap}) must be less than half of tokens ({self.tokens})")
        return self


class CombinePrompt(Keys):
    """A prompt that makes one answer of several. It is asked of as many answers as fit into the context, and again of
    its own answers, until one is left.
    """

    template: str
    """The prompt, over `answers` (a list of texts) and the row's columns.

    As in `"Make one summary of these:\\n{% for a in answers %}- {{ a }}\\n{% endfor %}"`."""
    system: str | None = None
    """The system message. null: the one of `prompt`."""
    sampling: SamplingSpec | None = None
    """How the tokens of combined answers are chosen. null: as the job's `sampling` says."""

    @field_validator("template")
    @classmethod
    def _names_the_answers(cls, template: str) -> str:
        if ANSWERS not in compile_template(template).columns:
            raise ValueError("must use answers, as in {% for a in answers %}- {{ a }}{% endfor %}")
        return template

    @field_validator("system")
    @classmethod
    def _parses(cls, system: str | None) -> str | None:
        if is_template(system):
            compile_template(system)
        return system


CombineSpec = Literal["first", "list", "majority", "max_confidence"] | CombinePrompt
"""How one answer is made of those to the chunks of a row."""

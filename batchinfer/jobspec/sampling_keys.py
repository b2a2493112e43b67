"""The keys of `sampling`: how the next token is chosen and when an answer ends."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from batchinfer.jobspec.base import Keys

NO_LIMIT = 2**31
"""`max_tokens` of an answer that only the context ends: more tokens than any context has."""

OF_REQUESTS = {"temperature": 1.0, "repetition_detection": None, "max_tokens": NO_LIMIT}
"""Sampling of requests of OpenAI's API that do not say otherwise, where it is not that of `SamplingSpec`."""


class RepetitionSpec(Keys):
    """What counts as an answer that repeats itself without end: its last tokens are one pattern, many times over."""

    max_pattern_size: int = Field(default=16, ge=1, le=256)
    """The most tokens of the pattern.

    The engine compares each token for each size: 16 sizes take some 15 microseconds a token, 64 four times that."""
    min_pattern_size: int = Field(default=1, ge=1)
    """The fewest tokens of the pattern. Must not exceed `max_pattern_size`."""
    min_count: int = Field(default=20, ge=2)
    """How often the pattern stands at the end of the answer, without anything between, when the answer is ended."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_pattern_size > self.max_pattern_size:
            raise ValueError("min_pattern_size is above max_pattern_size")
        return self


class SamplingSpec(Keys):
    """How the next token is chosen and when an answer ends: vLLM's sampling parameters by vLLM's names. For `task:
    generate` only.
    """

    max_tokens: int = Field(default=256, ge=1)
    """The most tokens an answer may have; a longer one is cut and has the `finish_reason` `length`.

    The plan and the size of automatic shards depend on it: set it close to what answers need."""
    min_tokens: int = Field(default=0, ge=0)
    """The fewest tokens before the answer may end. Must not exceed `max_tokens`."""
    n: int = Field(default=1, ge=1, le=1024)
    """How many answers to generate for each row.

    Above 1 the output column is a list, and `temperature` must be above 0."""
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    """How random the choice of a token is; 0 always picks the most likely one.

    vLLM's own default is 1. At 0, `top_p`, `top_k` and `min_p` have no effect."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Sample only from the most likely tokens whose probabilities add up to this share. 1: from all."""
    top_k: int = Field(default=0, ge=-1)
    """Sample only from this many most likely tokens. 0 or -1: from all."""
    min_p: float = Field(default=0.0, ge=0.0, le=1.0)
    """Sample only tokens at least this probable, relative to the most likely one. 0: no such limit."""
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    """The seed of each request's random choices, so that a repeated run samples the same way.

    On a CPU a seed also turns `engine.enable_chunked_prefill` off, because vLLM cannot do both there. null: no fixed
    seed."""
    presence_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    """Subtracted from the score of every token that the answer already has. Negative values encourage repetition."""
    frequency_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    """Subtracted from a token's score once for each time that the answer already has the token. Negative values
    encourage repetition."""
    repetition_penalty: float = Field(default=1.0, gt=0.0)
    """Divides the score of tokens that the prompt or the answer already has. Below 1 encourages repetition."""
    repetition_detection: RepetitionSpec | None = RepetitionSpec()
    """When an answer that repeats itself is ended. null: never. Its `finish_reason` is `repetition`.

    An answer of a fixed shape (`output.choices` and the like) that is ended so fails with `output_invalid`. Has no
    effect with `ignore_eos`."""
    stop: str | tuple[str, ...] | None = None
    """A text, or several, at which the answer ends; the text itself is not part of the answer. Example: `["\\n\\n",
    "###"]`."""
    stop_token_ids: tuple[int, ...] | None = None
    """Token ids at which the answer ends. The token stays in the answer unless it is a special token."""
    include_stop_str_in_output: bool = False
    """Whether the text of `stop` that ended the answer stays in it."""
    ignore_eos: bool = False
    """Whether to go on after the model's end-of-sequence token, up to `max_tokens`. For measuring speed."""
    skip_special_tokens: bool = True
    """Whether special tokens are left out of the answer's text."""
    spaces_between_special_tokens: bool = True
    """Whether special tokens in the answer's text are separated by spaces."""
    logprobs: int | None = Field(default=None, ge=0, le=20)
    """How many alternatives to report for each token of the answer, with their log probabilities.

    The results have the column `logprobs` then: for each token a list of `{token, token_id, logprob, rank}`, the
    chosen token among them. 0: the chosen token alone. null: no such column."""
    logit_bias: dict[int, float] | None = None
    """What to add to the scores of tokens, by token id, as in `{50256: -100}`. Not with `model.speculative`."""
    allowed_token_ids: tuple[int, ...] | None = None
    """The only token ids that an answer may consist of. null: all."""
    bad_words: tuple[str, ...] | None = None
    """Texts that an answer must not contain. vLLM forbids the last token that would complete one."""

    @property
    def repeats_itself(self) -> bool:
        """Do two equal requests have the same answer? With a seed each of `n` answers has a seed of its own."""
        return self.temperature == 0 or self.seed is not None

    def unknown_token(self, vocabulary: int) -> tuple[str, int] | None:
        """The first token id that a vocabulary of this size does not have, after the key that names it."""
        for key in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
            unknown = sorted(token for token in getattr(self, key) or () if not 0 <= token < vocabulary)
            if unknown:
                return key, unknown[0]
        return None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.n > 1 and self.temperature == 0:
            raise ValueError("n > 1 with temperature 0 gives the same text n times: set a temperature above 0")
        if self.min_tokens > self.max_tokens:
            raise ValueError("min_tokens is above max_tokens")
        if "" in ([self.stop] if isinstance(self.stop, str) else self.stop or ()):
            raise ValueError("stop holds a text without characters: leave it out")
        if not all(word.strip() for word in self.bad_words or ()):
            raise ValueError("bad_words holds a text without characters: leave it out")
        if self.allowed_token_ids == ():
            raise ValueError("allowed_token_ids is empty, so that no answer could be made: leave it out")
        for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
            wrong = [token for token in getattr(self, name) or () if token < 0]
            if wrong:
                raise ValueError(f"{name} holds {wrong[0]}: token ids begin at 0")
        return self

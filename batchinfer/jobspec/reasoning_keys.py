"""The keys of `reasoning`: what becomes of the thinking of models that think before they answer."""

from __future__ import annotations

import difflib

from pydantic import Field, field_validator

from batchinfer.jobspec.base import Keys

REASONING_PARSERS = (
    "cohere_command3", "cohere_command4", "deepseek_r1", "deepseek_v3", "deepseek_v4", "deepseek_v41", "ernie45",
    "gemma4", "glm45", "glm47", "granite", "granite_thinking_parser", "hf", "holo2", "hunyuan_a13b", "hy_v3", "hy_v4",
    "inkling", "k2_horizon", "kimi_k2", "kimi_k3", "ling3", "mimo", "minicpmv", "minimax_m2", "minimax_m2_append_think",
    "minimax_m3", "mistral", "muse_glimmer", "nemotron_v3", "olmo3", "openai_gptoss", "plamo3", "poolside_v1", "qwen3",
    "seed_oss", "step3", "step3p5",
)  # fmt: skip
"""The names of vLLM 0.32's parsers. A test compares them with vLLM's own, whose import takes seconds."""


class ReasoningSpec(Keys):
    """What becomes of the thinking of a model that thinks before it answers. The output column holds the answer only;
    `output.choices`, `json_schema` and `regex` hold for the answer, after the thinking.
    """

    parser: str = "auto"
    """How thinking and answer are told apart: `auto`, `none`, or the name of one of vLLM's reasoning parsers.

    `auto`: as the catalog and the model's chat template say; `validate` says which it is. `none`: the text is kept as
    it is."""
    column: str | None = Field(default=None, min_length=1)
    """A column for the thinking. null: the thinking is not kept."""
    max_tokens: int | None = Field(default=None, ge=1)
    """The most tokens of thinking; then the engine ends the thinking, and the model answers.

    Must be less than `sampling.max_tokens`, which counts thinking and answer together. null: no limit of its own. A row
    that `sampling.max_tokens` cuts while it thinks fails with `reasoning_unfinished`."""

    @field_validator("parser")
    @classmethod
    def _known(cls, parser: str) -> str:
        names = ("auto", "none", *REASONING_PARSERS)
        if parser not in names:
            near = difflib.get_close_matches(parser.lower().replace("-", "_"), names, n=2, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"it takes {', '.join(names)}"
            raise ValueError(f"there is no parser {parser!r:.80}: {hint}")
        return parser

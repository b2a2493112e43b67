"""The keys of `model`, with its adapter and its draft model."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from batchinfer.jobspec.base import Keys, Place

SCRIPTED = "scripted"
"""The `model.source` of the scripted engine, which has no model."""


class LoraSpec(Keys):
    """A LoRA adapter that every request uses, as PEFT's `save_pretrained` writes it, with safetensors."""

    path: Place
    """The adapter: a local folder, an `s3://` folder or a Hugging Face repository id."""
    revision: str | None = None
    """The branch, tag or commit of a Hugging Face repository. null: its default branch."""
    max_lora_rank: Literal[1, 8, 16, 32, 64, 128, 256, 320, 512] | None = None
    """The rank that the engine reserves memory for; must not be below the adapter's.

    null: the smallest that holds the adapter."""


class SpeculativeSpec(Keys):
    """Speculative decoding by vLLM's names: something cheap proposes tokens, and the model checks several at once. Not
    with `sampling.min_tokens`, `min_p` and `logit_bias`, nor with `task: embed`.
    """

    method: Literal["ngram", "draft_model", "eagle", "eagle3", "medusa"]
    """What proposes the tokens.

    `ngram` looks up the last tokens in the prompt itself, and suits answers that quote it. `draft_model` is a small
    model with the same vocabulary. `eagle`, `eagle3` and `medusa` are heads that were trained for this model."""
    num_speculative_tokens: int = Field(ge=1, le=64)
    """How many tokens to propose at a time. Rejected ones are wasted work: 3 to 5 is a start."""
    model: Place | None = None
    """The draft model or the head: a local folder or a Hugging Face repository id. Not with `method: ngram`."""
    revision: str | None = None
    """The branch, tag or commit of a Hugging Face repository. null: its default branch."""
    prompt_lookup_max: int | None = Field(default=None, ge=1)
    """The most tokens that `ngram` looks up in the prompt. For `method: ngram` only.

    null: as many as `prompt_lookup_min`; vLLM has 5 for both if neither is set."""
    prompt_lookup_min: int | None = Field(default=None, ge=1)
    """The fewest tokens that `ngram` looks up in the prompt. Must not exceed `prompt_lookup_max`.

    null: as many as `prompt_lookup_max`; vLLM has 5 for both if neither is set."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        lookups = [name for name in ("prompt_lookup_max", "prompt_lookup_min") if getattr(self, name) is not None]
        if self.method == "ngram":
            if self.model is not None:
                raise ValueError("method ngram proposes from the prompt: leave model out, or take method draft_model")
            low, high = self.prompt_lookup_min, self.prompt_lookup_max
            if low is not None and high is not None and low > high:
                raise ValueError("prompt_lookup_min is above prompt_lookup_max")
        elif lookups:
            raise ValueError(f"{lookups[0]} is for method ngram: leave it out")
        elif self.model is None:
            raise ValueError(f"method {self.method} needs model: the draft model's folder or repository")
        return self


class ModelSpec(Keys):
    """The model: its weights, how they are stored, and what goes with them."""

    source: Place
    """The model: a name that `batchinfer models` lists, a folder, or a Hugging Face repository id.

    A folder is local or on `s3://`, and has `config.json`, the tokenizer and safetensors. `scripted` is an engine
    without a model, for trying a job out. Example: `qwen2.5-7b`."""
    quantization: str = "auto"
    """How the weights are quantized: `auto`, `none`, `fp8`, `int8`, `w8a8`, `w4a16`, `awq`, `gptq`, `nvfp4`, `mxfp4`.

    A checkpoint of that kind must be the source itself, or be published for it in the catalog; only `fp8` can be made
    from 16 bits while loading. `auto` keeps the source as it is if it fits, and goes to 8, then 4 bits only if it does
    not."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """The type of weights and activations that are not quantized.

    `auto` is bfloat16 for bfloat16 checkpoints and float16 for others. With `sampling.temperature: 0` in float32, an
    interrupted run has the results of an uninterrupted one; float32 needs twice the memory."""
    revision: str | None = None
    """The branch, tag or commit of a Hugging Face repository. null: its default branch."""
    trust_remote_code: bool = False
    """Whether to run Python code that comes with the model. Only for repositories that you trust."""
    lora: LoraSpec | None = None
    """A LoRA adapter on top of the model. null: none."""
    speculative: SpeculativeSpec | None = None
    """Speculative decoding, for faster answers. null: none."""

    @model_validator(mode="after")
    def _scripted_has_no_weights(self) -> Self:
        given = [name for name in ("lora", "speculative") if getattr(self, name) is not None]
        if self.source == SCRIPTED and given:
            raise ValueError(f"the scripted engine has no model: leave {given[0]} out")
        return self

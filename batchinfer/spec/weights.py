"""What runs: the keys of `model`, with the adapter and the draft that go with it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from batchinfer.spec.base import Keys, Place

SCRIPTED = "scripted"
"""The model source that means the scripted engine: no model at all."""


class LoraSpec(Keys):
    """A LoRA adapter that every request goes through, as PEFT saves it: a local folder, an `s3://` folder
    or a Hugging Face repository id.

    `max_lora_rank` null: the smallest of vLLM's that holds the adapter.
    """

    path: Place
    revision: str | None = None
    max_lora_rank: Literal[1, 8, 16, 32, 64, 128, 256, 320, 512] | None = None


class SpeculativeSpec(Keys):
    """Speculative decoding by vLLM's own names: something cheap proposes tokens, the model checks them.

    `ngram` looks the last `prompt_lookup_min` to `prompt_lookup_max` tokens up in the prompt itself; the
    other methods take `model`, a local folder or a repository id: a draft model with the same vocabulary,
    or a head that was trained for this model.
    """

    method: Literal["ngram", "draft_model", "eagle", "eagle3", "medusa"]
    num_speculative_tokens: int = Field(ge=1, le=64)
    model: Place | None = None
    revision: str | None = None
    prompt_lookup_max: int | None = Field(default=None, ge=1)
    prompt_lookup_min: int | None = Field(default=None, ge=1)

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
    """What runs: a local folder, a Hugging Face repository id, or `scripted` (no model at all)."""

    source: Place
    quantization: str = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    revision: str | None = None
    trust_remote_code: bool = False
    lora: LoraSpec | None = None
    speculative: SpeculativeSpec | None = None

    @model_validator(mode="after")
    def _scripted_has_no_weights(self) -> Self:
        given = [name for name in ("lora", "speculative") if getattr(self, name) is not None]
        if self.source == SCRIPTED and given:
            raise ValueError(f"the scripted engine has no model: leave {given[0]} out")
        return self

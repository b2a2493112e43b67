"""A model that scores the answers of a comparison: `batchinfer compare --judge`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from batchinfer.errors import SpecError
from batchinfer.jobspec.base import Keys
from batchinfer.jobspec.engine_keys import EngineSpec
from batchinfer.jobspec.model_keys import ModelSpec
from batchinfer.jobspec.run_keys import ResourcesSpec

TEMPLATE = """\
You judge how well an answer does what a request asks: is it right, complete, and nothing but an answer?

Request:
{{ prompt }}

Answer:
{{ answer }}

Reply with one whole number from {{ low }} (useless) to {{ high }} (perfect)."""
"""What a judge reads unless `template` says otherwise."""

MOST_STEPS = 101
"""Numbers of a scale. Each is a choice of the judge's answer; more than percent no model tells apart."""


class JudgeSpec(Keys):
    """A model that reads each request with its answer and says a whole number of the scale."""

    model: ModelSpec
    """The judge, with the keys of a job's `model`, or only its name."""
    template: str = TEMPLATE
    """What it reads: a template with `prompt` (the request as the variant wrote it), `answer`, `low` and `high`."""
    scale: tuple[int, int] = (1, 5)
    """The lowest and the highest number that it may say."""
    engine: EngineSpec | None = None
    """The keys of a job's `engine` for the judge. null: the compared job's."""
    resources: ResourcesSpec | None = None
    """The keys of a job's `resources` for the judge. null: the compared job's."""
    max_tokens: int = Field(default=8, ge=1)
    """The longest reply, in tokens."""

    @field_validator("model", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        low, high = self.scale
        if not 0 <= low < high or high - low >= MOST_STEPS:
            raise ValueError(f"scale [{low}, {high}] is no scale: write the lowest and the highest number, as [1, 5]")
        if "answer" not in self.template:
            raise ValueError("template does not name the answer: write {{ answer }} in it")
        return self


def judge_of(text: str) -> JudgeSpec:
    """The judge of `--judge`: a model's name or folder, or a .yaml file with the keys of `JudgeSpec`. Raises
    SpecError."""
    if not text.endswith((".yaml", ".yml")):
        return judge_from({"model": text})
    try:
        keys = yaml.safe_load(Path(text).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SpecError(f"--judge {text:.200} cannot be read: {reason}", "give a .yaml file, or a model") from None
    except yaml.YAMLError as error:
        raise SpecError(f"--judge {text:.200} is not YAML: {str(error).splitlines()[0]}", "see its syntax") from None
    if not isinstance(keys, dict):
        raise SpecError(f"--judge {text:.200} has no keys", "write model: NAME, and template and scale if you like")
    return judge_from(keys.get("judge", keys))


def judge_from(keys: Any) -> JudgeSpec:
    """The judge of these keys. Raises SpecError."""
    try:
        return JudgeSpec.model_validate(keys)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(["judge", *map(str, first["loc"])])
        message = first["msg"].removeprefix("Value error, ")
        raise SpecError(f"{place}: {message}", f"its keys are {', '.join(JudgeSpec.model_fields)}") from None

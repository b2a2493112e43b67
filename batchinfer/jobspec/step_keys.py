"""The keys of `steps`: several prompts for each row, of which later ones may use the answers to earlier ones."""

from __future__ import annotations

from typing import Any, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from batchinfer.jobspec.base import Keys, Text
from batchinfer.jobspec.output_keys import AnswerSpec
from batchinfer.jobspec.prompt_keys import PromptSpec
from batchinfer.jobspec.sampling_keys import SamplingSpec
from batchinfer.jobspec.templates import Template, compile_template


def compile_condition(text: str) -> Template:
    """The template of a `when`, which prints a text if the expression is true. Raises ValueError."""
    compile_template("{{ (" + text + ") }}")
    return compile_template("{% if " + text + " %}1{% endif %}")


def _prompt_may_be_text(schema: dict[str, Any]) -> None:
    prompt = schema["properties"]["prompt"]
    described = {"description": prompt.pop("description")} if "description" in prompt else {}
    schema["properties"]["prompt"] = {"anyOf": [prompt, {"type": "string"}], **described}


class StepSpec(Keys):
    """One prompt of a row. Its answer is the column `name`; templates of later steps use it as `{{ name }}`."""

    model_config = ConfigDict(json_schema_extra=_prompt_may_be_text)

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")
    """The column of the answer, and its name in the templates of later steps: letters, digits and underscores.

    An answer of `output.json_schema` is there with its keys, as in `{{ facts.total }}`."""
    when: str | None = Field(default=None, min_length=1)
    """An expression over the row and earlier answers, as in `topic == "complaint" and stars < 3`.

    A row for which it is not true skips the step, and the column is null. A null makes a comparison not true, except in
    `default(...)` and `is defined`. null: every row has the step."""
    prompt: PromptSpec
    """How the row becomes this step's prompt, as the job's `prompt` does. A text alone is the template."""
    sampling: SamplingSpec | None = None
    """How this step's tokens are chosen. null: as the job's `sampling` says."""
    sampling_column: Text | None = Field(default=None, min_length=1)
    """A column with keys of this step's sampling that differ for a row. null: the job's `sampling_column`."""
    output: AnswerSpec = AnswerSpec()
    """Which shape this step's answer must have."""

    @model_validator(mode="before")
    @classmethod
    def _text_is_template(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("prompt"), str):
            return {**values, "prompt": {"template": values["prompt"]}}
        return values

    @field_validator("when")
    @classmethod
    def _parses(cls, when: str | None) -> str | None:
        if when is not None:
            compile_condition(when)
        return when

    @model_validator(mode="after")
    def _has_one_column(self) -> Self:
        if self.output.as_ == "columns":
            raise ValueError("output.as columns has no column for the step's name: store the answer as: struct")
        return self

    def condition(self) -> Template | None:
        """`when`, compiled. Not kept: a spec is pickled for the workers, a template cannot be."""
        return None if self.when is None else compile_condition(self.when)

    @property
    def reads(self) -> list[tuple[str, str]]:
        """The columns of the row and the earlier answers that the step uses, each with the key that names it."""
        condition = self.condition()
        of_when = () if condition is None else condition.columns
        return [*((name, f"prompt.{key}") for name, key in self.prompt.reads), *((name, "when") for name in of_when)]

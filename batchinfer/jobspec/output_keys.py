"""The keys of `output` and `embed`: where results go, and which shape an answer or a vector has."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal, Self

from jsonschema.exceptions import SchemaError
from jsonschema.validators import validator_for
from pydantic import Field, field_validator, model_validator
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from batchinfer.jobspec.answer_types import Kind, answer_kind
from batchinfer.jobspec.base import Keys, Text, is_json
from batchinfer.jobspec.constraints import require_usable_patterns
from batchinfer.jobspec.python_classes import schema_of_class
from batchinfer.jobspec.regex import compile_regex
from batchinfer.jobspec.schedule_keys import PlaceWithVariables
from batchinfer.jobspec.table_keys import PublishSpec

RESULT_COLUMNS = (
    "finish_reason",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "error_code",
    "error_message",
)
"""The columns of every result file besides the id, the passed-through columns and the output."""


def _require_references(schema: dict[str, Any]) -> None:
    """Raise ValueError for a `$ref` that points out of the schema: nothing is fetched while a job runs."""
    inside = Registry().with_resource("", DRAFT202012.create_resource(schema)).resolver()
    waiting: list[Any] = [schema]
    while waiting:
        at = waiting.pop()
        waiting.extend(at.values() if isinstance(at, dict) else at if isinstance(at, list) else ())
        reference = at.get("$ref") if isinstance(at, dict) else None
        if isinstance(reference, str):
            try:
                inside.lookup(reference)
            except Unresolvable:
                raise ValueError(f"refers to {reference!r}, which is not in it: put it under $defs") from None


class AnswerSpec(Keys):
    """Which shape an answer must have, and how it is stored. At most one of `choices`, `json_schema` and `regex` may be
    set; decoding is constrained to it, and an answer that does not fit fails with `output_invalid`.
    """

    choices: (
        Annotated[tuple[Text, ...], Field(min_length=1)] | Annotated[dict[Text, Text], Field(min_length=1)] | None
    ) = None
    """The labels, of which the answer is one: a list, as in `[billing, outage, other]`, or labels with descriptions.

    `{billing: invoices and payments, outage: nothing works}` puts a list of the labels with their descriptions into
    the prompt: where `prompt.template` or `prompt.system` says `{{ choices }}`, otherwise at the end of the system
    message. Quote a text that YAML reads as another type: `"yes"`, `"1.10"`."""
    multi_label: bool = False
    """The answer is a list of `choices`, each at most once and in the order of the spec; the list may be empty.

    The model writes it as JSON, as in `["billing", "outage"]`, and the output column is a list of texts."""
    confidence: bool = False
    """Whether the results have the label's probability among the `choices`.

    `<column>_confidence` is the probability of the answer, `<column>_probabilities` maps each label to its own. They
    are the model's before `sampling.temperature`, `top_p` and penalties. Needs `sampling.n: 1`."""
    abstain_below: float | None = Field(default=None, gt=0.0, le=1.0)
    """A label that is less probable than this is withheld: the output column is null, as in `0.8`.

    `<column>_guess` keeps the label of every row. Needs `confidence`, or `task: classify`."""
    json_schema: dict[str, Any] | None = None
    """The answer is JSON that is valid against this JSON Schema; the output column holds it as text.

    Every `$ref` must point into the schema itself. Allow enough `sampling.max_tokens`: JSON that is cut off fails."""
    model: str | None = None
    """A pydantic class whose JSON Schema is the `json_schema`, as in `invoices:Invoice` for the class of a file beside.

    It is imported once, where the spec is read, from the current folder or the installed packages. The job, its
    replicas and its schedule have the schema alone. A spec with both keys imports nothing: it was read before."""
    as_: Literal["json", "struct", "columns"] = Field(default="json", alias="as")
    """How answers of a `json_schema` are stored: as text, or as values of their types.

    `json` is the text. `struct` is one typed value in the output column. `columns` is one typed column for each key of
    the answer, without an output column.

    Integers become int64, numbers double, texts with `format: date` or `date-time` dates and timestamps in UTC, enums
    of texts dictionaries, objects structs, arrays lists. A key that an answer leaves out is null. What Arrow has no
    type for is JSON text; `validate` says what. A value that its type cannot hold fails with `output_invalid`."""
    compact_json: bool = True
    """Whether the JSON of `json_schema` is written without white space between its parts.

    Models that like white space may otherwise write it until `sampling.max_tokens` is reached. false: for a model that
    was trained to write indented JSON, and writes it worse without."""
    regex: str | None = None
    """The whole answer matches this regular expression, in Python's syntax. Example: `[0-9]{4}-[0-9]{2}`.

    `\\d`, `\\w` and `\\s` are ASCII. Look-around, back-references, flags, `\\b`, `\\A` and `\\Z` are refused. Give
    repetitions an upper count: an answer that `sampling.max_tokens` cuts may not match."""

    @model_validator(mode="before")
    @classmethod
    def _schema_of_model(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("model"), str) and values.get("json_schema") is None:
            return {**values, "json_schema": schema_of_class(values["model"])}
        return values

    @field_validator("json_schema")
    @classmethod
    def _valid_schema(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        if schema is not None:
            if not is_json(schema):
                raise ValueError("holds what JSON cannot say: put dates and keys that are numbers in quotes")
            if not isinstance(schema.get("$schema", ""), str):
                raise ValueError("is not a valid JSON Schema: its $schema is not a text")
            try:
                validator_for(schema).check_schema(schema)
            except RecursionError:
                raise ValueError("is nested too deeply") from None
            except SchemaError as error:
                raise ValueError(f"is not a valid JSON Schema: {error.message}") from None
            _require_references(schema)
            require_usable_patterns(schema)
        return schema

    @field_validator("regex")
    @classmethod
    def _valid_regex(cls, regex: str | None) -> str | None:
        if regex is not None:
            compile_regex(regex)
        return regex

    @model_validator(mode="after")
    def _at_most_one(self) -> Self:
        given = [name for name in ("choices", "json_schema", "regex") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"takes at most one of choices, json_schema, regex; given: {given}")
        if self.choices is not None and "" in self.choices:
            raise ValueError("choices holds a text without characters: write what the answer should be")
        if self.choices and len(set(self.choices)) != len(self.choices):
            raise ValueError("choices has the same choice twice")
        for key in ("multi_label", "confidence"):
            if getattr(self, key) and self.choices is None:
                raise ValueError(f"{key} needs choices: the labels")
        if self.multi_label and self.confidence:
            raise ValueError("confidence is for one label: leave it or multi_label out")
        return self

    @property
    def choice_texts(self) -> tuple[str, ...] | None:
        """The labels of `choices`, without their descriptions."""
        return None if self.choices is None else tuple(self.choices)

    @model_validator(mode="after")
    def _can_be_typed(self) -> Self:
        if self.as_ == "json":
            return self
        kind = self.kind
        if kind is None:
            raise ValueError(f"as {self.as_} needs a json_schema or a model: other answers are texts")
        if self.as_ == "columns" and kind.name != "struct":
            why = kind.why or f"its answers are {kind.name}s"
            raise ValueError(f"as columns needs a json_schema of an object with named keys: {why}")
        return self

    @cached_property
    def kind(self) -> Kind | None:
        """What typed answers are; None if answers are kept as texts."""
        return None if self.json_schema is None or self.as_ == "json" else answer_kind(self.json_schema)


class OutputSpec(AnswerSpec):
    """Where the results go, and which shape an answer must have. At most one of `choices`, `json_schema` and `regex`
    may be set; decoding is constrained to it, and an answer that does not fit fails with `output_invalid`.
    """

    uri: PlaceWithVariables
    """The folder of the run, local or on `s3://`: results in `data`, accounting in `accounting`, the rest in `_run`.

    The same spec and the same folder resume the run; a spec that would change the results is refused there. The folder
    must not lie inside `input.uri`.

    Variables name the run of a recurring job, read on the clock of `schedule.timezone`: `{{ run.date }}` (2026-11-20;
    `run.date - 1` is the day before), `run.year`, `run.month`, `run.day`, `run.hour` and `run.minute`. `run.time` is
    the instant in UTC, as 20261120T010000Z; `run.id` is the job's name and that instant. `run.previous` has the same
    parts for the tick before, and needs `schedule.cron`.

    A job with `schedule` or `input.incremental` and without a variable here has each run in `<uri>/{{ run.time }}`."""
    format: Literal["parquet", "openai_batch"] = "parquet"
    """What is written beside the Parquet files.

    `parquet`: nothing. `openai_batch`, for an input of that format: files in OpenAI's shapes and the order of the
    input, at the end of the run. `batch/output.jsonl` holds the responses, `batch/errors.jsonl` the requests that
    failed; a file without lines is not written. `retry` writes both anew. May change when a run resumes."""
    column: str = Field(default="output", min_length=1)
    """The name of the column with the answer. Must differ from the other columns of the results."""
    embedding_type: Literal["float32", "float16", "int8"] | None = None
    """How `task: embed` stores a vector: a list of fixed size of this type. null: a list of float32.

    `int8` stores round(x / scale), and the column `<column>_scale` the scale of each vector: its largest number over
    127."""
    publish: PublishSpec | None = None
    """Write the results into a table at the end of the run; null: into files only. May change when a run resumes."""

    @model_validator(mode="after")
    def _names_a_column_of_its_own(self) -> Self:
        if self.column in RESULT_COLUMNS:
            raise ValueError(f"column {self.column!r} is the name of a result column: choose another")
        if self.as_ == "columns" and self.column != "output":
            raise ValueError("column names no column beside as: columns: leave it out")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that hold the answer."""
        if self.as_ == "columns" and self.kind is not None:
            return tuple(name for name, _ in self.kind.fields)
        return (self.column,)


class EmbedSpec(Keys):
    """The vectors of `task: embed`: their length and what is read before each text."""

    dimensions: int | None = Field(default=None, ge=1)
    """Keep only this many numbers of a vector. Needs a model that was trained for it (Matryoshka). null: all."""
    normalize: bool = True
    """Whether vectors are scaled to length one."""
    instruction: str | None = Field(default=None, min_length=1)
    """A text before each prompt, as the model's card says: `"query: "`.

    The text is used as it is, with its blank or line feed at the end."""

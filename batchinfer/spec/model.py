"""The keys of a job spec, with their types, ranges and defaults.

Every model is frozen and refuses unknown keys. `spec/load.py` turns what pydantic says into messages
for a person; `schemas/job-spec.schema.json` is generated from here.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, Self

from jsonschema.exceptions import SchemaError
from jsonschema.validators import validator_for
from pydantic import BeforeValidator, Field, field_validator, model_validator
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from batchinfer.spec.base import Keys, Place
from batchinfer.spec.recurrence import IncrementalSpec, PlaceWithVariables, ScheduleSpec
from batchinfer.spec.storage import StoresSpec
from batchinfer.spec.weights import SCRIPTED, ModelSpec
from batchinfer.templates import compile_template
from batchinfer.variables import has_variables

AcceleratorName = Literal[
    "auto", "cpu", "T4", "A10", "A10G", "L4", "L40S", "A100-40GB", "A100-80GB", "H100", "H100-PCIe", "H200",
    "B200", "B300", "GB200", "GB300", "MI300X", "MI325X", "MI355X", "RTX4090", "RTX5090",
]  # fmt: skip

RESULT_COLUMNS = (
    "finish_reason",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "error_code",
    "error_message",
)
"""The columns that every result file has, beside the id, the passed-through columns and the output."""

ROW_NUMBER = "row_number"
"""The id column of a job that names none: the row's place in the input, from 0."""


def _text_only(value: Any) -> Any:
    """YAML reads `no`, `1.10` and `2026-01-01` as other types; a choice must be told apart from them."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is read by YAML as {type(value).__name__}, not as text: put it in quotes")
    return value


Text = Annotated[str, BeforeValidator(_text_only)]


class InputSpec(Keys):
    """Where the rows come from. `columns` are passed through to the results; rows with the same value of
    `group_by` that lie together are kept together."""

    uri: PlaceWithVariables
    format: Literal["parquet", "jsonl"] = "parquet"
    id_column: str | None = None
    columns: tuple[str, ...] = ()
    group_by: str | None = None
    incremental: IncrementalSpec | None = None

    @field_validator("columns")
    @classmethod
    def _distinct(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(columns)) != len(columns):
            raise ValueError("names a column twice")
        return columns


class PromptSpec(Keys):
    """How a row becomes a prompt: exactly one of `template`, `column`, `messages_column`.

    `chat` null means: through the model's chat template where it has one, as plain text else.
    """

    system: str | None = None
    template: str | None = None
    column: str | None = None
    messages_column: str | None = None
    chat: bool | None = None

    @field_validator("template")
    @classmethod
    def _parses(cls, template: str | None) -> str | None:
        if template is not None:
            compile_template(template)
        return template

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("template", "column", "messages_column") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of template, column, messages_column; given: {given or 'none'}")
        if self.messages_column is not None and self.chat is False:
            raise ValueError("messages_column needs the model's chat template: leave chat out")
        return self


class SamplingSpec(Keys):
    """vLLM's sampling parameters by their own names; null leaves vLLM's default."""

    max_tokens: int = Field(default=256, ge=1)
    min_tokens: int = Field(default=0, ge=0)
    n: int = Field(default=1, ge=1, le=1024)
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int = Field(default=0, ge=-1)
    min_p: float = Field(default=0.0, ge=0.0, le=1.0)
    seed: int | None = None
    presence_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    frequency_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    repetition_penalty: float = Field(default=1.0, gt=0.0)
    stop: str | tuple[str, ...] | None = None
    stop_token_ids: tuple[int, ...] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    logprobs: int | None = Field(default=None, ge=0, le=20)
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.n > 1 and self.temperature == 0:
            raise ValueError("n > 1 with temperature 0 gives the same text n times: set a temperature above 0")
        if self.min_tokens > self.max_tokens:
            raise ValueError("min_tokens is above max_tokens")
        return self


def _require_references(schema: dict[str, Any]) -> None:
    """Every `$ref` must lie in the schema itself: nothing is fetched while a job runs."""
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


class OutputSpec(Keys):
    """Where the results go, and what shape an answer must have (at most one of the three)."""

    uri: PlaceWithVariables
    column: str = Field(default="output", min_length=1)
    choices: tuple[Text, ...] | None = Field(default=None, min_length=1)
    json_schema: dict[str, Any] | None = None
    regex: str | None = None

    @field_validator("json_schema")
    @classmethod
    def _valid_schema(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        if schema is not None:
            try:
                same = json.loads(json.dumps(schema)) == schema
            except (TypeError, ValueError, RecursionError):
                same = False
            if not same:
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
        return schema

    @field_validator("regex")
    @classmethod
    def _valid_regex(cls, regex: str | None) -> str | None:
        if regex is not None:
            try:
                re.compile(regex)
            except (re.error, RecursionError, OverflowError) as error:
                raise ValueError(f"is not a valid regular expression: {error}") from None
        return regex

    @model_validator(mode="after")
    def _at_most_one(self) -> Self:
        given = [name for name in ("choices", "json_schema", "regex") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"takes at most one of choices, json_schema, regex; given: {given}")
        if self.choices and len(set(self.choices)) != len(self.choices):
            raise ValueError("choices has the same choice twice")
        if self.column in RESULT_COLUMNS:
            raise ValueError(f"column {self.column!r} is the name of a result column: choose another")
        return self


class ScriptedSpec(Keys):
    """The scripted engine (`model.source: scripted`): deterministic, with scripted time and failures.

    Seconds are real seconds. A row whose prompt contains `kill_on` kills the engine, one that contains
    `hang_on` makes it stand still, one that contains `reject_on` is refused. A token is four characters.
    """

    answer: str | None = None
    load_seconds: float = Field(default=0.0, ge=0)
    seconds_per_batch: float = Field(default=0.0, ge=0)
    seconds_per_token: float = Field(default=0.0, ge=0)
    kill_on: str | None = None
    hang_on: str | None = None
    reject_on: str | None = None


class EngineSpec(Keys):
    """vLLM's engine arguments by their own names, all optional; null leaves vLLM's default."""

    max_model_len: int | None = Field(default=None, ge=1)
    gpu_memory_utilization: float | None = Field(default=None, gt=0.0, le=1.0)
    max_num_seqs: int | None = Field(default=None, ge=1)
    max_num_batched_tokens: int | None = Field(default=None, ge=1)
    enforce_eager: bool | None = None
    enable_prefix_caching: bool | None = None
    enable_chunked_prefill: bool | None = None
    kv_cache_dtype: str | None = None
    kv_cache_memory_bytes: int | None = Field(default=None, ge=1)
    num_gpu_blocks_override: int | None = Field(default=None, ge=1)
    block_size: int | None = Field(default=None, ge=1)
    load_format: str | None = None
    tokenizer: Place | None = None
    seed: int | None = None
    scripted: ScriptedSpec = ScriptedSpec()


class ReplicaRange(Keys):
    """An autoscaled number of replicas."""

    min: int = Field(ge=1)
    max: int = Field(ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError("min is above max")
        return self


class ResourcesSpec(Keys):
    """What the job runs on. A replica takes tensor_parallel x pipeline_parallel GPUs."""

    accelerator: AcceleratorName = "auto"
    replicas: Literal["auto"] | Annotated[int, Field(ge=1)] | ReplicaRange = "auto"
    tensor_parallel: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    pipeline_parallel: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    price_per_gpu_hour: float | None = Field(default=None, ge=0)


class ShardsSpec(Keys):
    """How the input is cut: by rows, and never above `max_bytes` of the columns that are read."""

    rows: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    max_bytes: int = Field(default=64 * 2**20, ge=1)


class LimitsSpec(Keys):
    """When the run stops by itself.

    `max_engine_restarts` is how often a replica may start its engine again, `engine_timeout_seconds` after how
    long without a token an engine counts as dead, `max_lost_workers` how often each replica may be lost
    with its process or machine.
    """

    max_cost_usd: float | None = Field(default=None, ge=0)
    max_runtime_hours: float | None = Field(default=None, ge=0)
    max_error_rate: float = Field(default=0.05, ge=0.0, le=1.0)
    max_engine_restarts: int = Field(default=20, ge=0)
    engine_timeout_seconds: float = Field(default=600.0, gt=0)
    max_lost_workers: int = Field(default=100, ge=0)


class EvaluateSpec(Keys):
    """Compare the output with a column of the input; `by` splits the accuracy by a column's values."""

    expected: str
    by: str | None = None


class JobSpec(Keys):
    """One job: read `input`, make prompts, run `model`, write `output`.

    `labels` (team, owner, any key) go into the accounting and the report as they are.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    task: Literal["generate", "embed"] = "generate"
    model: ModelSpec
    input: InputSpec
    prompt: PromptSpec
    sampling: SamplingSpec = SamplingSpec()
    output: OutputSpec
    engine: EngineSpec = EngineSpec()
    resources: ResourcesSpec = ResourcesSpec()
    shards: ShardsSpec = ShardsSpec()
    limits: LimitsSpec = LimitsSpec()
    schedule: ScheduleSpec | None = None
    evaluate: EvaluateSpec | None = None
    storage: StoresSpec = Field(default_factory=dict)
    labels: dict[Text, Text] = Field(default_factory=dict)

    @property
    def id_column(self) -> str:
        """The name of the result's first column."""
        return self.input.id_column or ROW_NUMBER

    @property
    def repeats(self) -> bool:
        """Does the job run more than once, each time into a folder of its own?"""
        return self.schedule is not None or self.input.incremental is not None

    @model_validator(mode="after")
    def _columns_distinct(self) -> Self:
        taken = [self.id_column, *(c for c in self.input.columns if c != self.input.id_column)]
        for name in (
            self.output.column,
            *RESULT_COLUMNS,
            *(("logprobs",) if self.sampling.logprobs is not None else ()),
        ):
            if name in taken:
                raise ValueError(
                    f"input column {name!r} would collide with a result column: "
                    + ("set output.column to another name" if name == self.output.column else "do not pass it through")
                )
        if self.sampling.logprobs is not None and self.output.column == "logprobs":
            raise ValueError("output.column 'logprobs' is the name of a result column: choose another")
        if self.input.id_column is None and ROW_NUMBER in self.input.columns:
            raise ValueError(f"input.columns holds {ROW_NUMBER!r}, the name of the generated id: set input.id_column")
        return self

    @model_validator(mode="after")
    def _speculation_samples_plainly(self) -> Self:
        """vLLM refuses each request with one of these when it speculates."""
        sampling = self.sampling
        given = {"min_tokens": sampling.min_tokens > 0, "min_p": sampling.min_p > 0, "logit_bias": sampling.logit_bias}
        for name, value in given.items():
            if self.model.speculative is not None and value:
                raise ValueError(f"sampling.{name} does not go with model.speculative: leave one of the two out")
        return self

    @model_validator(mode="after")
    def _embeds_plainly(self) -> Self:
        """What only makes sense of a text is a mistake beside `task: embed`."""
        given = {
            "sampling": self.sampling != SamplingSpec(),
            "output.choices": self.output.choices,
            "output.json_schema": self.output.json_schema,
            "output.regex": self.output.regex,
            "evaluate": self.evaluate,
            "model.speculative": self.model.speculative,
            "model.source: scripted": self.model.source == SCRIPTED,
        }
        wrong = [key for key, value in given.items() if value]
        if self.task == "embed" and wrong:
            raise ValueError(f"task embed gives a vector, not a text: leave {wrong[0]} out")
        return self

    @model_validator(mode="after")
    def _evaluates_one_output(self) -> Self:
        if self.evaluate is not None and self.sampling.n > 1:
            raise ValueError("evaluate compares one output with one column: it needs sampling.n = 1")
        for key, uri in (("input.uri", self.input.uri), ("output.uri", self.output.uri)):
            if self.schedule is None and has_variables(uri) and "previous" in uri:
                raise ValueError(f"{key} uses run.previous, the tick before this one: it needs schedule.cron")
        return self

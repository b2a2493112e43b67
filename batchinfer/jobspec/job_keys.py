"""The keys of a job spec, with their types, ranges and defaults.

Every model is frozen and refuses unknown keys. `jobspec/load.py` turns the errors of pydantic into messages for a
person. `schemas/job-spec.schema.json` is generated from these models.
"""

from __future__ import annotations

import difflib
import json
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from jsonschema.exceptions import SchemaError
from jsonschema.validators import validator_for
from pydantic import BeforeValidator, Field, field_validator, model_validator
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from batchinfer.jobspec.answer_types import Kind, answer_kind
from batchinfer.jobspec.base import Keys, Place
from batchinfer.jobspec.constraints import require_reachable, require_usable_patterns
from batchinfer.jobspec.model_keys import SCRIPTED, ModelSpec
from batchinfer.jobspec.python_classes import schema_of_class
from batchinfer.jobspec.reasoning_keys import ReasoningSpec
from batchinfer.jobspec.regex import compile_regex
from batchinfer.jobspec.schedule_keys import IncrementalSpec, PlaceWithVariables, ScheduleSpec
from batchinfer.jobspec.store_keys import StoresSpec
from batchinfer.jobspec.templates import compile_template, is_template
from batchinfer.jobspec.variables import has_variables
from batchinfer.jobspec.where import where_columns

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
"""The columns of every result file besides the id, the passed-through columns and the output."""

ROW_NUMBER = "row_number"
"""The id column of a job without `input.id_column`: the row's position in the input, from 0."""


def _text_only(value: Any) -> Any:
    """Refuse values that are no text: YAML reads `no`, `1.10` and `2026-01-01` as other types."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is read by YAML as {type(value).__name__}, not as text: put it in quotes")
    return value


Text = Annotated[str, BeforeValidator(_text_only)]


class CsvSpec(Keys):
    """How the files of `format: csv` are written. Every column is text, as it stands in the file: `007` stays `007`.
    `input.cast` gives a column another type.
    """

    delimiter: str = Field(default=",", min_length=1, max_length=1)
    """The character between two fields. Example: `";"`, or `"\\t"` for a tab."""
    quote: str | None = Field(default='"', min_length=1, max_length=1)
    """The character around a field that holds delimiters or ends of lines; in the field it stands twice.

    null: no field is quoted, and every end of a line ends a row."""
    escape: str | None = Field(default=None, min_length=1, max_length=1)
    """The character that takes the meaning from the next one: `"\\\\"` for files of Spark and MySQL. null: none."""
    header: bool = True
    """Whether the first line of each file has the names of the columns. Without it, `columns` names them."""
    columns: tuple[str, ...] | None = Field(default=None, min_length=1)
    """The names of the columns of files without a header, in order."""
    nulls: tuple[str, ...] = ("",)
    """Unquoted fields that mean null, as in `["", "NULL"]`. A quoted field is never null: `""` is an empty text."""
    encoding: str = "utf-8"
    """The encoding of the files, by Python's name, as `cp1252`, `latin-1` or `utf-16`."""

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, name: str) -> str:
        try:
            # The codecs that Python counts as encodings of text; `base64` and `rot13` are codecs as well.
            "".encode(name)
        except (LookupError, ValueError):
            raise ValueError(f"there is no encoding {name!r}: write utf-8, cp1252, latin-1, utf-16, ...") from None
        return name

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.header and self.columns is not None:
            raise ValueError("columns names what the header names: set header: false, or leave columns out")
        if not self.header and self.columns is None:
            raise ValueError("header: false needs the names of the columns: set columns")
        if self.columns is not None and len(set(self.columns)) != len(self.columns):
            raise ValueError("columns names a column twice")
        marks = [mark for mark in (self.delimiter, self.quote, self.escape) if mark is not None]
        if len(set(marks)) < len(marks):
            raise ValueError("delimiter, quote and escape must be three different characters")
        for mark in marks:
            if mark in "\r\n" or not mark.isascii():
                raise ValueError(f"{mark!r} cannot be a delimiter, quote or escape: write one ASCII character")
        return self


class SampleSpec(Keys):
    """A random part of the rows that `input.where` selects."""

    rows: int = Field(ge=1)
    """How many rows to run; all of them if there are fewer. A sample of more rows holds that of fewer."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Another seed is another sample; the same seed over the same files is the same one."""


class InputSpec(Keys):
    """Where the rows come from, and which of their columns stay with the results."""

    uri: PlaceWithVariables
    """The rows: a folder, a file or a glob, local or on `s3://`.

    Files are read in the natural order of their paths; see `ignore` for those that are left out. Folders named
    `key=value` become columns, unless the files have a column of that name. Links to folders are refused, and so are
    folders of Delta, Iceberg and Hudi tables. Relative paths start where the command runs. May hold the
    variables of `output.uri`, as in `s3://tickets/{{ run.date - 1 }}`."""
    format: Literal["parquet", "jsonl", "csv"] = "parquet"
    """The format of the files.

    In a folder, `parquet` reads `.parquet`, `.parq` and `.pq`; `jsonl` reads `.jsonl`, `.ndjson` and `.json`, one
    object a line; `csv` reads `.csv` and `.tsv`. The last two also read these packed with gzip (`.gz`) or zstd
    (`.zst`). A pattern in `uri` reads whatever it matches."""
    csv: CsvSpec = CsvSpec()
    """How CSV files are written: delimiter, quotes, header, nulls, encoding."""
    where: str | None = None
    """Run only the rows for which this is true: an expression of SQL (DuckDB's) over the columns of the input.

    Example: `"lang = 'de' AND length(body) > 20"`. Its columns are read even if the job uses them for nothing else, and
    have the types of `cast`. A row for which it is null is not selected. The rows are selected once, when the input is
    cut into shards. It reaches no file and no network; subqueries, and functions of the clock or of chance, are
    refused. null: all rows."""
    limit: int | None = Field(default=None, ge=1)
    """Run only so many rows: the first ones, in input order, that `where` selects. null: no limit.

    In an incremental job each run has the limit, and later runs do not come back to the rows beyond it."""
    sample: SampleSpec | None = None
    """Run only a random sample of the rows that `where` selects, in input order, as in `{rows: 200, seed: 7}`.

    Instead of `limit`. null: no sample."""
    id_column: str | None = None
    """The column that identifies a row; its values must be unique, and it is the first column of the results.

    It holds texts, numbers, dates, times or UUIDs: true and false, lists and objects tell no rows apart.

    null: the results have the column `row_number` instead, the row's position in the input, from 0."""
    columns: tuple[str, ...] = ()
    """Columns to copy into the results as they are, as in `[customer, received]`.

    None of them may have the name of a result column, such as `finish_reason`."""
    group_by: str | None = None
    """A column: neighbouring rows with the same value stay in one shard as far as they fit.

    Such rows can then share a prefix in the KV cache. The column holds texts or numbers. Nothing is sorted: `validate`
    and `plan` say if sorting the input by this column would bring more rows together. null: rows are not grouped."""
    ignore: tuple[str, ...] = ()
    """Files in the folder of `uri` that are no input: patterns of names, as in `["*.gzip", "README.md"]`.

    A pattern is compared with the path below `uri` and with each name on it. What every tool ignores is left out
    anyway: names that begin with `_` or `.`, `*.crc` and markers of folders. Any other file that the format does not
    read stops the job, so that no row is missing silently."""
    on_bad_file: Literal["fail", "skip"] = "fail"
    """What becomes of a file that cannot be read.

    `fail`: the job is refused, with the file's name. `skip`: the others are run, and the report lists the file with
    the reason; an incremental job tries it again in its next run."""
    on_bad_row: Literal["fail", "set_aside"] = "fail"
    """What becomes of a line of `jsonl` that cannot be read.

    Such a line is no JSON object, or holds a value that the job cannot read: no text, above 64 bits, not of `cast`.
    `fail`: the file is bad, see `on_bad_file`. `set_aside`: the row fails with
    `input_invalid`; its other values are kept, and its id is null if that cannot be read. In Parquet files a value
    that is no text always fails its row alone."""
    cast: dict[str, Literal["string", "int64", "double", "boolean", "date", "timestamp", "binary"]] = Field(
        default_factory=dict
    )
    """The type of columns that differ between files or lines, as in `{amount: string}`.

    Without it, types that fit together without loss become one, and others are refused. `timestamp` is microseconds
    in UTC; a time without a zone is taken as UTC. A value that does not fit the type is refused."""
    incremental: IncrementalSpec | None = None
    """Read only the files, or the partitions, that no earlier run of this job has read. null: all, every time."""

    @field_validator("columns")
    @classmethod
    def _distinct(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(columns)) != len(columns):
            raise ValueError("names a column twice")
        return columns

    @field_validator("where")
    @classmethod
    def _expression(cls, where: str | None) -> str | None:
        if where is not None:
            where_columns(where)
        return where

    @model_validator(mode="after")
    def _rows_chosen_once(self) -> Self:
        if self.limit is not None and self.sample is not None:
            raise ValueError("limit and sample both say how many rows to run: leave one of the two out")
        if self.format != "csv" and self.csv != CsvSpec():
            raise ValueError(f"csv says how CSV files are written, and format is {self.format}: set format: csv")
        if self.format == "csv" and self.on_bad_row == "set_aside":
            raise ValueError("on_bad_row: set_aside is for jsonl; a CSV file with such a row is bad: set on_bad_file")
        return self

    @property
    def sets_aside(self) -> bool:
        """Is a line that cannot be read a failed row of its own?"""
        return self.on_bad_row == "set_aside"

    @property
    def selects(self) -> bool:
        """May rows of the input be left out?"""
        return self.where is not None or self.limit is not None or self.sample is not None


class ExampleSpec(Keys):
    """One example of `prompt.examples`: a message of the user, and the answer that the model should give to it."""

    user: str
    """The user's message."""
    assistant: str
    """The answer."""


class TruncateSpec(Keys):
    """What `prompt.too_long: truncate` cuts."""

    column: str | None = None
    """The column whose text is cut; all other text of the prompt stays whole.

    null: the column of `prompt.column`, or the only one that `prompt.template` names."""
    side: Literal["right", "left", "middle"] = "right"
    """Where text is taken away: `right` keeps the beginning, `left` the end, `middle` both.

    What `middle` keeps is joined by ` ... `."""


class PromptSpec(Keys):
    """How a row becomes a prompt. Exactly one of `template`, `column` and `messages_column` must be set."""

    system: str | None = None
    """The system message of every row; a text, or a template as `template` is.

    Without a chat template it stands before the prompt, with an empty line between. A conversation of
    `messages_column` keeps its own system message."""
    template: str | None = None
    """The prompt as a Jinja2 template over the row's columns, as in `"Subject: {{ subject }}"`.

    The template is sandboxed and does at most 64 Mi characters of work a row. A null is an error of its row, except in
    `default(...)` and `is defined`. Put the part that rows share first: the KV cache then serves it to all of them."""
    column: str | None = None
    """The column that holds the whole prompt as text."""
    messages_column: str | None = None
    """The column that holds the conversation: a list of `{role, content}`, or JSON text of one.

    A content is a text or a list of OpenAI's text parts. `tool_calls` and messages of the role `tool` need a model
    whose chat template writes them. Needs a model with a chat template."""
    examples: tuple[ExampleSpec, ...] | None = Field(default=None, min_length=1)
    """Turns before the row's own, as in `[{user: It rains., assistant: weather}]`.

    Needs a model with a chat template. Not with `messages_column`."""
    prefill: str | None = Field(default=None, min_length=1)
    """How every answer begins; the model goes on from there. A text, or a template as `template` is.

    The output column holds what the model wrote after it, and `output.choices`, `json_schema` and `regex` are for that
    alone. Needs a model with a chat template. End it without a blank: tokens begin with one."""
    query: str | None = Field(default=None, min_length=1)
    """The query, a template as `template` is; for `task: score`, which says how well the prompt answers it."""
    chat: bool | None = None
    """Whether prompts go through the model's chat template.

    null: yes if the model has one and `task` is `generate`; otherwise the prompt is plain text."""
    chat_template: str | None = Field(default=None, min_length=1)
    """A chat template in place of the model's own: its text, or the path of a file.

    The file is read where the command runs, and travels with the job."""
    chat_template_kwargs: dict[Text, Any] | None = None
    """Variables for the chat template, as in `{enable_thinking: false}`. One that it does not read has no effect."""
    too_long: Literal["error", "truncate"] = "error"
    """What becomes of a row whose prompt does not fit into the context.

    `error`: it fails with `prompt_too_long`, if no room for one token of an answer is left. `truncate`: the column of
    `truncate` is cut until prompt and `sampling.max_tokens` fit. The results then have the column
    `truncated_tokens`: by how many tokens the prompt is shorter, 0 for a row that was not cut."""
    truncate: TruncateSpec | None = None
    """What `too_long: truncate` cuts. null: the only column of the prompt, at its end."""
    allow_special_tokens: bool = False
    """Whether control tokens in the text of a row, such as `<|im_start|>`, are read as such.

    By default they are text, so that no row can speak as the system. What the spec itself writes (`template`, `system`,
    `examples`, `prefill`) may hold control tokens in any case."""

    @field_validator("template")
    @classmethod
    def _parses(cls, template: str | None) -> str | None:
        if template is not None:
            compile_template(template)
        return template

    @field_validator("query")
    @classmethod
    def _parses_too(cls, query: str | None) -> str | None:
        return cls._parses(query)

    @field_validator("system", "prefill")
    @classmethod
    def _parses_if_template(cls, text: str | None) -> str | None:
        if is_template(text):
            compile_template(text)
        return text

    @field_validator("chat_template_kwargs")
    @classmethod
    def _for_the_template(cls, kwargs: dict[str, Any] | None) -> dict[str, Any] | None:
        taken = sorted({"messages", "add_generation_prompt", "continue_final_message"} & set(kwargs or ()))
        if taken:
            raise ValueError(f"holds {taken[0]!r}, which is set for each row: leave it out")
        if kwargs is not None and not _is_json(kwargs):
            raise ValueError("holds what JSON cannot say: put dates and keys that are numbers in quotes")
        return kwargs

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("template", "column", "messages_column") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of template, column, messages_column; given: {given or 'none'}")
        key = self.needs_chat
        if key is not None and self.chat is False:
            raise ValueError(f"{key} needs the model's chat template: leave chat out")
        if self.examples is not None and self.messages_column is not None:
            raise ValueError("examples go with template or column: put the turns into the conversations")
        return self

    @model_validator(mode="after")
    def _cuts_one_column(self) -> Self:
        if self.too_long == "error":
            if self.truncate is not None:
                raise ValueError("truncate has no effect without too_long: truncate")
            return self
        if self.messages_column is not None:
            raise ValueError("too_long: truncate goes with template or column: no message says which to cut")
        columns = [self.column] if self.column is not None else compile_template(self.template or "").columns
        named = self.truncate.column if self.truncate is not None else None
        if named is not None and named not in columns:
            raise ValueError(f"truncate.column names {named!r}, and the prompt is made of {', '.join(columns)}")
        if named is None and len(columns) > 1:
            raise ValueError(f"the prompt is made of {', '.join(columns)}: set truncate.column to the one to cut")
        return self

    @property
    def needs_chat(self) -> str | None:
        """The first key that has no meaning without a chat template."""
        names = ("messages_column", "examples", "prefill", "chat_template", "chat_template_kwargs")
        return next((name for name in names if getattr(self, name) is not None), None)

    @property
    def cut_column(self) -> str | None:
        """The column that is cut where a prompt is too long; None if such a row fails."""
        if self.too_long == "error":
            return None
        if self.truncate is not None and self.truncate.column is not None:
            return self.truncate.column
        return self.column or compile_template(self.template or "").columns[0]


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


def _is_json(value: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError, RecursionError):
        return False


class OutputSpec(Keys):
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
    column: str = Field(default="output", min_length=1)
    """The name of the column with the answer. Must differ from the other columns of the results."""
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
            if not _is_json(schema):
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
        if self.column in RESULT_COLUMNS:
            raise ValueError(f"column {self.column!r} is the name of a result column: choose another")
        return self

    embedding_type: Literal["float32", "float16", "int8"] | None = None
    """How `task: embed` stores a vector: a list of fixed size of this type. null: a list of float32.

    `int8` stores round(x / scale), and the column `<column>_scale` the scale of each vector: its largest number over
    127."""

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
        if self.as_ == "columns" and self.column != "output":
            raise ValueError("column names no column beside as: columns: leave it out")
        return self

    @cached_property
    def kind(self) -> Kind | None:
        """What typed answers are; None if answers are kept as texts."""
        return None if self.json_schema is None or self.as_ == "json" else answer_kind(self.json_schema)

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


class ScriptedSpec(Keys):
    """The scripted engine (`model.source: scripted`): deterministic answers without a model, with scripted time and
    failures, to try a job or its recovery. A token is four characters.
    """

    answer: str | None = None
    """The answer to every row.

    null: one of `output.choices`, picked by a hash of the prompt; without choices the first `sampling.max_tokens`
    tokens of the prompt."""
    load_seconds: float = Field(default=0.0, ge=0)
    """Seconds that the engine takes to start."""
    seconds_per_batch: float = Field(default=0.0, ge=0)
    """Seconds that the engine takes for a shard, however many tokens it has."""
    seconds_per_token: float = Field(default=0.0, ge=0)
    """Seconds that the engine takes for each token, of prompts and answers."""
    kill_on: str | None = None
    """A row whose prompt contains this text kills the engine. null: none does."""
    hang_on: str | None = None
    """A row whose prompt contains this text makes the engine hang. null: none does."""
    reject_on: str | None = None
    """A row whose prompt contains this text fails with `engine_rejected`. null: none does."""


_OTHERWISE = {
    "model": "model.source",
    "revision": "model.revision",
    "dtype": "model.dtype",
    "quantization": "model.quantization",
    "trust_remote_code": "model.trust_remote_code",
    "tensor_parallel_size": "resources.tensor_parallel",
    "pipeline_parallel_size": "resources.pipeline_parallel",
    "data_parallel_size": "resources.replicas",
    "speculative_config": "model.speculative",
    "enable_lora": "model.lora",
    "max_loras": "model.lora",
    "max_lora_rank": "model.lora.max_lora_rank",
    "runner": "task",
    "convert": "task",
}
"""Engine arguments of vLLM that keys outside `engine` set."""

_FIXED = {
    "distributed_executor_backend": "by the plan's layout",
    "enable_expert_parallel": "by the plan's layout",
    "disable_log_stats": "nobody reads them",
    "structured_outputs_config": "by output.*",
    "logprobs_mode": "output.confidence needs vLLM's own",
    "skip_tokenizer_init": "prompts need the tokenizer",
    "enable_prompt_embeds": "a prompt is a text",
}
"""Engine arguments of vLLM that no job may set, and why."""


class EngineSpec(Keys):
    """vLLM's engine arguments by vLLM's names. null leaves the choice to the plan, or to vLLM if the plan makes
    none.
    """

    max_model_len: int | None = Field(default=None, ge=1)
    """The longest sequence, prompt and answer together, in tokens.

    A prompt that leaves no room for an answer fails with `prompt_too_long`. A shorter context leaves room for more
    rows at a time. null: the model's own context, or as much of it as the planned KV cache holds."""
    gpu_memory_utilization: float | None = Field(default=None, gt=0.0, le=1.0)
    """The share of a GPU's memory that the engine may use, weights and KV cache together.

    null: 0.9 if the plan knows the model's dimensions, otherwise vLLM's default. On a CPU it is the share of the
    machine's memory; null there: see `kv_cache_memory_bytes`."""
    max_num_seqs: int | None = Field(default=None, ge=1)
    """The most rows that one engine runs at a time.

    null: 1024 on GPUs with much memory (from 70 GiB, A100 from 160 GiB), otherwise 256; on a CPU vLLM's default."""
    max_num_batched_tokens: int | None = Field(default=None, ge=1)
    """The most tokens that one step of the engine computes, of prompts and answers.

    null: 16384 on GPUs with much memory (from 70 GiB, A100 from 160 GiB), otherwise 8192; on a CPU vLLM's default."""
    enforce_eager: bool | None = None
    """Whether to run without `torch.compile` and CUDA graphs: the engine starts sooner and runs slower.

    null: false."""
    enable_prefix_caching: bool | None = None
    """Whether the KV cache of a prompt's beginning is kept for other rows that begin alike.

    null: vLLM's default, which is on for models that generate."""
    enable_chunked_prefill: bool | None = None
    """Whether vLLM may read a long prompt in several steps, between the tokens of other rows.

    null: vLLM's default, which is on for models that generate; off on a CPU with `sampling.seed`."""
    kv_cache_dtype: str | None = None
    """The type in which the KV cache is stored, as `auto`, `bfloat16`, `fp8`, `fp8_e4m3` or `fp8_e5m2`.

    8 bits hold twice the tokens of 16, at some loss of quality. null: `auto`, the type of the model."""
    kv_cache_memory_bytes: int | None = Field(default=None, ge=1)
    """Bytes of KV cache for each GPU, or for each worker on a CPU. `gpu_memory_utilization` does not apply then.

    null: what `gpu_memory_utilization` leaves. On a CPU the smaller of 4 GiB and a quarter of the memory over the
    number of replicas, but enough for one sequence."""
    num_gpu_blocks_override: int | None = Field(default=None, ge=1)
    """How many blocks the KV cache has, instead of what fits. vLLM has it for tests."""
    block_size: int | None = Field(default=None, ge=1)
    """Tokens in a block of the KV cache; only whole blocks of a prefix are shared. null: vLLM's default."""
    load_format: str | None = None
    """The format in which the weights are read, by vLLM's names, as `safetensors`, `auto`, `pt` or `dummy`.

    null: `safetensors` only. `auto` also reads pickles (`.bin`, `.pt`), which can run any code when they are loaded:
    set it only for weights that you trust."""
    tokenizer: Place | None = None
    """The folder or the Hugging Face repository id of the tokenizer. null: the model's own."""
    seed: int | None = None
    """The seed of the engine's own random generator. null: vLLM's default. For a seed a row see `sampling.seed`."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Any other engine argument of vLLM, by its name, as in `{attention_backend: TRITON_ATTN}`.

    A name that vLLM does not have is refused, and so is one that has a key here or that the plan computes."""
    scripted: ScriptedSpec = ScriptedSpec()
    """What the scripted engine does. Has no effect unless `model.source` is `scripted`."""

    @field_validator("extra")
    @classmethod
    def _has_no_other_key(cls, extra: dict[str, Any]) -> dict[str, Any]:
        for name, value in extra.items():
            key = f"engine.{name}" if name in cls.model_fields else _OTHERWISE.get(name)
            if key is not None:
                raise ValueError(f"holds {name}, which has a key of its own: set {key}")
            if name in _FIXED:
                raise ValueError(f"holds {name}, which batchinfer sets itself: {_FIXED[name]}")
            try:
                json.dumps(value)
            except (TypeError, ValueError, RecursionError):
                raise ValueError(f"holds {name} with a value that JSON cannot say") from None
        return extra


class ReplicaRange(Keys):
    """A number of replicas that follows the load, as in `{min: 1, max: 8}`."""

    min: int = Field(ge=1)
    """The fewest replicas, which are started at once."""
    max: int = Field(ge=1)
    """The most replicas. Must not be below `min`."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError("min is above max")
        return self


class ResourcesSpec(Keys):
    """The devices that the job runs on. A replica of the model needs `tensor_parallel` x `pipeline_parallel` GPUs. May
    change when a run resumes.
    """

    accelerator: AcceleratorName = "auto"
    """The device: a GPU by its catalog name (`batchinfer gpus` lists them), or `cpu`.

    `auto` is the GPU of the cluster, or the CPU if there is none. A plan for GPUs that are not at hand needs the
    name."""
    replicas: Literal["auto"] | Annotated[int, Field(ge=1)] | ReplicaRange = "auto"
    """How many copies of the model run at the same time: a number, or `{min: N, max: N}` for an autoscaled one.

    `auto` lets the plan choose; on a CPU that is 1. `shards.rows: auto` cuts the input for this many."""
    tensor_parallel: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """How many GPUs of one node share each layer. `auto` lets the plan choose; on a CPU that is 1.

    Must divide the model's attention heads. On a CPU it is a number of processes."""
    pipeline_parallel: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """How many stages the model's layers are split into; stages may lie on different nodes.

    `auto` lets the plan choose; on a CPU that is 1. Must not exceed the number of layers."""
    price_per_gpu_hour: float | None = Field(default=None, ge=0)
    """Dollars for one GPU and hour, or for one replica and hour on a CPU.

    null: the list price of the catalog, which `batchinfer gpus` shows with its source and date."""


class ShardsSpec(Keys):
    """How the input is cut into shards: the unit that is run, committed and resumed."""

    rows: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Rows of a shard.

    `auto` aims at 100 shards of 256 to 8192 rows, fewer rows where `sampling.max_tokens` is large. The shards shrink
    towards the end of the input, so that all replicas end together."""
    max_bytes: int = Field(default=64 * 2**20, ge=1)
    """The most bytes of a shard, counted over the columns that are read. The default is 64 MiB.

    A shard with larger rows has fewer of them, down to one."""


class LimitsSpec(Keys):
    """When the run stops by itself. May change when a run resumes."""

    max_cost_usd: float | None = Field(default=None, ge=0)
    """Dollars that the run may cost, over all commands that resumed it.

    A shard starts only if the remaining budget covers its estimated cost, based on finished shards. Shards in flight
    are committed, and the command ends with exit code 4, also if they were the last ones and the run cost more. Unless
    the budget is twice the plan's estimate, a replica runs one shard at a time: a run passes its budget by at most one
    shard a replica. null: no limit."""
    max_runtime_hours: float | None = Field(default=None, ge=0)
    """Hours that this command may run; a command that resumes the run has as many again.

    A shard starts only if it would end in time, based on finished shards; the command ends as for `max_cost_usd`. For
    the plan it is the deadline: the cheapest layout that meets it is chosen. null: no limit."""
    max_error_rate: float = Field(default=0.05, ge=0.0, le=1.0)
    """The share of failed rows, 0 to 1, above which a finished run ends with exit code 3."""
    max_engine_restarts: int = Field(default=20, ge=0)
    """How often each replica may restart its engine before the run ends with exit code 1.

    A row that kills the engine uses 3 to 10 restarts until it is found and set aside as `engine_killed`."""
    engine_timeout_seconds: float = Field(default=600.0, gt=0)
    """Seconds without a step of the engine, while it has rows, after which it is killed and restarted."""
    load_timeout_seconds: float = Field(default=3600.0, gt=0)
    """Seconds that an engine may take to load, with the download of its model, before the load counts as failed."""
    max_lost_workers: int = Field(default=100, ge=0)
    """How often each replica may be lost with its process or machine before the run ends with exit code 1."""


class EvaluateSpec(Keys):
    """Compare the output with a column of the input; the report has the accuracy. Needs `sampling.n: 1`.

    A label that `output.abstain_below` withholds is compared too.
    """

    expected: str
    """The column with the right answer; the output must equal it as text.

    Rows where it is null are not compared. A failed row counts as wrong."""
    part: str | None = None
    """The key of a JSON answer to compare, as in `total`. null: the whole answer, as text.

    Needed with `output.as: struct` or `columns`."""
    by: str | None = None
    """A column: the report has the accuracy for each of its values. null: one accuracy, over all rows."""


_GIVES = {"embed": "a vector", "classify": "a label of its own", "score": "a number"}


def _require_part(evaluate: EvaluateSpec | None, output: OutputSpec) -> None:
    if evaluate is None:
        return
    keys = (output.json_schema or {}).get("properties", {})
    if evaluate.part is None and output.as_ != "json":
        raise ValueError(f"evaluate.part must name the key to compare beside output.as: {', '.join(keys)}")
    if evaluate.part is not None and evaluate.part not in keys:
        near = difflib.get_close_matches(evaluate.part, keys, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"its keys are {', '.join(keys) or 'none'}"
        raise ValueError(f"evaluate.part {evaluate.part!r:.100} is no key of output.json_schema: {hint}")


class JobSpec(Keys):
    """One job: read `input`, make prompts, run `model`, write `output`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """The job's name, in the accounting, in the reports and in the ids of submitted jobs.

    1 to 100 letters, digits, dots, dashes and underscores; the first is a letter or a digit. A job with `schedule` or
    `input.incremental` finds its earlier runs by this name."""
    task: Literal["generate", "embed", "classify", "score"] = "generate"
    """What to do with each prompt.

    `generate` writes an answer. The others read the prompt without a chat template. `embed` writes a list of float32,
    of length one. `classify` runs a sequence classifier, and writes its label, with the columns of `output.confidence`.
    `score` runs a cross-encoder (a reranker), and writes how well the prompt answers `prompt.query`."""
    model: ModelSpec
    """The model that runs."""
    input: InputSpec
    """The rows: where they are, and which of their columns to use."""
    prompt: PromptSpec
    """How a row becomes a prompt."""
    embed: EmbedSpec = EmbedSpec()
    """How `task: embed` makes vectors."""
    sampling: SamplingSpec = SamplingSpec()
    """How the model chooses tokens, and when an answer ends."""
    reasoning: ReasoningSpec | None = None
    """What becomes of a model's thinking. null: the text is kept as it is, thinking and answer together."""
    output: OutputSpec
    """Where the results go, and which shape an answer must have."""
    engine: EngineSpec = EngineSpec()
    """vLLM's engine arguments."""
    resources: ResourcesSpec = ResourcesSpec()
    """The devices: which, how many, and at what price."""
    shards: ShardsSpec = ShardsSpec()
    """How the input is cut into shards."""
    limits: LimitsSpec = LimitsSpec()
    """When the run stops by itself: cost, time, failed rows, restarts."""
    schedule: ScheduleSpec | None = None
    """When the job runs, for jobs that recur. null: only when it is started."""
    evaluate: EvaluateSpec | None = None
    """Compare the output with a column of the input. null: no comparison."""
    storage: StoresSpec = Field(default_factory=dict)
    """How to reach the stores of `s3://` URIs, by the beginnings of the URIs; the longest that fits applies.

    Example: `{s3://data: {region: eu-central-1}, s3://runs: {profile: writer}}`. URIs without an entry are reached as
    the AWS environment says."""
    labels: dict[Text, Text] = Field(default_factory=dict)
    """Any names and values, as in `{team: search}`, for the accounting and the report.

    `batchinfer submit --label KEY=VALUE` adds one. Quote a value that YAML reads as another type."""

    @property
    def id_column(self) -> str:
        """The name of the first column of the results."""
        return self.input.id_column or ROW_NUMBER

    @property
    def generates(self) -> bool:
        """Does the model write texts?"""
        return self.task == "generate"

    @property
    def tells_confidence(self) -> bool:
        """Do the results have the probability of each label?"""
        return self.output.confidence or self.task == "classify"

    @property
    def _told(self) -> tuple[str, ...]:
        of_label = ("confidence", "probabilities") if self.tells_confidence else ()
        guess = ("guess",) if self.output.abstain_below is not None else ()
        return (*of_label, *guess, *(("scale",) if self.output.embedding_type == "int8" else ()))

    @property
    def companions(self) -> tuple[str, ...]:
        """The columns beside the output that have its name and an ending, as `output_confidence`."""
        return tuple(f"{self.output.column}_{name}" for name in self._told)

    @property
    def repeats(self) -> bool:
        """Does the job run repeatedly, each run in its own folder?"""
        return self.schedule is not None or self.input.incremental is not None

    @model_validator(mode="after")
    def _columns_distinct(self) -> Self:
        taken = [self.id_column, *(c for c in self.input.columns if c != self.input.id_column)]
        own = (
            *RESULT_COLUMNS,
            *(("logprobs",) if self.sampling.logprobs is not None else ()),
            *(("truncated_tokens",) if self.prompt.too_long == "truncate" else ()),
            *(("reasoning_tokens",) if self.reasoning is not None else ()),
            *self.companions,
        )
        thinking = self.reasoning.column if self.reasoning is not None else None
        if thinking is not None and thinking in (*taken, *own, *self.output.columns):
            raise ValueError(f"reasoning.column {thinking!r} is the name of another column of the results")
        answers = self.output.columns
        typed = self.output.as_ == "columns"
        for name in (*answers, *own):
            if name in taken:
                remedy = "set output.column to another name" if name in answers else "do not pass it through"
                if typed and name in answers:
                    remedy = "rename the key of the schema, or store the answer as: struct"
                raise ValueError(f"input column {name!r} would collide with a result column: {remedy}")
        for name in answers:
            if name in own:
                key = f"the key {name!r} of output.json_schema" if typed else f"output.column {name!r}"
                raise ValueError(f"{key} is the name of a result column: choose another")
        if self.input.id_column is None and ROW_NUMBER in self.input.columns:
            raise ValueError(f"input.columns holds {ROW_NUMBER!r}, the name of the generated id: set input.id_column")
        return self

    @model_validator(mode="after")
    def _thinks_within_its_tokens(self) -> Self:
        most = self.reasoning.max_tokens if self.reasoning is not None else None
        if most is not None and most >= self.sampling.max_tokens:
            raise ValueError(
                f"reasoning.max_tokens ({most}) leaves no answer of sampling.max_tokens ({self.sampling.max_tokens}), "
                "which counts both: raise the second"
            )
        return self

    @model_validator(mode="after")
    def _columns_hold_one_answer(self) -> Self:
        if self.output.as_ == "columns" and self.sampling.n > 1:
            raise ValueError("output.as columns needs sampling.n = 1: several answers are a list, as: struct")
        return self

    @model_validator(mode="after")
    def _shape_is_reachable(self) -> Self:
        require_reachable(self.output, self.sampling)
        return self

    @model_validator(mode="after")
    def _speculation_samples_plainly(self) -> Self:
        """Refuse sampling that vLLM refuses for each request under speculative decoding."""
        sampling = self.sampling
        given = {"min_tokens": sampling.min_tokens > 0, "min_p": sampling.min_p > 0, "logit_bias": sampling.logit_bias}
        for name, value in given.items():
            if self.model.speculative is not None and value:
                raise ValueError(f"sampling.{name} does not go with model.speculative: leave one of the two out")
        return self

    @model_validator(mode="after")
    def _has_the_tasks_keys(self) -> Self:
        """Refuse keys that apply to another task."""
        prompted = {
            "sampling": self.sampling != SamplingSpec(),
            "reasoning": self.reasoning,
            "output.choices": self.output.choices,
            "output.json_schema": self.output.json_schema,
            "output.regex": self.output.regex,
            "model.speculative": self.model.speculative,
            "model.source: scripted": self.model.source == SCRIPTED,
            "prompt.prefill": self.prompt.prefill,
            "prompt.examples": self.prompt.examples,
        }
        wrong = [key for key, value in prompted.items() if value]
        if not self.generates and wrong:
            raise ValueError(f"task {self.task} gives {_GIVES[self.task]}, not a text: leave {wrong[0]} out")
        of_one = {
            "evaluate": (self.evaluate, ("generate", "classify")),
            "embed": (self.embed != EmbedSpec(), ("embed",)),
            "output.embedding_type": (self.output.embedding_type, ("embed",)),
            "prompt.query": (self.prompt.query, ("score",)),
        }
        for key, (value, tasks) in of_one.items():
            if value and self.task not in tasks:
                raise ValueError(f"{key} is for task {' and '.join(tasks)}: leave it out, or set task: {tasks[-1]}")
        if self.task == "score" and (self.prompt.query is None or self.prompt.messages_column is not None):
            raise ValueError("task score needs prompt.query, and the document in prompt.column or prompt.template")
        needed = self.prompt.needs_chat
        if not self.generates and needed not in (None, "messages_column") and self.prompt.chat is None:
            raise ValueError(f"task {self.task} reads plain text: leave prompt.{needed} out, or set prompt.chat: true")
        if self.embed.instruction is not None and (self.prompt.messages_column or self.prompt.too_long == "truncate"):
            raise ValueError("embed.instruction goes before a whole text: leave messages_column and truncate out")
        if self.task == "score" and self.prompt.too_long == "truncate":
            raise ValueError("prompt.too_long: truncate cuts one text, and task score reads a pair: leave it out")
        return self

    @model_validator(mode="after")
    def _tells_confidence_of_one_label(self) -> Self:
        if self.output.abstain_below is not None and not self.tells_confidence:
            raise ValueError("output.abstain_below needs output.confidence: true, which says how sure the model is")
        given = {
            "sampling.n above 1": self.sampling.n > 1,
            "sampling.logprobs": self.sampling.logprobs is not None,
            "model.speculative": self.model.speculative is not None,
            "reasoning": self.reasoning is not None,
        }
        for name, value in given.items():
            if value and self.output.confidence:
                raise ValueError(f"output.confidence does not go with {name}: leave one of the two out")
        return self

    @model_validator(mode="after")
    def _evaluates_one_output(self) -> Self:
        if self.evaluate is not None and self.sampling.n > 1:
            raise ValueError("evaluate compares one output with one column: it needs sampling.n = 1")
        _require_part(self.evaluate, self.output)
        for key, uri in (("input.uri", self.input.uri), ("output.uri", self.output.uri)):
            if self.schedule is None and has_variables(uri) and "previous" in uri:
                raise ValueError(f"{key} uses run.previous, the tick before this one: it needs schedule.cron")
        return self

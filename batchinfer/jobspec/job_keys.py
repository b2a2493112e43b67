"""The keys of a job spec, with their types, ranges and defaults.

Every model is frozen and refuses unknown keys. `jobspec/load.py` turns the errors of pydantic into messages for a
person. `schemas/job-spec.schema.json` is generated from these models.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from jsonschema.exceptions import SchemaError
from jsonschema.validators import validator_for
from pydantic import BeforeValidator, Field, field_validator, model_validator
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from batchinfer.jobspec.base import Keys, Place
from batchinfer.jobspec.constraints import require_reachable, require_usable_patterns
from batchinfer.jobspec.model_keys import SCRIPTED, ModelSpec
from batchinfer.jobspec.regex import compile_regex
from batchinfer.jobspec.schedule_keys import IncrementalSpec, PlaceWithVariables, ScheduleSpec
from batchinfer.jobspec.store_keys import StoresSpec
from batchinfer.jobspec.templates import compile_template
from batchinfer.jobspec.variables import has_variables

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


class InputSpec(Keys):
    """Where the rows come from, and which of their columns stay with the results."""

    uri: PlaceWithVariables
    """The rows: a folder, a file or a glob, local or on `s3://`.

    Files are read in the natural order of their paths; see `ignore` for those that are left out. Folders named
    `key=value` become columns, unless the files have a column of that name. Links to folders are refused, and so are
    folders of Delta, Iceberg and Hudi tables. Relative paths start where the command runs. May hold the
    variables of `output.uri`, as in `s3://tickets/{{ run.date - 1 }}`."""
    format: Literal["parquet", "jsonl"] = "parquet"
    """The format of the files.

    In a folder, `parquet` reads `.parquet`, `.parq` and `.pq`; `jsonl` reads `.jsonl`, `.ndjson` and `.json`, one
    object a line, and these packed with gzip (`.gz`) or zstd (`.zst`). A pattern in `uri` reads whatever it matches."""
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

    That is one that is no JSON object, or whose value in a column that the job reads is no text, has more than 64
    bits, or does not fit `cast`. `fail`: the file is bad, see `on_bad_file`. `set_aside`: the row fails with
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


class PromptSpec(Keys):
    """How a row becomes a prompt. Exactly one of `template`, `column` and `messages_column` must be set."""

    system: str | None = None
    """The system message of every row.

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

    Needs a model with a chat template."""
    query: str | None = Field(default=None, min_length=1)
    """The query, a template as `template` is; for `task: score`, which says how well the prompt answers it."""
    chat: bool | None = None
    """Whether prompts go through the model's chat template.

    null: yes if the model has one and `task` is `generate`; otherwise the prompt is plain text."""

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

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("template", "column", "messages_column") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of template, column, messages_column; given: {given or 'none'}")
        if self.messages_column is not None and self.chat is False:
            raise ValueError("messages_column needs the model's chat template: leave chat out")
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
    choices: dict[Text, Text] | tuple[Text, ...] | None = Field(default=None, min_length=1)
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
    regex: str | None = None
    """The whole answer matches this regular expression, in Python's syntax. Example: `[0-9]{4}-[0-9]{2}`.

    `\\d`, `\\w` and `\\s` are ASCII. Look-around, back-references, flags, `\\b`, `\\A` and `\\Z` are refused. Give
    repetitions an upper count: an answer that `sampling.max_tokens` cuts may not match."""

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


class EmbedSpec(Keys):
    """How `task: embed` makes vectors."""

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
    by: str | None = None
    """A column: the report has the accuracy for each of its values. null: one accuracy, over all rows."""


_GIVES = {"embed": "a vector", "classify": "a label of its own", "score": "a number"}


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
        for name in (
            self.output.column,
            *RESULT_COLUMNS,
            *(("logprobs",) if self.sampling.logprobs is not None else ()),
            *self.companions,
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
            "output.choices": self.output.choices,
            "output.json_schema": self.output.json_schema,
            "output.regex": self.output.regex,
            "model.speculative": self.model.speculative,
            "model.source: scripted": self.model.source == SCRIPTED,
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
        return self

    @model_validator(mode="after")
    def _tells_confidence_of_one_label(self) -> Self:
        if self.output.abstain_below is not None and not self.tells_confidence:
            raise ValueError("output.abstain_below needs output.confidence: true, which says how sure the model is")
        given = {
            "sampling.n above 1": self.sampling.n > 1,
            "sampling.logprobs": self.sampling.logprobs is not None,
            "model.speculative": self.model.speculative is not None,
        }
        for name, value in given.items():
            if value and self.output.confidence:
                raise ValueError(f"output.confidence does not go with {name}: leave one of the two out")
        return self

    @model_validator(mode="after")
    def _evaluates_one_output(self) -> Self:
        if self.evaluate is not None and self.sampling.n > 1:
            raise ValueError("evaluate compares one output with one column: it needs sampling.n = 1")
        for key, uri in (("input.uri", self.input.uri), ("output.uri", self.output.uri)):
            if self.schedule is None and has_variables(uri) and "previous" in uri:
                raise ValueError(f"{key} uses run.previous, the tick before this one: it needs schedule.cron")
        return self

"""The sections of a job spec as dictionaries, for type checkers. Written by schemas/generate.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict


class LoraKeys(TypedDict, total=False):
    """A LoRA adapter that every request uses, as PEFT's `save_pretrained` writes it, with safetensors."""

    path: str
    """The adapter: a local folder, an `s3://` folder or a Hugging Face repository id."""
    revision: str | None
    """The branch, tag or commit of a Hugging Face repository. null: its default branch."""
    max_lora_rank: Literal[1, 8, 16, 32, 64, 128, 256, 320, 512] | None
    """The rank that the engine reserves memory for; must not be below the adapter's."""


class SpeculativeKeys(TypedDict, total=False):
    """Speculative decoding by vLLM's names: something cheap proposes tokens, and the model checks several at once. Not with `sampling.min_tokens`, `min_p` and `logit_bias`, nor with `task: embed`."""

    method: Literal["ngram", "draft_model", "eagle", "eagle3", "medusa"]
    """What proposes the tokens."""
    num_speculative_tokens: int
    """How many tokens to propose at a time. Rejected ones are wasted work: 3 to 5 is a start."""
    model: str | None
    """The draft model or the head: a local folder or a Hugging Face repository id. Not with `method: ngram`."""
    revision: str | None
    """The branch, tag or commit of a Hugging Face repository. null: its default branch."""
    prompt_lookup_max: int | None
    """The most tokens that `ngram` looks up in the prompt. For `method: ngram` only."""
    prompt_lookup_min: int | None
    """The fewest tokens that `ngram` looks up in the prompt. Must not exceed `prompt_lookup_max`."""


class ModelKeys(TypedDict, total=False):
    """The model: its weights, how they are stored, and what goes with them."""

    source: str
    """The model: a name that `batchinfer models` lists, a folder, or a Hugging Face repository id."""
    quantization: str
    """How the weights are quantized: `auto`, `none`, `fp8`, `int8`, `w8a8`, `w4a16`, `awq`, `gptq`, `nvfp4`, `mxfp4`."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"]
    """The type of weights and activations that are not quantized."""
    revision: str | None
    """The branch, tag or commit of a Hugging Face repository. null: its default branch."""
    trust_remote_code: bool
    """Whether to run Python code that comes with the model. Only for repositories that you trust."""
    lora: LoraKeys | None
    """A LoRA adapter on top of the model. null: none."""
    speculative: SpeculativeKeys | None
    """Speculative decoding, for faster answers. null: none."""


class CatalogKeys(TypedDict, total=False):
    """How to reach the catalog of an Iceberg table: by its name in pyiceberg's own configuration, by properties, or both. Never a secret."""

    name: str
    """The catalog's name in `.pyiceberg.yaml` or in the environment (`PYICEBERG_CATALOG__<NAME>__URI`)."""
    properties: Mapping[str, str]
    """pyiceberg's properties, as in `{type: sql, uri: "sqlite:////data/catalog.db", warehouse: s3://lake}`."""


class CsvKeys(TypedDict, total=False):
    """How the files of `format: csv` are written. Every column is text, as it stands in the file: `007` stays `007`. `input.cast` gives a column another type."""

    delimiter: str
    """The character between two fields. Example: `";"`, or `"\\t"` for a tab."""
    quote: str | None
    """The character around a field that holds delimiters or ends of lines; in the field it stands twice."""
    escape: str | None
    """The character that takes the meaning from the next one: `"\\\\"` for files of Spark and MySQL. null: none."""
    header: bool
    """Whether the first line of each file has the names of the columns. Without it, `columns` names them."""
    columns: Sequence[str] | None
    """The names of the columns of files without a header, in order."""
    nulls: Sequence[str]
    """Unquoted fields that mean null, as in `["", "NULL"]`. A quoted field is never null: `""` is an empty text."""
    encoding: str
    """The encoding of the files, by Python's name, as `cp1252`, `latin-1` or `utf-16`."""


class SampleKeys(TypedDict, total=False):
    """A random part of the rows that `input.where` selects."""

    rows: int
    """How many rows to run; all of them if there are fewer. A sample of more rows holds that of fewer."""
    seed: int
    """Another seed is another sample; the same seed over the same files is the same one."""


class IncrementalKeys(TypedDict, total=False):
    """Each run reads only the files, or the partitions, that no earlier run of the job has read. The manifests of the earlier runs say which: keep `_run/manifest.parquet` as long as the input lies there."""

    by: Literal["file", "partition"]
    """The unit that is read once: a `file`, or a `partition`, which is a whole `key=value` folder."""
    changed: Literal["rerun", "ignore", "fail"]
    """What to do with a file that has changed since a run read it, or a partition that has changed or grown."""


class InputKeys(TypedDict, total=False):
    """Where the rows come from, and which of their columns stay with the results."""

    uri: str
    """The rows: a folder, a file or a glob, local or on `s3://`."""
    format: Literal["parquet", "jsonl", "csv", "arrow", "delta", "iceberg", "openai_batch"]
    """The format of the files, or of the table."""
    split: str | None
    """The split to read of a dataset of Hugging Face, as `train`: a folder of `save_to_disk`, or a copy of a repository whose files are named as `data/train-00000-of-00002.parquet`. A folder with several splits needs one."""
    version: int | str | None
    """The version of a table to read. null: the latest when the run begins; a resume stays with it."""
    catalog: CatalogKeys | str | None
    """The catalog of an Iceberg table: its name, or `{name: ..., properties: {...}}`. null: the one named `default`."""
    models: Sequence[str] | None
    """With `format: openai_batch`: the names by which requests may call the model, as in `[gpt-4o-mini]`."""
    csv: CsvKeys
    """How CSV files are written: delimiter, quotes, header, nulls, encoding."""
    where: str | None
    """Run only the rows for which this is true: an expression of SQL (DuckDB's) over the columns of the input."""
    limit: int | None
    """Run only so many rows: the first ones, in input order, that `where` selects. null: no limit."""
    sample: SampleKeys | None
    """Run only a random sample of the rows that `where` selects, in input order, as in `{rows: 200, seed: 7}`."""
    id_column: str | None
    """The column that identifies a row; its values must be unique, and it is the first column of the results."""
    columns: Sequence[str]
    """Columns to copy into the results as they are, as in `[customer, received]`."""
    group_by: str | None
    """A column: neighbouring rows with the same value stay in one shard as far as they fit."""
    ignore: Sequence[str]
    """Files in the folder of `uri` that are no input: patterns of names, as in `["*.gzip", "README.md"]`."""
    on_bad_file: Literal["fail", "skip"]
    """What becomes of a file that cannot be read."""
    on_bad_row: Literal["fail", "set_aside"]
    """What becomes of a line of `jsonl` that cannot be read."""
    cast: Mapping[str, Literal["string", "int64", "double", "boolean", "date", "timestamp", "binary"]]
    """The type of columns that differ between files or lines, as in `{amount: string}`."""
    incremental: IncrementalKeys | None
    """Read only the files, or the partitions, that no earlier run of this job has read. null: all, every time."""


class ReduceKeys(TypedDict, total=False):
    """One answer for each group of rows."""

    key: str
    """The column whose equal values make a group; the rows of a group may lie anywhere in the input."""
    members: bool
    """Whether the results have the column `members`, with the ids of the group's rows."""


class ExampleKeys(TypedDict, total=False):
    """One example of `prompt.examples`: a message of the user, and the answer that the model should give to it."""

    user: str
    """The user's message."""
    assistant: str
    """The answer."""


class TruncateKeys(TypedDict, total=False):
    """What `prompt.too_long: truncate` cuts."""

    column: str | None
    """The column whose text is cut; all other text of the prompt stays whole."""
    side: Literal["right", "left", "middle"]
    """Where text is taken away: `right` keeps the beginning, `left` the end, `middle` both."""


class PromptKeys(TypedDict, total=False):
    """How a row becomes a prompt. Exactly one of `template`, `column` and `messages_column` must be set."""

    system: str | None
    """The system message of every row; a text, or a template as `template` is."""
    template: str | None
    """The prompt as a Jinja2 template over the row's columns, as in `"Subject: {{ subject }}"`."""
    column: str | None
    """The column that holds the whole prompt as text."""
    messages_column: str | None
    """The column that holds the conversation: a list of `{role, content}`, or JSON text of one."""
    examples: Sequence[ExampleKeys] | None
    """Turns before the row's own, as in `[{user: It rains., assistant: weather}]`."""
    prefill: str | None
    """How every answer begins; the model goes on from there. A text, or a template as `template` is."""
    query: str | None
    """The query, a template as `template` is; for `task: score`, which says how well the prompt answers it."""
    chat: bool | None
    """Whether prompts go through the model's chat template."""
    chat_template: str | None
    """A chat template in place of the model's own: its text, or the path of a file."""
    chat_template_kwargs: Mapping[str, Any] | None
    """Variables for the chat template, as in `{enable_thinking: false}`. One that it does not read has no effect."""
    too_long: Literal["error", "truncate"]
    """What becomes of a row whose prompt does not fit into the context."""
    truncate: TruncateKeys | None
    """What `too_long: truncate` cuts. null: the only column of the prompt, at its end."""
    allow_special_tokens: bool
    """Whether control tokens in the text of a row, such as `<|im_start|>`, are read as such."""


class RepetitionKeys(TypedDict, total=False):
    """What counts as an answer that repeats itself without end: its last tokens are one pattern, many times over."""

    max_pattern_size: int
    """The most tokens of the pattern."""
    min_pattern_size: int
    """The fewest tokens of the pattern. Must not exceed `max_pattern_size`."""
    min_count: int
    """How often the pattern stands at the end of the answer, without anything between, when the answer is ended."""


class SamplingKeys(TypedDict, total=False):
    """How the next token is chosen and when an answer ends: vLLM's sampling parameters by vLLM's names. For `task: generate` only."""

    max_tokens: int
    """The most tokens an answer may have; a longer one is cut and has the `finish_reason` `length`."""
    min_tokens: int
    """The fewest tokens before the answer may end. Must not exceed `max_tokens`."""
    n: int
    """How many answers to generate for each row."""
    temperature: float
    """How random the choice of a token is; 0 always picks the most likely one."""
    top_p: float
    """Sample only from the most likely tokens whose probabilities add up to this share. 1: from all."""
    top_k: int
    """Sample only from this many most likely tokens. 0 or -1: from all."""
    min_p: float
    """Sample only tokens at least this probable, relative to the most likely one. 0: no such limit."""
    seed: int | None
    """The seed of each request's random choices, so that a repeated run samples the same way."""
    presence_penalty: float
    """Subtracted from the score of every token that the answer already has. Negative values encourage repetition."""
    frequency_penalty: float
    """Subtracted from a token's score once for each time that the answer already has the token. Negative values encourage repetition."""
    repetition_penalty: float
    """Divides the score of tokens that the prompt or the answer already has. Below 1 encourages repetition."""
    repetition_detection: RepetitionKeys | None
    """When an answer that repeats itself is ended. null: never. Its `finish_reason` is `repetition`."""
    stop: str | Sequence[str] | None
    """A text, or several, at which the answer ends; the text itself is not part of the answer. Example: `["\\n\\n", "###"]`."""
    stop_token_ids: Sequence[int] | None
    """Token ids at which the answer ends. The token stays in the answer unless it is a special token."""
    include_stop_str_in_output: bool
    """Whether the text of `stop` that ended the answer stays in it."""
    ignore_eos: bool
    """Whether to go on after the model's end-of-sequence token, up to `max_tokens`. For measuring speed."""
    skip_special_tokens: bool
    """Whether special tokens are left out of the answer's text."""
    spaces_between_special_tokens: bool
    """Whether special tokens in the answer's text are separated by spaces."""
    logprobs: int | None
    """How many alternatives to report for each token of the answer, with their log probabilities."""
    logit_bias: Mapping[int, float] | None
    """What to add to the scores of tokens, by token id, as in `{50256: -100}`. Not with `model.speculative`."""
    allowed_token_ids: Sequence[int] | None
    """The only token ids that an answer may consist of. null: all."""
    bad_words: Sequence[str] | None
    """Texts that an answer must not contain. vLLM forbids the last token that would complete one."""


_AnswerKeys = TypedDict("_AnswerKeys", {"as": 'Literal["json", "struct", "columns"]'}, total=False)


class AnswerKeys(_AnswerKeys, total=False):
    """Which shape an answer must have, and how it is stored. At most one of `choices`, `json_schema` and `regex` may be set; decoding is constrained to it, and an answer that does not fit fails with `output_invalid`."""

    choices: Sequence[str] | Mapping[str, str] | None
    """The labels, of which the answer is one: a list, as in `[billing, outage, other]`, or labels with descriptions."""
    multi_label: bool
    """The answer is a list of `choices`, each at most once and in the order of the spec; the list may be empty."""
    confidence: bool
    """Whether the results have the label's probability among the `choices`."""
    abstain_below: float | None
    """A label that is less probable than this is withheld: the output column is null, as in `0.8`."""
    json_schema: Mapping[str, Any] | None
    """The answer is JSON that is valid against this JSON Schema; the output column holds it as text."""
    model: str | None
    """A pydantic class whose JSON Schema is the `json_schema`, as in `invoices:Invoice` for the class of a file beside."""
    compact_json: bool
    """Whether the JSON of `json_schema` is written without white space between its parts."""
    regex: str | None
    """The whole answer matches this regular expression, in Python's syntax. Example: `[0-9]{4}-[0-9]{2}`."""


class StepKeys(TypedDict, total=False):
    """One prompt of a row. Its answer is the column `name`; templates of later steps use it as `{{ name }}`."""

    name: str
    """The column of the answer, and its name in the templates of later steps: letters, digits and underscores."""
    when: str | None
    """An expression over the row and earlier answers, as in `topic == "complaint" and stars < 3`."""
    prompt: PromptKeys
    """How the row becomes this step's prompt, as the job's `prompt` does. A text alone is the template."""
    sampling: SamplingKeys | None
    """How this step's tokens are chosen. null: as the job's `sampling` says."""
    sampling_column: str | None
    """A column with keys of this step's sampling that differ for a row. null: the job's `sampling_column`."""
    output: AnswerKeys
    """Which shape this step's answer must have."""


class ChunkKeys(TypedDict, total=False):
    """How a long text is cut. The prompt is made of each chunk in turn, and `combine` makes one answer of all."""

    column: str
    """The column whose text is cut, one that the prompt names. A list of texts is joined with an empty line between."""
    tokens: int
    """The most tokens of a chunk. A chunk has fewer if the context has no room for more."""
    overlap: int
    """Tokens that a chunk shares with the one before. Less than half of `tokens`."""


class CombinePromptKeys(TypedDict, total=False):
    """A prompt that makes one answer of several. It is asked of as many answers as fit into the context, and again of its own answers, until one is left."""

    template: str
    """The prompt, over `answers` (a list of texts) and the row's columns."""
    system: str | None
    """The system message. null: the one of `prompt`."""
    sampling: SamplingKeys | None
    """How the tokens of combined answers are chosen. null: as the job's `sampling` says."""


class CacheKeys(TypedDict, total=False):
    """Answers that are kept across runs, jobs and teams."""

    uri: str
    """The folder or bucket of the answers, as `s3://team/answers`. Any number of runs may use it at once."""


class EmbedKeys(TypedDict, total=False):
    """The vectors of `task: embed`: their length and what is read before each text."""

    dimensions: int | None
    """Keep only this many numbers of a vector. Needs a model that was trained for it (Matryoshka). null: all."""
    normalize: bool
    """Whether vectors are scaled to length one."""
    instruction: str | None
    """A text before each prompt, as the model's card says: `"query: "`."""


class ReasoningKeys(TypedDict, total=False):
    """What becomes of the thinking of a model that thinks before it answers. The output column holds the answer only; `output.choices`, `json_schema` and `regex` hold for the answer, after the thinking."""

    parser: str
    """How thinking and answer are told apart: `auto`, `none`, or the name of one of vLLM's reasoning parsers."""
    column: str | None
    """A column for the thinking. null: the thinking is not kept."""
    max_tokens: int | None
    """The most tokens of thinking; then the engine ends the thinking, and the model answers."""


class PublishKeys(TypedDict, total=False):
    """Write the results into a table of Delta Lake or Iceberg: one commit when every row is there, with the run's id. The files of the run stay as they are."""

    to: Literal["delta", "iceberg"]
    """The format of the table. Needs an extra: `pip install 'batchinfer[delta]'`, or `'batchinfer[iceberg]'`."""
    table: str
    """The table: of Delta a folder, local or on `s3://`; of Iceberg its name in the catalog, as `sales.labels`."""
    catalog: CatalogKeys | str | None
    """The catalog of an Iceberg table: its name, or `{name: ..., properties: {...}}`. null: the one named `default`."""
    mode: Literal["append", "overwrite", "upsert"]
    """What becomes of the rows that the table has."""
    join_cols: Sequence[str]
    """For `upsert`: the columns that identify a row, as in `[ticket_id]`. No two results may have the same values."""
    columns: Sequence[str] | None
    """The columns of the results to write, in this order. null: all."""
    failed_rows: bool
    """Whether rows that failed are written too, with their `error_code` and without an answer."""
    run_column: str | None
    """A column of text for the run's id, as `run_id`. With it, `append` can replace the run's rows after a `retry`. null: none."""
    create: bool
    """Whether a table that does not exist is created. Iceberg's namespace must exist."""
    schema_evolution: Literal["refuse", "additive"]
    """What to do with columns that the table lacks: `refuse` the job before it starts, or add them to the table (`additive`). Types of columns are never changed."""


_OutputKeys = TypedDict("_OutputKeys", {"as": 'Literal["json", "struct", "columns"]'}, total=False)


class OutputKeys(_OutputKeys, total=False):
    """Where the results go, and which shape an answer must have. At most one of `choices`, `json_schema` and `regex` may be set; decoding is constrained to it, and an answer that does not fit fails with `output_invalid`."""

    choices: Sequence[str] | Mapping[str, str] | None
    """The labels, of which the answer is one: a list, as in `[billing, outage, other]`, or labels with descriptions."""
    multi_label: bool
    """The answer is a list of `choices`, each at most once and in the order of the spec; the list may be empty."""
    confidence: bool
    """Whether the results have the label's probability among the `choices`."""
    abstain_below: float | None
    """A label that is less probable than this is withheld: the output column is null, as in `0.8`."""
    json_schema: Mapping[str, Any] | None
    """The answer is JSON that is valid against this JSON Schema; the output column holds it as text."""
    model: str | None
    """A pydantic class whose JSON Schema is the `json_schema`, as in `invoices:Invoice` for the class of a file beside."""
    compact_json: bool
    """Whether the JSON of `json_schema` is written without white space between its parts."""
    regex: str | None
    """The whole answer matches this regular expression, in Python's syntax. Example: `[0-9]{4}-[0-9]{2}`."""
    uri: str
    """The folder of the run, local or on `s3://`: results in `data`, accounting in `accounting`, the rest in `_run`."""
    format: Literal["parquet", "openai_batch"]
    """What is written beside the Parquet files."""
    column: str
    """The name of the column with the answer. Must differ from the other columns of the results."""
    embedding_type: Literal["float32", "float16", "int8"] | None
    """How `task: embed` stores a vector: a list of fixed size of this type. null: a list of float32."""
    publish: PublishKeys | None
    """Write the results into a table at the end of the run; null: into files only. May change when a run resumes."""


class ScriptedKeys(TypedDict, total=False):
    """The scripted engine (`model.source: scripted`): deterministic answers without a model, with scripted time and failures, to try a job or its recovery. A token is four characters."""

    answer: str | None
    """The answer to every row."""
    load_seconds: float
    """Seconds that the engine takes to start."""
    seconds_per_batch: float
    """Seconds that the engine takes for a shard, however many tokens it has."""
    seconds_per_token: float
    """Seconds that the engine takes for each token, of prompts and answers."""
    kill_on: str | None
    """A row whose prompt contains this text kills the engine. null: none does."""
    hang_on: str | None
    """A row whose prompt contains this text makes the engine hang. null: none does."""
    reject_on: str | None
    """A row whose prompt contains this text fails with `engine_rejected`. null: none does."""


class EngineKeys(TypedDict, total=False):
    """vLLM's engine arguments by vLLM's names. null leaves the choice to the plan, or to vLLM if the plan makes none."""

    max_model_len: int | None
    """The longest sequence, prompt and answer together, in tokens."""
    gpu_memory_utilization: float | None
    """The share of a GPU's memory that the engine may use, weights and KV cache together."""
    max_num_seqs: int | None
    """The most rows that one engine runs at a time."""
    max_num_batched_tokens: int | None
    """The most tokens that one step of the engine computes, of prompts and answers."""
    enforce_eager: bool | None
    """Whether to run without `torch.compile` and CUDA graphs: the engine starts sooner and runs slower."""
    enable_prefix_caching: bool | None
    """Whether the KV cache of a prompt's beginning is kept for other rows that begin alike."""
    enable_chunked_prefill: bool | None
    """Whether vLLM may read a long prompt in several steps, between the tokens of other rows."""
    kv_cache_dtype: str | None
    """The type in which the KV cache is stored, as `auto`, `bfloat16`, `fp8`, `fp8_e4m3` or `fp8_e5m2`."""
    kv_cache_memory_bytes: int | None
    """Bytes of KV cache for each GPU, or for each worker on a CPU. `gpu_memory_utilization` does not apply then."""
    num_gpu_blocks_override: int | None
    """How many blocks the KV cache has, instead of what fits. vLLM has it for tests."""
    block_size: int | None
    """Tokens in a block of the KV cache; only whole blocks of a prefix are shared. null: vLLM's default."""
    load_format: str | None
    """The format in which the weights are read, by vLLM's names, as `safetensors`, `auto`, `pt` or `dummy`."""
    tokenizer: str | None
    """The folder or the Hugging Face repository id of the tokenizer. null: the model's own."""
    seed: int | None
    """The seed of the engine's own random generator. null: vLLM's default. For a seed a row see `sampling.seed`."""
    extra: Mapping[str, Any]
    """Any other engine argument of vLLM, by its name, as in `{attention_backend: TRITON_ATTN}`."""
    scripted: ScriptedKeys
    """What the scripted engine does. Has no effect unless `model.source` is `scripted`."""


class ReplicaRangeKeys(TypedDict, total=False):
    """A number of replicas that follows the load, as in `{min: 1, max: 8}`."""

    min: int
    """The fewest replicas, which are started at once."""
    max: int
    """The most replicas. Must not be below `min`."""


class ResourcesKeys(TypedDict, total=False):
    """The devices that the job runs on. A replica of the model needs `tensor_parallel` x `pipeline_parallel` GPUs. May change when a run resumes."""

    accelerator: Literal["auto", "cpu", "T4", "A10", "A10G", "L4", "L40S", "A100-40GB", "A100-80GB", "H100", "H100-PCIe", "H200", "B200", "B300", "GB200", "GB300", "MI300X", "MI325X", "MI355X", "RTX4090", "RTX5090"]
    """The device: a GPU by its catalog name (`batchinfer gpus` lists them), or `cpu`."""
    replicas: Literal["auto"] | int | ReplicaRangeKeys
    """How many copies of the model run at the same time: a number, or `{min: N, max: N}` for an autoscaled one."""
    tensor_parallel: Literal["auto"] | int
    """How many GPUs of one node share each layer. `auto` lets the plan choose; on a CPU that is 1."""
    pipeline_parallel: Literal["auto"] | int
    """How many stages the model's layers are split into; stages may lie on different nodes."""
    price_per_gpu_hour: float | None
    """Dollars for one GPU and hour, or for one replica and hour on a CPU."""
    bill: Literal["gpu", "machine"]
    """What is paid for: the GPUs that replicas use, or the whole machines that these GPUs are in."""


class ShardsKeys(TypedDict, total=False):
    """How the input is cut into shards: the unit that is run, committed and resumed."""

    rows: Literal["auto"] | int
    """Rows of a shard."""
    max_bytes: int
    """The most bytes of a shard, counted over the columns that are read. The default is 64 MiB."""


class MonthlyLimitKeys(TypedDict, total=False):
    """A budget for a month, over all runs with one value of a label."""

    label: str
    """The label's name, as `team`. The spec's own `labels` has the value."""
    usd: float
    """Dollars for a calendar month in UTC."""
    within: Sequence[str]
    """The folders or buckets whose runs count, at any depth. Empty: the folder that `output.uri` lies in."""


class LimitsKeys(TypedDict, total=False):
    """When the run stops by itself. May change when a run resumes."""

    max_cost_usd: float | None
    """Dollars that the run may cost, over all commands that resumed it."""
    monthly: MonthlyLimitKeys | None
    """A month's budget for all runs with this job's value of a label, as `{label: team, usd: 500}`."""
    max_runtime_hours: float | None
    """Hours that this command may run; a command that resumes the run has as many again."""
    max_error_rate: float
    """The share of failed rows, 0 to 1, above which a finished run ends with exit code 3."""
    max_engine_restarts: int
    """How often each replica may restart its engine before the run ends with exit code 1."""
    engine_timeout_seconds: float
    """Seconds without a step of the engine, while it has rows, after which it is killed and restarted."""
    load_timeout_seconds: float
    """Seconds that an engine may take to load, with the download of its model, before the load counts as failed."""
    max_lost_workers: int
    """How often each replica may be lost with its process or machine before the run ends with exit code 1."""


class ScheduleKeys(TypedDict, total=False):
    """When the job runs again and again. `batchinfer schedule next SPEC` shows the coming ticks."""

    cron: str
    """Five fields of cron: minute, hour, day of the month, month, day of the week. Example: `"0 2 * * *"`."""
    timezone: str
    """The time zone on whose clock `cron` and the variables of URIs are read, as `Europe/Berlin`."""
    overlap: Literal["skip", "queue", "allow"]
    """What happens to a tick that is due while another run of the job is active."""
    catchup: int
    """How many of the latest ticks are made up for if they were missed, as in a night without a cluster."""


class EvaluateKeys(TypedDict, total=False):
    """Compare the output with a column of the input; the report has the accuracy. Needs `sampling.n: 1`."""

    expected: str
    """The column with the right answer; the output must equal it as text."""
    part: str | None
    """The key of a JSON answer to compare, as in `total`. null: the whole answer, as text."""
    by: str | None
    """A column: the report has the accuracy for each of its values. null: one accuracy, over all rows."""


class NotifyKeys(TypedDict, total=False):
    """Whom a command tells when a run ends. What cannot be told is an event, and changes nothing of the run."""

    webhook: str | None
    """Where a JSON document is posted, up to three times: `https://...`, or `env:NAME` for an address that the environment variable NAME holds, because a spec is kept with the results."""
    command: Sequence[str] | None
    """A program and its arguments, run where the run was started, with the same document as its input."""
    on: Sequence[Literal["completed", "failed", "budget"]]
    """The occasions. `completed`: every row is in the output. `failed`: an error ended the command, or more rows failed than `limits.max_error_rate`. `budget`: one of `limits` stopped the run, or the run cost more than `limits.max_cost_usd`."""


class LineageKeys(TypedDict, total=False):
    """Where a command sends OpenLineage events: one when it starts, one when it ends. What cannot be sent is an event of the log, and changes nothing of the run."""

    openlineage: str
    """An address, as `https://marquez.example.com`, or the path of a file that gets one event a line."""
    namespace: str
    """The namespace of the job. Its name is that of the spec."""


class StoreKeys(TypedDict, total=False):
    """How to reach the S3 store of some URIs. null leaves a key to the AWS environment and profiles. Never a secret: credentials come from the environment, a profile or a role."""

    endpoint_url: str | None
    """The store's address, for stores other than AWS. Example: `https://minio.example.org`."""
    region: str | None
    """The region of the bucket, as `eu-central-1`."""
    profile: str | None
    """The profile in the AWS configuration files whose credentials and settings apply. Every node must have it."""
    anonymous: bool
    """Whether requests are sent without credentials, as to a public bucket."""
    addressing_style: Literal["auto", "path", "virtual"]
    """Where the bucket's name stands in requests: in the `path`, in the host name (`virtual`), or as botocore chooses."""
    request_payer: bool
    """Whether the reader pays for requests, as some buckets demand."""
    conditional_writes: bool
    """Whether the store honours `If-None-Match`, on which each shard's single commit rests."""
    checksums: Literal["when_supported", "when_required"] | None
    """Whether each request carries a checksum, or only if S3 requires one."""
    retry_seconds: float
    """Seconds for which a request that fails is sent again, so that a run outlives an outage of the store."""
    max_attempts: int | None
    """A limit on the tries of a request, the first included, beside `retry_seconds`. null sets none."""
    connect_timeout: float
    """Seconds until a connection must be made."""
    read_timeout: float
    """Seconds until the store must send something."""
    lease_seconds: float
    """Seconds until the lock of a run that vanished on another machine lapses."""


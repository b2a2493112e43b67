"""The values of planning: the work, whether it fits, and how long it takes."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True)


class Interval(_Value):
    """A figure with the range in which it is expected to lie."""

    low: float
    """The lower end of the range."""
    mid: float
    """The expected value."""
    high: float
    """The upper end of the range."""

    def scaled(self, factor: float) -> Interval:
        return Interval(low=self.low * factor, mid=self.mid * factor, high=self.high * factor)


class TooLong(_Value):
    """Prompts of a sample that do not fit into the context, and what each remedy would do."""

    rows: int
    """How many prompts of the sample are too long."""
    longest: int
    """Tokens of the longest one."""
    room: int
    """Tokens that there is room for."""
    cut: bool
    """Whether they are cut (`prompt.too_long: truncate`); otherwise they fail."""
    cut_tokens: int
    """Tokens that they lose if they are cut, with room for `sampling.max_tokens`."""
    prompt_tokens: int
    """Tokens of all prompts of the sample."""
    context: int
    """The `engine.max_model_len` that holds each of them whole, with `sampling.max_tokens`."""
    model_context: int | None
    """The longest sequence of the model; null if it is not known."""


class PromptSample(_Value):
    """What a sample of the rows looks like: how long the prompts are, and which rows will fail."""

    rows: int
    """Rows that were looked at."""
    failed: dict[str, int]
    """Sampled rows that will fail before the engine runs them, by `error_code`."""
    messages: dict[str, str]
    """The first message of each code."""
    lengths: tuple[tuple[int, int], ...]
    """A histogram of the prompts' tokens: (a power of two, prompts of up to so many tokens and above half of it)."""
    too_long: TooLong | None = None
    """Prompts that do not fit into the context; null if all do, or if the tokenizer is not at hand."""

    @property
    def failed_share(self) -> float:
        """The share of the rows that will fail, 0 to 1."""
        return sum(self.failed.values()) / self.rows if self.rows else 0.0


class Workload(_Value):
    """The work of an engine. Tokens are for each row; `output_tokens` is what a row is expected to
    produce over all its n answers. `sampled_rows`: rows whose prompts were looked at; `source`: where the
    lengths are from, for a person to read. `longest_output_tokens`: the largest `max_tokens` of a sampled row; None
    if none was sampled. `scattered`: the share of the sampled rows that share a prefix with a row
    from another part of the input, beyond the prefix of all rows."""

    rows: int
    """Rows that run: without those that fail before, and those whose request an earlier row has."""
    input_tokens: float
    longest_input_tokens: int
    output_tokens: Interval
    sampled_rows: int
    source: str
    longest_output_tokens: int | None = None
    scattered: float = 0.0
    sequences: float = 1.0
    """Requests of a row, each a sequence of its own: steps, or chunks and their combinations."""
    repeated: Interval | None = None
    """The share of the rows, 0 to 1, whose request an earlier row has; null: requests that are the same all run."""

    @property
    def answered(self) -> int:
        """Rows that get an answer: those that run, and those whose request an earlier row has."""
        return round(self.rows / (1 - (0.0 if self.repeated is None else self.repeated.mid)))

    @property
    def of_sequences(self) -> Workload:
        """The same work, with each request as a row."""
        return self.model_copy(
            update={
                "rows": round(self.rows * self.sequences),
                "input_tokens": self.input_tokens / self.sequences,
                "output_tokens": self.output_tokens.scaled(1 / self.sequences),
                "sequences": 1.0,
            }
        )

    @property
    def shares_apart(self) -> bool:
        """Whether rows that lie apart in the input share a prefix."""
        return self.scattered > 0


class EngineSettings(_Value):
    """The engine arguments that memory and time depend on, with vLLM's names and defaults.

    `max_model_len` None: the model's own context.
    """

    max_model_len: int | None = None
    gpu_memory_utilization: float = 0.9
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    enforce_eager: bool = False
    kv_cache_dtype: str = "auto"


class Fit(_Value):
    """Whether one replica fits its GPUs. Bytes are for each GPU, and of the fullest pipeline stage.

    kv_cache_tokens: tokens that the whole replica's KV cache holds, in sequences of the requested length.
    sequences: the number of those sequences. shortfall: bytes missing, 0 if it fits.
    """

    weight_bytes_per_gpu: int
    overhead_bytes_per_gpu: int
    kv_cache_bytes_per_gpu: int
    kv_cache_tokens: int
    sequences: float
    shortfall: int

    @property
    def fits(self) -> bool:
        return self.shortfall == 0


class ReplicaSpeed(_Value):
    """Steady state of one replica: tokens a second, input and output together and only output, rows a
    second, rows in the batch, and what bounds the speed ("compute", "bandwidth", "kv cache")."""

    tokens_per_second: float
    output_tokens_per_second: float
    rows_per_second: float
    batch: float
    bound: str


class Estimate(_Value):
    """Time and money of the whole job on one layout."""

    hours: Interval
    """Hours from start to end, the load of the model included."""
    cost_usd: Interval
    """Dollars for all replicas."""
    tokens_per_second: Interval
    """Input and output tokens a second, of all replicas together."""
    usd_per_million_tokens: Interval
    """Dollars for a million tokens, input and output together."""


class Candidate(_Value):
    """One way to lay the job out, and why it was or was not taken."""

    quantization: str
    checkpoint: str
    tensor_parallel: int
    pipeline_parallel: int
    expert_parallel: bool
    replicas: int
    num_gpus: int
    nodes_per_replica: int
    fit: Fit
    estimate: Estimate | None
    verdict: str

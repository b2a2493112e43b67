"""What a run came to: the values of `_run/report.json` and of `batchinfer report --json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from batchinfer.accounting.ledger import ReplicaAccount, Totals
from batchinfer.planner import Estimate, Plan


class Seconds(BaseModel):
    """Device-seconds by what they were spent on. The four add up to the time that was paid for."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    load: float
    """Device-seconds in which replicas started and loaded the model."""
    work: float
    """Device-seconds of committed shards."""
    idle: float
    """Device-seconds in which a ready replica had no rows."""
    waste: float
    """Device-seconds that no committed shard accounts for: lost attempts, restarts, killed replicas."""


class Accuracy(BaseModel):
    """How many outputs equalled the expected value, in one group of rows."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    right: int
    """Rows whose output equals the expected value."""
    compared: int
    """Rows that have an expected value."""
    accuracy: float
    """`right` over `compared`, 0 to 1."""


class Report(BaseModel):
    """One run. Rows and failures are of the output as it stands. Tokens and money are of all that was spent, retries
    and lost attempts included.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=(), use_attribute_docstrings=True)

    job_name: str
    """The spec's `name`."""
    run_id: str
    """The id of the run; every command that resumes it keeps it."""
    tick: str | None = None
    """The instant that a scheduled or incremental run was for, as 20261120T010000Z. null: a job that runs once."""
    output: str
    """The folder of the run."""
    complete: bool
    """Whether every row of the input is in the output."""
    model: str
    """The spec's `model.source`."""
    quantization: str
    """How the weights that ran are quantized."""
    accelerator: str
    """The device that the run was on."""
    tensor_parallel: int
    """GPUs that share each layer in a replica."""
    pipeline_parallel: int
    """Stages that a replica's layers are split into."""
    rows: int
    """Rows in the output, failed ones included."""
    rows_in_input: int
    """Rows of the input."""
    rows_failed: int
    """Rows that have an `error_code` after the latest retry."""
    max_error_rate: float
    """The spec's `limits.max_error_rate` when the run was last made or resumed."""
    errors: dict[str, int]
    """Failed rows by `error_code`."""
    finish_reasons: dict[str, int]
    """Answers by `finish_reason`."""
    accuracy: dict[str, Accuracy]
    """The accuracy by the values of `evaluate.by`, or under `all`. Empty without `evaluate`."""
    input_tokens: int
    """Tokens of the prompts."""
    cached_tokens: int
    """Tokens of the prompts that the KV cache already held."""
    output_tokens: int
    """Tokens of the answers."""
    tokens_per_second: float
    """Input and output tokens over the seconds in which at least one replica was ready."""
    rows_per_second: float
    """Rows in the output over the seconds in which at least one replica was ready."""
    cost_usd: float
    """Dollars for the lifetimes of all replicas."""
    cost_per_million_tokens: float | None
    """Dollars for a million tokens, input and output together. null: there were no tokens."""
    cost_per_thousand_rows: float | None
    """Dollars for a thousand rows of the output. null: there were no rows."""
    price_per_gpu_hour: float
    """Dollars for one GPU and hour, or for one replica and hour on a CPU."""
    price_source: str
    """Where the price comes from: the spec's key, or a list price with its date."""
    seconds: Seconds
    """Device-seconds by what they were spent on."""
    shards: int
    """Shards in the output."""
    shards_in_input: int
    """Shards that the input was cut into."""
    replicas: int
    """Replicas that ever ran for this run, over all its commands."""
    replicas_killed: int
    """Replicas that ended without closing their account, as after a kill or a lost machine."""
    hours: float
    """Hours in which at least one replica was up, loading included."""
    planned: Estimate | None
    """What the plan expected of the whole job. null: the plan could not say."""
    labels: dict[str, str] = {}
    """The spec's `labels`."""
    files_skipped: dict[str, str] = {}
    """Files of the input that could not be read and were left out (`input.on_bad_file: skip`), with the reason."""

    @property
    def error_rate(self) -> float:
        """Failed rows over all rows in the output; 0 when there are none."""
        return self.rows_failed / self.rows if self.rows else 0.0


def make_report(
    *,
    job_name: str,
    run_id: str,
    output: str,
    plan: Plan,
    totals: Totals,
    replicas: Sequence[ReplicaAccount],
    rows_in_input: int,
    shards_in_input: int,
    max_error_rate: float,
    tick: str | None = None,
    labels: Mapping[str, str] | None = None,
    files_skipped: Mapping[str, str] | None = None,
) -> Report:
    """The report of a run whose accounts are `totals`."""
    tokens = totals.input_tokens + totals.output_tokens
    active = totals.active_seconds
    return Report(
        job_name=job_name,
        run_id=run_id,
        tick=tick,
        output=output,
        complete=totals.rows == rows_in_input,
        model=plan.model,
        quantization=plan.quantization,
        accelerator=plan.accelerator,
        tensor_parallel=plan.tensor_parallel,
        pipeline_parallel=plan.pipeline_parallel,
        rows=totals.rows,
        rows_in_input=rows_in_input,
        rows_failed=totals.rows_failed,
        max_error_rate=max_error_rate,
        errors=totals.errors,
        finish_reasons=totals.finish_reasons,
        accuracy=_accuracy(totals),
        input_tokens=totals.input_tokens,
        cached_tokens=totals.cached_tokens,
        output_tokens=totals.output_tokens,
        tokens_per_second=tokens / active if active else 0.0,
        rows_per_second=totals.rows / active if active else 0.0,
        cost_usd=totals.cost_usd,
        cost_per_million_tokens=totals.cost_usd / tokens * 1e6 if tokens else None,
        cost_per_thousand_rows=totals.cost_usd / totals.rows * 1e3 if totals.rows else None,
        price_per_gpu_hour=plan.price_per_gpu_hour,
        price_source=plan.price_source,
        seconds=Seconds(
            load=totals.load_seconds, work=totals.work_seconds, idle=totals.idle_seconds, waste=totals.wasted_seconds
        ),
        shards=totals.shards,
        shards_in_input=shards_in_input,
        replicas=len(replicas),
        replicas_killed=sum(replica.killed for replica in replicas),
        hours=totals.up_seconds / 3600,
        planned=plan.estimate,
        labels=dict(labels or {}),
        files_skipped=dict(files_skipped or {}),
    )


def _accuracy(totals: Totals) -> dict[str, Accuracy]:
    return {
        group: Accuracy(right=right, compared=compared, accuracy=right / compared)
        for group, (right, compared) in totals.evaluation.items()
        if compared
    }

"""What a run came to: the values of `_run/report.json` and of `batchinfer report --json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from batchinfer.ledger import ReplicaAccount, Totals
from batchinfer.planner import Estimate, Plan


class Seconds(BaseModel):
    """Device-seconds by what they were spent on; they add up to what was paid for."""

    model_config = ConfigDict(frozen=True)

    load: float
    work: float
    idle: float
    waste: float


class Accuracy(BaseModel):
    """How many outputs equalled the expected value, in one group of rows."""

    model_config = ConfigDict(frozen=True)

    right: int
    compared: int
    accuracy: float


class Report(BaseModel):
    """One run. Rows and failures are of the output as it stands; tokens and money are of all that was
    spent, retries and lost attempts included. `tick` is the instant that a scheduled or incremental run was for.

    tokens_per_second: input and output tokens over the seconds in which a replica was ready.
    cost_per_million_tokens: of input and output tokens together. hours: in which a replica was up, loading
    included. planned: what the plan expected of the whole job, None where it could not say. labels: the spec's.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    job_name: str
    run_id: str
    tick: str | None = None
    output: str
    complete: bool
    model: str
    quantization: str
    accelerator: str
    tensor_parallel: int
    pipeline_parallel: int
    rows: int
    rows_in_input: int
    rows_failed: int
    max_error_rate: float
    errors: dict[str, int]
    finish_reasons: dict[str, int]
    accuracy: dict[str, Accuracy]
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    tokens_per_second: float
    rows_per_second: float
    cost_usd: float
    cost_per_million_tokens: float | None
    cost_per_thousand_rows: float | None
    price_per_gpu_hour: float
    price_source: str
    seconds: Seconds
    shards: int
    shards_in_input: int
    replicas: int
    replicas_killed: int
    hours: float
    planned: Estimate | None
    labels: dict[str, str] = {}

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
    )


def _accuracy(totals: Totals) -> dict[str, Accuracy]:
    return {
        group: Accuracy(right=right, compared=compared, accuracy=right / compared)
        for group, (right, compared) in totals.evaluation.items()
        if compared
    }

"""The report of a run: the values of `_run/report.json` and of `batchinfer report --json`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from pydantic import BaseModel, ConfigDict

from batchinfer.accounting.evaluation import wilson
from batchinfer.accounting.ledger import Counts, ReplicaAccount, StepTotals, Totals
from batchinfer.accounting.records import Setup
from batchinfer.accounting.sessions import Session
from batchinfer.catalog.accelerators import device_cost
from batchinfer.planner import Estimate, Plan


class Seconds(BaseModel):
    """Device-seconds by what they were spent on. The fields add up to the time that was paid for."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    load: float
    """Device-seconds in which replicas started and loaded the model."""
    work: float
    """Device-seconds of committed shards."""
    idle: float
    """Device-seconds in which a ready replica had no rows."""
    waste: float
    """Device-seconds that no committed shard accounts for: lost attempts, restarts, killed replicas."""
    in_flight: float = 0.0
    """Device-seconds that running replicas have put into shards that are not committed yet. 0 once a run has ended."""

    @property
    def paid(self) -> float:
        """Device-seconds in total, all of which cost money."""
        return self.load + self.work + self.idle + self.waste + self.in_flight


class Accuracy(BaseModel):
    """How many outputs equalled the expected value, in one group of rows."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    right: int
    """Rows whose output equals the expected value."""
    compared: int
    """Rows that have an expected value."""
    accuracy: float
    """`right` over `compared`, 0 to 1."""
    low: float
    """The lower end of the accuracy's 95% interval (Wilson)."""
    high: float
    """The upper end of the accuracy's 95% interval (Wilson)."""

    @classmethod
    def of(cls, right: int, compared: int) -> Accuracy:
        """The accuracy of `compared` rows, of which there is one at least."""
        low, high = wilson(right, compared)
        return cls(right=right, compared=compared, accuracy=right / compared, low=low, high=high)


class Published(BaseModel):
    """The table that holds the results of a run (`output.publish`)."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    to: str
    """The format: `delta` or `iceberg`."""
    table: str
    """The table: its place, or the catalog and the name in it."""
    mode: str
    """The spec's `output.publish.mode`."""
    version: str
    """The version of the table, or its snapshot, in which the results came."""
    revision: int = 0
    """0 for the results as the run made them; more after each retry that was published."""
    rows: int = 0
    """Rows of the commit. 0 if the command was killed between the commit and this note."""


class ReportPart(Setup):
    """The replicas of a run with the same device, weights, layout and price, and their cost."""

    price_source: str
    """Where the price comes from."""
    replicas: int
    """The number of replicas."""
    device_seconds: float
    """Lifetime times devices, over the replicas."""
    cost_usd: float
    """Dollars for the device-seconds."""


class ReportSession(ReportPart):
    """One session of a run, which is one command's share of it: what its replicas did, and what they cost."""

    session: int
    """The number of the session, from 1. 0: replicas of a version that did not count sessions."""
    command: str | None = None
    """`run` or `retry`. null: the session's plan is lost."""
    began_at: datetime | None = None
    """When the command began to run shards. null: not known."""
    seconds: Seconds
    """Device-seconds by what they were spent on."""
    committed: Counts
    """Rows and tokens of the shards that the session committed."""
    planned: Estimate | None = None
    """The estimate of the session's plan for the whole job. null: the plan had none, or is lost."""


class Report(BaseModel):
    """One run. Rows and failures are of the current output. Tokens include retries; money includes retries and lost
    attempts.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=(), use_attribute_docstrings=True)

    job_name: str
    """The spec's `name`."""
    run_id: str
    """The id of the run; a command that resumes the run keeps the id."""
    tick: str | None = None
    """The instant that a scheduled or incremental run was for, as 20261120T010000Z. null: a job that runs once."""
    output: str
    """The folder of the run."""
    complete: bool
    """Whether every row of the input is in the output."""
    model: str
    """The spec's `model.source`."""
    quantization: str
    """How the weights are quantized. This field and the next three are of the part with the most device-seconds."""
    accelerator: str
    """The device that the run was on."""
    tensor_parallel: int
    """GPUs that share each layer in a replica."""
    pipeline_parallel: int
    """Stages that a replica's layers are split into."""
    rows: int
    """Rows in the output, failed ones included."""
    rows_in_input: int
    """Rows of the input; with `input.where`, `input.limit` or `input.sample`, those that were selected."""
    selected_from: int | None = None
    """Rows of the input that `rows_in_input` were selected from. null: all of them run."""
    rows_failed: int
    """Rows that have an `error_code` after the latest retry."""
    max_error_rate: float
    """The spec's `limits.max_error_rate` when the run was last made or resumed."""
    max_cost_usd: float | None = None
    """The spec's `limits.max_cost_usd` when the run was last made or resumed. null: no limit."""
    errors: dict[str, int]
    """Failed rows by `error_code`."""
    finish_reasons: dict[str, int]
    """Answers by `finish_reason`."""
    accuracy: dict[str, Accuracy]
    """The accuracy by the values of `evaluate.by`, or under `all`. Empty without `evaluate`."""
    overall_accuracy: Accuracy | None = None
    """The accuracy over all groups together. null: without `evaluate`, or no row has an expected value."""
    input_tokens: int
    """Tokens of the prompts that the engine ran."""
    cached_tokens: int
    """Tokens of the prompts that the KV cache already held."""
    output_tokens: int
    """Tokens of the answers."""
    reasoning_tokens: int = 0
    """Tokens of the thinking before the answers, a part of `output_tokens`. 0 without `reasoning`."""
    rows_ran: int = 0
    """Rows that the engine ran, with retried rows and rows that failed in the engine."""
    rows_reused: int = 0
    """Rows that took no tokens, since their answers are those of equal requests (`dedupe`, `cache`). Not in
    `rows_ran`."""
    tokens_reused: int = 0
    """Tokens, in and out, of the answers of equal requests. They did not run again, and count in no other figure."""
    saved_usd: float = 0.0
    """Dollars that `tokens_reused` would have cost: `saved_by_cache_usd`, and for the others what the work for a token
    cost in this run, without load, idle and waste."""
    rows_from_cache: int = 0
    """The part of `rows_reused` with an answer that an earlier run had (`cache`)."""
    tokens_from_cache: int = 0
    """The part of `tokens_reused` whose answers an earlier run had."""
    saved_by_cache_usd: float = 0.0
    """Dollars that the work for `tokens_from_cache` cost in that run."""
    rejected_tokens: int = 0
    """Tokens of the prompts that the engine never ran, such as too long ones. No other figure counts these tokens."""
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
    """Dollars for one GPU and hour, or for one replica and hour on a CPU. If `parts` differ, the mean over all
    device-seconds."""
    price_source: str
    """Where the price comes from: the spec's key, or a list price with its date."""
    dtype: str = "auto"
    """The spec's `model.dtype`."""
    task: str = "generate"
    """The spec's `task`."""
    parts: tuple[ReportPart, ...] = ()
    """The replicas by device, weights, layout and price: more than one part if a later command changed these. The
    parts' costs add up to `cost_usd`."""
    steps: dict[str, StepTotals] = {}
    """The parts of the work, by the names of the spec's `steps`. Empty for a job with one prompt."""
    sessions: tuple[ReportSession, ...] = ()
    """The commands that ran shards of this run, each by itself, with its own price and layout. Their costs add up to
    `cost_usd`. A session that ended before a replica started has 0 replicas."""
    seconds: Seconds
    """Device-seconds by what they were spent on."""
    shards: int
    """Shards in the output."""
    shards_in_input: int
    """Shards that the input was cut into."""
    replicas: int
    """Replicas that ran for this run, over all its commands."""
    replicas_killed: int
    """Replicas that ended without closing their journal, for example after a kill or a lost machine."""
    replicas_running: int = 0
    """Replicas that run now. Above 0, the run is not over, and its figures grow."""
    hours: float
    """Hours in which at least one replica was up, loading included."""
    planned: Estimate | None
    """The estimate of the run's first plan for the whole job. null: that plan had no estimate."""
    labels: dict[str, str] = {}
    """The spec's `labels`."""
    published: Published | None = None
    """The table that holds the results. null: they are in no table, or more rows failed than the spec allows."""
    files_skipped: dict[str, str] = {}
    """Input files that were skipped because they could not be read (`input.on_bad_file: skip`), with the reason."""

    @property
    def error_rate(self) -> float:
        """Failed rows over all rows in the output; 0 when there are none."""
        return self.rows_failed / self.rows if self.rows else 0.0


def make_report(
    *,
    job_name: str,
    run_id: str,
    output: str,
    plan: Plan | None,
    sessions: Sequence[Session] = (),
    totals: Totals,
    replicas: Sequence[ReplicaAccount],
    rows_in_input: int,
    selected_from: int | None = None,
    shards_in_input: int,
    max_error_rate: float,
    max_cost_usd: float | None = None,
    tick: str | None = None,
    labels: Mapping[str, str] | None = None,
    model: str = "",
    dtype: str = "auto",
    task: str = "generate",
    files_skipped: Mapping[str, str] | None = None,
    published: Published | None = None,
) -> Report:
    """The report of a run with the accounts `totals`. `plan` is the last session's plan, None if the plan is lost;
    `sessions` are those whose plans are kept. The replicas' accounts override the plans; `model` is the model's name if
    the plan is lost.
    """
    tokens = totals.input_tokens + totals.output_tokens
    active = totals.active_seconds
    begun = plan or _nothing_known(model)
    each = _sessions(replicas, begun, sessions)
    parts = _parts(each)
    most = max(parts, key=lambda part: part.device_seconds, default=None)
    accuracy = _accuracy(totals)
    return Report(
        job_name=job_name,
        run_id=run_id,
        tick=tick,
        output=output,
        complete=totals.rows == rows_in_input,
        model=begun.model,
        quantization=most.quantization if most else begun.quantization,
        accelerator=most.accelerator if most else begun.accelerator,
        tensor_parallel=most.tensor_parallel if most else begun.tensor_parallel,
        pipeline_parallel=most.pipeline_parallel if most else begun.pipeline_parallel,
        rows=totals.rows,
        rows_in_input=rows_in_input,
        selected_from=selected_from,
        rows_failed=totals.rows_failed,
        max_error_rate=max_error_rate,
        max_cost_usd=max_cost_usd,
        errors=totals.errors,
        finish_reasons=totals.finish_reasons,
        accuracy=accuracy,
        overall_accuracy=overall_accuracy(accuracy.values()),
        input_tokens=totals.input_tokens,
        cached_tokens=totals.cached_tokens,
        output_tokens=totals.output_tokens,
        reasoning_tokens=totals.reasoning_tokens,
        rows_ran=totals.rows_ran,
        rows_reused=totals.rows_reused,
        tokens_reused=totals.tokens_reused,
        saved_usd=_saved_usd(totals, replicas, tokens),
        rows_from_cache=totals.rows_from_cache,
        tokens_from_cache=totals.tokens_from_cache,
        saved_by_cache_usd=totals.saved_by_cache_usd,
        rejected_tokens=totals.rejected_tokens,
        tokens_per_second=tokens / active if active else 0.0,
        rows_per_second=totals.rows / active if active else 0.0,
        cost_usd=totals.cost_usd,
        cost_per_million_tokens=totals.cost_usd / tokens * 1e6 if tokens else None,
        cost_per_thousand_rows=totals.cost_usd / totals.rows * 1e3 if totals.rows else None,
        price_per_gpu_hour=_mean_price(parts, begun),
        price_source="; ".join(dict.fromkeys(part.price_source for part in parts)) or begun.price_source,
        dtype=most.dtype if most else dtype,
        task=task,
        parts=parts,
        steps=totals.steps,
        sessions=each,
        seconds=Seconds(
            load=totals.load_seconds,
            work=totals.work_seconds,
            idle=totals.idle_seconds,
            waste=totals.wasted_seconds,
            in_flight=totals.in_flight_seconds,
        ),
        shards=totals.shards,
        shards_in_input=shards_in_input,
        replicas=len(replicas),
        replicas_killed=sum(replica.killed for replica in replicas),
        replicas_running=sum(replica.running for replica in replicas),
        hours=totals.up_seconds / 3600,
        planned=begun.first_estimate or begun.estimate,
        labels=dict(labels or {}),
        files_skipped=dict(files_skipped or {}),
        published=published,
    )


def _saved_usd(totals: Totals, replicas: Sequence[ReplicaAccount], tokens: int) -> float:
    again = totals.tokens_reused - totals.tokens_from_cache
    return totals.saved_by_cache_usd + (_work_usd(replicas) / tokens * again if tokens else 0.0)


def _work_usd(replicas: Sequence[ReplicaAccount]) -> float:
    """Dollars for the work, without load, idle and waste, which more rows would not have made more of."""
    return sum(device_cost(replica.work_seconds, replica.price_per_gpu_hour) for replica in replicas)


def _mean_price(parts: Sequence[ReportPart], begun: Plan) -> float:
    prices = {part.price_per_gpu_hour for part in parts}
    paid = sum(part.device_seconds for part in parts)
    if len(prices) == 1 or not paid:
        # A weighted mean of equal prices may differ in the last digit.
        return prices.pop() if prices else begun.price_per_gpu_hour
    return sum(part.price_per_gpu_hour * part.device_seconds for part in parts) / paid


def _nothing_known(model: str) -> Plan:
    return Plan(
        model=model,
        quantization="none",
        accelerator="cpu",
        tensor_parallel=1,
        pipeline_parallel=1,
        min_replicas=1,
        max_replicas=1,
        num_gpus=0,
        price_per_gpu_hour=0.0,
        price_source="not known: the plan of the run is lost",
        kv_cache_memory_bytes=None,
    )


def _sessions(replicas: Sequence[ReplicaAccount], last: Plan, sessions: Sequence[Session]) -> tuple[ReportSession, ...]:
    """Each session with its replicas, in order. Replicas whose sessions were not counted are apart by what they ran
    on."""
    known = {session.session: session for session in sessions}
    found: dict[tuple[int, Setup, str], list[ReplicaAccount]] = {}
    for replica in replicas:
        session = known.get(replica.session)
        plan = session.plan if session is not None else last
        setup = {name: getattr(replica, name) for name in Setup.model_fields}
        if not replica.quantization:
            # Journals of earlier versions have only device and price.
            setup |= {name: getattr(plan, name) for name in ("quantization", "tensor_parallel", "pipeline_parallel")}
        of = (replica.session, Setup(**setup), replica.price_source or plan.price_source)
        found.setdefault(of, []).append(replica)
    ran = {number for number, _, _ in found}
    for session in sessions:
        if session.session and session.session not in ran:
            found[session.session, _setup(session.plan), session.plan.price_source] = []
    made = [
        _session(number, setup, source, group, known.get(number)) for (number, setup, source), group in found.items()
    ]
    return tuple(sorted(made, key=lambda one: one.session))


def _setup(plan: Plan) -> Setup:
    return Setup(**{name: getattr(plan, name) for name in Setup.model_fields if name != "dtype"}, dtype="auto")


def _session(
    number: int, setup: Setup, price_source: str, group: Sequence[ReplicaAccount], session: Session | None
) -> ReportSession:
    return ReportSession(
        **dict(setup),
        price_source=price_source,
        replicas=len(group),
        device_seconds=sum(replica.gpu_seconds for replica in group),
        cost_usd=sum(replica.cost_usd for replica in group),
        session=number,
        command=session.command if session is not None else None,
        began_at=session.began_at if session is not None else None,
        seconds=Seconds(
            load=sum(replica.load_seconds for replica in group),
            work=sum(replica.work_seconds for replica in group),
            idle=sum(replica.idle_seconds for replica in group),
            waste=sum(replica.wasted_seconds for replica in group),
            in_flight=sum(replica.in_flight_seconds for replica in group),
        ),
        committed=sum((replica.committed for replica in group), Counts()),
        planned=session.plan.estimate if session is not None else None,
    )


def _parts(sessions: Sequence[ReportSession]) -> tuple[ReportPart, ...]:
    """The replicas of all sessions by what they ran on, in the order of the sessions."""
    found: dict[tuple[Setup, str], list[ReportSession]] = {}
    for session in sessions:
        if session.replicas:
            setup = Setup(**{name: getattr(session, name) for name in Setup.model_fields})
            found.setdefault((setup, session.price_source), []).append(session)
    return tuple(
        ReportPart(
            **dict(setup),
            price_source=price_source,
            replicas=sum(session.replicas for session in group),
            device_seconds=sum(session.device_seconds for session in group),
            cost_usd=sum(session.cost_usd for session in group),
        )
        for (setup, price_source), group in found.items()
    )


def overall_accuracy(groups: Iterable[Accuracy]) -> Accuracy | None:
    """The accuracy over all groups together; None if nothing was compared."""
    groups = list(groups)
    compared = sum(group.compared for group in groups)
    right = sum(group.right for group in groups)
    return Accuracy.of(right, compared) if compared else None


def _accuracy(totals: Totals) -> dict[str, Accuracy]:
    return {group: Accuracy.of(right, compared) for group, (right, compared) in totals.evaluation.items() if compared}

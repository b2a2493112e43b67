"""From a checked spec to its plan: the planner uses a sample of the rows and the reports of earlier runs."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from batchinfer.accounting.report import Report, Seconds
from batchinfer.catalog import QUANTIZATIONS, ModelShape, accelerators
from batchinfer.errors import StorageError
from batchinfer.execution.checks import Checked
from batchinfer.execution.progress import Listener
from batchinfer.execution.sample_prompts import survey
from batchinfer.execution.trial import trial_layouts, trial_report
from batchinfer.jobspec import JobSpec
from batchinfer.model.resolve import ModelFacts
from batchinfer.planner import (
    Cluster,
    Estimate,
    Interval,
    Plan,
    Reading,
    ReplicaSpeed,
    Workload,
    calibration_from,
    engine_settings,
    fit,
    job_estimate,
    make_plan,
    replica_speed,
)
from batchinfer.planner.plan import DEFAULT_SLOTS
from batchinfer.rundir.paths import Layout
from batchinfer.storage import join

LARGEST_REPORT = 2**24
"""Bytes. A report has a few thousand; a larger file is not read into memory."""

MOST_TOKENS = 10**15
MOST_DEVICES = 100_000
FASTEST_TOKENS_PER_SECOND = 10_000_000
"""Tokens a second of one device: some hundred times the speed of any GPU of 2026. A report above these three limits
is no measurement; without the limits its figures overflow or predict a job of no time."""

START_UP_SECONDS = 5.0
"""Seconds of a run's work that the engine's warm-up may take: the first requests compile and capture. If lower, the
plan after a short trial is too expensive; if higher, the plan's interval is too wide."""

LEAST_STEADY = 0.1
"""Share of a trial's work, 0 to 1, that counts as steady at least: with 0 the fast end of the estimate is infinite."""

LOAD_SPREAD = Interval(low=0.8, mid=1.0, high=1.5)
"""Seconds of loading in another run of the same model, as a multiple of the earlier run's."""

IDLE_SPREAD = Interval(low=0.3, mid=1.0, high=3.0)
"""The same for idle seconds, which depend on how busy the cluster is. If narrower, jobs of some seconds lie outside
their interval (benchmarks/intervals.py)."""


def plan_job(
    checked: Checked, cluster: Cluster, listener: Listener | None = None, measured: Sequence[Report] = ()
) -> Plan:
    """The plan of a job on the cluster, from a sample of its rows and the reports of earlier runs.

    `listener` receives an event for each report that is ignored. `measured`: the reports to use instead of those in
    the output's folder and beside it.

    Raises UserError if no layout fits the job.
    """
    spec, facts = checked.spec, checked.facts
    earlier = list(measured)
    if not measured:
        tried = [(layout, report) for layout in trial_layouts(spec) for report in _reports([layout], listener)]
        earlier = [*earlier_reports(checked.layout, listener), *trial_report(spec, tried, listener)]
    found = survey(spec, checked.manifest, facts.folder, output_tokens(earlier, spec, facts.name), facts.context)
    surveyed = found.workload
    # Without a token, as in a night without new rows, there is nothing to estimate.
    workload = surveyed if surveyed.rows and surveyed.input_tokens + surveyed.output_tokens.mid else None

    def planned(calibration: float | None) -> Plan:
        made = plan_of(spec, cluster, facts, workload, calibration)
        return made.model_copy(update={"sample": found.sample})

    plan = planned(None)
    if workload is None:
        return plan
    same = [measured for report in earlier for measured in measurements(report) if _same(measured, plan)]
    if facts.shape is not None and plan.num_gpus:
        of = (plan.model, plan.accelerator, plan.quantization)
        calibration = calibration_from(_readings(same, facts.shape, spec), *of)
        return plan if calibration is None else planned(calibration)
    # The catalog has no speeds of CPU hosts, so only an earlier run can be the source.
    return plan.model_copy(update={"estimate": measured_estimate(same, plan, workload, spec), "workload": workload})


def plan_of(
    spec: JobSpec,
    cluster: Cluster,
    facts: ModelFacts,
    workload: Workload | None = None,
    calibration: float | None = None,
) -> Plan:
    """The plan for the facts of the spec's model. Raises UserError if no layout fits."""
    return make_plan(
        spec,
        cluster,
        facts.name,
        shape=facts.shape,
        entry=facts.entry,
        checkpoint_quantization=facts.quantization,
        workload=workload,
        calibration=calibration,
    )


def earlier_reports(layout: Layout, listener: Listener | None = None) -> Iterator[Report]:
    """The reports of this output's last run and of the runs in the folders beside it, such as other nights' runs.

    A report is a hint that anybody may have written. One that is unreadable or impossible is ignored, with an event
    to `listener`. If the credentials cannot list the parent folder, only the output's own report is read.
    """
    storage = layout.storage
    roots = [layout.root]
    parent = layout.root.rstrip("/").rpartition("/")[0]
    # A bucket has no parent folder.
    if parent != "s3:/":
        with contextlib.suppress(StorageError):
            roots = [join(parent, name.rstrip("/")) for name in storage.names(parent)]
    yield from _reports([Layout(root, layout.stores) for root in roots], listener)


def _reports(layouts: Iterable[Layout], listener: Listener | None) -> Iterator[Report]:
    """The reports of these runs that can be used."""
    for beside in layouts:
        storage = beside.storage
        try:
            entry = storage.stat(beside.report)
            if entry is None:
                continue
            if entry.size > LARGEST_REPORT:
                raise ValueError(f"it has {entry.size:,} bytes")
            report = Report.model_validate_json(storage.read(beside.report))
            _require_sense(report)
        except (StorageError, OSError, ValueError, RecursionError) as error:
            if listener is not None:
                reason = error.message if isinstance(error, StorageError) else str(error).splitlines()[0]
                listener.event("report ignored", report=beside.report, reason=reason)
            continue
        yield report


def _require_sense(report: Report) -> None:
    """Raise ValueError for figures that no run can have."""
    if report.accelerator not in accelerators() or report.quantization not in (*QUANTIZATIONS, "auto"):
        raise ValueError(f"there is no {report.accelerator} with {report.quantization} weights")
    for of in (_whole(report), *measurements(report)):
        if not all(0 <= count <= MOST_TOKENS for count in (of.rows_ran, of.input_tokens, of.output_tokens)):
            raise ValueError("rows and tokens are from 0 to a quadrillion")
        if not all(0 < size <= MOST_DEVICES for size in (of.replicas, of.tensor_parallel, of.pipeline_parallel)):
            raise ValueError("replicas and their parts are from 1 to 100,000")
        seconds = (of.seconds.load, of.seconds.work, of.seconds.idle)
        if not all(math.isfinite(value) and 0 <= value <= MOST_TOKENS for value in seconds):
            raise ValueError("device-seconds are 0 or more")
        if of.tokens > FASTEST_TOKENS_PER_SECOND * of.seconds.work:
            raise ValueError("no device works so fast")


def output_tokens(earlier: Sequence[Report], spec: JobSpec, model: str) -> float | None:
    """Mean output tokens of a row that the engine ran, over earlier runs of this job with the same model and task;
    None without such a run."""
    same = [
        report
        for report in earlier
        if (report.job_name, report.model, report.task) == (spec.name, model, spec.task) and report.rows_ran
    ]
    rows = sum(report.rows_ran for report in same)
    return sum(report.output_tokens for report in same) / rows if rows else None


@dataclass(frozen=True, slots=True)
class Measured:
    """What replicas of one kind did, for one run or one session of it."""

    model: str
    accelerator: str
    quantization: str
    tensor_parallel: int
    pipeline_parallel: int
    replicas: int
    seconds: Seconds
    rows_ran: int
    input_tokens: int
    output_tokens: int
    sequences: float = 1.0
    """Requests of a row."""

    @property
    def devices(self) -> int:
        """Devices of a replica."""
        return 1 if self.accelerator == "cpu" else self.tensor_parallel * self.pipeline_parallel

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens


def measurements(report: Report) -> list[Measured]:
    """What a report measured: each session by itself, because another session may have had other devices.

    A report of an earlier version has no sessions, and is one measurement, unless its parts differ.
    """
    sessions = [session for session in report.sessions if session.committed.rows_ran]
    if sessions:
        return [
            Measured(
                model=report.model,
                accelerator=session.accelerator,
                quantization=session.quantization,
                tensor_parallel=session.tensor_parallel,
                pipeline_parallel=session.pipeline_parallel,
                replicas=session.replicas,
                seconds=session.seconds,
                rows_ran=session.committed.rows_ran,
                input_tokens=session.committed.input_tokens,
                output_tokens=session.committed.output_tokens,
                sequences=_sequences(report),
            )
            for session in sessions
        ]
    if len({(p.accelerator, p.quantization, p.tensor_parallel, p.pipeline_parallel) for p in report.parts}) > 1:
        return []
    return [_whole(report)]


def _whole(report: Report) -> Measured:
    told = [field.name for field in dataclasses.fields(Measured) if field.name != "sequences"]
    return Measured(**{name: getattr(report, name) for name in told}, sequences=_sequences(report))


def _sequences(report: Report) -> float:
    """Requests of a row that ran: those of its steps, or of its chunks and their combinations."""
    requests = sum(step.rows - step.rows_reused for step in report.steps.values())
    return requests / report.rows_ran if requests > 0 and report.rows_ran else 1.0


def _same(measured: Measured, plan: Plan) -> bool:
    """Whether the plan's kind of replica was measured: same model, device, quantization and parallelism."""
    ours = (plan.model, plan.accelerator, plan.quantization, plan.tensor_parallel, plan.pipeline_parallel)
    of = measured
    theirs = (of.model, of.accelerator, of.quantization, of.tensor_parallel, of.pipeline_parallel)
    return ours == theirs and of.rows_ran > 0 and of.tokens > 0 and of.seconds.work > 0


def _readings(same: Sequence[Measured], shape: ModelShape, spec: JobSpec) -> Iterator[Reading]:
    """Each measured speed beside the planner's estimate for the lengths that the rows had."""
    for measured in same:
        facts, quantization = accelerators()[measured.accelerator], QUANTIZATIONS[measured.quantization]
        settings = engine_settings(spec.engine, facts)
        layout = (shape, quantization, facts, measured.tensor_parallel, measured.pipeline_parallel)
        output = measured.output_tokens / measured.rows_ran
        work = Workload(
            rows=measured.rows_ran,
            input_tokens=measured.input_tokens / measured.rows_ran,
            longest_input_tokens=0,
            output_tokens=Interval(low=output, mid=output, high=output),
            sampled_rows=measured.rows_ran,
            source="an earlier run",
            sequences=measured.sequences,
        )
        tokens = round(measured.tokens / measured.rows_ran / measured.sequences)
        room = fit(*layout, False, settings, max(1, tokens))
        yield Reading(
            model=measured.model,
            accelerator=measured.accelerator,
            quantization=measured.quantization,
            tokens=measured.tokens,
            work_seconds=measured.seconds.work / measured.devices,
            estimated_tokens_per_second=replica_speed(*layout, room, settings, work).tokens_per_second,
        )


def measured_estimate(same: Sequence[Measured], plan: Plan, workload: Workload, spec: JobSpec) -> Estimate | None:
    """Time and cost at the speed of earlier runs of the same model on the same device; None without such a run.

    A short trial is slower than a long run, because its engine warms up and its few rows leave slots empty.
    The fast end corrects for both effects. The slow end divides by 1 + 1/sqrt(rows), the uncertainty of few rows.
    The expected speed is the geometric mean of the trial's speed and the fast end.
    """
    tokens = sum(measured.tokens for measured in same)
    if not tokens:
        return None
    work = sum(of.seconds.work / of.devices for of in same)
    rows = sum(of.rows_ran for of in same)
    lives = sum(of.replicas * of.devices for of in same)
    load = sum(of.seconds.load for of in same) / lives
    idle = sum(of.seconds.idle for of in same) / lives
    rate = tokens / work
    steady = work - min(START_UP_SECONDS, work * (1 - LEAST_STEADY))
    slots = spec.engine.max_num_seqs or (DEFAULT_SLOTS if plan.engine is None else plan.engine.max_num_seqs)
    largest = max(of.rows_ran for of in same)
    fuller = max(1.0, min(slots, workload.rows / plan.max_replicas) / largest)
    fastest = rate * work / steady * fuller
    slowest = rate / (1 + 1 / math.sqrt(rows))

    def at(tokens_per_second: float) -> ReplicaSpeed:
        return ReplicaSpeed(
            tokens_per_second=tokens_per_second,
            output_tokens_per_second=tokens_per_second * sum(of.output_tokens for of in same) / tokens,
            rows_per_second=tokens_per_second * rows / tokens,
            batch=0.0,
            bound="measured",
        )

    seconds = Interval(
        low=load * LOAD_SPREAD.low + idle * IDLE_SPREAD.low,
        mid=load * LOAD_SPREAD.mid + idle * IDLE_SPREAD.mid,
        high=load * LOAD_SPREAD.high + idle * IDLE_SPREAD.high,
    )
    shared = (plan.max_replicas, plan.devices, workload, plan.price_per_gpu_hour, seconds, 1.0)
    # The ends of the interval cover both the lengths of the answers and the two speeds.
    middle = job_estimate(at(math.sqrt(rate * fastest)), *shared)
    low, high = job_estimate(at(fastest), *shared), job_estimate(at(slowest), *shared)
    return Estimate(
        hours=_between(low.hours, middle.hours, high.hours),
        cost_usd=_between(low.cost_usd, middle.cost_usd, high.cost_usd),
        tokens_per_second=_between(high.tokens_per_second, middle.tokens_per_second, low.tokens_per_second),
        usd_per_million_tokens=_between(
            low.usd_per_million_tokens, middle.usd_per_million_tokens, high.usd_per_million_tokens
        ),
    )


def _between(low: Interval, middle: Interval, high: Interval) -> Interval:
    return Interval(low=low.low, mid=middle.mid, high=high.high)

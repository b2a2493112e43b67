"""From a checked spec to its plan: what the rows and earlier runs say goes into the planner's decision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pydantic

from batchinfer.accounting.report import Report
from batchinfer.catalog import QUANTIZATIONS, ModelShape, accelerators
from batchinfer.execution.checks import Checked
from batchinfer.execution.sample_prompts import survey
from batchinfer.jobspec import JobSpec
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
from batchinfer.rundir.paths import Layout
from batchinfer.storage import join


def plan_job(checked: Checked, cluster: Cluster) -> Plan:
    """The plan of a job on the cluster, from a sample of its rows and the reports of earlier runs.

    Raises UserError where the job cannot be laid out.
    """
    spec, facts = checked.spec, checked.facts
    earlier = list(earlier_reports(checked.layout))
    surveyed = survey(spec, checked.manifest, facts.folder, output_tokens(earlier, spec))
    # Without a token, as in a night with nothing new, there is nothing whose time or price could be told.
    workload = surveyed if surveyed.rows and surveyed.input_tokens + surveyed.output_tokens.mid else None

    def planned(calibration: float | None) -> Plan:
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

    plan = planned(None)
    if workload is None:
        return plan
    same = [report for report in earlier if _same(report, plan)]
    if facts.shape is not None and plan.num_gpus:
        found = calibration_from(_readings(same, facts.shape, spec), plan.model, plan.accelerator, plan.quantization)
        return plan if found is None else planned(found)
    # What a host computes in a second is in no catalog: only a run tells.
    return plan.model_copy(update={"estimate": measured_estimate(same, plan, workload)})


def earlier_reports(layout: Layout) -> Iterator[Report]:
    """The reports of this output's last run and of those in the folders beside it, such as other nights'."""
    storage = layout.storage
    parent = layout.root.rstrip("/").rpartition("/")[0]
    for name in storage.names(parent):
        uri = Layout(join(parent, name.rstrip("/"))).report
        if storage.stat(uri) is not None:
            try:
                yield Report.model_validate_json(storage.read(uri))
            except pydantic.ValidationError:
                # Of another version, or of another program: it says nothing here.
                continue


def output_tokens(earlier: Sequence[Report], spec: JobSpec) -> float | None:
    """What a row of this job produced on average in its earlier runs; None where it has none."""
    same = [report for report in earlier if report.job_name == spec.name and report.rows]
    rows = sum(report.rows for report in same)
    return sum(report.output_tokens for report in same) / rows if rows else None


def _same(report: Report, plan: Plan) -> bool:
    """Whether the report measured what the plan asks for: one replica of the same kind."""
    ours = (plan.model, plan.accelerator, plan.quantization, plan.tensor_parallel, plan.pipeline_parallel)
    theirs = (report.model, report.accelerator, report.quantization, report.tensor_parallel, report.pipeline_parallel)
    return ours == theirs and report.rows > 0 and report.seconds.work > 0


def _devices(report: Report) -> int:
    return 1 if report.accelerator == "cpu" else report.tensor_parallel * report.pipeline_parallel


def _tokens(report: Report) -> int:
    return report.input_tokens + report.output_tokens


def _readings(reports: Sequence[Report], shape: ModelShape, spec: JobSpec) -> Iterator[Reading]:
    """Each report's speed beside the estimator's, for the lengths that the rows turned out to have."""
    for report in reports:
        facts, quantization = accelerators()[report.accelerator], QUANTIZATIONS[report.quantization]
        settings = engine_settings(spec.engine, facts)
        layout = (shape, quantization, facts, report.tensor_parallel, report.pipeline_parallel)
        output = report.output_tokens / report.rows
        work = Workload(
            rows=report.rows,
            input_tokens=report.input_tokens / report.rows,
            longest_input_tokens=0,
            output_tokens=Interval(low=output, mid=output, high=output),
            sampled_rows=report.rows,
            source="an earlier run",
        )
        room = fit(*layout, False, settings, max(1, _tokens(report) // report.rows))
        yield Reading(
            model=report.model,
            accelerator=report.accelerator,
            quantization=report.quantization,
            tokens=_tokens(report),
            work_seconds=report.seconds.work / _devices(report),
            estimated_tokens_per_second=replica_speed(*layout, room, settings, work).tokens_per_second,
        )


def measured_estimate(same: Sequence[Report], plan: Plan, workload: Workload) -> Estimate | None:
    """Time and cost at the speed that earlier runs of the same model on the same device had; None without any."""
    tokens = sum(map(_tokens, same))
    if not tokens:
        return None
    rate = tokens / sum(report.seconds.work / _devices(report) for report in same)
    load = sum(report.seconds.load for report in same) / sum(report.replicas * _devices(report) for report in same)
    speed = ReplicaSpeed(
        tokens_per_second=rate,
        output_tokens_per_second=rate * sum(report.output_tokens for report in same) / tokens,
        rows_per_second=rate * sum(report.rows for report in same) / tokens,
        batch=0.0,
        bound="measured",
    )
    seconds = Interval(low=load * 0.8, mid=load, high=load * 1.5)
    return job_estimate(speed, plan.max_replicas, plan.devices, workload, plan.price_per_gpu_hour, seconds, 1.0)

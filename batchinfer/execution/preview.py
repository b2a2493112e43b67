"""The use cases that start and write nothing: is the spec right, what its rows are like, what its run would cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime

import psutil

from batchinfer.errors import AnotherSpec, UserError
from batchinfer.execution import ray_pipeline
from batchinfer.execution.checks import Checked, check_at
from batchinfer.execution.model_checks import require_model
from batchinfer.execution.plan_job import plan_job, plan_of
from batchinfer.execution.progress import Listener
from batchinfer.execution.publish import require_publishable
from batchinfer.execution.sample_prompts import survey
from batchinfer.execution.this_machine import host_cluster, may_have_gpus
from batchinfer.jobspec import JobSpec
from batchinfer.planner import Interval, Plan, PromptSample, Workload, assumed_cluster


def validate(spec: JobSpec, at: datetime | None = None) -> Checked:
    """Check all that `run` checks before it starts anything; raises UserError."""
    return check_at(spec, at)


def publish_line(checked: Checked) -> str | None:
    """What the run does to a table at its end, for a person; None without `output.publish`."""
    return require_publishable(checked.spec, checked.manifest)


def forecast(checked: Checked) -> PromptSample:
    """A sample of a checked job's rows: how long the prompts are, and which rows will fail."""
    return survey(checked.spec, checked.manifest, checked.facts.folder, context=checked.facts.context).sample


@dataclass(frozen=True, slots=True)
class Supposed:
    """Values that a plan uses instead of the real ones; None: the real value.

    gpus: GPUs of the kind that `resources.accelerator` names. rows: the number of rows. input_tokens, output_tokens:
    mean tokens of a row. The last three are set together; then no input is read.
    """

    gpus: int | None = None
    rows: int | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None

    def workload(self) -> Workload | None:
        """The supposed work, None for the real one. Raises UserError if only a part of it is set."""
        given = (self.rows, self.input_tokens, self.output_tokens)
        if all(value is None for value in given):
            return None
        if self.rows is None or self.input_tokens is None or self.output_tokens is None:
            raise UserError("--rows, --in and --out go together", "give all three, or none to look at the input")
        length = self.output_tokens
        return Workload(
            rows=self.rows,
            input_tokens=self.input_tokens,
            longest_input_tokens=math.ceil(self.input_tokens),
            output_tokens=Interval(low=length, mid=length, high=length),
            sampled_rows=0,
            source="as supposed: no input was looked at",
        )


def suppose(spec: JobSpec, supposed: Supposed, listener: Listener) -> Plan:
    """The plan for supposed values, on GPUs that need not exist; starts and writes nothing. Raises UserError."""
    if spec.resources.accelerator in ("auto", "cpu"):
        raise UserError(
            "a plan for GPUs that are not here needs their kind", "add --set resources.accelerator=H100, or another"
        )
    cluster = assumed_cluster(spec, psutil.virtual_memory().total, supposed.gpus)
    workload = supposed.workload()
    if workload is None:
        return plan_job(_apart(spec, listener), cluster)
    return plan_of(spec, cluster, require_model(spec, access=False), workload)


def plan(spec: JobSpec, listener: Listener, cluster: str | None = None, at: datetime | None = None) -> Plan:
    """What `run` would run, how long, at what cost, and why; writes nothing. Raises UserError.

    The plan is for `cluster` if set. Otherwise it is for as many GPUs of the kind `resources.accelerator` as
    necessary; without that key it is for this machine.
    """
    checked = _apart(spec, listener, at)
    if checked.manifest.hint is not None:
        listener.event("hint", text=checked.manifest.hint)
    return plan_checked(checked, listener, cluster)


def _apart(spec: JobSpec, listener: Listener, at: datetime | None = None) -> Checked:
    """The checked spec. In the place of a run of another spec it is checked as a new run: a plan touches neither."""
    try:
        return check_at(spec, at, access=False)
    except AnotherSpec as error:
        listener.event("hint", text=f"{error.message}\nThis is the plan of a run of its own, with another output.uri.")
        return check_at(spec, at, fresh=True, access=False)


def plan_checked(checked: Checked, listener: Listener, cluster: str | None = None) -> Plan:
    """As `plan`, for a spec that is checked."""
    spec = checked.spec
    if cluster is None and spec.resources.accelerator not in ("auto", "cpu"):
        return plan_job(checked, assumed_cluster(spec, psutil.virtual_memory().total), listener)
    if cluster is None and (spec.resources.accelerator == "cpu" or not may_have_gpus()):
        return plan_job(checked, host_cluster(), listener)
    with ray_pipeline.announced(cluster, listener):
        return plan_job(checked, ray_pipeline.describe_cluster(), listener)

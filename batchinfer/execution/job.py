"""What every worker of a run receives."""

from __future__ import annotations

from dataclasses import dataclass

from batchinfer.jobspec import JobSpec
from batchinfer.planner import Plan
from batchinfer.rundir.paths import Layout


@dataclass(frozen=True, slots=True)
class RunningJob:
    """One run as its workers see it."""

    run_id: str
    spec: JobSpec
    plan: Plan
    layout: Layout
    shards_in_flight: int
    timed: bool = False
    """Whether the results say how long each row took."""

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
    session: int = 1
    """Which of the run's commands this is; see `rundir.sessions`."""
    timed: bool = False
    """Whether the results say how long each row took."""
    reuses: bool = False
    """Whether equal requests run once. Whether the results tell so is `spec.reuses_answers`."""
    reuses_drawn: bool = False
    """Whether that holds for rows whose own sampling would draw another answer, too: the spec says `dedupe: true`."""

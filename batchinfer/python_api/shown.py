"""Plans and trials as a notebook shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from batchinfer.accounting.report import Report
from batchinfer.execution.trial import Trial, TriedRow
from batchinfer.jobspec import LimitsSpec
from batchinfer.planner import Interval, Plan
from batchinfer.reporting import render_plan
from batchinfer.reporting.notebook import plan_html, text_of, trial_html
from batchinfer.reporting.tried import render_trial

if TYPE_CHECKING:
    import pandas as pd


class JobPlan:
    """What a job would run, how long, and at what cost: `print` shows it, a notebook as tables."""

    def __init__(self, plan: Plan, limits: LimitsSpec) -> None:
        self.plan = plan
        """All of it, with the candidates that lost."""
        self._limits = limits

    @property
    def hours(self) -> Interval | None:
        """The estimated hours, with `low`, `mid` and `high`; None if nothing says how fast the model is."""
        return self.plan.estimate.hours if self.plan.estimate is not None else None

    @property
    def cost_usd(self) -> Interval | None:
        """The estimated dollars, with `low`, `mid` and `high`; None if nothing says how fast the model is."""
        return self.plan.estimate.cost_usd if self.plan.estimate is not None else None

    def document(self) -> Mapping[str, Any]:
        """What `batchinfer plan --json` prints."""
        return self.plan.document()

    def __str__(self) -> str:
        return text_of(render_plan(self.plan, self._limits))

    def __repr__(self) -> str:
        return f"<JobPlan of {self.plan.model}: {self.plan.max_replicas} x {self.plan.accelerator}>"

    def _repr_html_(self) -> str:
        return plan_html(self.plan, self._limits)


class JobTry:
    """A few rows that ran through the whole job: `print` shows them, a notebook as a table."""

    def __init__(self, trial: Trial, limits: LimitsSpec) -> None:
        self.trial = trial
        self._limits = limits

    @property
    def rows(self) -> tuple[TriedRow, ...]:
        """Each row that was tried: its id, prompt, answer, tokens, seconds and error."""
        return self.trial.rows

    @property
    def report(self) -> Report:
        """The report of these rows."""
        return self.trial.report

    @property
    def plan(self) -> JobPlan:
        """The plan of all rows, by what these have measured."""
        return JobPlan(self.trial.plan, self._limits)

    def to_pandas(self) -> pd.DataFrame:
        """The rows as a frame."""
        import pandas as pd

        return pd.DataFrame(self.document()["rows"])

    def document(self) -> dict[str, Any]:
        """What `batchinfer try --json` prints."""
        return self.trial.document()

    def __str__(self) -> str:
        return text_of(render_trial(self.trial))

    def __repr__(self) -> str:
        return f"<JobTry: {len(self.rows)} of {self.trial.rows_in_input:,} rows, {self.report.rows_failed} failed>"

    def _repr_html_(self) -> str:
        return trial_html(self.trial)

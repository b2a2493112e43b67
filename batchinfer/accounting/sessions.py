"""A session of a run: one command that ran shards of it, with the plan that it ran by."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, NonNegativeInt

from batchinfer.planner import Plan

Command = Literal["run", "retry"]


class Session(BaseModel):
    """One command's share of a run. All replicas of a session have one price and one layout, those of its plan."""

    model_config = ConfigDict(frozen=True)

    session: NonNegativeInt
    """From 1. 0 stands for the sessions of an earlier version, of which only the last plan is known."""
    command: Command
    began_at: AwareDatetime | None
    plan: Plan

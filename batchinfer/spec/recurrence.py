"""The keys of a job that runs again and again: when, and over which of its input."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from batchinfer.spec.base import SpecModel
from batchinfer.ticks import require_cron, require_timezone


class ScheduleSpec(SpecModel):
    """When the job runs: five fields of cron, read on the clock of `timezone` (see `ticks`).

    `overlap`: what becomes of a tick that comes while another of the job is running: it is left out (skip),
    waits for the other to end (queue), or runs beside it (allow).
    """

    cron: str
    timezone: str = "UTC"
    overlap: Literal["skip", "queue", "allow"] = "skip"

    @field_validator("cron")
    @classmethod
    def _is_cron(cls, expression: str) -> str:
        require_cron(expression)
        return expression

    @field_validator("timezone")
    @classmethod
    def _exists(cls, name: str) -> str:
        require_timezone(name)
        return name


class IncrementalSpec(SpecModel):
    """Each run takes only the files, or the hive partitions, that no earlier run of the job has taken.

    `changed`: what to do with a file that has changed since a run took it, or with a partition that has
    changed or got another file: run it again, ignore it, or fail.
    """

    by: Literal["file", "partition"] = "file"
    changed: Literal["rerun", "ignore", "fail"] = "rerun"

"""The keys of a job that runs again and again: when, over which of its input, and places with its time in them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, field_validator

from batchinfer.spec.base import Keys, Place
from batchinfer.ticks import require_cron, require_timezone
from batchinfer.variables import require_template


def _renders(uri: str) -> str:
    require_template(uri)
    return uri


PlaceWithVariables = Annotated[Place, AfterValidator(_renders)]
"""A place that may hold variables such as {{ run.date }} (see `variables`)."""


class ScheduleSpec(Keys):
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


class IncrementalSpec(Keys):
    """Each run takes only the files, or the hive partitions, that no earlier run of the job has taken.

    `changed`: what to do with a file that has changed since a run took it, or with a partition that has
    changed or got another file: run it again, ignore it, or fail.
    """

    by: Literal["file", "partition"] = "file"
    changed: Literal["rerun", "ignore", "fail"] = "rerun"

"""The keys of a job that runs repeatedly: its schedule, its incremental input, and URIs with variables."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from batchinfer.jobspec.base import Keys, Place
from batchinfer.jobspec.cron import require_cron, require_timezone
from batchinfer.jobspec.variables import require_template


def _renders(uri: str) -> str:
    require_template(uri)
    return uri


PlaceWithVariables = Annotated[Place, AfterValidator(_renders)]
"""A place that may hold variables such as {{ run.date }} (see `jobspec/variables.py`)."""


class ScheduleSpec(Keys):
    """When the job runs again and again. `batchinfer schedule next SPEC` shows the coming ticks."""

    cron: str
    """Five fields of cron: minute, hour, day of the month, month, day of the week. Example: `"0 2 * * *"`.

    When the clock changes, an expression with a fixed minute and hour still runs once a day. One whose minute or hour
    begins with `*` follows real time."""
    timezone: str = "UTC"
    """The time zone on whose clock `cron` and the variables of URIs are read, as `Europe/Berlin`."""
    overlap: Literal["skip", "queue", "allow"] = "skip"
    """What happens to a tick that is due while another run of the job is active.

    `skip` leaves the tick out for good. `queue` starts it when the other run has ended; if several wait, in their
    order, at most `catchup` of them. `allow` runs it beside the other."""
    catchup: int = Field(default=24, ge=1, le=1000)
    """How many of the latest ticks are made up for if they were missed, as in a night without a cluster.

    The oldest runs first. Ticks before the job's first run are not missed; a job without a run begins with its latest
    tick. 1: the latest tick only. The default is a day of an hourly job."""

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
    """Each run reads only the files, or the partitions, that no earlier run of the job has read. The manifests of the
    earlier runs say which: keep `_run/manifest.parquet` as long as the input lies there.
    """

    by: Literal["file", "partition"] = "file"
    """The unit that is read once: a `file`, or a `partition`, which is a whole `key=value` folder."""
    changed: Literal["rerun", "ignore", "fail"] = "rerun"
    """What to do with a file that has changed since a run read it, or a partition that has changed or grown.

    `rerun` runs it again with all its rows, `ignore` leaves it as it is, `fail` ends the command with exit code 2.

    A table has changed if rows were updated or deleted. `rerun` then runs all rows of the files that hold the changed
    ones now, `ignore` leaves out what such a change brought."""

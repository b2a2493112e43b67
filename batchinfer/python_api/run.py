"""One run as an object: its state, its report, its results, and what can be done with it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from batchinfer.accounting.report import Report
from batchinfer.errors import BatchinferError, Stopped, UserError
from batchinfer.execution import reports, runner
from batchinfer.execution.checks import find_manifest
from batchinfer.execution.checks import open_run as opened
from batchinfer.python_api.results import results, to_duckdb, to_pandas, to_polars, to_ray
from batchinfer.python_api.session import attended
from batchinfer.reporting import render
from batchinfer.reporting.notebook import report_html, text_of
from batchinfer.rundir.ownership import STOP_MARK
from batchinfer.rundir.past_runs import is_locked
from batchinfer.rundir.paths import Layout
from batchinfer.storage import Stores, normal_uri

if TYPE_CHECKING:
    import duckdb
    import pandas as pd
    import polars as pl
    import pyarrow as pa
    import ray.data

    from batchinfer.deploy.ray_jobs import JobClient

Status = Literal["pending", "running", "complete", "stopped", "failed"]

POLL_SECONDS = 2.0
"""Seconds between two looks at a run of another process. More delays the answer; fewer are more requests to a store."""

Result = TypeVar("Result")


class OwnRun(threading.Thread):
    """A run that goes on in this process while its caller does something else. It ends with the process."""

    def __init__(self, work: Callable[[], Report]) -> None:
        super().__init__(name="batchinfer run", daemon=True)
        self._work = work
        self.error: BaseException | None = None
        self.report: Report | None = None

    def run(self) -> None:
        try:
            self.report = self._work()
            reports.require_limits(self.report)
        except BaseException as error:
            # For the caller of `wait`, in the caller's thread.
            self.error = error


class Submitted:
    """The job on a cluster that makes a run."""

    def __init__(self, client: JobClient, job_id: str) -> None:
        self.client = client
        self.id = job_id


class Run:
    """One run of a job, at the folder `uri`. `Job.run`, `Job.submit` and `batchinfer.open` give one."""

    def __init__(
        self, uri: str, stores: Stores | None = None, work: OwnRun | None = None, submitted: Submitted | None = None
    ) -> None:
        self.uri = normal_uri(uri)
        """The folder of the run, `output.uri` of its spec."""
        self._stores = stores or {}
        self._work = work
        self._submitted = submitted

    @property
    def _layout(self) -> Layout:
        return Layout(self.uri, self._stores)

    @property
    def job_id(self) -> str | None:
        """The id of the submitted job; None for a run of this process, or one that was opened."""
        return self._submitted.id if self._submitted is not None else None

    @property
    def report(self) -> Report:
        """The report, computed from the accounting as it is now: the values of `report.json` as attributes."""
        return reports.report(self.uri)

    @property
    def cost(self) -> float:
        """Dollars so far, for the lifetimes of all replicas."""
        return self.report.cost_usd

    @property
    def status(self) -> Status:
        """`pending`: nothing is written yet. `stopped`: rows are left, and nothing runs; `failed`: likewise, after an
        error that this object knows."""
        if self._work is not None and self._work.is_alive():
            return "running" if find_manifest(self._layout) is not None else "pending"
        if self._submitted is not None:
            job = self._submitted.client.job(self._submitted.id)
            if not job.ended:
                return "running" if job.state == "running" else "pending"
            if job.state == "failed":
                return "failed"
        if find_manifest(self._layout) is None:
            return "pending" if self._work is None or self._work.error is None else "failed"
        if is_locked(self._layout.lock, self._stores):
            return "running"
        if self.report.complete:
            return "complete"
        error = self._work.error if self._work is not None else None
        return "stopped" if error is None or isinstance(error, Stopped) else "failed"

    def wait(self, timeout: float | None = None) -> Self:
        """Wait until the run has ended. Raises the run's error, and TimeoutError after `timeout` seconds."""
        if self._work is not None:
            if self._work.is_alive():
                self._work.join(timeout)
            if self._work.is_alive():
                raise TimeoutError(f"{self.uri} has not ended after {timeout:g} seconds")
            if self._work.error is not None:
                raise self._work.error
            if self._work.report is not None:
                # Only now a recurring job knows its folder for sure.
                self.uri = self._work.report.output
            return self
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.status in ("pending", "running"):
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"{self.uri} has not ended after {timeout:g} seconds")
            time.sleep(POLL_SECONDS)
        self._require_ended_well()
        return self

    def _require_ended_well(self) -> None:
        status = self.status
        if status == "complete":
            reports.require_limits(self.report)
        elif status == "stopped":
            raise Stopped(f"{self.uri} stopped before its end", "run the job again: it goes on where it stopped")
        elif self._submitted is not None:
            job = self._submitted.client.job(self._submitted.id)
            raise BatchinferError(f"{job.id}: {job.message}", f"`batchinfer logs {job.id}` says more")

    async def wait_async(self, timeout: float | None = None) -> Self:
        """`wait` in an event loop. If the task is cancelled, the run is stopped."""
        try:
            return await asyncio.to_thread(self.wait, timeout)
        except asyncio.CancelledError:
            if self._work is not None:
                await asyncio.to_thread(self.stop)
            raise

    def stop(self) -> bool:
        """Let no new shard start; those in flight end, and are kept: `wait` waits for it. False if nothing runs."""
        if self.status not in ("pending", "running"):
            return False
        if self._submitted is not None:
            return self._submitted.client.stop(self._submitted.id)
        layout = self._layout
        # While a model loads there may be no folder yet: a run that begins removes an old request.
        while self._work is not None and self._work.is_alive() and find_manifest(layout) is None:
            time.sleep(0.1)
        layout.storage.put(layout.stop, STOP_MARK)
        return True

    def retry(
        self, changes: Mapping[str, Any] | None = None, *, address: str | None = None, progress: bool | None = None
    ) -> Self:
        """Run the failed rows again, and replace their results.

        `changes`: keys for this retry, as in `{"sampling.temperature": 0.7}`. None may shape the other rows' results.
        """
        with attended(self._stores, progress) as listener:
            made = runner.retry(self.uri, listener, address, _overrides(changes))
        reports.require_limits(made)
        return self

    def publish(self, changes: Mapping[str, Any] | None = None) -> Self:
        """Write the results of the finished run into the table of `output.publish`, unless the table has them.

        `changes`: keys below `output.publish` for this time alone, as in `{"output.publish.mode": "upsert"}`.
        """
        made = runner.publish(self.uri, _overrides(changes))
        reports.require_limits(made)
        return self

    async def publish_async(self, changes: Mapping[str, Any] | None = None) -> Self:
        """`publish` in an event loop."""
        return await asyncio.to_thread(self.publish, changes)

    async def retry_async(
        self, changes: Mapping[str, Any] | None = None, *, address: str | None = None, progress: bool | None = None
    ) -> Self:
        """`retry` in an event loop."""
        return await asyncio.to_thread(self.retry, changes, address=address, progress=progress)

    def failed(self) -> pd.DataFrame:
        """The failed rows: their id, passed-through columns, `error_code` and `error_message`."""
        import pyarrow.compute as pc

        table = self.to_arrow()
        table = table.filter(pc.is_valid(table.column("error_code")))
        _, _, spec = opened(self.uri)
        named = [spec.id_column, *(name for name in spec.rows_input.columns if name != spec.id_column)]
        return to_pandas(table.select([*named, "error_code", "error_message"]))

    def to_arrow(self, join: bool = False) -> pa.Table:
        """The results in the order of the input; `join` puts them beside the input's columns.

        Of a run that has not ended: the rows of the shards that are committed.
        """
        layout, manifest, spec = opened(self.uri)
        return results(layout, manifest, spec, join)

    def to_pandas(self, join: bool = False) -> pd.DataFrame:
        """`to_arrow` as a pandas frame, with nullable integers and truth values."""
        return to_pandas(self.to_arrow(join))

    def to_polars(self, join: bool = False) -> pl.DataFrame:
        """`to_arrow` as a Polars frame."""
        return to_polars(self.to_arrow(join))

    def to_duckdb(
        self, join: bool = False, connection: duckdb.DuckDBPyConnection | None = None
    ) -> duckdb.DuckDBPyRelation:
        """`to_arrow` as a relation of the connection, without one of DuckDB's default connection."""
        return to_duckdb(self.to_arrow(join), connection)

    def to_ray(self, join: bool = False) -> ray.data.Dataset:
        """`to_arrow` as a Ray Dataset; without a connection to Ray, one is made as Ray does."""
        return to_ray(self.to_arrow(join))

    def __str__(self) -> str:
        with contextlib.suppress(UserError):
            return text_of(render(self.report))
        return repr(self)

    def __repr__(self) -> str:
        return f"<Run {self.uri}: {self.status}>"

    def _repr_html_(self) -> str:
        with contextlib.suppress(UserError):
            return report_html(self.report)
        return f"<code>{repr(self).replace('<', '&lt;')}</code>"


def open_run(uri: str) -> Run:
    """The run at `uri`, of this process or of any other. Raises OutputError if there is none."""
    layout, _, spec = opened(uri)
    return Run(layout.root, spec.storage)


def _overrides(changes: Mapping[str, Any] | None) -> list[str]:
    """The changes as KEY=VALUE texts."""
    import yaml

    return [f"{key}={yaml.safe_dump(value, default_flow_style=True)}" for key, value in (changes or {}).items()]

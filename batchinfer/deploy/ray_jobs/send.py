"""Submit a job to a cluster. The job is checked and planned first; submitting a running job again does nothing."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import batchinfer
from batchinfer.deploy.ray_jobs import start
from batchinfer.deploy.ray_jobs.client import JobClient
from batchinfer.deploy.ray_jobs.jobs import attempt_id, attempts, local_places, metadata_of, run_name, told_error
from batchinfer.errors import (
    BatchinferError,
    ClusterError,
    Stopped,
    StorageError,
    StoreRefused,
    TooManyFailedRows,
    UserError,
)
from batchinfer.execution.checks import absolute, check
from batchinfer.execution.plan_job import plan_job
from batchinfer.execution.progress import Listener
from batchinfer.jobspec import JobSpec, to_yaml
from batchinfer.planner import Plan
from batchinfer.storage import local_path
from batchinfer.temporary import temporary_folder

CONFIRM_SECONDS = 60.0
"""Seconds to wait until a submitted job has printed its version: it starts within seconds, unless the cluster has no
free node. After them `submit` returns the job's state without that proof."""

RAN = (0, TooManyFailedRows.exit_code, Stopped.exit_code)
"""Exit codes of a job that began its run, so that the submission succeeded."""

DRAIN_SECONDS = 1800
"""Seconds that a stopped job has to finish the shards in flight before Ray kills it. Ray's default of 3 loses them."""


@dataclass(frozen=True, slots=True)
class Submission:
    """`already`: the cluster had the run already, in `state`, and nothing was sent. `plan` is None if the input cannot
    be read from this machine, or if nothing was sent."""

    id: str
    state: str
    already: bool
    plan: Plan | None


def submit(
    spec: JobSpec, client: JobClient, listener: Listener, shared_filesystem: bool = False, with_package: bool = False
) -> Submission:
    """Send the job, unless the same run is on the cluster and has not ended. Raises UserError before anything is sent.

    `shared_filesystem`: local paths are the same on the cluster. `with_package`: send this batchinfer package too.
    """
    if not shared_filesystem:
        _require_reachable(spec, client)
    spec = absolute(spec)
    run = run_name(spec)
    earlier = attempts(run, client.jobs())
    for job in earlier.values():
        if not job.ended:
            return Submission(job.id, job.state, already=True, plan=None)
    plan = _planned(spec, client, listener)
    job_id = attempt_id(run, max(earlier, default=0) + 1)
    with temporary_folder("submit") as folder:
        _pack(spec, folder)
        environment = _runtime_env(str(folder), with_package)
        command = f"exec python start.py {batchinfer.__version__}"
        sent = client.send(job_id, command, environment, metadata_of(spec, batchinfer.__version__))
    if not sent:
        # Another process submitted the same run since `jobs`.
        return Submission(job_id, client.job(job_id).state, already=True, plan=None)
    listener.event("submitted", id=job_id, cluster=client.address, output=spec.output.uri)
    return Submission(job_id, _confirmed(client, job_id), already=False, plan=plan)


def _require_reachable(spec: JobSpec, client: JobClient) -> None:
    places = local_places(spec)
    if places and not client.is_here():
        shown = ", ".join(f"{key} {place}" for key, place in places.items())
        raise ClusterError(
            f"the cluster at {client.address} is another machine, and the spec names paths of this one: {shown}",
            "give s3://bucket/... or a repository id, or --shared-filesystem if the paths are the same there",
        )


def _planned(spec: JobSpec, client: JobClient, listener: Listener) -> Plan | None:
    """The plan for that cluster, made on this machine; None if the input or model can only be read on the cluster."""
    hidden = {
        key: place
        for key, place in local_places(spec).items()
        if key not in ("output.uri", "cache.uri")
        and not any(c in place for c in "*?[")
        and not os.path.exists(local_path(place))
    }
    if hidden and not client.is_here():
        listener.event("not checked from here", **{key.replace(".", "_"): place for key, place in hidden.items()})
        return None
    try:
        checked = check(spec, "")
    except (StorageError, UserError) as error:
        # A store may refuse this machine's credentials and accept the cluster's.
        if not isinstance(error, StorageError) and not isinstance(error.__cause__, StoreRefused):
            raise
        listener.event("not checked from here", reason=error.message)
        return None
    plan = plan_job(checked, client.cluster())
    listener.event(
        "planned",
        rows=checked.manifest.rows,
        shards=len(checked.manifest.shards),
        committed=len(checked.committed),
        accelerator=plan.accelerator,
        replicas=plan.max_replicas,
        num_gpus=plan.num_gpus,
        cost_usd=plan.estimate.cost_usd.mid if plan.estimate is not None else None,
    )
    return plan


def _pack(spec: JobSpec, folder: Path) -> None:
    (folder / "job.yaml").write_text(to_yaml(spec), encoding="utf-8")
    shutil.copy(start.__file__, folder / "start.py")


def _runtime_env(folder: str, with_package: bool) -> dict[str, Any]:
    environment: dict[str, Any] = {
        "working_dir": folder,
        # Ray's job supervisor runs in this environment and reads its waiting time from the variable.
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(DRAIN_SECONDS)},
    }
    if with_package:
        environment["py_modules"] = [os.path.dirname(batchinfer.__file__)]
        environment["excludes"] = ["__pycache__"]
    return environment


def _confirmed(client: JobClient, job_id: str) -> str:
    """The job's state after its entrypoint has found the package, or after `CONFIRM_SECONDS`. Raises ClusterError if
    the package is missing, BatchinferError for another failed start."""
    deadline = time.monotonic() + CONFIRM_SECONDS
    while True:
        job = client.job(job_id)
        if job.ended and job.exit_code in RAN:
            return job.state
        if job.ended and job.state != "succeeded":
            message, remedy = told_error(client.logs(job_id)) or (job.message, "")
            kind = ClusterError if job.exit_code == UserError.exit_code else BatchinferError
            raise kind(f"{job_id}: {message}", remedy or f"`batchinfer logs {job_id}` says more")
        if job.ended or time.monotonic() > deadline:
            return job.state
        if job.state == "running" and "\nbatchinfer " in f"\n{client.logs(job_id)}":
            return job.state
        time.sleep(0.5)

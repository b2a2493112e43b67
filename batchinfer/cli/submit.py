"""The commands for jobs on another cluster: submit, list, status, logs, stop."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from batchinfer.cli.app import AsJson, Overrides, SpecPath, app, console, listened, print_json
from batchinfer.errors import UserError
from batchinfer.outlet import Outlet

if TYPE_CHECKING:
    from batchinfer.deploy.ray_jobs import JobClient, SubmittedJob

Dashboard = Annotated[
    str,
    typer.Option(
        "--address",
        envvar=["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"],
        help="Address of the cluster's dashboard, as for `ray job`.",
    ),
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="The id that `submit` printed.")]
Labels = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="KEY=VALUE", help="Label for the accounting, such as team=search. Repeatable."),
]
Shared = Annotated[
    bool, typer.Option("--shared-filesystem", help="The cluster's nodes share the local paths of the spec.")
]
WithPackage = Annotated[
    bool,
    typer.Option(
        "--with-package", help="Also send this version of batchinfer. The cluster then needs only its dependencies."
    ),
]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Follow the log until the job ends.")]
All = Annotated[bool, typer.Option("--all", help="Show every job, as `list` does.")]
Awaited = Annotated[
    bool, typer.Option("--wait", help="Print the job's log on stderr until it ends, and exit with its exit code.")
]
WithExitCode = Annotated[
    bool, typer.Option("--exit-code", help="Exit with the job's exit code, or 75 if it is still running.")
]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the shards in flight have ended.")]

LOCAL_DASHBOARD = "http://127.0.0.1:8265"


@app.command()
def submit(
    spec: SpecPath,
    address: Dashboard = LOCAL_DASHBOARD,
    overrides: Overrides = None,
    labels: Labels = None,
    shared_filesystem: Shared = False,
    with_package: WithPackage = False,
    wait: Awaited = False,
    as_json: AsJson = False,
) -> None:
    """Send the job to a cluster, unless it runs there already, and print its id."""
    from batchinfer.deploy import ray_jobs
    from batchinfer.jobspec import key_values, load

    loaded = load(spec, overrides or [])
    loaded = loaded.model_copy(
        update={"labels": loaded.labels | dict(key_values("--label", labels or [], "team=search"))}
    )
    client = ray_jobs.connect(address)
    sent = listened(
        lambda listener: ray_jobs.submit(loaded, client, listener, shared_filesystem, with_package), loaded.storage
    )
    if sent.already:
        print(f"{sent.id} is {sent.state} already: nothing was sent", file=sys.stderr)
    if not as_json:
        print(sent.id, flush=True)
    job = _followed(client, sent.id, sys.stderr) if wait else None
    if as_json:
        plan = sent.plan.document() if sent.plan is not None else None
        state = sent.state if job is None else job.state
        print_json({"id": sent.id, "state": state, "already": sent.already, "plan": plan})
    if job is not None:
        raise typer.Exit(job.exit_status)


def _followed(client: JobClient, job_id: str, sink: TextIO) -> SubmittedJob:
    """Print the job's output to `sink` until the job ends. Returns the ended job."""

    def show(lines: str) -> None:
        print(lines, end="", flush=True, file=sink)
        if sink is sys.stdout and isinstance(sink, Outlet) and sink.reader_left:
            # `logs --follow | head`: a log that nobody reads any more is no reason to wait for the job's end.
            raise SystemExit(0)

    try:
        return client.follow(job_id, show)
    except KeyboardInterrupt:
        print(f"{job_id} goes on: `batchinfer logs {job_id} --follow` looks again", file=sys.stderr)
        # 128 + SIGINT, as for any command that Ctrl-C ends, because the job's own exit code is not known yet.
        raise typer.Exit(130) from None


@app.command(name="list")
def list_jobs(address: Dashboard = LOCAL_DASHBOARD, as_json: AsJson = False) -> None:
    """List the jobs that batchinfer submitted to the cluster."""
    from batchinfer.deploy import ray_jobs

    jobs = ray_jobs.connect(address).jobs()
    if as_json:
        print_json([ray_jobs.job_document(job) for job in jobs])
    else:
        console().print(ray_jobs.jobs_table(jobs, time.time()))


@app.command()
def status(
    job_id: Annotated[str | None, typer.Argument(metavar="ID", help="The id that `submit` printed.")] = None,
    all_jobs: All = False,
    exit_code: WithExitCode = False,
    address: Dashboard = LOCAL_DASHBOARD,
    as_json: AsJson = False,
) -> None:
    """Print the state of a submitted job."""
    from batchinfer.deploy import ray_jobs

    if (job_id is None) != all_jobs:
        raise UserError("status takes an ID or --all, one of the two", "`batchinfer list` shows the ids")
    if all_jobs and exit_code:
        raise UserError("--exit-code is that of one job, and --all shows every job", "give an ID")
    if job_id is None:
        list_jobs(address, as_json)
        return
    client = ray_jobs.connect(address)
    job = client.job(job_id)
    progress = ray_jobs.submitted_progress(client.logs(job_id))
    if as_json:
        print_json(ray_jobs.job_document(job, progress))
    else:
        console().print(ray_jobs.job_table(job, progress, time.time()))
    if exit_code:
        raise typer.Exit(job.exit_status)


@app.command()
def logs(job_id: JobId, follow: Follow = False, address: Dashboard = LOCAL_DASHBOARD) -> None:
    """Print the log of a submitted job, with its progress and report. With --follow, end with the job's exit code."""
    from batchinfer.deploy import ray_jobs

    client = ray_jobs.connect(address)
    if follow:
        raise typer.Exit(_followed(client, job_id, sys.stdout).exit_status)
    print(client.logs(job_id), end="")


@app.command()
def stop(job_id: JobId, wait: Wait = True, address: Dashboard = LOCAL_DASHBOARD, as_json: AsJson = False) -> None:
    """Stop a submitted job after the shards in flight; submitting it again resumes the run."""
    from batchinfer.deploy import ray_jobs

    client = ray_jobs.connect(address)
    job = client.job(job_id)
    stopped = not job.ended and client.stop(job_id)
    while wait and stopped and not job.ended:
        time.sleep(0.5)
        job = client.job(job_id)
    if as_json:
        print_json(ray_jobs.job_document(job))
    elif not stopped:
        print(f"{job_id} had ended before: {job.state}")
    elif job.ended:
        print(f"{job_id} is {job.state}; submit it again to go on")
    else:
        print(f"{job_id} is stopping: the shards in flight end first")

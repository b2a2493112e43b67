"""Jobs on a cluster that runs elsewhere: submit, list, status, logs, stop."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from batchinfer.cli.app import AsJson, Overrides, SpecPath, app, console, listened, print_json
from batchinfer.errors import UserError

Dashboard = Annotated[
    str,
    typer.Option(
        "--address",
        envvar=["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"],
        help="The cluster's dashboard, as `ray job` takes it.",
    ),
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="What `submit` gave back.")]
Labels = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="KEY=VALUE", help="Goes into the accounting, as team=search. Repeatable."),
]
Shared = Annotated[
    bool, typer.Option("--shared-filesystem", help="Local paths in the spec are the same on the cluster's nodes.")
]
WithPackage = Annotated[
    bool, typer.Option("--with-package", help="Send this batchinfer too: the cluster needs what it depends on only.")
]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")]
All = Annotated[bool, typer.Option("--all", help="Every job, as `list` does.")]
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
    as_json: AsJson = False,
) -> None:
    """Send the job to a cluster, unless it runs there already, and print its id."""
    from batchinfer.deploy import ray_jobs
    from batchinfer.jobspec import key_values, load

    loaded = load(spec, overrides or [])
    loaded = loaded.model_copy(
        update={"labels": loaded.labels | dict(key_values("--label", labels or [], "team=search"))}
    )
    sent = listened(
        lambda listener: ray_jobs.submit(loaded, ray_jobs.connect(address), listener, shared_filesystem, with_package),
        loaded.storage,
    )
    if as_json:
        plan = sent.plan.document() if sent.plan is not None else None
        print_json({"id": sent.id, "state": sent.state, "already": sent.already, "plan": plan})
        return
    if sent.already:
        print(f"{sent.id} is {sent.state} already: nothing was sent", file=sys.stderr)
    print(sent.id)


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
    job_id: Annotated[str | None, typer.Argument(metavar="ID", help="What `submit` gave back.")] = None,
    all_jobs: All = False,
    address: Dashboard = LOCAL_DASHBOARD,
    as_json: AsJson = False,
) -> None:
    """Say how a submitted job stands."""
    from batchinfer.deploy import ray_jobs

    if (job_id is None) != all_jobs:
        raise UserError("status takes an ID or --all, one of the two", "`batchinfer list` shows the ids")
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


@app.command()
def logs(job_id: JobId, follow: Follow = False, address: Dashboard = LOCAL_DASHBOARD) -> None:
    """Print what a submitted job says: its progress and its report."""
    from batchinfer.deploy import ray_jobs

    client = ray_jobs.connect(address)
    if follow:
        client.follow(job_id, lambda lines: print(lines, end="", flush=True))
    else:
        print(client.logs(job_id), end="")


@app.command()
def stop(job_id: JobId, wait: Wait = True, address: Dashboard = LOCAL_DASHBOARD, as_json: AsJson = False) -> None:
    """Stop a submitted job: the shards in flight end, and submitting it again goes on from there."""
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

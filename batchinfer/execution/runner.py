"""The use cases: validate, plan, run (and resume), retry, report."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer.accounting.ledger import replica_accounts, replicas_table, totals
from batchinfer.accounting.records import ShardRecord
from batchinfer.accounting.report import Report, make_report
from batchinfer.errors import (
    BatchinferError,
    EngineError,
    OutputError,
    Stopped,
    StorageError,
    TooManyFailedRows,
    WorkersLost,
)
from batchinfer.execution import ray_pipeline
from batchinfer.execution.checks import (
    Checked,
    absolute,
    check,
    find_manifest,
    refusals_are_the_users,
    require_model,
    require_same_input,
)
from batchinfer.execution.job import Job
from batchinfer.execution.metrics import Metrics, labels_of
from batchinfer.execution.plan_job import plan_job
from batchinfer.execution.progress import Listener
from batchinfer.execution.ray_pipeline import Work
from batchinfer.execution.stop_and_budget import BudgetWatch, Stopper, Tally
from batchinfer.input.manifest import Manifest, to_parquet
from batchinfer.jobspec import JobSpec, load, parse, to_yaml
from batchinfer.jobspec.cron import Tick
from batchinfer.jobspec.schedule import current_time, resolve
from batchinfer.planner import Plan, assumed_cluster, shards_in_flight
from batchinfer.planner.plan import DEFAULT_SLOTS
from batchinfer.rundir.commit import committed_shards, read_accounting, repair
from batchinfer.rundir.failed_rows import failed_rows, note_retry, noted_retry
from batchinfer.rundir.journals import read_journals
from batchinfer.rundir.ownership import SPEC_MARK, STOP_MARK, clear, overwrite, remove, remove_leftovers, require_own
from batchinfer.rundir.paths import Layout, reading
from batchinfer.storage import normal_uri

JOURNAL_WAIT_SECONDS = 30.0
DEAD_AFTER_SECONDS = 5.0
NAMED_SHARDS = 20


def validate(spec: JobSpec, at: datetime | None = None) -> Checked:
    """Check all that `run` would check before it starts anything; raises UserError."""
    rendered, tick = _resolved(spec, at)
    return check(rendered, _new_run_id(), tick=tick)


def plan(spec: JobSpec, listener: Listener, cluster: str | None = None, at: datetime | None = None) -> Plan:
    """What `run` would run, what it would take, and why; writes nothing. Raises UserError.

    On the cluster given, else on GPUs of the kind that resources.accelerator names, as many as it takes,
    else on this machine.
    """
    rendered, tick = _resolved(spec, at)
    checked = check(rendered, _new_run_id(), tick=tick, access=False)
    if checked.manifest.hint is not None:
        listener.event("hint", text=checked.manifest.hint)
    if cluster is None and spec.resources.accelerator not in ("auto", "cpu"):
        return plan_job(checked, assumed_cluster(spec, psutil.virtual_memory().total))
    with _connected(cluster, listener):
        return plan_job(checked, ray_pipeline.describe_cluster())


def run(
    spec: JobSpec,
    listener: Listener,
    cluster: str | None = None,
    fresh: bool = False,
    at: datetime | None = None,
) -> Report:
    """Run the job, or what is left of it. Returns the report of a complete run.

    `at` is the time that the run is for (see `schedule.resolve`); None is now, or the latest tick of a schedule.

    Raises UserError before anything is written, Stopped, or another BatchinferError; committed shards
    stay in any case.
    """
    rendered, tick = _resolved(spec, at)
    checked = check(rendered, _new_run_id(), fresh, tick)
    layout, manifest = checked.layout, checked.manifest
    pending = [shard for shard in manifest.shards if shard.shard_id not in checked.committed]
    if not pending and checked.resumed:
        listener.event("nothing to do", shards=len(manifest.shards))
        return _conclude(layout, checked.spec, manifest)
    with _connected(cluster, listener):
        plan = plan_job(checked, ray_pipeline.describe_cluster())
        with layout.storage.lock(layout.run("lock")) as require_held:
            _begin(checked, plan)
            listener.event(
                "resumed" if checked.resumed else "started",
                output=layout.root,
                rows=manifest.rows,
                shards=len(manifest.shards),
                committed=len(checked.committed),
                accelerator=plan.accelerator,
                replicas=plan.max_replicas,
            )
            job = _job(checked.spec, plan, layout, manifest)
            _execute(job, manifest, Work(pending), listener, require_held)
            return _conclude(layout, checked.spec, manifest)


def retry(uri: str, listener: Listener, cluster: str | None = None) -> Report:
    """Run the failed rows of the run at `uri` again, and put what they give into their places."""
    layout, manifest, spec = _open_run(uri)
    require_own(layout)
    facts = require_model(spec)
    require_same_input(manifest, spec)
    positions, generations = failed_rows(layout)
    if not positions:
        listener.event("nothing to do", rows_failed=0)
        return _conclude(layout, spec, manifest)
    checked = Checked(spec, facts, layout, manifest, frozenset(committed_shards(layout)), resumed=True)
    with _connected(cluster, listener):
        plan = plan_job(checked, ray_pipeline.describe_cluster())
        with layout.storage.lock(layout.run("lock")) as require_held:
            note_retry(layout, manifest.fingerprint["run_id"], positions)
            shards = [shard for shard in manifest.shards if shard.shard_id in positions]
            listener.event("retrying", output=layout.root, rows=sum(map(len, positions.values())), shards=len(shards))
            work = Work(shards, positions, generations)
            _execute(_job(spec, plan, layout, manifest), manifest, work, listener, require_held)
            return _conclude(layout, spec, manifest)


def report(uri: str) -> Report:
    """The report of the run at `uri`, computed from its accounting; writes nothing."""
    layout, manifest, spec = _open_run(uri)
    return _report(layout, spec, manifest, list(read_accounting(layout)))


def require_error_rate(made: Report) -> None:
    """Raise TooManyFailedRows when more rows failed than the spec allows."""
    if made.error_rate > made.max_error_rate:
        raise TooManyFailedRows(
            f"{made.rows_failed:,} of {made.rows:,} rows failed ({made.error_rate:.1%}), "
            f"more than limits.max_error_rate allows ({made.max_error_rate:.1%})",
            f"see error_code in {made.output}/data; `batchinfer retry {made.output}` runs the failed rows again",
        )


def load_spec(path: str, overrides: list[str]) -> JobSpec:
    """The spec at `path` with `--set` overrides applied."""
    return load(path, overrides)


def _resolved(spec: JobSpec, at: datetime | None) -> tuple[JobSpec, Tick | None]:
    return resolve(spec, at or current_time(spec, datetime.now(UTC)))


def _new_run_id() -> str:
    return uuid.uuid4().hex[:12]


@refusals_are_the_users()
def _open_run(uri: str) -> tuple[Layout, Manifest, JobSpec]:
    """The run at `uri`, reached first as the environment says, then as its own spec says."""
    layout = Layout(normal_uri(uri))
    manifest = find_manifest(layout)
    if manifest is None:
        raise OutputError(f"there is no run at {uri}", "give the output.uri of a job that was run")
    place = layout.run("spec.yaml")
    with reading(place, "move it away and run the job again: it is written anew"):
        text = layout.storage.read(place).decode()
    spec = absolute(parse(text, place))
    return Layout(layout.root, spec.storage), manifest, spec


def _job(spec: JobSpec, plan: Plan, layout: Layout, manifest: Manifest) -> Job:
    rows = max((shard.rows for shard in manifest.shards), default=1)
    slots = spec.engine.max_num_seqs or (DEFAULT_SLOTS if plan.engine is None else plan.engine.max_num_seqs)
    sharing = plan.workload is not None and plan.workload.shares_apart
    in_flight = shards_in_flight(slots, rows, sharing)
    return Job(manifest.fingerprint["run_id"], spec, plan, layout, in_flight)


def _begin(checked: Checked, plan: Plan) -> None:
    """Write what says that this run is there, and for an incremental one which files it has."""
    choice = None if checked.resumed else checked.choice
    with choice.claiming(checked.manifest) if choice is not None else contextlib.nullcontext():
        if not checked.resumed:
            _clear(checked.layout)
        _write_run_files(checked.layout, checked, plan)


def _clear(layout: Layout) -> None:
    """Remove an earlier run of the same spec, the manifest last: until then it can still be resumed."""
    manifest = layout.run("manifest.parquet")
    clear(layout, kept=(manifest, layout.run("lock"), layout.run("run.log")))
    remove(layout, manifest)


def _write_run_files(layout: Layout, checked: Checked, plan: Plan) -> None:
    remove_leftovers(layout)
    mark = SPEC_MARK + b"; a resume reads the spec that it is given, not this file.\n"
    overwrite(layout, layout.run("spec.yaml"), mark + to_yaml(checked.spec).encode())
    overwrite(layout, layout.run("plan.json"), plan.model_dump_json(indent=2).encode())
    if not checked.resumed:
        layout.storage.create(layout.run("manifest.parquet"), to_parquet(checked.manifest))


def _read_plan(layout: Layout) -> Plan:
    uri = layout.run("plan.json")
    with reading(uri, "move it away and run the job again: it is written anew"):
        return Plan.model_validate_json(layout.storage.read(uri))


def _connected(cluster: str | None, listener: Listener) -> contextlib.AbstractContextManager[None]:
    listener.event("connecting", cluster=cluster or "a local one, started for this run")
    return ray_pipeline.connected(cluster)


def _execute(job: Job, manifest: Manifest, work: Work, listener: Listener, require_held: Callable[[], None]) -> None:
    """Run the work to its end, or until a signal or a budget stops it (Stopped), or the lock is lost."""
    if not work.shards:
        return
    layout = job.layout
    remove(layout, layout.run("stop"))
    earlier = {journal.replica_id for journal in read_journals(layout)}
    counting = Metrics(labels_of(job))
    tally = Tally(job, manifest, work, counting.observed)
    stopper = Stopper(
        lambda: layout.storage.put(layout.run("stop"), STOP_MARK), lambda: _begun(layout, earlier), listener
    )
    stopper.reason = tally.over_budget() or ""
    if stopper.reason:
        # Not even one more shard: nothing is loaded for it.
        raise _stopped(stopper, tally, work)
    waiting = ray_pipeline.waits_for(job.plan)
    if waiting is not None:
        listener.event("waiting", **waiting, hint="the job starts when the cluster has them free")
    listener.begin(tally.progress())
    try:
        with stopper, BudgetWatch(tally, stopper) as budget:
            for committed in ray_pipeline.run_shards(job, manifest, work):
                require_held()
                tally.add(committed.record, committed.won)
                if committed.won:
                    counting.committed(committed.record)
                    listener.advance(tally.progress(), committed.record)
                budget.check()
        _wait_for_journals(layout, earlier)
        tally.look()
    except KeyboardInterrupt:
        stopper.reason = stopper.reason or "interrupted"
    except BatchinferError as error:
        _account_for(layout)
        if isinstance(error, EngineError | WorkersLost):
            error.message += _shards_left(layout, tally.left, earlier)
        raise
    finally:
        listener.end()
    if stopper.reason and tally.left:
        _account_for(layout)
        raise _stopped(stopper, tally, work)
    lost = {shard.shard_id for shard in work.shards} - committed_shards(layout)
    if lost:
        raise StorageError(
            f"{len(lost)} shards ran, but their results are not there: {layout.data(min(lost))}",
            "check what stands in their place, then run the same command again",
        )


def _begun(layout: Layout, earlier: set[str]) -> bool:
    """Has a replica of this session begun?"""
    return any(journal.replica_id not in earlier for journal in read_journals(layout))


def _stopped(stopper: Stopper, tally: Tally, work: Work) -> Stopped:
    raised = ", with a higher limit" if "limits." in stopper.reason else ""
    return Stopped(
        f"{stopper.reason}: {len(tally.left)} of {len(work.shards)} shards are left",
        f"the same command{raised} goes on where this one stopped",
    )


def _shards_left(layout: Layout, left: set[int], earlier: set[str]) -> str:
    """What is still to be done after engines or machines failed, and what was in flight on them."""
    flying = {s for j in read_journals(layout) if j.replica_id not in earlier for s in j.shards_in_flight} & left
    named = ", ".join(map(str, sorted(flying)[:NAMED_SHARDS])) + (", ..." if len(flying) > NAMED_SHARDS else "")
    return f" ({len(left)} shards are left" + (f", in flight were {named})" if flying else ")")


def _wait_for_journals(layout: Layout, earlier: set[str]) -> None:
    """Replicas write their last entry as they leave; one that was killed never does, so not for ever."""
    deadline = time.monotonic() + JOURNAL_WAIT_SECONDS
    while time.monotonic() < deadline:
        journals = [j for j in read_journals(layout) if j.replica_id not in earlier and j.finished_at_us is None]
        # A journal that has stopped moving belongs to a replica that is dead.
        if all(time.time() - j.meter.at_us / 1e6 > DEAD_AFTER_SECONDS for j in journals):
            return
        time.sleep(0.1)


def _account_for(layout: Layout) -> list[ShardRecord]:
    """Complete the accounting and write `replicas.parquet`."""
    records = list(read_accounting(layout))
    records += repair(layout, committed_shards(layout), records, noted_retry(layout))
    # As they are read the next time: the same report to the last bit of its sums.
    records.sort(key=lambda record: (record.shard_id, record.generation))
    sink = pa.BufferOutputStream()
    pq.write_table(replicas_table(replica_accounts(records, read_journals(layout))), sink)
    overwrite(layout, layout.run("replicas.parquet"), sink.getvalue().to_pybytes())
    return records


def _report(layout: Layout, spec: JobSpec, manifest: Manifest, records: list[ShardRecord]) -> Report:
    replicas = replica_accounts(records, read_journals(layout))
    return make_report(
        job_name=spec.name,
        run_id=manifest.fingerprint["run_id"],
        output=layout.root,
        plan=_read_plan(layout),
        totals=totals(records, replicas),
        replicas=replicas,
        rows_in_input=manifest.rows,
        shards_in_input=len(manifest.shards),
        max_error_rate=spec.limits.max_error_rate,
        tick=manifest.fingerprint.get("tick"),
        labels=spec.labels,
        files_skipped=dict(manifest.skipped),
    )


def _conclude(layout: Layout, spec: JobSpec, manifest: Manifest) -> Report:
    """Write the accounts and the report."""
    made = _report(layout, spec, manifest, _account_for(layout))
    overwrite(layout, layout.run("report.json"), made.model_dump_json(indent=2).encode())
    return made

"""The use cases: validate, plan, try, run (and resume), retry, report."""

from __future__ import annotations

import contextlib
import math
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer import signals
from batchinfer.accounting.budget import shards_with_budget
from batchinfer.accounting.ledger import replica_accounts, replicas_table, totals
from batchinfer.accounting.records import ShardRecord
from batchinfer.accounting.report import Report, make_report, overall_accuracy
from batchinfer.errors import (
    BatchinferError,
    EngineError,
    OutputError,
    Stopped,
    StorageError,
    TooManyFailedRows,
    UserError,
    WorkersLost,
)
from batchinfer.execution import ray_pipeline
from batchinfer.execution.checks import (
    Checked,
    absolute,
    changes_of_spec,
    check,
    find_manifest,
    refusals_are_the_users,
    require_apart,
    require_model,
    require_same_input,
    shaping,
)
from batchinfer.execution.evaluate_later import accuracy_of_results, evaluation
from batchinfer.execution.job import Job
from batchinfer.execution.metrics import Metrics, labels_of
from batchinfer.execution.plan_job import plan_job
from batchinfer.execution.progress import Listener
from batchinfer.execution.ray_pipeline import Work
from batchinfer.execution.replica_events import ReplicaEvents
from batchinfer.execution.sample_prompts import survey
from batchinfer.execution.stop_and_budget import Stopper, Tally, Watch
from batchinfer.execution.this_machine import host_cluster, may_have_gpus
from batchinfer.execution.trial import Trial, require_rows, trial_layout, tried_rows
from batchinfer.input.few_rows import few_rows, positions_of, spread_rows
from batchinfer.input.manifest import Fingerprint, Manifest, to_parquet
from batchinfer.jobspec import JobSpec, key_values, parse, to_yaml
from batchinfer.jobspec.cron import Tick
from batchinfer.jobspec.schedule import current_time, resolve
from batchinfer.planner import Interval, Plan, PromptSample, Workload, assumed_cluster, make_plan, shards_in_flight
from batchinfer.planner.plan import DEFAULT_SLOTS
from batchinfer.rundir.commit import committed_shards, read_accounting, read_records, repair
from batchinfer.rundir.failed_rows import failed_rows, note_retry, noted_retry
from batchinfer.rundir.journals import living_replicas, read_journals, require_of_run
from batchinfer.rundir.ownership import SPEC_MARK, STOP_MARK, clear, overwrite, remove, remove_leftovers, require_own
from batchinfer.rundir.paths import Layout, reading
from batchinfer.storage import normal_uri

JOURNAL_WAIT_SECONDS = 30.0
DEAD_AFTER_SECONDS = 5.0
NAMED_SHARDS = 20

_RETRY_KEYS = ("sampling.", "engine.", "resources.", "limits.", "labels.", "storage.")
"""Keys that `retry --set` may change: how a row is run, but not its prompt and not the shape of its result."""

_RETRY_EXCEPT = ("sampling.n", "sampling.logprobs")
"""These shape the columns of the result."""


def validate(spec: JobSpec, at: datetime | None = None) -> Checked:
    """Check all that `run` checks before it starts anything; raises UserError."""
    rendered, tick = _resolved(spec, at)
    return check(rendered, _new_run_id(), tick=tick)


def forecast(checked: Checked) -> PromptSample:
    """A sample of a checked job's rows: how long the prompts are, and which rows will fail."""
    context = checked.facts.shape.context if checked.facts.shape is not None else None
    return survey(checked.spec, checked.manifest, checked.facts.folder, context=context).sample


@dataclass(frozen=True, slots=True)
class Supposed:
    """Values that a plan uses instead of the real ones; None: the real value.

    gpus: GPUs of the kind that `resources.accelerator` names. rows: the number of rows. input_tokens, output_tokens:
    mean tokens of a row. The last three are set together; then no input is read.
    """

    gpus: int | None = None
    rows: int | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None

    def workload(self) -> Workload | None:
        """The supposed work, None for the real one. Raises UserError if only a part of it is set."""
        given = (self.rows, self.input_tokens, self.output_tokens)
        if all(value is None for value in given):
            return None
        if self.rows is None or self.input_tokens is None or self.output_tokens is None:
            raise UserError("--rows, --in and --out go together", "give all three, or none to look at the input")
        length = self.output_tokens
        return Workload(
            rows=self.rows,
            input_tokens=self.input_tokens,
            longest_input_tokens=math.ceil(self.input_tokens),
            output_tokens=Interval(low=length, mid=length, high=length),
            sampled_rows=0,
            source="as supposed: no input was looked at",
        )


def suppose(spec: JobSpec, supposed: Supposed) -> Plan:
    """The plan for supposed values, on GPUs that need not exist; starts and writes nothing. Raises UserError."""
    if spec.resources.accelerator in ("auto", "cpu"):
        raise UserError(
            "a plan for GPUs that are not here needs their kind", "add --set resources.accelerator=H100, or another"
        )
    cluster = assumed_cluster(spec, psutil.virtual_memory().total, supposed.gpus)
    workload = supposed.workload()
    if workload is None:
        rendered, tick = _resolved(spec, None)
        return plan_job(check(rendered, _new_run_id(), tick=tick, access=False), cluster)
    facts = require_model(spec, access=False)
    return make_plan(
        spec,
        cluster,
        facts.name,
        shape=facts.shape,
        entry=facts.entry,
        checkpoint_quantization=facts.quantization,
        workload=workload,
    )


def plan(spec: JobSpec, listener: Listener, cluster: str | None = None, at: datetime | None = None) -> Plan:
    """What `run` would run, how long, at what cost, and why; writes nothing. Raises UserError.

    The plan is for `cluster` if set. Otherwise it is for as many GPUs of the kind `resources.accelerator` as
    necessary; without that key it is for this machine.
    """
    rendered, tick = _resolved(spec, at)
    checked = check(rendered, _new_run_id(), tick=tick, access=False)
    if checked.manifest.hint is not None:
        listener.event("hint", text=checked.manifest.hint)
    if cluster is None and spec.resources.accelerator not in ("auto", "cpu"):
        return plan_job(checked, assumed_cluster(spec, psutil.virtual_memory().total), listener)
    if cluster is None and (spec.resources.accelerator == "cpu" or not may_have_gpus()):
        return plan_job(checked, host_cluster(), listener)
    with _connected(cluster, listener):
        return plan_job(checked, ray_pipeline.describe_cluster(), listener)


def run(
    spec: JobSpec,
    listener: Listener,
    cluster: str | None = None,
    fresh: bool = False,
    at: datetime | None = None,
) -> Report:
    """Run the job, or its remaining shards. Returns the report of a complete run.

    `at` is the time that the run is for (see `schedule.resolve`); None is now, or the latest tick of a schedule.

    Raises UserError before anything is written, Stopped, or another BatchinferError. Committed shards are kept in
    any case.
    """
    rendered, tick = _resolved(spec, at)
    checked = check(rendered, _new_run_id(), fresh, tick)
    layout, manifest = checked.layout, checked.manifest
    pending = [shard for shard in manifest.shards if shard.shard_id not in checked.committed]
    if not pending and checked.resumed:
        listener.event("nothing to do", shards=len(manifest.shards))
        return _conclude(layout, checked.spec, manifest)
    with _connected(cluster, listener):
        plan = plan_job(checked, ray_pipeline.describe_cluster(), listener)
        with layout.storage.lock(layout.lock) as require_held:
            _begin(checked, plan)
            listener.event(
                "resumed" if checked.resumed else "started",
                run_id=manifest.fingerprint.run_id,
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


def try_rows(
    spec: JobSpec,
    listener: Listener,
    rows: int,
    ids: Sequence[str] = (),
    cluster: str | None = None,
    at: datetime | None = None,
) -> Trial:
    """Run `rows` rows of the job, or those with these ids, through all of it; the run itself is left alone.

    Raises what `run` raises, and UserError for an id that no row has.
    """
    rendered, tick = _resolved(spec, at)
    whole = absolute(rendered)
    require_apart(whole)
    with refusals_are_the_users():
        layout = trial_layout(whole, here=cluster is None)
        apart = whole.model_copy(update={"output": whole.output.model_copy(update={"uri": layout.root})})
        found = check(apart, _new_run_id(), tick=tick, trial=True)
        require_rows(found.manifest)
        positions = positions_of(found.spec, found.manifest, ids) if ids else spread_rows(found.manifest.rows, rows)
    # No run of the job: it takes no file and no tick of it.
    fingerprint = Fingerprint(run_id=found.manifest.fingerprint.run_id, spec=shaping(found.spec))
    few = replace(found, manifest=few_rows(found.manifest, positions, fingerprint), choice=None, layout=layout)
    job = replace(found, spec=whole, layout=Layout(whole.output.uri, whole.storage))
    with _connected(cluster, listener):
        described = ray_pipeline.describe_cluster()
        # One replica: more would load the model to wait.
        plan = plan_job(job, described).model_copy(
            update={"min_replicas": 1, "max_replicas": 1, "estimate": None, "first_estimate": None}
        )
        with layout.storage.lock(layout.lock) as require_held:
            _begin(few, plan)
            listener.event(
                "started",
                run_id=fingerprint.run_id,
                output=layout.root,
                rows=few.manifest.rows,
                shards=len(few.manifest.shards),
                committed=0,
                accelerator=plan.accelerator,
                replicas=plan.max_replicas,
            )
            timed = replace(_job(few.spec, plan, layout, few.manifest), timed=True)
            _execute(timed, few.manifest, Work(few.manifest.shards), listener, require_held)
            made = _conclude(layout, few.spec, few.manifest)
        return Trial(
            rows=tried_rows(few, plan, positions),
            report=made,
            plan=plan_job(job, described, listener),
            rows_in_input=found.manifest.rows,
            chosen="by their ids" if ids else "evenly spread over the input",
            output=layout.root,
        )


@refusals_are_the_users()
def given_up_by_fresh(spec: JobSpec, at: datetime | None = None) -> list[str]:
    """Results of another spec that `run` with `fresh` would delete: the folder, then a line for each changed key."""
    rendered = absolute(_resolved(spec, at)[0])
    layout = Layout(rendered.output.uri, rendered.storage)
    old = find_manifest(layout)
    shards = len(committed_shards(layout))
    changed = changes_of_spec(old, rendered) if old is not None and shards else []
    return [f"{layout.root} has {shards} shards of results of another spec:", *changed] if changed else []


def retry(uri: str, listener: Listener, cluster: str | None = None, overrides: Sequence[str] = ()) -> Report:
    """Run the failed rows of the run at `uri` again, and replace their results.

    `overrides`: KEY=VALUE texts for this retry alone; see `_RETRY_KEYS`. Raises UserError.
    """
    for key, _ in key_values("--set", overrides, "sampling.max_tokens=64"):
        if not key.startswith(_RETRY_KEYS) or key in _RETRY_EXCEPT:
            raise UserError(
                f"--set {key}: a retry cannot change that, since the rows that did not fail keep their results",
                f"it may change {', '.join(key.rstrip('.') for key in _RETRY_KEYS)}; for the rest, run with --fresh",
            )
    layout, manifest, spec = _open_run(uri, overrides)
    require_own(layout)
    facts = require_model(spec)
    require_same_input(manifest, spec)
    positions, generations = failed_rows(layout)
    if not positions:
        listener.event("nothing to do", rows_failed=0)
        return _conclude(layout, spec, manifest)
    checked = Checked(spec, facts, layout, manifest, frozenset(committed_shards(layout)), resumed=True)
    with _connected(cluster, listener):
        plan = plan_job(checked, ray_pipeline.describe_cluster(), listener)
        with layout.storage.lock(layout.lock) as require_held:
            note_retry(layout, manifest.fingerprint.run_id, positions)
            shards = [shard for shard in manifest.shards if shard.shard_id in positions]
            listener.event(
                "retrying",
                run_id=manifest.fingerprint.run_id,
                output=layout.root,
                rows=sum(map(len, positions.values())),
                shards=len(shards),
            )
            work = Work(shards, positions, generations)
            _execute(_job(spec, plan, layout, manifest), manifest, work, listener, require_held)
            return _conclude(layout, spec, manifest)


def report(uri: str, overrides: Sequence[str] = ()) -> Report:
    """The report of the run at `uri`, computed from its accounting; writes nothing.

    `overrides` may set `evaluate`, which shapes no result: the answers are compared again. Raises UserError.
    """
    layout, manifest, spec = _open_run(uri)
    if overrides:
        made = report(uri)
        groups = accuracy_of_results(layout, spec, evaluation(layout, spec, overrides))
        return made.model_copy(update={"accuracy": groups, "overall_accuracy": overall_accuracy(groups.values())})
    records = read_records(layout, manifest, noted_retry(layout))
    return _report(layout, spec, manifest, records, living_replicas(layout, read_journals(layout)))


def require_limits(made: Report) -> None:
    """Raise TooManyFailedRows if more rows failed than the spec allows, Stopped if the run exceeded its budget."""
    if made.error_rate > made.max_error_rate:
        raise TooManyFailedRows(
            f"{made.rows_failed:,} of {made.rows:,} rows failed ({made.error_rate:.1%}), "
            f"more than limits.max_error_rate allows ({made.max_error_rate:.1%})",
            f"see error_code in {made.output}/data; `batchinfer retry {made.output}` runs the failed rows again",
        )
    if made.max_cost_usd is not None and made.cost_usd > made.max_cost_usd:
        raise Stopped(
            f"the run cost ${made.cost_usd:.4g}, more than limits.max_cost_usd of ${made.max_cost_usd:g}; "
            "every row is in the output",
            "what was in flight when the budget ended was paid for; set a higher limit, or take smaller shards: "
            "shards.rows",
        )


def _resolved(spec: JobSpec, at: datetime | None) -> tuple[JobSpec, Tick | None]:
    return resolve(spec, at or current_time(spec, datetime.now(UTC)))


def _new_run_id() -> str:
    return uuid.uuid4().hex[:12]


@refusals_are_the_users()
def _open_run(uri: str, overrides: Sequence[str] = ()) -> tuple[Layout, Manifest, JobSpec]:
    """The run at `uri`, opened first with the environment's storage settings, then with those of the run's spec."""
    layout = Layout(normal_uri(uri))
    manifest = find_manifest(layout)
    if manifest is None:
        raise OutputError(f"there is no run at {uri}", "give the output.uri of a job that was run")
    place = layout.spec
    with reading(place, "move it away and run the job again: it is written anew"):
        text = layout.storage.read(place).decode()
    spec = absolute(parse(text, place, overrides))
    return Layout(layout.root, spec.storage), manifest, spec


def _job(spec: JobSpec, plan: Plan, layout: Layout, manifest: Manifest) -> Job:
    rows = max((shard.rows for shard in manifest.shards), default=1)
    slots = spec.engine.max_num_seqs or (DEFAULT_SLOTS if plan.engine is None else plan.engine.max_num_seqs)
    sharing = plan.workload is not None and plan.workload.shares_apart
    cost = plan.estimate.cost_usd if plan.estimate is not None else None
    in_flight = shards_with_budget(shards_in_flight(slots, rows, sharing), spec.limits, cost)
    return Job(manifest.fingerprint.run_id, spec, plan, layout, in_flight)


def _begin(checked: Checked, plan: Plan) -> None:
    """Write the files that make the run exist; for an incremental run they also list its input files."""
    choice = None if checked.resumed else checked.choice
    with choice.claiming(checked.manifest) if choice is not None else contextlib.nullcontext():
        if not checked.resumed:
            _clear(checked.layout)
        _write_run_files(checked.layout, checked, plan)


def _clear(layout: Layout) -> None:
    """Remove an earlier run, the manifest last: until the manifest is gone, the run can be resumed."""
    manifest = layout.manifest
    clear(layout, kept=(manifest, layout.lock, layout.log))
    remove(layout, manifest)


def _write_run_files(layout: Layout, checked: Checked, plan: Plan) -> None:
    remove_leftovers(layout)
    before = _read_plan(layout) if checked.resumed else None
    if before is not None:
        # The report compares the run with the estimate made when the run began.
        plan = plan.model_copy(update={"first_estimate": before.first_estimate or before.estimate})
    mark = SPEC_MARK + b"; a resume reads the spec that it is given, not this file.\n"
    overwrite(layout, layout.spec, mark + to_yaml(checked.spec).encode())
    overwrite(layout, layout.plan, plan.model_dump_json(indent=2).encode())
    if not checked.resumed:
        layout.storage.create(layout.manifest, to_parquet(checked.manifest))


def _read_plan(layout: Layout) -> Plan | None:
    """The plan of the run, None if the file is missing: the report does without the plan."""
    if layout.storage.stat(layout.plan) is None:
        return None
    with reading(layout.plan, "move it away: the report is made without it"):
        return Plan.model_validate_json(layout.storage.read(layout.plan))


def _connected(cluster: str | None, listener: Listener) -> contextlib.AbstractContextManager[None]:
    signals.let_end(False)
    listener.event("connecting", cluster=cluster or "a local one, started for this run")
    return ray_pipeline.connected(cluster)


def _execute(job: Job, manifest: Manifest, work: Work, listener: Listener, require_held: Callable[[], None]) -> None:
    """Run the work to its end, or until a signal or a budget stops it (Stopped), or the lock is lost."""
    try:
        if work.shards:
            _work(job, manifest, work, listener, require_held)
    finally:
        # The remaining work is short and has its own exit code, so a signal may end the process.
        signals.let_end(True)


def _work(job: Job, manifest: Manifest, work: Work, listener: Listener, require_held: Callable[[], None]) -> None:
    layout = job.layout
    remove(layout, layout.stop)
    earlier = {journal.replica_id for journal in read_journals(layout)}
    counting = Metrics(labels_of(job))
    tally = Tally(job, manifest, work, counting.observed)
    stopper = Stopper(
        lambda: layout.storage.put(layout.stop, STOP_MARK),
        lambda: _begun(layout, earlier),
        lambda: not tally.left,
        listener,
    )
    stopper.reason = tally.over_budget() or ""
    if stopper.reason:
        # The budget does not cover one shard, so no engine is loaded.
        raise _stopped(stopper, tally, work)
    replicas = ReplicaEvents(layout)
    waiting = ray_pipeline.waits_for(job.plan)
    if waiting is not None:
        listener.event("waiting", **waiting, hint="the job starts when the cluster has them free")
    listener.begin(tally.progress())
    try:
        with stopper, Watch(tally, stopper, replicas, listener) as watch:
            for committed in stopper.until_stopped(ray_pipeline.run_shards(job, manifest, work)):
                require_held()
                tally.add(committed.record, committed.won)
                if committed.won:
                    counting.committed(committed.record)
                    listener.advance(tally.progress(), committed.record)
                watch.check()
            if not stopper.at_once:
                _wait_for_journals(layout, earlier)
            tally.look()
    except BatchinferError as error:
        _account_for(layout, manifest)
        if isinstance(error, EngineError | WorkersLost):
            error.message += _shards_left(layout, tally.left, earlier)
        raise
    finally:
        listener.end()
    if stopper.reason and tally.left:
        _account_for(layout, manifest)
        raise _stopped(stopper, tally, work)
    lost = {shard.shard_id for shard in work.shards} - committed_shards(layout)
    if lost:
        raise StorageError(
            f"{len(lost)} shards ran, but their results are not there: {layout.data(min(lost))}",
            "check what stands in their place, then run the same command again",
        )


def _begun(layout: Layout, earlier: set[str]) -> bool:
    """Whether a replica of this session has begun."""
    return any(journal.replica_id not in earlier for journal in read_journals(layout))


def _stopped(stopper: Stopper, tally: Tally, work: Work) -> Stopped:
    raised = ", with a higher limit" if "limits." in stopper.reason else ""
    return Stopped(
        f"{stopper.reason}: {len(tally.left)} of {len(work.shards)} shards are left",
        f"the same command{raised} goes on where this one stopped",
    )


def _shards_left(layout: Layout, left: set[int], earlier: set[str]) -> str:
    """A text for after engines or machines failed: the shards left, and the shards that were in flight."""
    flying = {s for j in read_journals(layout) if j.replica_id not in earlier for s in j.shards_in_flight} & left
    named = ", ".join(map(str, sorted(flying)[:NAMED_SHARDS])) + (", ..." if len(flying) > NAMED_SHARDS else "")
    return f" ({len(left)} shards are left" + (f", in flight were {named})" if flying else ")")


def _wait_for_journals(layout: Layout, earlier: set[str]) -> None:
    """Wait until replicas have written their last entry; a killed replica never does, so the wait is limited."""
    deadline = time.monotonic() + JOURNAL_WAIT_SECONDS
    while time.monotonic() < deadline:
        journals = [j for j in read_journals(layout) if j.replica_id not in earlier and j.finished_at_us is None]
        # A journal that has stopped moving belongs to a replica that is dead.
        if all(time.time() - j.meter.at_us / 1e6 > DEAD_AFTER_SECONDS for j in journals):
            return
        time.sleep(0.1)


def _account_for(layout: Layout, manifest: Manifest) -> list[ShardRecord]:
    """Complete the accounting and write the replicas' accounts."""
    retried = noted_retry(layout)
    repair(layout, committed_shards(layout), read_accounting(layout), retried)
    records = read_records(layout, manifest, retried)
    sink = pa.BufferOutputStream()
    pq.write_table(replicas_table(replica_accounts(records, read_journals(layout))), sink)
    overwrite(layout, layout.replicas, sink.getvalue().to_pybytes())
    return records


def _report(
    layout: Layout, spec: JobSpec, manifest: Manifest, records: list[ShardRecord], alive: Collection[str] = ()
) -> Report:
    journals = read_journals(layout)
    require_of_run(layout, journals, manifest.fingerprint.run_id)
    replicas = replica_accounts(records, journals, alive)
    return make_report(
        job_name=spec.name,
        run_id=manifest.fingerprint.run_id,
        output=layout.root,
        plan=_read_plan(layout),
        totals=totals(records, replicas),
        replicas=replicas,
        rows_in_input=manifest.rows,
        shards_in_input=len(manifest.shards),
        max_error_rate=spec.limits.max_error_rate,
        max_cost_usd=spec.limits.max_cost_usd,
        tick=manifest.fingerprint.tick,
        labels=spec.labels,
        model=spec.model.source,
        dtype=spec.model.dtype,
        task=spec.task,
        files_skipped=dict(manifest.skipped),
    )


def _conclude(layout: Layout, spec: JobSpec, manifest: Manifest) -> Report:
    """Write the accounts and the report."""
    made = _report(layout, spec, manifest, _account_for(layout, manifest))
    overwrite(layout, layout.report, made.model_dump_json(indent=2).encode())
    return made

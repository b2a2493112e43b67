"""The flow of one run, from the checks to the report: run (and resume), try, retry."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from batchinfer.accounting.budget import shards_with_budget
from batchinfer.accounting.report import Report
from batchinfer.errors import (
    OutputError,
    UserError,
)
from batchinfer.execution import ray_pipeline
from batchinfer.execution.checks import (
    Checked,
    absolute,
    check,
    check_at,
    find_manifest,
    new_run_id,
    open_run,
    refusals_are_the_users,
    require_apart,
    resolved,
)
from batchinfer.execution.job import RunningJob
from batchinfer.execution.lineage import traced
from batchinfer.execution.model_checks import require_model
from batchinfer.execution.monthly_budget import within_month
from batchinfer.execution.notify import telling
from batchinfer.execution.plan_job import plan_job
from batchinfer.execution.progress import Listener
from batchinfer.execution.publish import (
    publisher,
    require_enough_rows,
    require_publishable,
    require_room_for_retry,
)
from batchinfer.execution.ray_pipeline import Work
from batchinfer.execution.reports import conclude, current_report, read_plan
from batchinfer.execution.retried_rows import advice_before_retry
from batchinfer.execution.same_job import changes_of_spec, require_same_input, shaping
from batchinfer.execution.session import execute
from batchinfer.execution.trial import Trial, require_rows, trial_layout, tried_rows
from batchinfer.input.few_rows import few_rows, positions_of, spread_rows
from batchinfer.input.manifest import Fingerprint, Manifest, Shard, to_parquet
from batchinfer.jobspec import JobSpec, key_values, to_yaml
from batchinfer.planner import Plan, shards_in_flight
from batchinfer.planner.plan import DEFAULT_SLOTS
from batchinfer.rundir.commit import committed_shards
from batchinfer.rundir.failed_rows import failed_codes, failed_rows, note_retry
from batchinfer.rundir.groups import keep_groups, require_groups
from batchinfer.rundir.ownership import SPEC_MARK, clear, overwrite, remove, remove_leftovers, require_own
from batchinfer.rundir.paths import Layout
from batchinfer.rundir.sessions import begin_session, keep_earlier_plan

_RETRY_KEYS = ("sampling.", "engine.", "resources.", "limits.", "labels.", "storage.", "output.publish")
"""Keys that `retry --set` may change: how a row is run, but not its prompt and not the shape of its result."""

_PUBLISH_KEYS = ("output.publish", "storage.", "limits.max_error_rate")
"""Keys that `publish --set` may change."""

_RETRY_EXCEPT = ("sampling.n", "sampling.logprobs")
"""These shape the columns of the result."""


def run(
    spec: JobSpec,
    listener: Listener,
    cluster: str | None = None,
    fresh: bool = False,
    at: datetime | None = None,
    timed: bool = False,
) -> Report:
    """Run the job, or its remaining shards. Returns the report of a complete run.

    `at` is the time that the run is for (see `schedule.resolve`); None is now, or the latest tick of a schedule.
    `timed`: see `RunningJob`.

    Raises UserError before anything is written, Stopped, or another BatchinferError. Committed shards are kept in
    any case.
    """
    checked = check_at(spec, at, fresh)
    layout, manifest = checked.layout, checked.manifest
    pending = [shard for shard in manifest.shards if shard.shard_id not in checked.committed]
    if not pending and checked.resumed:
        listener.event("nothing to do", shards=len(manifest.shards))
        if layout.storage.stat(layout.spec) is None:
            _write_spec(layout, checked.spec)
        return _concluded_again(layout, checked.spec, manifest, page=not timed)

    def carry_out() -> Report:
        limited = within_month(checked.spec, layout)
        with ray_pipeline.announced(cluster, listener):
            plan = plan_job(checked, ray_pipeline.describe_cluster(), listener)
            return _carry_out(checked, plan, pending, listener, timed, limited)

    return telling(checked.spec, layout.root, lambda: traced(checked.spec, layout, manifest, carry_out))


def _carry_out(
    checked: Checked,
    plan: Plan,
    pending: Sequence[Shard],
    listener: Listener,
    timed: bool = False,
    limited: JobSpec | None = None,
) -> Report:
    """Write the files of the run, run the `pending` shards, and report. `timed`: see `RunningJob`. `limited`: the spec
    with limits for this session alone."""
    layout = checked.layout
    with layout.storage.lock(layout.lock) as require_held:
        if not timed:
            pending = _still_pending(checked, pending)
            if not pending and checked.resumed:
                listener.event("nothing to do", shards=len(checked.manifest.shards))
                return conclude(layout, checked.spec, checked.manifest)
        manifest = _begin(checked, plan)
        pending = [manifest.shards[shard.shard_id] for shard in pending]
        session = begin_session(layout, "run", plan, datetime.now(UTC))
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
        job = replace(_job(limited or checked.spec, plan, layout, manifest, session), timed=timed)
        execute(job, manifest, Work(pending), listener, require_held)
        # A trial is looked at in the terminal, and drawing takes as long as a few rows.
        return conclude(
            layout, checked.spec, manifest, page=not timed, publisher=publisher(layout, checked.spec, manifest)
        )


def _still_pending(checked: Checked, pending: Sequence[Shard]) -> list[Shard]:
    """Those of the `pending` shards that are still to run, now that no other command can write to the output.

    Another command may have run there since the check, while Ray started. Raises OutputError if it began a run: this
    one would clear it away.
    """
    layout = checked.layout
    found = layout.storage.stat(layout.manifest)
    committed = committed_shards(layout)
    now = (None if found is None else found.tag, len(committed) if not checked.resumed else checked.before[1])
    if now != checked.before:
        raise OutputError(
            f"another command ran in {layout.root} while this one started",
            "run the same command again: it goes on from what is there now",
        )
    return [shard for shard in pending if shard.shard_id not in committed] if checked.resumed else list(pending)


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
    rendered, tick = resolved(spec, at)
    whole = absolute(rendered)
    require_apart(whole)
    with refusals_are_the_users():
        layout = trial_layout(whole, here=cluster is None)
        apart = whole.model_copy(
            update={"output": whole.output.model_copy(update={"uri": layout.root, "publish": None})}
        )
        found = check(apart, new_run_id(), tick=tick, trial=True)
        require_rows(found.manifest)
        positions = positions_of(found.spec, found.manifest, ids) if ids else spread_rows(found.manifest.rows, rows)
    # No run of the job: it takes no file and no tick of it.
    fingerprint = Fingerprint(run_id=found.manifest.fingerprint.run_id, spec=shaping(found.spec))
    few = replace(found, manifest=few_rows(found.manifest, positions, fingerprint), choice=None, layout=layout)
    job = replace(found, spec=whole, layout=Layout(whole.output.uri, whole.storage))
    with ray_pipeline.announced(cluster, listener):
        described = ray_pipeline.describe_cluster()
        # One replica: more would load the model to wait.
        plan = plan_job(job, described).model_copy(
            update={"min_replicas": 1, "max_replicas": 1, "estimate": None, "first_estimate": None}
        )
        made = _carry_out(few, plan, few.manifest.shards, listener, timed=True)
        return Trial(
            rows=tried_rows(few, plan),
            report=made,
            plan=plan_job(job, described, listener),
            rows_in_input=found.manifest.rows,
            chosen="by their ids" if ids else "spread over the input",
            output=layout.root,
        )


@refusals_are_the_users()
def given_up_by_fresh(spec: JobSpec, at: datetime | None = None) -> list[str]:
    """Results of another spec that `run` with `fresh` would delete: the folder, then a line for each changed key."""
    rendered = absolute(resolved(spec, at)[0])
    layout = Layout(rendered.output.uri, rendered.storage)
    old = find_manifest(layout)
    shards = len(committed_shards(layout))
    changed = changes_of_spec(old, rendered) if old is not None and shards else []
    return [f"{layout.root} has {shards} shards of results of another spec:", *changed] if changed else []


def retry(uri: str, listener: Listener, cluster: str | None = None, overrides: Sequence[str] = ()) -> Report:
    """Run the failed rows of the run at `uri` again, and replace their results.

    `overrides`: KEY=VALUE texts for this retry alone; see `_RETRY_KEYS`. Raises UserError.
    """
    changed = [key for key, _ in key_values("--set", overrides, "sampling.max_tokens=64")]
    for key in changed:
        if not key.startswith(_RETRY_KEYS) or key in _RETRY_EXCEPT:
            raise UserError(
                f"--set {key}: a retry cannot change that, since the rows that did not fail keep their results",
                f"it may change {', '.join(key.rstrip('.') for key in _RETRY_KEYS)}; for the rest, run with --fresh",
            )
    layout, manifest, spec = open_run(uri, overrides)
    require_own(layout)
    # The report after the retry reads the plan, and a damaged one is better refused before the retry is paid for.
    read_plan(layout)
    facts = require_model(spec)
    require_same_input(manifest, spec)
    require_groups(layout, manifest)
    if not failed_rows(layout)[0]:
        listener.event("nothing to do", rows_failed=0)
        return _concluded_again(layout, spec, manifest)
    require_room_for_retry(layout, spec, manifest.fingerprint.run_id)
    require_publishable(spec, manifest)
    told = advice_before_retry(spec, failed_codes(layout), changed)
    if told is not None:
        listener.event("hint", text=told)
    checked = Checked(spec, facts, layout, manifest, frozenset(committed_shards(layout)), resumed=True)

    def carry_out() -> Report:
        limited = within_month(spec, layout)
        with ray_pipeline.announced(cluster, listener):
            plan = plan_job(checked, ray_pipeline.describe_cluster(), listener)
            with layout.storage.lock(layout.lock) as require_held:
                # Another retry may have ended since the first look.
                positions, generations = failed_rows(layout)
                if not positions:
                    listener.event("nothing to do", rows_failed=0)
                    return conclude(layout, spec, manifest)
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
                job = _job(limited, plan, layout, manifest, begin_session(layout, "retry", plan, datetime.now(UTC)))
                execute(job, manifest, work, listener, require_held)
                return conclude(layout, spec, manifest, publisher=publisher(layout, spec, manifest))

    return telling(spec, layout.root, lambda: traced(spec, layout, manifest, carry_out))


def publish(uri: str, overrides: Sequence[str] = ()) -> Report:
    """Write the results of the complete run at `uri` into the table of its spec, unless the table has them.

    `overrides`: KEY=VALUE texts; see `_PUBLISH_KEYS`. Raises UserError, TooManyFailedRows or StorageError.
    """
    for key, _ in key_values("--set", overrides, "output.publish.mode=append"):
        if not key.startswith(_PUBLISH_KEYS):
            raise UserError(
                f"--set {key}: a publication cannot change that, since the run is over",
                f"it may change {', '.join(key.rstrip('.') for key in _PUBLISH_KEYS)}",
            )
    layout, manifest, spec = open_run(uri, overrides)
    require_own(layout)
    if spec.output.publish is None:
        raise UserError(
            f"the spec of {uri} names no table",
            "say --set output.publish.to=delta --set output.publish.table=PLACE, or the same with iceberg",
        )
    require_enough_rows(current_report(layout, spec, manifest))
    return traced(spec, layout, manifest, lambda: _concluded_again(layout, spec, manifest))


def _concluded_again(layout: Layout, spec: JobSpec, manifest: Manifest, page: bool = True) -> Report:
    """The report of a run without work left, whose results may not be in their table yet."""
    writes = publisher(layout, spec, manifest)
    with layout.storage.lock(layout.lock) if writes is not None else contextlib.nullcontext():
        return conclude(layout, spec, manifest, page, publisher=writes)


def _job(spec: JobSpec, plan: Plan, layout: Layout, manifest: Manifest, session: int) -> RunningJob:
    rows = max((shard.rows for shard in manifest.shards), default=1)
    slots = spec.engine.max_num_seqs or (DEFAULT_SLOTS if plan.engine is None else plan.engine.max_num_seqs)
    sharing = plan.workload is not None and plan.workload.shares_apart
    cost = plan.estimate.cost_usd if plan.estimate is not None else None
    in_flight = shards_with_budget(shards_in_flight(slots, rows, sharing), spec.limits, cost)
    # The files of a run have the same columns, also if a retry samples in another way, or an earlier version began it.
    told = manifest.fingerprint.spec.get("dedupe", False)
    of_run = spec.model_copy(update={"dedupe": told})
    return RunningJob(
        manifest.fingerprint.run_id,
        of_run,
        plan,
        layout,
        in_flight,
        session,
        reuses=told and spec.reuses_answers,
        reuses_drawn=spec.dedupe is True,
    )


def _begin(checked: Checked, plan: Plan) -> Manifest:
    """Write the files that make the run exist; for an incremental run they also list its input files. Returns the
    manifest as it is written.
    """
    choice = None if checked.resumed else checked.choice
    with choice.claiming(checked.manifest) if choice is not None else contextlib.nullcontext():
        if not checked.resumed:
            _clear(checked.layout)
        return _write_run_files(checked.layout, checked, plan)


def _clear(layout: Layout) -> None:
    """Remove an earlier run, the manifest last: until the manifest is gone, the run can be resumed."""
    manifest = layout.manifest
    groups = [entry.uri for entry in layout.storage.list(layout.groups_folder)]
    clear(layout, kept=(manifest, layout.lock, layout.log, *groups))
    remove(layout, manifest)
    for uri in groups:
        remove(layout, uri)


def _write_run_files(layout: Layout, checked: Checked, plan: Plan) -> Manifest:
    remove_leftovers(layout)
    before = read_plan(layout) if checked.resumed else None
    if before is not None:
        # The report compares the run with the estimate made when the run began.
        plan = plan.model_copy(update={"first_estimate": before.first_estimate or before.estimate})
        keep_earlier_plan(layout, before)
    _write_spec(layout, checked.spec)
    overwrite(layout, layout.plan, plan.model_dump_json(indent=2).encode())
    if checked.resumed:
        return checked.manifest
    manifest = keep_groups(layout, checked.manifest)
    layout.storage.create(layout.manifest, to_parquet(manifest))
    return manifest


def _write_spec(layout: Layout, spec: JobSpec) -> None:
    mark = SPEC_MARK + b"; a resume reads the spec that it is given, not this file.\n"
    overwrite(layout, layout.spec, mark + to_yaml(spec).encode())

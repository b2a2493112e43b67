"""The use cases: validate, plan, run (and resume), retry, report."""

from __future__ import annotations

import contextlib
import signal
import time
import uuid
from collections.abc import Callable
from types import FrameType

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer import pipeline
from batchinfer.commit import committed_shards, read_accounting, repair
from batchinfer.errors import BatchinferError, OutputError, Stopped, StorageError, TooManyFailedRows
from batchinfer.job import Job, Layout, read_journals
from batchinfer.ledger import replica_accounts, replicas_table, totals
from batchinfer.pipeline import Work
from batchinfer.planner import Plan, assumed_cluster, shards_in_flight
from batchinfer.planner.plan import DEFAULT_SLOTS
from batchinfer.planning import plan_job
from batchinfer.preflight import Checked, absolute, check, find_manifest, require_model, require_same_input
from batchinfer.progress import Listener, Progress, Speed
from batchinfer.records import ShardRecord
from batchinfer.report import Report, make_report
from batchinfer.retry import failed_rows, note_retry, noted_retry
from batchinfer.shards import Manifest, to_parquet
from batchinfer.spec import JobSpec, load, parse, to_yaml
from batchinfer.storage import join, local_path

JOURNAL_WAIT_SECONDS = 30.0
DEAD_AFTER_SECONDS = 5.0
COST_CHECK_SECONDS = 2.0


def validate(spec: JobSpec) -> Checked:
    """Check all that `run` would check before it starts anything; raises UserError."""
    return check(spec, _new_run_id())


def plan(spec: JobSpec, listener: Listener, cluster: str | None = None) -> Plan:
    """What `run` would run, what it would take, and why; writes nothing. Raises UserError.

    On the cluster given, else on GPUs of the kind that resources.accelerator names, as many as it takes,
    else on this machine.
    """
    checked = check(spec, _new_run_id(), access=False)
    if cluster is None and spec.resources.accelerator not in ("auto", "cpu"):
        return plan_job(checked, assumed_cluster(spec, psutil.virtual_memory().total))
    with _connected(cluster, listener):
        return plan_job(checked, pipeline.describe_cluster())


def run(spec: JobSpec, listener: Listener, cluster: str | None = None, fresh: bool = False) -> Report:
    """Run the job, or what is left of it. Returns the report of a complete run.

    Raises UserError before anything is written, Stopped, or another BatchinferError; committed shards
    stay in any case.
    """
    checked = check(spec, _new_run_id(), fresh)
    layout, manifest = checked.layout, checked.manifest
    pending = [shard for shard in manifest.shards if shard.shard_id not in checked.committed]
    if not pending and checked.resumed:
        listener.event("nothing to do", shards=len(manifest.shards))
        return _conclude(layout, checked.spec, manifest)
    with _connected(cluster, listener):
        plan = plan_job(checked, pipeline.describe_cluster())
        with layout.storage.lock(layout.run("lock")):
            if not checked.resumed:
                _clear(layout)
            _write_run_files(layout, checked, plan)
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
            _execute(job, manifest, Work(pending), listener)
            return _conclude(layout, checked.spec, manifest)


def retry(uri: str, listener: Listener, cluster: str | None = None) -> Report:
    """Run the failed rows of the run at `uri` again, and put what they give into their places."""
    layout, manifest, spec = _open_run(uri)
    facts = require_model(spec)
    require_same_input(manifest, spec)
    positions, generations = failed_rows(layout)
    if not positions:
        listener.event("nothing to do", rows_failed=0)
        return _conclude(layout, spec, manifest)
    checked = Checked(spec, facts, layout, manifest, frozenset(committed_shards(layout)), resumed=True)
    with _connected(cluster, listener):
        plan = plan_job(checked, pipeline.describe_cluster())
        with layout.storage.lock(layout.run("lock")):
            note_retry(layout, positions)
            shards = [shard for shard in manifest.shards if shard.shard_id in positions]
            listener.event("retrying", output=layout.root, rows=sum(map(len, positions.values())), shards=len(shards))
            _execute(_job(spec, plan, layout, manifest), manifest, Work(shards, positions, generations), listener)
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


def _new_run_id() -> str:
    return uuid.uuid4().hex[:12]


def _open_run(uri: str) -> tuple[Layout, Manifest, JobSpec]:
    layout = Layout(local_path(uri))
    manifest = find_manifest(layout)
    if manifest is None:
        raise OutputError(f"there is no run at {uri}", "give the output.uri of a job that was run")
    text = layout.storage.read(layout.run("spec.yaml")).decode()
    return layout, manifest, absolute(parse(text, layout.run("spec.yaml")))


def _job(spec: JobSpec, plan: Plan, layout: Layout, manifest: Manifest) -> Job:
    rows = max((shard.rows for shard in manifest.shards), default=1)
    in_flight = shards_in_flight(spec.engine.max_num_seqs or DEFAULT_SLOTS, rows)
    return Job(manifest.fingerprint["run_id"], spec, plan, layout, in_flight)


def _clear(layout: Layout) -> None:
    """Remove an earlier run of the same spec, the manifest last: until then it can still be resumed."""
    storage = layout.storage
    for folder in (layout.accounting_folder, layout.data_folder, join(layout.root, "_run")):
        for entry in list(storage.list(folder)):
            if not entry.uri.endswith(("/manifest.parquet", "/lock", "/run.log")):
                storage.delete(entry.uri)
    storage.delete(layout.run("manifest.parquet"))


def _write_run_files(layout: Layout, checked: Checked, plan: Plan) -> None:
    storage = layout.storage
    storage.remove_leftovers(layout.root)
    storage.put(layout.run("spec.yaml"), to_yaml(checked.spec).encode())
    storage.put(layout.run("plan.json"), plan.model_dump_json(indent=2).encode())
    if not checked.resumed:
        storage.create(layout.run("manifest.parquet"), to_parquet(checked.manifest))


def _read_plan(layout: Layout) -> Plan:
    return Plan.model_validate_json(layout.storage.read(layout.run("plan.json")))


def _connected(cluster: str | None, listener: Listener) -> contextlib.AbstractContextManager[None]:
    listener.event("connecting", cluster=cluster or "a local one, started for this run")
    return pipeline.connected(cluster)


def _execute(job: Job, manifest: Manifest, work: Work, listener: Listener) -> None:
    """Run the work to its end, or until a signal or a budget stops it (Stopped)."""
    if not work.shards:
        return
    layout, storage = job.layout, job.layout.storage
    storage.delete(layout.run("stop"))
    earlier = {journal.replica_id for journal in read_journals(layout)}
    tally = _Tally(job, manifest, work)
    stopper = _Stopper(
        lambda: storage.put(layout.run("stop"), b""),
        lambda: any(journal.replica_id not in earlier for journal in read_journals(layout)),
        listener,
    )
    waiting = pipeline.waits_for(job.plan)
    if waiting is not None:
        listener.event("waiting", **waiting, hint="the job starts when the cluster has them free")
    listener.begin(tally.progress())
    try:
        with stopper:
            for committed in pipeline.run_shards(job, manifest, work):
                if committed.won:
                    tally.add(committed.record)
                    listener.advance(tally.progress(), committed.record)
                reason = tally.over_budget()
                if reason:
                    stopper.stop(reason)
        _wait_for_journals(layout, earlier)
    except KeyboardInterrupt:
        stopper.reason = stopper.reason or "interrupted"
    except BatchinferError:
        _account_for(layout)
        raise
    finally:
        listener.end()
    if stopper.reason and tally.shards_left:
        _account_for(layout)
        raise Stopped(
            f"{stopper.reason}: {tally.shards_left} of {len(work.shards)} shards are left",
            "the same command goes on where this one stopped",
        )
    lost = {shard.shard_id for shard in work.shards} - committed_shards(layout)
    if lost:
        raise StorageError(
            f"{len(lost)} shards ran, but their results are not there: {layout.data(min(lost))}",
            "check what stands in their place, then run the same command again",
        )


class _Tally:
    """What this session has done, for the progress and the budgets."""

    def __init__(self, job: Job, manifest: Manifest, work: Work) -> None:
        self._job = job
        self._rows_total = manifest.rows
        self._shards_total = len(manifest.shards)
        waiting = sum(s.rows if work.positions is None else len(work.positions[s.shard_id]) for s in work.shards)
        self._rows_done = self._rows_total - waiting
        self._shards_done = self._shards_total - len(work.shards)
        self.shards_left = len(work.shards)
        self._failed = 0
        self._speed = Speed(time.monotonic)
        self._began = time.monotonic()
        self._cost = 0.0
        self._cost_at = float("-inf")

    def add(self, record: ShardRecord) -> None:
        self._rows_done += record.rows
        self._shards_done += 1
        self.shards_left -= 1
        self._failed += record.rows_failed
        self._speed.add(record)

    def cost(self) -> float:
        """What the run has cost up to now, by the replicas' journals; read every two seconds at most."""
        now = time.monotonic()
        if now - self._cost_at >= COST_CHECK_SECONDS:
            self._cost_at = now
            self._cost = sum(account.cost_usd for account in replica_accounts([], read_journals(self._job.layout)))
        return self._cost

    def over_budget(self) -> str | None:
        limits = self._job.spec.limits
        if limits.max_cost_usd is not None and self.cost() >= limits.max_cost_usd:
            return f"limits.max_cost_usd of ${limits.max_cost_usd:g} is reached"
        hours = (time.monotonic() - self._began) / 3600
        if limits.max_runtime_hours is not None and hours >= limits.max_runtime_hours:
            return f"limits.max_runtime_hours of {limits.max_runtime_hours:g} is reached"
        return None

    def progress(self) -> Progress:
        rows_per_second, tokens_per_second = self._speed.per_second()
        return Progress(
            rows_done=self._rows_done,
            rows_total=self._rows_total,
            shards_done=self._shards_done,
            shards_total=self._shards_total,
            rows_failed=self._failed,
            tokens_per_second=tokens_per_second,
            rows_per_second=rows_per_second,
            cost_usd=self.cost(),
        )


class _Stopper:
    """The first SIGINT or SIGTERM, or a budget, stops new shards and lets those in flight end; a second
    signal stops at once, and so does the first where no replica has begun: one may wait for a GPU for hours."""

    def __init__(self, announce: Callable[[], None], begun: Callable[[], bool], listener: Listener) -> None:
        self._announce = announce
        self._begun = begun
        self._listener = listener
        self._before: dict[signal.Signals, signal._HANDLER] = {}
        self.reason = ""

    def stop(self, reason: str) -> None:
        if not self.reason:
            self.reason = reason
            self._announce()
            self._listener.event("stopping", reason=reason, hint="shards in flight end first; Ctrl-C again stops now")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.reason:
            raise KeyboardInterrupt
        reason = f"stopped by {signal.Signals(number).name}"
        if not self._begun():
            self.reason = reason
            raise KeyboardInterrupt
        self.stop(reason)

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


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
    sink = pa.BufferOutputStream()
    pq.write_table(replicas_table(replica_accounts(records, read_journals(layout))), sink)
    layout.storage.put(layout.run("replicas.parquet"), sink.getvalue().to_pybytes())
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
        labels=spec.labels,
    )


def _conclude(layout: Layout, spec: JobSpec, manifest: Manifest) -> Report:
    """Write the accounts and the report."""
    made = _report(layout, spec, manifest, _account_for(layout))
    layout.storage.put(layout.run("report.json"), made.model_dump_json(indent=2).encode())
    return made

"""The Ray Data wiring, and nothing else: read -> replica -> commit, one block a shard all the way.

The driver iterates over the commits, a row each. Whatever a run decides (stop, report, resume) is
decided from those rows, elsewhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Datasource, ReadTask, TaskPoolStrategy
from ray.data.block import BlockMetadata

from batchinfer import signals
from batchinfer.accounting.records import ShardRecord
from batchinfer.errors import BatchinferError, ClusterError, WorkersLost
from batchinfer.execution import local_cluster, ray_private
from batchinfer.execution.job import Job
from batchinfer.execution.placement import replica_arguments
from batchinfer.execution.process_guard import DRIVER, Guard
from batchinfer.execution.replica import Replica
from batchinfer.execution.shard_block import Envelope, seal, unseal
from batchinfer.execution.this_machine import has_avx512
from batchinfer.input import read_shards
from batchinfer.input.manifest import Manifest, Shard, read_together
from batchinfer.input.shard_sizes import in_order, readers, shards_held
from batchinfer.planner import Cluster, Plan, autoscaled, cluster_of, shortage
from batchinfer.planner.host import CPU_REPLICA_CPUS, SMALL_TASK_CPUS
from batchinfer.rundir.commit import commit, commit_retry
from batchinfer.rundir.journals import lost_attempts, read_journals
from batchinfer.rundir.paths import Layout

_DEATHS_WHILE_LOADING = 3
"""In a row, in a whole run: a process that is killed each time it loads (by the system, for its memory) ends it."""

_STARTS = 3

_LOSSES = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.OutOfMemoryError,
)
"""What Ray raises when it has retried what was lost often enough."""


@dataclass(frozen=True, slots=True)
class Work:
    """What to run: shards, and for a retry the positions in each that failed (None: every row)."""

    shards: Sequence[Shard]
    positions: dict[int, list[int]] | None = None
    generations: dict[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Committed:
    """One attempt's end: `won` is False if another attempt had committed the shard before."""

    record: ShardRecord
    won: bool


class ShardSource(Datasource):  # type: ignore[misc] # Ray ships no types
    """Shards as blocks: a read task for each run of shards that should be read together, longest work first."""

    def __init__(self, job: Job, manifest: Manifest, work: Work) -> None:
        super().__init__()
        if job.spec.limits.max_cost_usd is None:
            self._groups = in_order(work.shards, job.spec.sampling.max_tokens, work.positions)
        else:
            # The small ones at the beginning of the input first: they show what a shard costs.
            self._groups = list(read_together(work.shards))
        self._read = _Read(job, manifest.schema, manifest.partitions, work)

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        return [
            ReadTask(
                self._read.of(group),
                BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None),
            )
            for group in self._groups
        ]


class _Read:
    def __init__(self, job: Job, schema: pa.Schema, partitions: Sequence[str], work: Work) -> None:
        self._layout = job.layout
        self._input = job.spec.input
        self._stores = job.spec.storage
        self._schema = schema
        self._partitions = partitions
        self._work = work

    def of(self, shards: list[Shard]) -> Callable[[], Iterator[pa.Table]]:
        """What one read task does; holds only what concerns its own shards, since Ray sends it whole."""
        layout, source, schema, partitions = self._layout, self._input, self._schema, self._partitions
        stores = self._stores
        positions = {s.shard_id: (self._work.positions or {}).get(s.shard_id) for s in shards}
        generations = {s.shard_id: (self._work.generations or {}).get(s.shard_id, 0) for s in shards}

        def read() -> Iterator[pa.Table]:
            for shard, rows in read_shards(shards, schema, partitions, source.uri, source.format, stores):
                if _stopping(layout):
                    return
                kept = positions[shard.shard_id]
                envelope = Envelope(
                    shard_id=shard.shard_id,
                    generation=generations[shard.shard_id],
                    first_row=shard.first_row,
                    retried=None if kept is None else tuple(kept),
                )
                yield seal(rows if kept is None else rows.take(kept), envelope)

        return read


def _stopping(layout: Layout) -> bool:
    return layout.storage.stat(layout.stop) is not None


def _commit(block: pa.Table, layout: Layout) -> pa.Table:
    """The last stage: a shard's results to its files; gives the record and whether it won."""
    found = []
    if block.num_rows:
        rows, envelope = unseal(block)
        record, retried = envelope.record, envelope.retried
        assert record is not None, "a replica seals each shard with its record"
        won = commit(layout, rows, record) if retried is None else commit_retry(layout, rows, retried, record)
        found.append(json.dumps({"record": record.model_dump(mode="json"), "won": won}))
    return pa.table({"commit": pa.array(found, pa.string())})


def run_shards(job: Job, manifest: Manifest, work: Work) -> Iterator[Committed]:
    """Run the work and give each commit as it happens, in any order. Raises BatchinferError."""
    _set_context()
    with _plain_errors(), replica_arguments(job.plan, SMALL_TASK_CPUS, CPU_REPLICA_CPUS) as arguments:
        commits = _dataset(job, ShardSource(job, manifest, work), arguments)
        yield from _iterate(commits.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))


def _dataset(job: Job, source: ShardSource, arguments: dict[str, Any]) -> Any:
    """Read -> replica -> commit. `arguments` are Ray's for each replica."""
    plan = job.plan
    if plan.min_replicas == plan.max_replicas:
        pool = {"size": plan.min_replicas}
    else:
        pool = {"min_size": plan.min_replicas, "max_size": plan.max_replicas}
    rows = ray.data.read_datasource(
        source,
        override_num_blocks=len(source.get_read_tasks(1)),
        num_cpus=SMALL_TASK_CPUS,
        # So many readers, and one committer for each replica, keep up with any model, and a worker process
        # takes seconds to start: without a limit Ray would start as many as the CPUs divide into.
        concurrency=readers(plan.max_replicas),
    )
    results = rows.map_batches(
        Replica,
        fn_constructor_args=(job, lost_attempts(read_journals(job.layout)), ray_private.attempts_before),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ActorPoolStrategy(
            **pool,
            # What a slow replica holds nobody else can take: no more than it works on, but for the few large shards.
            max_tasks_in_flight_per_actor=shards_held(job.shards_in_flight),
            enable_true_multi_threading=True,
        ),
        max_concurrency=job.shards_in_flight,
        # Losses of processes and machines; an engine that dies is the replica's own business.
        max_restarts=job.spec.limits.max_lost_workers,
        # Restarts are what is counted. Until Ray knows that a node is gone it tries a shard there again and again,
        # and it has given up on a number of tries before it knows.
        max_task_retries=-1,
        **arguments,
    )
    return results.map_batches(
        _commit,
        fn_kwargs={"layout": job.layout},
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=TaskPoolStrategy(size=plan.max_replicas),
        num_cpus=SMALL_TASK_CPUS,
    )


def _iterate(batches: Iterable[pa.Table]) -> Iterator[Committed]:
    for batch in batches:
        for text in batch.column("commit").to_pylist() if batch.num_rows else []:
            found: dict[str, Any] = json.loads(text)
            yield Committed(ShardRecord.model_validate(found["record"]), found["won"])


def _set_context() -> None:
    ray_private.set_data_context(
        DataContext.get_current(),
        # A shard travels as one row (`shard_block.seal`), and no block is to hold two: one block, one task, one shard.
        target_max_block_size=1,
        enable_progress_bars=False,
        # Ray would sum up the maps of every replica's memory once a second, which takes long for an engine's.
        memory_usage_poll_interval_s=None,
        print_on_execution_start=False,
        # They would ask `placement` for an actor's arguments, which makes a placement group, without an actor.
        issue_detectors_config__detectors=[],
        # Of processes killed while they loaded: a model that does not load is no such death (`replica`).
        max_consecutive_actor_init_deaths=_DEATHS_WHILE_LOADING,
        actor_init_retry_on_errors=False,
        # Else Ray Data wraps it in an error of its own whose cause is lost on the way from the worker.
        raise_original_map_exception=True,
    )


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Ray's wrappings off: the error that a worker raised, or an EngineError."""
    try:
        yield
    except Exception as error:
        # Ray wraps what a worker raised in several types of its own, one inside the other; RayTaskError poses
        # as what it wraps.
        seen: BaseException | None = error
        while seen is not None:
            for candidate in (seen, getattr(seen, "cause", None)):
                if isinstance(candidate, BatchinferError) and not isinstance(candidate, ray.exceptions.RayTaskError):
                    raise candidate from error
            seen = getattr(seen, "cause", None) or seen.__cause__
        if isinstance(error, _LOSSES):
            raise WorkersLost(
                f"more workers were lost than limits.max_lost_workers allows: {str(error).splitlines()[0]}",
                "their last messages in the log say why; the same command resumes the run",
            ) from error
        raise


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """On the cluster at `address`, or on one started here that ends, with all its processes, before this
    does, and with this process if it is killed. A connection that this process has already is used."""
    ray_private.require()
    if ray.is_initialized():
        yield
        return
    if address:
        _join(address)
        signals.retake()
        try:
            yield
        finally:
            ray.shutdown()
        return
    # Ray runs its workers at niceness 15: whatever else the machine does would slow the engine down.
    os.environ.setdefault("RAY_worker_niceness", "0")
    with local_cluster.prepared() as folder:
        guard = Guard(DRIVER, uuid.uuid4().hex)
        try:
            with signals.cleaning(guard.end):
                _start_local(folder)
                signals.retake()
                yield
        finally:
            ray.shutdown()
            guard.end()


def _start_local(folder: str) -> None:
    """Start a cluster on this machine; raises ClusterError."""
    for _ in range(_STARTS):
        try:
            # Else Ray joins a cluster that it finds running on this machine, whosever that is.
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=True,
                _node_ip_address=local_cluster.ADDRESS,
                _temp_dir=folder,
            )
            return
        except Exception as error:
            # Ray gives its first node 30 seconds, which a busy machine exceeds, and has no error of its own for it.
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
    raise ClusterError(
        f"Ray did not start on this machine within 30 seconds, {_STARTS} times",
        "the machine is very busy: run the same command again when it is less so",
    )


def _join(address: str) -> None:
    """Connect to the cluster at `address` (host:port of its GCS, or auto); raises ClusterError."""
    if address.startswith(("http://", "https://")):
        raise ClusterError(
            f"{address} is where the cluster takes jobs, not where a driver joins it",
            "`batchinfer submit` sends the job there; `run` on one of its nodes takes --address auto",
        )
    local_cluster.require_reachable(address)
    try:
        ray.init(address=address, log_to_driver=True)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
        told = str(error).strip().splitlines()
        raise ClusterError(
            f"cannot join the cluster at {address}: {told[0] if told else type(error).__name__}",
            "check the address, that it runs Ray " + ray.__version__ + ", and RAY_AUTH_MODE and RAY_AUTH_TOKEN",
        ) from error


def describe_cluster() -> Cluster:
    """What the cluster that this process is connected to has."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return cluster_of(nodes, autoscaled(ray_private.node_types()), avx512=len(nodes) > 1 or has_avx512())


def waits_for(plan: Plan) -> dict[str, dict[str, float]] | None:
    """What the smallest number of replicas needs and what of it is free, where that is not enough now."""
    each = {"GPU": float(plan.num_gpus), "CPU": SMALL_TASK_CPUS} if plan.num_gpus else {"CPU": CPU_REPLICA_CPUS}
    needs = {name: amount * plan.min_replicas for name, amount in each.items()}
    # One reader and one committer run beside them.
    needs["CPU"] = round(needs["CPU"] + 2 * SMALL_TASK_CPUS, 4)
    free = shortage(needs, ray.available_resources())
    return {"needs": {name: needs[name] for name in free}, "free": free} if free else None

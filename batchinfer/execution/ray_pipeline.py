"""The Ray Data wiring, and nothing else: read -> replica -> commit, one block a shard all the way.

The driver iterates over the commits, one row for each. Other modules decide from these rows whether to stop,
report or resume.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Datasource, ReadTask, TaskPoolStrategy
from ray.data.block import BlockMetadata

from batchinfer import events, signals
from batchinfer.accounting.records import ShardRecord
from batchinfer.errors import BatchinferError, ClusterError, ClusterNotStarted, WorkersLost
from batchinfer.execution import local_cluster, ray_private
from batchinfer.execution.job import RunningJob
from batchinfer.execution.placement import replica_arguments
from batchinfer.execution.process_guard import DRIVER, Guard
from batchinfer.execution.progress import Listener
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
"""Deaths in a row after which the run ends: a process that needs too much memory is killed at every load. With one,
a single kill would end the run."""

_STARTS = 3

_LOSSES = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.OutOfMemoryError,
)
"""What Ray raises when the retries of a lost process, worker or object are used up."""


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
    """Shards as blocks: one read task for each group of shards that are read together, longest work first."""

    def __init__(self, job: RunningJob, manifest: Manifest, work: Work) -> None:
        super().__init__()
        if job.spec.limits.max_cost_usd is None:
            self._groups = in_order(work.shards, job.spec.answer_tokens, work.positions)
        else:
            # With a budget, keep the input's order: its first shards are small and show what a shard costs.
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
    def __init__(self, job: RunningJob, schema: pa.Schema, partitions: Sequence[str], work: Work) -> None:
        self._layout = job.layout
        self._input = job.spec.rows_input
        self._stores = job.spec.storage
        self._schema = schema
        self._partitions = partitions
        self._work = work

    def of(self, shards: list[Shard]) -> Callable[[], Iterator[pa.Table]]:
        """The function of one read task; it holds only its own shards, because Ray serializes all it refers to."""
        layout, source, schema, partitions = self._layout, self._input, self._schema, self._partitions
        stores = self._stores
        positions = {s.shard_id: (self._work.positions or {}).get(s.shard_id) for s in shards}
        generations = {s.shard_id: (self._work.generations or {}).get(s.shard_id, 0) for s in shards}

        def read() -> Iterator[pa.Table]:
            for shard, rows in read_shards(shards, schema, partitions, source, stores):
                if _stopping(layout):
                    return
                kept = positions[shard.shard_id]
                envelope = Envelope(
                    shard_id=shard.shard_id,
                    generation=generations[shard.shard_id],
                    first_row=shard.segments[0].place,
                    numbers=shard.scattered_numbers,
                    retried=None if kept is None else tuple(kept),
                )
                yield seal(rows if kept is None else rows.take(kept), envelope)

        return read


def _stopping(layout: Layout) -> bool:
    return layout.storage.stat(layout.stop) is not None


def _commit(block: pa.Table, layout: Layout) -> pa.Table:
    """The last stage: write a shard's results to its files; returns the record and whether the attempt won."""
    found = []
    if block.num_rows:
        rows, envelope = unseal(block)
        record, retried = envelope.record, envelope.retried
        assert record is not None, "a replica seals each shard with its record"
        won = commit(layout, rows, record) if retried is None else commit_retry(layout, rows, retried, record)
        found.append(json.dumps({"record": record.model_dump(mode="json"), "won": won}))
    return pa.table({"commit": pa.array(found, pa.string())})


def run_shards(job: RunningJob, manifest: Manifest, work: Work) -> Iterator[Committed]:
    """Run the work and yield each commit as it happens, in any order. Raises BatchinferError."""
    with (
        _contexts.entered(_context),
        _plain_errors(),
        replica_arguments(job.plan, SMALL_TASK_CPUS, CPU_REPLICA_CPUS) as arguments,
    ):
        commits = _dataset(job, ShardSource(job, manifest, work), arguments)
        yield from _iterate(commits.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))


def _dataset(job: RunningJob, source: ShardSource, arguments: dict[str, Any]) -> Any:
    """Read -> replica -> commit. `arguments` are Ray's arguments for the actor of each replica."""
    plan = job.plan
    if plan.min_replicas == plan.max_replicas:
        pool = {"size": plan.min_replicas}
    else:
        pool = {"min_size": plan.min_replicas, "max_size": plan.max_replicas}
    rows = ray.data.read_datasource(
        source,
        override_num_blocks=len(source.get_read_tasks(1)),
        num_cpus=SMALL_TASK_CPUS,
        # These readers, and one committer for each replica, keep up with any model. Without a limit Ray would start
        # as many as the CPUs allow, and each worker process needs seconds to start.
        concurrency=readers(plan.max_replicas),
    )
    results = rows.map_batches(
        Replica,
        fn_constructor_args=(job, lost_attempts(read_journals(job.layout)), ray_private.attempts_before),
        # One row is one shard. Not None, the whole block: Ray Data refuses that for actors with GPUs.
        batch_size=1,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ActorPoolStrategy(
            **pool,
            # Queued shards cannot move to another replica, so queue no more than it is running (at least five).
            max_tasks_in_flight_per_actor=shards_held(job.shards_in_flight),
            enable_true_multi_threading=True,
        ),
        max_concurrency=job.shards_in_flight,
        # For lost processes and machines; the replica itself replaces an engine that dies.
        max_restarts=job.spec.limits.max_lost_workers,
        # Only restarts are limited. Until Ray notices that a node is gone, it retries the node's shards many times,
        # so any limit on retries would be used up first.
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


class _Shared:
    """A context that the runs of this process share: the first one enters it, and the last one leaves it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stack = contextlib.ExitStack()
        self.users = 0

    @contextlib.contextmanager
    def entered(self, context: Callable[[], contextlib.AbstractContextManager[None]]) -> Iterator[None]:
        with self._lock:
            if not self.users:
                self._stack.enter_context(context())
            self.users += 1
        try:
            yield
        finally:
            with self._lock:
                self.users -= 1
                if not self.users:
                    self._stack.close()


_contexts = _Shared()
_connections = _Shared()


def _context() -> contextlib.AbstractContextManager[None]:
    return ray_private.data_context(
        DataContext.get_current(),
        # A shard travels as one row (`shard_block.seal`), and no block is to hold two: one block, one task, one shard.
        target_max_block_size=1,
        enable_progress_bars=False,
        # Ray would read the memory maps of every replica once a second, which is slow for an engine's many maps.
        memory_usage_poll_interval_s=None,
        print_on_execution_start=False,
        # Issue detectors would call `placement` for an actor's arguments: a placement group would exist without actor.
        issue_detectors_config__detectors=[],
        # Counts processes killed while they loaded; a model that fails to load is reported by `replica` instead.
        max_consecutive_actor_init_deaths=_DEATHS_WHILE_LOADING,
        actor_init_retry_on_errors=False,
        # Otherwise Ray Data wraps a worker's error in its own type, and the cause is lost.
        raise_original_map_exception=True,
    )


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Remove Ray's wrappers: raise the error that a worker raised, or an EngineError."""
    try:
        yield
    except Exception as error:
        # Ray nests a worker's error in several wrappers; RayTaskError is a subclass of the wrapped error's type.
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


def announced(address: str | None, listener: Listener) -> contextlib.AbstractContextManager[None]:
    """`connected`, after an event to `listener`: from then on a signal stops the run instead of the process."""
    signals.let_end(False)
    listener.event("connecting", cluster=address or "a local one, started for this run")
    return connected(address)


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to the cluster at `address`, or start a local cluster; an existing connection is used.

    A local cluster ends with the last such context of this process, and also if this process is killed.
    """
    ray_private.require()
    if ray.is_initialized() and not _connections.users:
        with ray_private.diverted(all_workers=False):
            yield
        return
    with _connections.entered(lambda: _connection(address)):
        yield


@contextlib.contextmanager
def _connection(address: str | None) -> Iterator[None]:
    if address:
        _join(address)
        signals.retake()
        try:
            with ray_private.diverted(all_workers=True):
                yield
        finally:
            ray.shutdown()
        return
    # Ray runs its workers at niceness 15, so any other process of the machine would slow the engine down.
    os.environ.setdefault("RAY_worker_niceness", "0")
    with local_cluster.prepared() as folder:
        guard = Guard(DRIVER, uuid.uuid4().hex)
        try:
            with signals.cleaning(guard.end):
                _start_local(folder)
                signals.retake()
                with ray_private.diverted(all_workers=True):
                    yield
        finally:
            ray.shutdown()
            guard.end()


def _start_local(folder: str) -> None:
    """Start a cluster on this machine; raises ClusterNotStarted."""
    for start in range(1, _STARTS + 1):
        try:
            # Otherwise Ray joins any cluster that runs on this machine, even another user's.
            with ray_private.loopback_only():
                ray.init(
                    address="local",
                    include_dashboard=False,
                    log_to_driver=True,
                    logging_level=ray_private.log_level(),
                    _node_ip_address=local_cluster.ADDRESS,
                    _temp_dir=folder,
                )
            return
        except Exception as error:
            # Ray waits 30 seconds for its first node, which can be too short on a busy machine, and raises no
            # specific error.
            if "timed out during startup" not in str(error):
                raise
            events.tell("cluster not started", start=start, starts=_STARTS)
            ray.shutdown()
    raise ClusterNotStarted(
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
    alone = local_cluster.is_on_loopback_alone(address, ray.util.get_node_ip_address())
    try:
        with ray_private.loopback_only() if alone else contextlib.nullcontext():
            ray.init(address=address, log_to_driver=True, logging_level=ray_private.log_level())
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
        told = str(error).strip().splitlines()
        raise ClusterError(
            f"cannot join the cluster at {address}: {told[0] if told else type(error).__name__}",
            "check the address, that it runs Ray " + ray.__version__ + ", and RAY_AUTH_MODE and RAY_AUTH_TOKEN",
        ) from error


def describe_cluster() -> Cluster:
    """The nodes and devices of the cluster that this process is connected to."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return cluster_of(nodes, autoscaled(ray_private.node_types()), avx512=len(nodes) > 1 or has_avx512())


def waits_for(plan: Plan) -> dict[str, dict[str, float]] | None:
    """What `min_replicas` replicas need and how much of each is free, if that is not enough now; otherwise None."""
    each = {"GPU": float(plan.num_gpus), "CPU": SMALL_TASK_CPUS} if plan.num_gpus else {"CPU": CPU_REPLICA_CPUS}
    needs = {name: amount * plan.min_replicas for name, amount in each.items()}
    # One reader and one committer run beside the replicas.
    needs["CPU"] = round(needs["CPU"] + 2 * SMALL_TASK_CPUS, 4)
    free = shortage(needs, ray.available_resources())
    return {"needs": {name: needs[name] for name in free}, "free": free} if free else None

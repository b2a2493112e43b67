"""The replica: an engine on its GPUs, and several shards in flight."""

from __future__ import annotations

import atexit
import gc
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer import events
from batchinfer.accounting.meter import Meter
from batchinfer.accounting.records import ShardRecord
from batchinfer.engine import Completion, host_processes, start_engine
from batchinfer.engine.supervisor import Supervisor
from batchinfer.errors import BatchinferError, EngineError
from batchinfer.execution.answer_cache import AnswerCache
from batchinfer.execution.asked import Asked
from batchinfer.execution.job import RunningJob
from batchinfer.execution.journal import Clock, Journal
from batchinfer.execution.process_guard import REPLICA, Guard, kill_marked
from batchinfer.execution.replica_events import EventFile
from batchinfer.execution.result_rows import (
    counts,
    evaluate,
    of_steps,
    result_table,
    reuse_counts,
    step_counts,
)
from batchinfer.execution.reuse import Reuse
from batchinfer.execution.row_chunks import ChunkedRows
from batchinfer.execution.row_requests import RequestRows
from batchinfer.execution.row_steps import RowSteps, kept_answers
from batchinfer.execution.shard_block import Envelope, seal, unseal
from batchinfer.execution.token_counter import UNLIMITED, counter, longest_sequence
from batchinfer.jobspec import SCRIPTED, JobSpec
from batchinfer.model.download import is_remote, local_model
from batchinfer.model.resolve import model_facts, tokenizer_folder
from batchinfer.planner import Plan
from batchinfer.prompting.prompts import NO_ANSWERS, Answers, Prompt
from batchinfer.prompting.row_sampling import RowSampling

COLLECTED_AFTER = 50_000
"""New objects before Python collects cycles, instead of 700. A shard's rows are many objects without cycles, which the
collector scans repeatedly: at 700 for half of the time in which such rows are built, at 50,000 for a quarter."""


GROUPS = 16
"""Groups of a shard's rows, each with a thread, that go through `steps` without waiting for one another. With 1, a
shard's slowest answer delays all its next steps; with many more, each call brings the engine a handful of rows."""


class Replica:
    """Ray Data calls one instance from several threads, with one shard each.

    Input and output are blocks of one shard each (`shard_block.seal`). The supervisor (`engine.supervisor`) replaces
    an engine that dies. If the whole process is lost, Ray restarts the actor and retries its shards.
    `lost` counts each shard's attempts in earlier sessions; `attempts` counts this session's lost attempts of the
    shard that the calling thread runs.
    """

    def __init__(self, job: RunningJob, lost: Counter[int], attempts: Callable[[], int]) -> None:
        clock = Clock()
        self._clock = clock
        self._job = job
        self._meter = Meter(job.plan.devices, clock)
        self._lost = lost
        self._attempts = attempts
        self._journal = Journal(job, self._meter)
        self._events = EventFile(job.layout, job.run_id, self._journal.ran.replica_id)
        events.tell("replica started", node=self._journal.ran.node)
        self._guard = Guard(REPLICA, self._journal.ran.replica_id)
        self._names = job.spec.request_names
        # A trial measures each row.
        reuses = job.reuses and not job.timed
        self._reuse = Reuse(repeats=repeats(job)) if reuses else None
        self._cache: AnswerCache | None = None
        if reuses and job.spec.cache is not None:
            self._cache = AnswerCache(job.spec, job.plan, with_local_model)
        self._width = vector_size(job.spec)
        self._engine: Supervisor | BatchinferError
        try:
            engine = self._supervisor()
            try:
                self._program = _program(job.spec, job.plan)
            except BatchinferError:
                engine.close()
                raise
            self._engine = engine
            # Objects loaded by now live as long as the process, so the collector can skip them.
            gc.freeze()
            gc.set_threshold(COLLECTED_AFTER)
            self._journal.ready()
        except BatchinferError as error:
            events.tell("engine not loaded", reason=error.message)
            # The first shard raises the error. Ray cannot distinguish an actor that fails to start from one killed
            # while it started, and only a killed actor should be restarted.
            self._engine = error
        # Not __del__: Ray keeps the instance until the interpreter is partly torn down. Registered after the
        # engine's own handlers, so `_leave` runs before them.
        atexit.register(self._leave)

    def __call__(self, block: pa.Table) -> pa.Table:
        rows, envelope = unseal(block)
        layout = self._job.layout
        if layout.storage.stat(layout.stop) is not None:
            return block.slice(0, 0)
        shard_id = envelope.shard_id
        if isinstance(self._engine, BatchinferError):
            raise self._engine
        self._journal.begin(shard_id)
        started_at_us = self._clock()
        spec = self._job.spec
        earlier = self._earlier(envelope) if spec.steps is not None else None
        kept = NO_ANSWERS if earlier is None else kept_answers(self._program.jobs, earlier)
        asked = Asked(self._engine, envelope, self._names, self._reuse, self._cache)
        answers = self._in_groups(rows, asked, kept) if self._names else self._program.run(rows, asked)
        self._journal.end(shard_id)
        results = result_table(spec, rows, envelope, answers, self._job.timed, self._width, earlier)
        record = self._record(envelope, rows, answers, results, started_at_us, asked)
        return seal(results, envelope.model_copy(update={"record": record}))

    def _earlier(self, envelope: Envelope) -> pa.Table | None:
        """The results of the retried rows before; None for rows that were not tried."""
        if envelope.retried is None:
            return None
        layout = self._job.layout
        with layout.storage.open(layout.data(envelope.shard_id)) as file:
            return pq.read_table(file).take(pa.array(envelope.retried))

    def _in_groups(self, rows: pa.Table, asked: Asked, kept: Answers) -> list[list[Completion]]:
        """The answers of all steps. Groups of rows go on to their next steps without waiting for one another."""
        size = max(1, -(-rows.num_rows // GROUPS))
        starts = range(0, rows.num_rows, size)

        def run(start: int) -> list[list[Completion]]:
            mine = {name: values[start : start + size] for name, values in kept.items()}
            return self._program.run(rows.slice(start, size), asked.group(start), mine)

        with ThreadPoolExecutor(max(1, len(starts)), thread_name_prefix="steps") as pool:
            groups = list(pool.map(run, starts)) or [self._program.run(rows, asked)]
        return [[c for group in groups for c in group[step]] for step in range(len(groups[0]))]

    def _supervisor(self) -> Supervisor:
        job, limits = self._job, self._job.spec.limits
        return Supervisor(
            start=lambda: start_engine(*with_local_model(job.spec, job.plan)),
            kill=lambda: kill_marked(REPLICA, self._journal.ran.replica_id, host_processes()),
            meter=self._meter,
            max_restarts=limits.max_engine_restarts,
            timeout_seconds=limits.engine_timeout_seconds,
            load_seconds=limits.load_timeout_seconds,
            last_words=self._events.write,
        )

    def _record(
        self,
        envelope: Envelope,
        rows: pa.Table,
        answers: Sequence[Sequence[Completion]],
        results: pa.Table,
        started_at_us: int,
        asked: Asked,
    ) -> ShardRecord:
        spec = self._job.spec
        steps = asked.counts()
        if spec.steps is not None:
            # A step counts by rows, also those that failed before they asked; chunks count by requests.
            steps = step_counts(self._program.jobs, answers, asked.step_seconds)
        return ShardRecord(
            **self._journal.ran.ran(),
            shard_id=envelope.shard_id,
            attempt=1 + envelope.generation + self._lost[envelope.shard_id] + self._attempts() + asked.deaths,
            generation=envelope.generation,
            revision=spec.model.revision,
            rows=rows.num_rows,
            started_at_us=started_at_us,
            finished_at_us=asked.reading.at_us,
            gpu_seconds=asked.gpu_seconds,
            **{**counts(results), **reuse_counts(results, answers), **(of_steps(steps) if steps else {})},
            evaluation={} if spec.steps is not None else evaluate(spec, rows, answers[0]),
            meter=asked.reading,
            steps=steps,
        )

    def _leave(self) -> None:
        """The actor exits: end the engine, then write the last seconds to the journal."""
        if isinstance(self._engine, Supervisor):
            self._engine.close()
        self._guard.end()
        if self._cache is not None:
            self._cache.close()
        self._events.close()
        self._journal.close()


def _program(spec: JobSpec, plan: Plan) -> RowSteps | ChunkedRows | RequestRows:
    """What the rows of the job ask. Raises EngineError if the model has no tokenizer to cut texts by."""
    if spec.takes_requests:
        return RequestRows(spec)
    if spec.chunk is None:
        return RowSteps(spec)
    spec, plan = with_local_model(spec, plan)
    folder = tokenizer_folder(spec, plan.checkpoint)
    counters = [counter(folder, job) for job in spec.step_jobs]
    if not counters[0].exact and spec.model.source != SCRIPTED:
        raise EngineError(
            f"{spec.model.source} has no tokenizer.json, and chunk cuts texts by its tokens",
            "save its fast tokenizer into its folder",
        )
    context = longest_sequence(spec, model_facts(spec.model, spec.storage).context, plan)
    return ChunkedRows(spec, counters, context or UNLIMITED)


def repeats(job: RunningJob) -> Callable[[Prompt], bool] | None:
    """Says of a prompt whether its row's sampling gives the same answer again; None if all may be reused."""
    steps = [RowSampling(step) for step in job.spec.step_jobs]
    if job.reuses_drawn or not any(step.sampling_column for step in job.spec.step_jobs):
        return None
    return lambda prompt: steps[prompt.step].of(prompt).repeats_itself


def vector_size(spec: JobSpec) -> int:
    """The numbers of a vector of the job, for shards in which no row has one."""
    if spec.output.embedding_type is None:
        return 1
    return spec.embed.dimensions or model_facts(spec.model, spec.storage).vector_size or 1


def with_local_model(spec: JobSpec, plan: Plan) -> tuple[JobSpec, Plan]:
    """Spec and plan with a local folder for a model that lies in a store; the model is downloaded if necessary."""
    if not is_remote(spec.model.source):
        return spec, plan
    folder = local_model(spec.model.source, spec.storage)
    return (
        spec.model_copy(update={"model": spec.model.model_copy(update={"source": folder})}),
        plan.model_copy(update={"checkpoint": folder}),
    )

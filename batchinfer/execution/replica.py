"""The replica: an engine on its GPUs, several shards in flight, and the journal of its device-seconds."""

from __future__ import annotations

import atexit
import gc
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer import events
from batchinfer.accounting.meter import Meter
from batchinfer.accounting.records import MeterReading, Ran, ReplicaRecord, ShardRecord, StepCount
from batchinfer.engine import Completion, host_processes, start_engine
from batchinfer.engine.supervisor import Supervisor
from batchinfer.errors import BatchinferError, EngineError, StorageError
from batchinfer.execution.answer_cache import AnswerCache
from batchinfer.execution.job import RunningJob
from batchinfer.execution.process_guard import REPLICA, Guard, kill_marked
from batchinfer.execution.replica_events import EventFile
from batchinfer.execution.result_rows import (
    counts,
    evaluate,
    of_steps,
    result_table,
    reuse_counts,
    step_count,
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

JOURNAL_SECONDS = 1.0

COLLECTED_AFTER = 50_000
"""New objects before Python collects cycles, instead of 700. A shard's rows are many objects without cycles, which the
collector scans repeatedly: at 700 for half of the time in which such rows are built, at 50,000 for a quarter."""


NAMED_ROWS = 20
"""Rows that one event names: enough to find the fault. With many more, an event no longer fits on a line."""

GROUPS = 16
"""Groups of a shard's rows, each with a thread, that go through `steps` without waiting for one another. With 1, a
shard's slowest answer delays all its next steps; with many more, each call brings the engine a handful of rows."""


class Clock:
    """Microseconds since 1970 that never go back: wall time at the start, the monotonic clock since."""

    def __init__(self) -> None:
        self._offset = time.time_ns() - time.monotonic_ns()

    def __call__(self) -> int:
        return (time.monotonic_ns() + self._offset) // 1000


class Journal:
    """Writes the replica's record every second, from a thread of its own, until closed."""

    def __init__(self, job: RunningJob, meter: Meter) -> None:
        self.ran = _ran(job)
        self._job = job
        self._meter = meter
        self._ready_at_us: int | None = None
        self._in_flight: Counter[int] = Counter()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.write()
        self._thread = threading.Thread(target=self._beat, name="journal", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._stop.wait(JOURNAL_SECONDS):
            try:
                self.write()
            except StorageError as error:
                # The next record that is written has these seconds, too. Meanwhile no shard begins: `begin` raises.
                events.tell("journal not written", reason=error.message)

    def ready(self) -> None:
        self._ready_at_us = self._meter.ready()
        self.write()

    def begin(self, shard_id: int) -> None:
        """Record that a shard is in flight: from now on a crash counts as an attempt at the shard.

        Raises StorageError if the record cannot be written: a shard without one could be lost without its seconds.
        """
        with self._lock:
            self._in_flight[shard_id] += 1
        self.write()

    def end(self, shard_id: int) -> None:
        with self._lock:
            self._in_flight -= Counter([shard_id])

    def write(self, finished: bool = False) -> None:
        """Write the record as of now."""
        job = self._job
        with self._lock:
            reading = self._meter.reading()
            record = ReplicaRecord(
                **self.ran.ran(),
                started_at_us=self._meter.started_at_us,
                ready_at_us=self._ready_at_us,
                finished_at_us=reading.at_us if finished else None,
                meter=reading,
                shards_in_flight=tuple(sorted(self._in_flight)),
                price_source=job.plan.price_source,
            )
            uri = job.layout.journal(self.ran.replica_id)
            job.layout.storage.put(uri, record.model_dump_json().encode())

    def close(self) -> None:
        """Write the last record."""
        self._stop.set()
        self._thread.join()
        self.write(finished=True)


def _ran(job: RunningJob) -> Ran:
    """What the records of a new replica of the job, on this machine, have in common."""
    spec, plan = job.spec, job.plan
    return Ran(
        replica_id=uuid.uuid4().hex[:12],
        run_id=job.run_id,
        job_name=spec.name,
        node=socket.gethostname(),
        accelerator=plan.accelerator,
        num_gpus=plan.devices,
        model=plan.model,
        quantization=plan.quantization,
        dtype=spec.model.dtype,
        tensor_parallel=plan.tensor_parallel,
        pipeline_parallel=plan.pipeline_parallel,
        price_per_gpu_hour=plan.price_per_gpu_hour,
        labels=spec.labels,
        session=job.session,
    )


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


class Asked:
    """Runs the requests of one shard, and adds up what they cost. Safe to use from several threads.

    `steps`: the names of the requests of a row (`JobSpec.request_names`). `reuse`: the replica's answers to requests
    that may come again, None if each request runs. `cache`: answers of earlier runs, beside `reuse`. `gpu_seconds`:
    device-seconds of the answers. `deaths`: engines that died meanwhile. `reading`: the meter's reading when the last
    call ended.
    """

    def __init__(
        self,
        engine: Supervisor,
        envelope: Envelope,
        steps: Sequence[str],
        reuse: Reuse | None = None,
        cache: AnswerCache | None = None,
    ) -> None:
        self._engine = engine
        self._reuse = reuse
        self._cache = cache
        self._envelope = envelope
        self._steps = steps
        self._lock = threading.Lock()
        self._readings: list[MeterReading] = []
        self.gpu_seconds = 0.0
        self._deaths = Counter[int]()
        self.step_seconds: dict[str, float] = {}
        self._made: dict[str, list[Completion]] = {name: [] for name in steps}

    @property
    def deaths(self) -> int:
        # Each thread that waits for an engine sees its death, so the deaths that one thread saw are counted.
        return max(self._deaths.values(), default=0)

    @property
    def reading(self) -> MeterReading:
        return max(self._readings, key=lambda reading: reading.at_us)

    def __call__(self, prompts: Sequence[Prompt], places: Sequence[int]) -> list[Completion]:
        """The completions of prompts of the rows at `places` of the shard. Raises EngineError."""
        made = self._run(prompts, places) if self._reuse is None else self._reuse(prompts, places, self._first)
        if self._steps:
            with self._lock:
                for prompt, completion in zip(prompts, made, strict=True):
                    self._made[self._steps[prompt.step]].append(completion)
        return made

    def _first(self, prompts: Sequence[Prompt], places: Sequence[int]) -> list[Completion]:
        """The completions of requests that were not asked before in this replica."""
        if self._cache is None:
            return self._run(prompts, places)
        found = self._cache.found(prompts)
        left = [i for i, completion in enumerate(found) if completion is None]
        # Asked also if nothing is left, so that the meter is read.
        ran = iter(self._run([prompts[i] for i in left], [places[i] for i in left]))
        return [next(ran) if completion is None else completion for completion in found]

    def _run(self, prompts: Sequence[Prompt], places: Sequence[int]) -> list[Completion]:
        outcome = self._engine.run(prompts, _Note(self._envelope, places))
        completions = outcome.completed()
        with self._lock:
            self._readings.append(outcome.reading)
            self.gpu_seconds += outcome.gpu_seconds
            self._deaths[threading.get_ident()] += outcome.deaths
            if prompts and self._steps:
                self._share(prompts, completions, outcome.gpu_seconds)
        if self._cache is not None:
            self._cache.keep(prompts, completions, outcome.gpu_seconds)
        return completions

    def counts(self) -> dict[str, StepCount]:
        """What each kind of request did."""
        return {name: step_count(made, self.step_seconds.get(name, 0.0)) for name, made in self._made.items()}

    def group(self, start: int) -> Callable[[Sequence[Prompt], Sequence[int]], list[Completion]]:
        """The same for places that are counted from `start`."""
        return lambda prompts, places: self(prompts, [start + place for place in places])

    def _share(self, prompts: Sequence[Prompt], completions: Sequence[Completion], gpu_seconds: float) -> None:
        """Share out device-seconds among steps, by how long the engine had their requests."""
        weights: dict[int, float] = {}
        for prompt, completion in zip(prompts, completions, strict=True):
            weights[prompt.step] = weights.get(prompt.step, 0.0) + completion.seconds
        whole = sum(weights.values())
        for step, weight in weights.items():
            part = weight / whole if whole else 1 / len(weights)
            name = self._steps[step]
            self.step_seconds[name] = self.step_seconds.get(name, 0.0) + gpu_seconds * part


class _Note:
    """Emits events of one shard, with positions among the engine's prompts converted to rows of the input."""

    def __init__(self, envelope: Envelope, places: Sequence[int]) -> None:
        self._envelope = envelope
        self._places = places

    def __call__(self, name: str, **values: Any) -> None:
        if "rows" in values:
            values["rows"] = [self._row(place) for place in values["rows"][:NAMED_ROWS]]
        if "row" in values:
            values["row"] = self._row(values["row"])
        events.tell(name, shard_id=self._envelope.shard_id, **values)

    def _row(self, place: int) -> int:
        position = self._places[place]
        retried = self._envelope.retried
        return self._envelope.number(position if retried is None else retried[position])


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

"""The journal of a replica: the record of its device-seconds, written again every second."""

from __future__ import annotations

import socket
import threading
import time
import uuid
from collections import Counter

from batchinfer import events
from batchinfer.accounting.meter import Meter
from batchinfer.accounting.records import Ran, ReplicaRecord
from batchinfer.errors import StorageError
from batchinfer.execution.job import RunningJob

JOURNAL_SECONDS = 1.0


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

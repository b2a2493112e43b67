"""Where a replica's device-seconds go: to which shard, and which are load or idle.

The time between two events is divided among the shards by their rows in the engine. A shard whose rows are all
queued outside the engine pays nothing. `engine.pump` adds rows only as others finish, so the rows in the engine are
those that run and a few that are next. While the engine has no row, the time is idle, even if the replica makes
prompts or writes results.

The shares of an interval add up to the interval, so the ledger's law holds by construction up to
floating point: load + busy + idle = lifetime x devices, and busy is the sum of all shards' shares.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from batchinfer.accounting.records import MeterReading


@dataclass(slots=True)
class _InFlight:
    unfinished: int
    gpu_seconds: float = 0.0


class Meter:
    """Device-seconds of one replica. Thread-safe.

    `devices`: GPUs of the replica; a CPU replica counts as one. `clock` returns microseconds and never goes back.
    """

    def __init__(self, devices: int, clock: Callable[[], int]) -> None:
        self._devices = devices
        self._clock = clock
        self._lock = threading.Lock()
        self._shards: dict[object, _InFlight] = {}
        self._last_us = self.started_at_us = clock()
        self._ready = False
        self._load = self._busy = self._idle = 0.0

    def ready(self) -> int:
        """End the load time: the engine accepts rows. Returns the clock's microseconds."""
        with self._lock:
            self._pass()
            self._ready = True
            return self._last_us

    def loading(self) -> None:
        """The engine restarts: the time until `ready` is load time."""
        with self._lock:
            self._pass()
            self._ready = False

    def begin(self, key: object, rows: int) -> int:
        """A shard's first rows enter the engine. Returns the clock's microseconds."""
        with self._lock:
            self._pass()
            self._shards[key] = _InFlight(rows)
            return self._last_us

    def entered(self, key: object, rows: int) -> None:
        """Further rows of the shard entered the engine."""
        with self._lock:
            self._pass()
            self._shards[key].unfinished += rows

    def finished(self, key: object, rows: int) -> None:
        """Rows of the shard left the engine."""
        with self._lock:
            self._pass()
            self._shards[key].unfinished -= rows

    def end(self, key: object) -> tuple[float, MeterReading]:
        """End a shard. Returns its device-seconds and the replica's reading."""
        with self._lock:
            self._pass()
            return self._shards.pop(key).gpu_seconds, self._read()

    def reading(self) -> MeterReading:
        """The replica's reading up to now."""
        with self._lock:
            self._pass()
            return self._read()

    def _read(self) -> MeterReading:
        return MeterReading(
            at_us=self._last_us, load_seconds=self._load, busy_seconds=self._busy, idle_seconds=self._idle
        )

    def _pass(self) -> None:
        now = self._clock()
        seconds = (now - self._last_us) / 1e6 * self._devices
        self._last_us = now
        if not self._ready:
            self._load += seconds
            return
        rows = sum(shard.unfinished for shard in self._shards.values())
        if not rows:
            self._idle += seconds
            return
        self._busy += seconds
        for shard in self._shards.values():
            shard.gpu_seconds += seconds * shard.unfinished / rows

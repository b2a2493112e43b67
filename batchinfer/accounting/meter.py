"""Where a replica's device-seconds go: to which shard, and which are load or idle.

How a second is shared. The time between two events is divided among the shards by how many of their rows
are in the engine: a shard whose rows all wait behind another's pays nothing, two that run side by side pay by
their rows. The engine is handed rows as it gets through them (`engine.pump`), so that those in it are those that
run, and a few that are next. While it has no row at all, the time is idle, whatever else the replica does (making
prompts, writing results).

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

    `devices` is the number of devices that pass a second each second (a CPU replica counts as one),
    `clock` gives microseconds and never goes back.
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
        """The engine can take rows: ends the load time. Returns the moment in microseconds."""
        with self._lock:
            self._pass()
            self._ready = True
            return self._last_us

    def loading(self) -> None:
        """The engine is being started again: what passes from now on is load time."""
        with self._lock:
            self._pass()
            self._ready = False

    def begin(self, key: object, rows: int) -> int:
        """A shard's first rows enter the engine. Returns the moment in microseconds."""
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
        """The shard is done: its device-seconds, and the replica's reading at this moment."""
        with self._lock:
            self._pass()
            return self._shards.pop(key).gpu_seconds, self._read()

    def reading(self) -> MeterReading:
        """Where the time has gone up to now."""
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

"""Keeps an engine running: restarts an engine that died or hangs, and isolates the rows that kill it.

The engine is a separate process, and its death loses only the rows in it. So it is replaced inside the replica, where
the facts about its rows stay in memory. Lost machines are handled by Ray and have a separate budget.

Isolating the row: when an engine dies, the rows in it are suspects; queued rows are not. The suspects of each call run
alone in the next engine. Rows that succeed are kept. If the engine dies again, the batch is split into quarters until
the failing row is found. A row that ran alone when the engine died twice is set aside as `engine_killed`. One such row
among n costs at most 4 + log_4 n engines. Quarters need few engines, because loading one takes minutes and running a
part only the time of an answer.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from batchinfer import events
from batchinfer.accounting.meter import Meter
from batchinfer.accounting.records import MeterReading
from batchinfer.engine.base import Completion, Engine, EngineDied
from batchinfer.errors import EngineError, RowError
from batchinfer.prompting.prompts import Prompt

PARTS = 4
DEATHS_OF_A_ROW = 2
"""Deaths of the engine, with one row alone in it, before the row is set aside. 1 would set rows aside for an unrelated
crash, more costs a restart for each bad row."""

WATCH_SECONDS = 1.0
UNKILLABLE_SECONDS = 60.0
HUNG_EXIT = 17
"""The exit code of a replica whose engine still hangs after its processes were killed."""


Note = Callable[..., None]
"""Reports an event of one call by name and values; `rows` and `row` are positions among the call's prompts."""


class Stall:
    """Measures for how long an engine with rows has made no progress."""

    def __init__(self) -> None:
        self._seen: object = None
        self._since = 0.0

    def seconds(self, now: float, rows: int, state: object) -> float:
        """Seconds up to `now` (monotonic) with the same number of rows and the same state; 0 without rows."""
        if rows == 0 or self._seen != (rows, state):
            self._seen = (rows, state)
            self._since = now
        return now - self._since


@dataclass(slots=True)
class Outcome:
    """The result of one call.

    `completions`: in order. `gpu_seconds`: device-seconds of the kept completions. `deaths`: engines that died during
    the call. `reading`: the meter's reading when the call ended. `note`: reports events about the call's rows.
    """

    completions: list[Completion | None]
    gpu_seconds: float
    deaths: int
    reading: MeterReading
    note: Note

    def completed(self) -> list[Completion]:
        """The completions; one for each prompt once `Supervisor.run` has returned."""
        return [completion for completion in self.completions if completion is not None]


def cut(places: list[int]) -> list[list[int]]:
    """Split rows into at most PARTS parts of equal size, except for the last."""
    size = max(1, -(-len(places) // PARTS))
    return [places[i : i + size] for i in range(0, len(places), size)]


class Supervisor:
    """An engine that is restarted when it dies. Safe to use from several threads at once.

    `start` makes an engine, or raises EngineError. `kill` ends all processes of the engine. `last_words` writes pending
    events before this process exits because of a hung engine. If the first engine does not load, its error is raised
    without a retry, because the model is most likely wrong.
    """

    def __init__(
        self,
        start: Callable[[], Engine],
        kill: Callable[[], None],
        meter: Meter,
        max_restarts: int,
        timeout_seconds: float,
        load_seconds: float = 3600.0,
        last_words: Callable[[], None] = lambda: None,
    ) -> None:
        self._start = start
        self._kill = kill
        self._meter = meter
        self._max_restarts = max_restarts
        self._timeout = timeout_seconds
        self._load_seconds = load_seconds
        self._last_words = last_words
        began = time.monotonic()
        self._engine = self._loaded()
        events.tell("engine ready", seconds=round(time.monotonic() - began, 1))
        self._deaths = 0
        self._dead = False
        self._failure: EngineError | None = None
        self._starting = threading.Lock()
        # `_sharing`: calls that share the engine. `_suspects`: calls that wait for it alone, or have it (`_taken`).
        self._changed = threading.Condition()
        self._sharing = 0
        self._suspects = 0
        self._taken = False
        self._unfinished: dict[object, int] = {}
        self._ended = threading.Event()
        threading.Thread(target=self._watch, name="engine-watch", daemon=True).start()

    def run(self, prompts: Sequence[Prompt], note: Note = events.tell) -> Outcome:
        """The completions of all prompts. Raises EngineError if the engine died more than `max_restarts` times."""
        outcome = Outcome([None] * len(prompts), 0.0, 0, self._meter.reading(), note)
        suspects, waiting = self._among_others(prompts, list(range(len(prompts))), outcome)
        while suspects or waiting:
            if suspects:
                with self._alone():
                    self._isolate(prompts, suspects, outcome)
            suspects, waiting = self._among_others(prompts, waiting, outcome) if waiting else ([], [])
        return outcome

    def close(self) -> None:
        """End the engine and all its processes."""
        self._failure = self._failure or EngineError("the replica is leaving")
        self._ended.set()
        self._engine.close()

    def _among_others(
        self, prompts: Sequence[Prompt], places: list[int], outcome: Outcome
    ) -> tuple[list[int], list[int]]:
        """As `_attempt`, in an engine shared with other calls, after all calls with suspects have ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._suspects == 0)
            self._sharing += 1
        suspects: list[int] = []
        try:
            suspects, waiting = self._attempt(prompts, places, outcome)
        finally:
            with self._changed:
                self._sharing -= 1
                # Counted under the same lock, so that no other call enters before the suspects have run alone.
                self._suspects += bool(suspects)
                self._changed.notify_all()
        return suspects, waiting

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._sharing == 0 and not self._taken)
            self._taken = True
        try:
            yield
        finally:
            with self._changed:
                self._taken = False
                self._suspects -= 1
                self._changed.notify_all()

    def _isolate(self, prompts: Sequence[Prompt], places: list[int], outcome: Outcome, deaths: int = 0) -> None:
        """Run rows alone in the engine, and split them until every row has a completion.

        `deaths`: how often the engine died with `places`, a single row, alone in it.
        """
        suspects, waiting = self._attempt(prompts, places, outcome)
        left = sorted(suspects + waiting)
        if not left:
            return
        if len(left) > 1:
            parts = cut(left)
            outcome.note("suspects split", rows=left, rows_suspect=len(left), parts=len(parts))
            for part in parts:
                self._isolate(prompts, part, outcome)
        elif deaths + 1 < DEATHS_OF_A_ROW:
            self._isolate(prompts, left, outcome, deaths + 1)
        else:
            error = RowError("engine_killed", f"the engine died {DEATHS_OF_A_ROW} times while it ran this row alone")
            outcome.completions[left[0]] = Completion.failed(error)
            outcome.note("row set aside", row=left[0], deaths=DEATHS_OF_A_ROW)

    def _attempt(self, prompts: Sequence[Prompt], places: list[int], outcome: Outcome) -> tuple[list[int], list[int]]:
        """Run the rows at `places`. If the engine dies: the places that were in it, and the places still queued."""
        self._revive()
        engine, key = self._engine, object()
        entered = left = 0
        self._meter.begin(key, 0)
        self._unfinished[key] = len(places)

        def begun(rows: int) -> None:
            nonlocal entered
            entered += rows
            self._meter.entered(key, rows)

        def finished(rows: int) -> None:
            nonlocal left
            left += rows
            self._meter.finished(key, rows)
            self._unfinished[key] -= rows

        died: EngineDied | None = None
        completions: Sequence[Completion | None]
        try:
            completions = engine.generate([prompts[place] for place in places], begun, finished)
        except EngineDied as death:
            died, completions = death, death.completions
        for place, completion in zip(places, completions, strict=True):
            outcome.completions[place] = completion
        seconds, outcome.reading = self._meter.end(key)
        del self._unfinished[key]
        # Rows that finished before the engine died are kept. The time of the other rows is waste, charged to no shard.
        kept = min(left, sum(completion is not None for completion in completions))
        outcome.gpu_seconds += seconds * (kept / entered if entered else 1.0)
        if died is None:
            return [], []
        outcome.deaths += 1
        self._note_death(engine, died)
        running = {places[i] for i in died.running}
        missing = [place for place in places if outcome.completions[place] is None]
        suspects, waiting = [p for p in missing if p in running], [p for p in missing if p not in running]
        outcome.note(
            "engine died", reason=str(died), rows=suspects, rows_suspect=len(suspects), rows_waiting=len(waiting)
        )
        return suspects, waiting

    def _note_death(self, engine: Engine, death: EngineDied) -> None:
        with self._changed:
            if engine is self._engine and not self._dead:
                self._dead = True
                self._deaths += 1
                if self._deaths > self._max_restarts:
                    self._failure = self._failure or self._too_often(death)

    def _too_often(self, reason: Exception) -> EngineError:
        return EngineError(
            f"the engine died {self._deaths} times, more often than limits.max_engine_restarts "
            f"({self._max_restarts}) allows; at last of: {reason}",
            "its messages in the log say why; the same command resumes the run",
        )

    def _revive(self) -> None:
        """Restart the engine if it is dead. A failed load is retried here, because the model has loaded before."""
        with self._starting:
            while self._dead or self._failure is not None:
                if self._failure is not None:
                    raise self._failure
                self._meter.loading()
                events.tell("engine restarting", restart=self._deaths, max_restarts=self._max_restarts)
                began = time.monotonic()
                self._kill()
                # Errors of closing a dead engine do not matter: its processes were killed before.
                with contextlib.suppress(Exception):
                    self._engine.close()
                try:
                    self._engine = self._loaded()
                except EngineError as error:
                    self._deaths += 1
                    events.tell("engine died", reason=str(error), rows=[], rows_suspect=0, rows_waiting=0)
                    if self._deaths > self._max_restarts:
                        self._failure = self._too_often(error)
                    continue
                self._meter.ready()
                self._dead = False
                events.tell("engine ready", seconds=round(time.monotonic() - began, 1))

    def _loaded(self) -> Engine:
        """A new engine. Raises EngineError, also if loading takes longer than `load_seconds`."""
        made: list[Engine | Exception] = []

        def load() -> None:
            try:
                made.append(self._start())
            except Exception as error:
                # Raised again in the waiting thread: an error that ended only this thread would look like a timeout.
                made.append(error)

        loading = threading.Thread(target=load, name="engine-load", daemon=True)
        loading.start()
        loading.join(self._load_seconds)
        if not made:
            # A load inside this process cannot be killed; its thread is abandoned.
            self._kill()
            raise EngineError(
                f"the engine was not loaded within limits.load_timeout_seconds ({self._load_seconds:g})",
                "its messages in the log show how far it got; raise that limit if loading only needs longer",
            )
        if isinstance(made[0], Exception):
            raise made[0]
        return made[0]

    def _watch(self) -> None:
        """Kill an engine without progress, so that its callers get EngineDied."""
        stall, told = Stall(), -1
        while not self._ended.wait(min(WATCH_SECONDS, self._timeout / 4)):
            rows = sum(list(self._unfinished.values()))
            still = stall.seconds(time.monotonic(), rows, (self._deaths, self._engine.steps))
            if still >= self._timeout + UNKILLABLE_SECONDS:
                # The engine hangs inside this process, so the process exits and Ray restarts the replica.
                events.tell("replica hangs", seconds=round(still, 1))
                self._last_words()
                os._exit(HUNG_EXIT)
            if still >= self._timeout and not self._dead:
                if told != self._deaths:
                    told = self._deaths
                    events.tell("engine hangs", seconds=round(still, 1), rows_unfinished=rows)
                self._kill()

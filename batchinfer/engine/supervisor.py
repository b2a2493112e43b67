"""Keeps an engine running: starts it again when it has died or hangs, and finds the rows that kill it.

The engine is a process of its own and its death loses no more than the rows in it, so it is replaced
inside the replica: what is known about its rows stays in memory, and losses of machines, which are
Ray's business, have a budget of their own.

Who is to blame. When an engine dies, the rows that were in it are suspect, those that waited are not. The suspects
of each call get the next engine to themselves: innocent ones pass whole, those that kill it again are cut into
parts, which run one after another, down to the single row. A row that was the only one left when the engine died
twice is set aside as `engine_killed`. Rows that had been finished are kept. One such row among n costs at most
4 + log_4 n engines, since parts are quarters: a part takes the time of an answer, an engine minutes to load.
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
"""After so many an innocent row would have to have met two unlucky machines on its own."""

WATCH_SECONDS = 1.0
UNKILLABLE_SECONDS = 60.0
HUNG_EXIT = 17
"""Exit code of a replica whose engine hangs in a way that killing processes does not end."""


Note = Callable[..., None]
"""Takes an event's name and values of one call; in `rows` and `row` are places among the call's prompts."""


class Stall:
    """How long an engine that has rows has not moved."""

    def __init__(self) -> None:
        self._seen: object = None
        self._since = 0.0

    def seconds(self, now: float, rows: int, state: object) -> float:
        """Seconds up to `now` (monotonic) in which it had the same rows and the same state; 0 without rows."""
        if rows == 0 or self._seen != (rows, state):
            self._seen = (rows, state)
            self._since = now
        return now - self._since


@dataclass(slots=True)
class Outcome:
    """What became of one call: its completions in order, the device-seconds that made them, how many
    engines died under it, and the meter's reading when the engine was done with it. `note` hears of its rows."""

    completions: list[Completion | None]
    gpu_seconds: float
    deaths: int
    reading: MeterReading
    note: Note

    def completed(self) -> list[Completion]:
        """The completions; each is there once `Supervisor.run` has returned."""
        return [completion for completion in self.completions if completion is not None]


def cut(places: list[int]) -> list[list[int]]:
    """The rows of a call that killed the engine, in parts of at most a quarter."""
    size = max(1, -(-len(places) // PARTS))
    return [places[i : i + size] for i in range(0, len(places), size)]


class Supervisor:
    """An engine that any number of threads may ask at once and that outlives its own death.

    `start` makes an engine, or raises EngineError; `kill` ends all processes that it started; `last_words` writes down
    what was told, before the process ends over an engine that hangs in it. The first engine that does not start is
    not tried again: a model that does not load once will not load twice.
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
        # Who is where: calls that share the engine, calls that wait for it or have it alone.
        self._changed = threading.Condition()
        self._sharing = 0
        self._suspects = 0
        self._taken = False
        self._unfinished: dict[object, int] = {}
        self._ended = threading.Event()
        threading.Thread(target=self._watch, name="engine-watch", daemon=True).start()

    def run(self, prompts: Sequence[Prompt], note: Note = events.tell) -> Outcome:
        """The completions of all prompts. Raises EngineError once the engine has died too often."""
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
        """Ask an engine that others ask too, once it has no suspects. As `_attempt`."""
        with self._changed:
            self._changed.wait_for(lambda: self._suspects == 0)
            self._sharing += 1
        suspects: list[int] = []
        try:
            suspects, waiting = self._attempt(prompts, places, outcome)
        finally:
            with self._changed:
                self._sharing -= 1
                # At once: until the suspects are through, nobody else comes in.
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
        """Run rows of a call that has the engine to itself, cut up as far as it takes."""
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
        """Ask the engine for the rows at `places`. If it dies: the places that were in it, and those that waited."""
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
        # What the engine finished before it died is kept; the time of the rest is waste, in no shard's account.
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
        """Start the engine again if it is dead. A model that has loaded before is given further chances."""
        with self._starting:
            while self._dead or self._failure is not None:
                if self._failure is not None:
                    raise self._failure
                self._meter.loading()
                events.tell("engine restarting", restart=self._deaths, max_restarts=self._max_restarts)
                began = time.monotonic()
                self._kill()
                # It is dead: whatever it says on being closed, its processes are gone already.
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
        """A new engine. Raises EngineError, also when it takes longer to load than it may."""
        made: list[Engine | Exception] = []

        def load() -> None:
            try:
                made.append(self._start())
            except Exception as error:
                # Raised again in the thread that waits: an error that ended only this thread would read as a hang.
                made.append(error)

        loading = threading.Thread(target=load, name="engine-load", daemon=True)
        loading.start()
        loading.join(self._load_seconds)
        if not made:
            # What loads in this very process is left to itself; the replica ends over it or starts the next one.
            self._kill()
            raise EngineError(
                f"the engine was not loaded within limits.load_timeout_seconds ({self._load_seconds:g})",
                "its messages in the log say how far it came; raise that limit if it only needs longer",
            )
        if isinstance(made[0], Exception):
            raise made[0]
        return made[0]

    def _watch(self) -> None:
        """Kill an engine that stands still: whoever waits for it then sees it dead."""
        stall, told = Stall(), -1
        while not self._ended.wait(min(WATCH_SECONDS, self._timeout / 4)):
            rows = sum(list(self._unfinished.values()))
            still = stall.seconds(time.monotonic(), rows, (self._deaths, self._engine.steps))
            if still >= self._timeout + UNKILLABLE_SECONDS:
                # It hangs inside this very process. Ray starts the replica again.
                events.tell("replica hangs", seconds=round(still, 1))
                self._last_words()
                os._exit(HUNG_EXIT)
            if still >= self._timeout and not self._dead:
                if told != self._deaths:
                    told = self._deaths
                    events.tell("engine hangs", seconds=round(still, 1), rows_unfinished=rows)
                self._kill()

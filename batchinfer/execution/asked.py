"""What a shard asks of the engine, and what that cost."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from batchinfer import events
from batchinfer.accounting.records import MeterReading, StepCount
from batchinfer.engine import Completion
from batchinfer.engine.supervisor import Supervisor
from batchinfer.execution.answer_cache import AnswerCache
from batchinfer.execution.result_rows import (
    step_count,
)
from batchinfer.execution.reuse import Reuse
from batchinfer.execution.shard_block import Envelope
from batchinfer.prompting.prompts import Prompt

NAMED_ROWS = 20
"""Rows that one event names: enough to find the fault. With many more, an event no longer fits on a line."""


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

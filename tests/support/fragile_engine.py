"""Engines that die of rows or by accident, under a supervisor, in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence

from batchinfer.accounting.meter import Meter
from batchinfer.engine.base import Completion, EngineDied
from batchinfer.engine.supervisor import Supervisor
from batchinfer.prompting.prompts import Prompt


class Machine:
    """Makes engines that die of poison, and of what `accidents` says: after how many calls, in turn."""

    def __init__(self, slots: int, poison: Collection[str], accidents: Sequence[int] = ()) -> None:
        self.slots = slots
        self.poison = set(poison)
        self.accidents = list(accidents)
        self.started = 0
        self.asked: list[list[str]] = []

    def start(self) -> FragileEngine:
        self.started += 1
        return FragileEngine(self, self.accidents.pop(0) if self.accidents else None)

    def kill(self) -> None:
        pass


class FragileEngine:
    """Runs `slots` rows at a time; all that were running with a poisonous one are lost with it."""

    def __init__(self, machine: Machine, calls: int | None) -> None:
        self._machine = machine
        self._calls = calls
        self._dead = False
        self.slots = machine.slots
        self.steps = 0

    def generate(
        self, prompts: Sequence[Prompt], begun: Callable[[int], None], finished: Callable[[int], None]
    ) -> list[Completion]:
        self._machine.asked.append([prompt.text for prompt in prompts])
        done: list[Completion] = []
        if self._calls is not None:
            self._calls -= 1
        for start in range(0, len(prompts), self.slots):
            rows = [prompt.text for prompt in prompts[start : start + self.slots]]
            begun(len(rows))
            if self._dead or self._calls == 0 or self._machine.poison & set(rows):
                self._dead = True
                missing = [None] * (len(prompts) - len(done))
                raise EngineDied("dead", [*done, *missing], range(start, start + len(rows)))
            self.steps += 1
            done += [Completion([row], ["stop"], 1, 0, 1) for row in rows]
            finished(len(rows))
        return done

    def close(self) -> None:
        self._dead = True


def supervised(machine: Machine, max_restarts: int = 10_000) -> tuple[Supervisor, Meter]:
    meter = Meter(1, lambda: time.monotonic_ns() // 1000)
    supervisor = Supervisor(machine.start, machine.kill, meter, max_restarts, timeout_seconds=600)
    meter.ready()
    return supervisor, meter


def prompts_of(rows: Iterable[str]) -> list[Prompt]:
    return [Prompt(text=row) for row in rows]

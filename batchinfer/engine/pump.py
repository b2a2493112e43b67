"""One thread that keeps a vLLM engine stepping for requests from many threads.

`LLMEngine` is not thread-safe, and threads that step it for their own requests only would drain it between shards. So
a single thread owns the engine: it reads requests from a queue, adds some, steps, and returns finished requests to the
callers.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from batchinfer.engine.prefix_order import PrefixOrder
from batchinfer.engine.vllm_private import Capacity, Core

_ADDED_PER_STEP = 256
"""Requests added before each step, at about 0.1 ms each. More would delay finished requests, fewer would leave slots
of the engine empty."""


@dataclass(frozen=True, slots=True)
class Request:
    """One row for vLLM: its input (token ids), its sampling parameters, and the text for the prefix order."""

    prompt: Any
    params: Any
    text: str


class Batch:
    """Requests of one caller. `results`: vLLM's output or the exception for each request, None until it has one."""

    def __init__(
        self, requests: Sequence[Request], begun: Callable[[int], None], finished: Callable[[int], None]
    ) -> None:
        self.requests = requests
        self.results: list[Any] = [None] * len(requests)
        self.entered = bytearray(len(requests))
        self.seconds = [0.0] * len(requests)
        """How long each request was in the engine."""
        self.begun = begun
        self.finished = finished
        self.remaining = len(requests)
        self.done = threading.Event()

    def running(self) -> list[int]:
        """The positions of the requests that are in the engine."""
        return [i for i, entered in enumerate(self.entered) if entered and self.results[i] is None]


class Pump:
    """Owns `engine` (a vLLM LLMEngine) from now on; every request uses `lora`, a LoRARequest.

    The engine receives about twice what its slots and its KV cache hold. The other requests stay queued here, where
    `prefix_order` can still place rows of later shards beside them. `linger`: seconds that an idle engine waits for
    further shards after the first, because rows that have entered the engine cannot be reordered.
    """

    def __init__(self, engine: Any, lora: Any = None, linger: float = 0.0) -> None:
        self._engine = engine
        self._lora = lora
        self._queue: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._linger = linger
        self._core = Core(engine)
        capacity = Capacity(engine)
        self._waiting: PrefixOrder[Batch] = PrefixOrder(capacity.block_tokens)
        self._most_rows: int = 2 * capacity.rows + _ADDED_PER_STEP
        self._most_tokens = 2 * (capacity.blocks or 2**31) * capacity.block_tokens
        self._running: dict[str, tuple[Batch, int, int, float]] = {}
        """By request id: the batch, the place there, the tokens, and when it entered."""
        self._tokens = 0
        self._numbers = iter(range(2**63))
        self._death: BaseException | None = None
        self.steps = 0
        self._thread = threading.Thread(target=self._run, name="engine-pump", daemon=True)
        self._thread.start()

    def run(self, requests: Sequence[Request], begun: Callable[[int], None], finished: Callable[[int], None]) -> Batch:
        """The requests with their results. A result is None if the engine died before; `death` is then the cause.

        Calls `begun(rows)` as rows enter the engine, and `finished(rows)` as they leave it.
        """
        batch = Batch(requests, begun, finished)
        if requests:
            self._queue.put(batch)
            while self._death is None and not batch.done.wait(timeout=1.0):
                self._notice_death()
        return batch

    @property
    def death(self) -> str | None:
        """Why the engine died; None while it lives."""
        return None if self._death is None else f"{type(self._death).__name__}: {self._death}"

    def _notice_death(self) -> None:
        """Look whether vLLM's process was killed: vLLM's client notices, but does not wake a step that waits for an
        answer."""
        death = self._core.death()
        if death is not None:
            self._death = death

    def close(self) -> None:
        """End the thread, then the engine with its processes."""
        self._queue.put(None)
        if self._death is not None:
            # The thread may still wait for an answer of the dead process.
            self._core.wake(self._death)
        self._thread.join(timeout=30)
        self._core.shutdown()

    def _run(self) -> None:
        try:
            while self._take():
                self._add()
                if self._running:
                    outputs = self._engine.step()
                    self.steps += 1
                    self._dispatch(outputs)
        except BaseException as error:
            # After any exception the engine's state is unknown, so it counts as dead.
            self._death = error
            for batch in [*(batch for batch, *_ in self._running.values()), *self._waiting.rest()]:
                batch.done.set()

    def _take(self) -> bool:
        """Move new batches to the queued requests; blocks while there is nothing to do. False: stop."""
        idle = not self._waiting and not self._running
        wait = None if idle else 0.0
        while True:
            try:
                batch = self._queue.get(block=wait != 0, timeout=wait)
            except queue.Empty:
                return True
            if batch is None:
                return False
            self._waiting.add(batch, [request.text for request in batch.requests])
            wait = self._linger if idle else 0.0

    def _add(self) -> None:
        entered: Counter[Batch] = Counter()
        refused: Counter[Batch] = Counter()
        while self._waiting and self._has_room() and entered.total() < _ADDED_PER_STEP:
            batch, i, shared = self._waiting.pop()
            request = batch.requests[i]
            request_id = str(next(self._numbers))
            batch.entered[i] = True
            entered[batch] += 1
            try:
                self._engine.add_request(request_id, request.prompt, request.params, lora_request=self._lora)
            except Exception as error:
                if self._core.death() is not None:
                    raise
                # vLLM validates a request in this process before the engine has it. An exception of any type is about
                # this request only.
                batch.results[i] = error
                refused[batch] += 1
            else:
                # The common prefix with the previous request is in the KV cache already.
                tokens = round(len(request.prompt["prompt_token_ids"]) * (1 - shared))
                self._running[request_id] = (batch, i, tokens, time.monotonic())
                self._tokens += tokens
        for batch, rows in entered.items():
            batch.begun(rows)
        self._count(refused)

    def _has_room(self) -> bool:
        return len(self._running) < self._most_rows and self._tokens < self._most_tokens

    def _dispatch(self, outputs: Sequence[Any]) -> None:
        done: Counter[Batch] = Counter()
        now = time.monotonic()
        for output in outputs:
            if output.finished:
                batch, i, tokens, entered_at = self._running.pop(output.request_id)
                batch.seconds[i] = now - entered_at
                self._tokens -= tokens
                batch.results[i] = output
                done[batch] += 1
        self._count(done)

    def _count(self, done: Counter[Batch]) -> None:
        for batch, rows in done.items():
            batch.finished(rows)
            batch.remaining -= rows
            if batch.remaining == 0:
                batch.done.set()

"""One thread that keeps a vLLM engine stepping while any number of threads hand it requests.

`LLMEngine` is not thread-safe, and a thread that waits for its own requests only would let the engine
drain between shards. So a single thread owns it: it takes requests from a queue, adds some, steps, and
hands finished requests to whoever waits for them.
"""

from __future__ import annotations

import collections
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

_ADDED_PER_STEP = 256
"""Adding a request takes about 0.1 ms: more at once would leave finished ones waiting."""


class Batch:
    """Requests of one caller. `results` holds vLLM's output, or the exception that refused a request."""

    def __init__(self, requests: Sequence[tuple[Any, Any]], finished: Callable[[int], None]) -> None:
        self.requests = requests
        self.results: list[Any] = [None] * len(requests)
        self.finished = finished
        self.remaining = len(requests)
        self.done = threading.Event()


class Pump:
    """Owns `engine` (a vLLM LLMEngine) from now on; every request goes through `lora`, a LoRARequest."""

    def __init__(self, engine: Any, lora: Any = None) -> None:
        self._engine = engine
        self._lora = lora
        self._queue: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._waiting: collections.deque[tuple[Batch, int]] = collections.deque()
        self._running: dict[str, tuple[Batch, int]] = {}
        self._numbers = iter(range(2**63))
        self._death: BaseException | None = None
        self.steps = 0
        self._thread = threading.Thread(target=self._run, name="engine-pump", daemon=True)
        self._thread.start()

    def run(self, requests: Sequence[tuple[Any, Any]], finished: Callable[[int], None]) -> list[Any]:
        """The results of (engine input, sampling parameters) pairs, in order. None for what the engine
        died under: `death` then says of what."""
        batch = Batch(requests, finished)
        if requests:
            self._queue.put(batch)
            while self._death is None and not batch.done.wait(timeout=1.0):
                self._notice_death()
        return list(batch.results)

    @property
    def death(self) -> str | None:
        """What the engine died of, None while it lives."""
        return None if self._death is None else f"{type(self._death).__name__}: {self._death}"

    def _notice_death(self) -> None:
        """vLLM's client notes that its process was killed, but a step that waits for an answer is not
        woken: whoever waits for results has to look."""
        ensure_alive = getattr(self._engine.engine_core, "ensure_alive", None)
        try:
            if ensure_alive is not None:
                ensure_alive()
        except Exception as error:
            # Whatever it raises means that the engine is gone; its own type moves between vLLM's versions.
            self._death = error

    def close(self) -> None:
        """End the thread, then the engine with its processes."""
        self._queue.put(None)
        answers = getattr(self._engine.engine_core, "outputs_queue", None)
        if self._death is not None and answers is not None:
            # The thread may still wait for an answer of the process that is gone.
            answers.put_nowait(self._death)
        self._thread.join(timeout=30)
        self._engine.engine_core.shutdown()

    def _run(self) -> None:
        try:
            while self._take():
                self._add()
                if self._running:
                    outputs = self._engine.step()
                    self.steps += 1
                    self._dispatch(outputs)
        except BaseException as error:
            # Whatever the engine raises, it cannot be trusted with a request again.
            self._death = error
            for batch, _ in [*self._running.values(), *self._waiting]:
                batch.done.set()

    def _take(self) -> bool:
        """Move new batches to the waiting requests; blocks when there is nothing to do. False: stop."""
        block = not self._waiting and not self._running
        while True:
            try:
                batch = self._queue.get(block=block)
            except queue.Empty:
                return True
            if batch is None:
                return False
            self._waiting.extend((batch, i) for i in range(len(batch.requests)))
            block = False

    def _add(self) -> None:
        refused: dict[int, tuple[Batch, int]] = {}
        for _ in range(min(_ADDED_PER_STEP, len(self._waiting))):
            batch, i = self._waiting.popleft()
            prompt, params = batch.requests[i]
            request_id = str(next(self._numbers))
            try:
                self._engine.add_request(request_id, prompt, params, lora_request=self._lora)
            except ValueError as error:
                # vLLM's word for a request that it will not run; the others are not affected.
                batch.results[i] = error
                count = refused.get(id(batch), (batch, 0))[1]
                refused[id(batch)] = (batch, count + 1)
            else:
                self._running[request_id] = (batch, i)
        self._count(refused)

    def _dispatch(self, outputs: Sequence[Any]) -> None:
        counts: dict[int, tuple[Batch, int]] = {}
        for output in outputs:
            if output.finished:
                batch, i = self._running.pop(output.request_id)
                batch.results[i] = output
                counts[id(batch)] = (batch, counts.get(id(batch), (batch, 0))[1] + 1)
        self._count(counts)

    def _count(self, counts: dict[int, tuple[Batch, int]]) -> None:
        for batch, number in counts.values():
            batch.finished(number)
            batch.remaining -= number
            if batch.remaining == 0:
                batch.done.set()

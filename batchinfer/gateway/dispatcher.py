"""Starts the batches of a root: one at a time for each model, the earliest deadline first.

Each batch is a process of its own, so that a batch that takes its process down takes no other one. A queue is held by
one dispatcher at a time; when that one is gone, the next one that serves the root goes on.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from batchinfer.errors import BatchinferError, OutputBusy
from batchinfer.execution.progress import Listener
from batchinfer.gateway.root import GatewayRoot, QueueEntry

POLL_SECONDS = 0.5
"""Seconds between two looks at the queues: a new batch begins that much later. Shorter lists a store more often."""

HOLD_SECONDS = 5.0
"""Seconds between two tries to hold a queue that another gateway holds."""

FIRST_PAUSE, LONGEST_PAUSE = 2.0, 60.0
"""Seconds that a batch waits after its process failed, doubled each time. Other batches run meanwhile. Shorter, and a
batch that cannot run takes a process a second."""

Command = Callable[[QueueEntry], Sequence[str]]


@dataclass(slots=True)
class _Queue:
    """One model's queue."""

    held: contextlib.ExitStack | None = None
    try_at: float = 0.0
    running: tuple[QueueEntry, subprocess.Popen[bytes]] | None = None
    pauses: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By batch: until when it waits after a failure, and how long."""


class Dispatcher:
    """Runs the queues of a root until `end`."""

    def __init__(self, root: GatewayRoot, command: Command, listener: Listener) -> None:
        self._root = root
        self._command = command
        self._listener = listener
        self._queues: dict[str, _Queue] = {}
        self._ending = False

    def end(self, name: str = "", count: int = 1) -> None:
        """Start no more batches, and let the shards in flight end; the second call stops them at once."""
        self._ending = True
        for queue in list(self._queues.values()):
            if queue.running is not None:
                with contextlib.suppress(ProcessLookupError):
                    queue.running[1].send_signal(signal.SIGTERM)

    def run(self) -> None:
        """Run batches until `end` was called and their processes are gone."""
        told = False
        while True:
            self._reap()
            running = sum(queue.running is not None for queue in self._queues.values())
            if self._ending:
                if not told:
                    told = True
                    self._listener.event("ending", running=running, hint="shards in flight end first")
                if not running:
                    break
            else:
                # A store that fails now is asked again at the next look.
                with contextlib.suppress(BatchinferError):
                    self._start_what_waits()
            time.sleep(POLL_SECONDS)
        for queue in self._queues.values():
            if queue.held is not None:
                queue.held.close()

    def _start_what_waits(self) -> None:
        for name, entries in self._root.queued().items():
            queue = self._queues.setdefault(name, _Queue())
            now = time.monotonic()
            ready = [entry for entry in entries if queue.pauses.get(entry.batch_id, (0.0, 0.0))[0] <= now]
            if queue.running is None and ready and self._holds(name, queue) and not self._ending:
                self._start(queue, ready[0])

    def _holds(self, name: str, queue: _Queue) -> bool:
        if queue.held is None and time.monotonic() >= queue.try_at:
            queue.try_at = time.monotonic() + HOLD_SECONDS
            held = contextlib.ExitStack()
            with contextlib.suppress(OutputBusy):
                held.enter_context(self._root.holding(name))
                queue.held = held
        return queue.held is not None

    def _start(self, queue: _Queue, entry: QueueEntry) -> None:
        # In its own session, the process receives Ctrl-C only once, through `end`.
        process = subprocess.Popen(list(self._command(entry)), stdin=subprocess.DEVNULL, start_new_session=True)
        queue.running = (entry, process)
        self._listener.event("batch begins", batch=entry.batch_id, model=entry.queue, pid=process.pid)
        if self._ending:
            process.send_signal(signal.SIGTERM)

    def _reap(self) -> None:
        for queue in self._queues.values():
            if queue.running is None:
                continue
            entry, process = queue.running
            code = process.poll()
            if code is None:
                continue
            queue.running = None
            self._listener.event("batch process ended", batch=entry.batch_id, pid=process.pid, exit_code=code)
            _, pause = queue.pauses.pop(entry.batch_id, (0.0, FIRST_PAUSE / 2))
            # 4: a cancellation or the deadline ended the process, and the next one ends the batch. After 0 the entry is
            # gone, unless its batch was never made.
            if code != 4:
                pause = min(2 * pause, LONGEST_PAUSE)
                queue.pauses[entry.batch_id] = (time.monotonic() + pause, pause)


def worker_command(root: GatewayRoot, engines_file: str, address: str | None) -> Command:
    """The command that runs one batch of the root."""

    def command(entry: QueueEntry) -> list[str]:
        options = ["--root", root.uri, "--engines", engines_file, "--queue", entry.queue, "--entry", entry.name]
        options += ["--address", address] if address else []
        return [sys.executable, "-m", "batchinfer", "gateway-batch", *options]

    return command

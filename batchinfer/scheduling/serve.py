"""A scheduler for machines without cron, systemd or Kubernetes: sleep until the next tick, run what is due.

Each tick is its own process, `batchinfer schedule run-due SPEC`, so that jobs do not wait for each other and
a crash affects only its job. That process decides from the folders of earlier runs, so it is idempotent.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from batchinfer import signals
from batchinfer.execution.progress import Listener
from batchinfer.jobspec.schedule import coming
from batchinfer.scheduling.recurring import Clock, Scheduled, utc_now

POLL_SECONDS = 1.0
"""Seconds between looks at the clock and at the running ticks. The clock is polled, because it may be set or the
machine may sleep. Longer, and ticks start and end that much later."""


class _Serving:
    """The jobs and the processes of their ticks, until a signal ends the scheduler."""

    def __init__(self, jobs: Sequence[Scheduled], options: Sequence[str], listener: Listener, clock: Clock) -> None:
        self._jobs = jobs
        self._options = list(options)
        self._listener = listener
        self._clock = clock
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []
        self._ending = False
        self._left_undone = False

    def end(self, name: str, count: int) -> None:
        """Forward a signal: the first lets the shards in flight finish, the second stops at once, as for `run`."""
        self._ending = True
        for _, process in list(self._running):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)

    def run(self) -> int:
        """Run ticks until a signal. Returns the exit code: 0, or 4 if a stopped run can be resumed."""
        now = self._clock()
        # Ticks that came due while no scheduler ran, and unfinished runs, are handled by each job's first process.
        for job in self._jobs:
            self._start(job)
        waiting = {job.path: next(coming(job.schedule, now), None) for job in self._jobs}
        while not self._ending:
            # A signal does not interrupt the sleep, so `_ending` is checked after it.
            time.sleep(POLL_SECONDS)
            self._reap()
            now = self._clock()
            for job in self._jobs if not self._ending else ():
                tick = waiting[job.path]
                if tick is not None and tick <= now:
                    self._start(job)
                    waiting[job.path] = next(coming(job.schedule, now), None)
        self._listener.event("ending", running=len(self._running), hint="shards in flight end first")
        while self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._running[0][1].wait(POLL_SECONDS)
            self._reap()
        return 4 if self._left_undone else 0

    def _start(self, job: Scheduled) -> None:
        command = [sys.executable, "-m", "batchinfer", "schedule", "run-due", job.path, *self._options]
        # In its own session, the process receives Ctrl-C only once, through `end`.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        self._running.append((job.spec.name, process))
        self._listener.event("tick", job=job.spec.name, pid=process.pid)

    def _reap(self) -> None:
        for name, process in list(self._running):
            code = process.poll()
            if code is not None:
                self._running.remove((name, process))
                self._listener.event("tick ended", job=name, pid=process.pid, exit_code=code)
                if self._ending and code != 0:
                    self._left_undone = True


def serve(jobs: Sequence[Scheduled], options: Sequence[str], listener: Listener, clock: Clock = utc_now) -> int:
    """Run the jobs' ticks as they come due, until SIGTERM or SIGINT; then wait for the shards in flight.

    `options` are added to every `schedule run-due`. Returns the exit code: see `_Serving.run`.
    """
    for job in jobs:
        following = next(coming(job.schedule, clock()), None)
        listener.event("scheduled", job=job.spec.name, spec=job.path, next_tick=following)
    serving = _Serving(jobs, options, listener, clock)
    with signals.handled(serving.end):
        return serving.run()

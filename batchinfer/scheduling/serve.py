"""Scheduled jobs kept running where there is no cron, systemd or Kubernetes: sleep to the next tick, run what is due.

Each tick is a process of its own, `batchinfer schedule run-due SPEC`, so that jobs do not wait for each other and
a crash stays with its job. It decides anew from what earlier runs left behind: one too many does no harm.
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
"""How soon the end of a tick is noticed. The clock is asked anew as often: it may be set, or the machine sleep."""


class _Serving:
    """The jobs, the processes that run their ticks, and whether it is time to end."""

    def __init__(self, jobs: Sequence[Scheduled], options: Sequence[str], listener: Listener, clock: Clock) -> None:
        self._jobs = jobs
        self._options = list(options)
        self._listener = listener
        self._clock = clock
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []
        self._ending = False
        self._left_undone = False

    def end(self, name: str, count: int) -> None:
        """A first signal lets the shards in flight end, a second one stops at once: as for `run`."""
        self._ending = True
        for _, process in list(self._running):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)

    def run(self) -> int:
        """Until a signal. Returns the exit code: 0, or 4 where a run was stopped that can be resumed."""
        now = self._clock()
        # What came due while nobody looked, and runs that died: each job's own process sees to it.
        for job in self._jobs:
            self._start(job)
        waiting = {job.path: next(coming(job.schedule, now), None) for job in self._jobs}
        while not self._ending:
            # What a signal changed is seen at the end of the sleep.
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
        # A session of its own: Ctrl-C reaches it through `end` alone, once.
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
    """Run the jobs' ticks as they come, until SIGTERM or SIGINT; then let what runs drain. Returns the exit code.

    `options` go to every `schedule run-due`.
    """
    for job in jobs:
        following = next(coming(job.schedule, clock()), None)
        listener.event("scheduled", job=job.spec.name, spec=job.path, next_tick=following)
    serving = _Serving(jobs, options, listener, clock)
    with signals.handled(serving.end):
        return serving.run()

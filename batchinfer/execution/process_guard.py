"""No process outlives its parent, however the parent ends.

vLLM runs its engine in separate processes. If the replica is killed, these processes survive, ignore SIGTERM and
hold the GPU's memory. Ray's agents survive a killed driver that started the cluster. So a replica, and a driver
with a local cluster, sets a mark in its environment, which later child processes inherit, and starts this module
as a guard. The system closes the pipe from the parent however the parent ends. Then the guard kills every process
with the mark.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Collection

import psutil

REPLICA = "BATCHINFER_REPLICA"
DRIVER = "BATCHINFER_DRIVER"
"""The environment variables that hold the marks."""

_QUIET_SCANS = 3
"""Scans in a row without a marked process before the guard ends. With one scan, a child that a dying process just
started would survive."""


class Guard:
    """The guard of this process and of all child processes that start after the guard."""

    def __init__(self, variable: str, mark: str) -> None:
        """Set `variable` in the environment to `mark`, which must be unique, and start the guard."""
        environment = {name: value for name, value in os.environ.items() if name not in (REPLICA, DRIVER)}
        # The writer stays open as long as this process lives; child processes do not inherit it (PEP 446).
        reader, self._writer = os.pipe()
        self._process = subprocess.Popen(
            # By path, not with -m: importing the package would cost the guard a second and 100 MB.
            [sys.executable, __file__, variable, mark],
            stdin=reader,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            # A new session: neither Ctrl-C nor the end of a process group may reach the guard.
            start_new_session=True,
        )
        os.close(reader)
        self._ended = False
        os.environ[variable] = mark
        # Ray and vLLM set process titles, and setproctitle would overwrite the environment, which holds the mark.
        os.environ["SPT_NOENV"] = "1"

    def end(self) -> None:
        """Kill all marked processes now, and wait until they are gone."""
        if not self._ended:
            self._ended = True
            os.close(self._writer)
        self._process.wait()


def marked(variable: str, mark: str) -> list[psutil.Process]:
    """The processes that carry the mark, other than the caller."""
    found = []
    for process in psutil.process_iter():
        # A process that ends meanwhile or belongs to another user is not marked.
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(variable) == mark:
                found.append(process)
    return found


def kill_marked(variable: str, mark: str, spared: Collection[int] = ()) -> None:
    """Kill marked processes, except the process ids in `spared`, until none is left.

    A dying process may just have started another, so one scan is not enough.
    """
    quiet = 0
    while quiet < _QUIET_SCANS:
        processes = [process for process in marked(variable, mark) if process.pid not in spared]
        quiet = 0 if processes else quiet + 1
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.1)


def main() -> None:
    """The guard: wait for the end of the pipe, then kill."""
    while sys.stdin.buffer.read(1):
        pass
    kill_marked(sys.argv[1], sys.argv[2])


if __name__ == "__main__":
    main()

"""No process outlives its parent, however the parent ends.

vLLM runs its engine in processes of their own. When the replica is killed they live on, ignore SIGTERM,
and hold the GPU's memory; Ray's agents outlive a driver that started the cluster and was killed. So a
replica, and a driver with a cluster of its own, marks its environment, which all processes started from
then on inherit, and starts this module as a guard. The guard waits for the pipe from its parent to
close, which the system does whatever killed the parent, and then kills every process with the mark.
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


class Guard:
    """The guard of this process, and of all that it starts from now on."""

    def __init__(self, variable: str, mark: str) -> None:
        """Set `variable` in the environment to `mark`, which must be unique, and start the guard."""
        environment = {name: value for name, value in os.environ.items() if name not in (REPLICA, DRIVER)}
        # The writer stays open for the life of this process and is inherited by none (PEP 446).
        reader, self._writer = os.pipe()
        self._process = subprocess.Popen(
            # By its path, not with -m: importing the package would cost it a second and 100 MB.
            [sys.executable, __file__, variable, mark],
            stdin=reader,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            # Its own session: neither Ctrl-C nor the end of a process group may reach it.
            start_new_session=True,
        )
        os.close(reader)
        self._ended = False
        os.environ[variable] = mark
        # Ray and vLLM give their processes titles, for which setproctitle would overwrite the environment.
        os.environ["SPT_NOENV"] = "1"

    def end(self) -> None:
        """Kill what carries the mark now, and wait until it is gone."""
        if not self._ended:
            self._ended = True
            os.close(self._writer)
        self._process.wait()


def marked(variable: str, mark: str) -> list[psutil.Process]:
    """The processes that carry the mark, other than the caller."""
    found = []
    for process in psutil.process_iter():
        # A process that ends or belongs to someone else is none of ours.
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(variable) == mark:
                found.append(process)
    return found


def kill_marked(variable: str, mark: str, spared: Collection[int] = ()) -> None:
    """Kill until none is left, but for process ids that are `spared`: a dying process may just have started another."""
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

"""`batchinfer` commands in processes of their own, forked from one that has imported the package once.

The imports of a command take seconds, what a refused one does after them takes none: tests of many refusals would
be tests of imports. What a fork cannot show, that a command starts from nothing, is for the tests that start
`python -m batchinfer`.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.tiers import watch_from_now

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "batchinfer.cli",
        "batchinfer.scheduling.recurring",
        "batchinfer.reporting.console",
        "batchinfer.deploy.kubernetes",
    ]
)
SECONDS = 120


def forked(*arguments: str, cwd: Path | None = None, read: bool = True) -> subprocess.CompletedProcess[str]:
    """`batchinfer` with these arguments, for commands that start no Ray: its exit code and all that it wrote.

    Without `read` stdout is a pipe whose reader leaves before the first byte.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not read:
            os.mkfifo(folder / "out")
        process = _SERVER.Process(target=_command, args=(list(arguments), str(cwd or os.getcwd()), name))
        process.start()
        if not read:
            # Opened when the command opens the other end.
            (folder / "out").open("rb").close()
        process.join(SECONDS)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(arguments, SECONDS)
        out = (folder / "out").read_text() if read else ""
        err = (folder / "err").read_text()
        return subprocess.CompletedProcess(arguments, process.exitcode, out, err)


def _command(arguments: list[str], cwd: str, folder: str) -> None:
    watch_from_now()
    for name, number in (("out", 1), ("err", 2)):
        with open(os.path.join(folder, name), "wb") as file:
            os.dup2(file.fileno(), number)
    # The streams that were there know their old files, whether one can seek in them among other things.
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.chdir(cwd)
    sys.argv = ["batchinfer", *arguments]
    from batchinfer.cli import main

    main()

"""Real Ray nodes for the tests: a head with its dashboard and token authentication, and nodes that join it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

BIN = Path(sys.executable).parent
START_SECONDS = 240


@dataclass(frozen=True)
class Head:
    """`url`: the dashboard. `address`: where nodes and drivers join. `folder`: of Ray's own files."""

    url: str
    address: str
    folder: str


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def cluster_environment() -> dict[str, str]:
    """Token authentication with the token in the home folder, as `ray get-auth-token --generate` leaves it.

    A process of tests with a cluster of its own has that one's token, which Ray reads once: then the head has it, too.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") or k == "RAY_AUTH_TOKEN"}
    return kept | {
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }


def require_token() -> None:
    subprocess.run([BIN / "ray", "get-auth-token", "--generate"], check=True, capture_output=True)


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[psutil.Process]:
    """`ray start --block` with these arguments; it and all that it started end with the block."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [BIN / "ray", "start", "--block", "--disable-usage-stats", "--object-store-memory=80000000", *arguments],
            env=cluster_environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        node = psutil.Process(process.pid)
        try:
            yield node
        finally:
            end(node)
            process.wait()


def end(process: psutil.Process) -> None:
    """Kill a node as a machine that is switched off: all its processes at once."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [process, *process.children(recursive=True)]
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(family, timeout=20)


@contextlib.contextmanager
def head(cpus: int) -> Iterator[Head]:
    """A head of its own ports and folder, ready to take jobs."""
    require_token()
    # A socket's path must be short: not below the test's own folder.
    folder = tempfile.mkdtemp(prefix="ray-")
    port, dashboard = free_port(), free_port()
    where = (f"--port={port}", f"--dashboard-port={dashboard}", f"--temp-dir={folder}")
    ports = (f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}")
    with started("--head", "--include-dashboard=true", f"--num-cpus={cpus}", *where, *ports) as process:
        made = Head(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}", folder)
        deadline = time.monotonic() + START_SECONDS
        while not _answers(made.url):
            assert process.is_running(), "ray start ended"
            assert time.monotonic() < deadline, "the dashboard did not come up"
            time.sleep(0.2)
        yield made
    shutil.rmtree(folder, ignore_errors=True)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False

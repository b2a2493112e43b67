"""A Ray cluster of several nodes on this machine, to try out what needs more than one.

    python cluster/local.py start --workers 2 --cpus 2     a head and two nodes, with a token
    python cluster/local.py add --cpus 4 --gpus 8          one node more; its GPUs are for scheduling only
    python cluster/local.py remove 2                       ends node 2, as if its machine were gone
    python cluster/local.py stop                           ends what was started here, and nothing else

Nodes are raylets with CPUs and GPUs that they say they have. What was started stands in runs/local-cluster, or in
the folder that --state names.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

START_SECONDS = 120.0
STOP_SECONDS = 20.0


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, default=Path("runs/local-cluster"))
    commands = parser.add_subparsers(dest="command", required=True)
    start_ = commands.add_parser("start", help="start a head and worker nodes")
    start_.add_argument("--workers", type=int, default=1)
    add_ = commands.add_parser("add", help="start one worker node more")
    for command in (start_, add_):
        command.add_argument("--cpus", type=int, default=2, help="of each worker node")
        command.add_argument("--gpus", type=int, default=0, help="of each worker node")
    remove_ = commands.add_parser("remove", help="end one worker node")
    remove_.add_argument("node", type=int)
    commands.add_parser("stop", help="end all of it")
    given = parser.parse_args(arguments)
    try:
        if given.command == "start":
            start(given.state, given.workers, given.cpus, given.gpus)
        elif given.command == "add":
            add(given.state, given.cpus, given.gpus)
        elif given.command == "remove":
            remove(given.state, given.node)
        else:
            stop(given.state)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


class ClusterError(Exception):
    """The call is wrong, or a node did not start."""


def start(state: Path, workers: int, cpus: int, gpus: int) -> None:
    """Start a head, which runs no work, and `workers` nodes; prints how to reach them."""
    if _nodes(state):
        raise ClusterError(f"{state} has a cluster that runs: stop it first")
    state.mkdir(parents=True, exist_ok=True)
    token = state / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    port, dashboard = _free_port(), _free_port()
    # A folder of its own: in /tmp/ray it would be the cluster that every ray.init() on this machine joins. Short,
    # because the paths of sockets in it may have 107 bytes.
    folder = tempfile.mkdtemp(prefix="ray-")
    addresses = {"address": f"127.0.0.1:{port}", "dashboard": f"http://127.0.0.1:{dashboard}"}
    _write(state, addresses | {"folder": folder, "nodes": []})
    try:
        _launch(
            state, "--head", f"--port={port}", "--include-dashboard=true",
            f"--dashboard-port={dashboard}", "--num-cpus=0", "--num-gpus=0", f"--temp-dir={folder}",
            # The head ends if another cluster holds the port that it asks for by default, 10001.
            f"--ray-client-server-port={_free_port()}",
        )  # fmt: skip
        for _ in range(workers):
            add(state, cpus, gpus)
    except ClusterError:
        stop(state)
        raise
    print(f"export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={token.resolve()}")
    print(f"batchinfer run SPEC --address {_read(state)['address']}")
    print(f"batchinfer submit SPEC --address {_read(state)['dashboard']}")


def add(state: Path, cpus: int, gpus: int) -> None:
    """Start one node more."""
    if 0 not in _nodes(state):
        raise ClusterError(f"{state} has no cluster that runs: start one first")
    _launch(state, f"--address={_read(state)['address']}", f"--num-cpus={cpus}", f"--num-gpus={gpus}")


def remove(state: Path, number: int) -> None:
    """End the node of that number, counted from 1; 0 is the head."""
    nodes = _nodes(state)
    if number not in nodes or number == 0:
        raise ClusterError(f"there is no worker node {number}; there are {sorted(nodes.keys() - {0}) or 'none'}")
    _end([nodes[number]])


def stop(state: Path) -> None:
    """End every node that was started here: workers before the head."""
    nodes = _nodes(state)
    _end([process for number, process in sorted(nodes.items(), reverse=True)])
    if (state / "cluster.json").exists():
        shutil.rmtree(_read(state)["folder"], ignore_errors=True)
    for name in ("cluster.json", "token"):
        (state / name).unlink(missing_ok=True)
    print(f"{len(nodes)} nodes ended")


def _launch(state: Path, *options: str) -> None:
    held = _read(state)
    number = len(held["nodes"])
    log = state / f"node-{number}.log"
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str((state / "token").resolve()),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray runs its workers at niceness 15: whatever else the machine does would slow them down.
        "RAY_worker_niceness": "0",
    }
    environment.pop("RAY_ADDRESS", None)
    # One of its own for each node: by default all nodes of a machine ask for 52365, and one that does not get it runs
    # on without an agent, which starts the jobs.
    agent = _free_port()
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", "--block",
             f"--dashboard-agent-listen-port={agent}", *options],
            stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=environment, start_new_session=True,
        )  # fmt: skip
    held["nodes"].append({"pid": process.pid, "started_at": psutil.Process(process.pid).create_time()})
    _write(state, held)
    deadline = time.monotonic() + START_SECONDS
    while "Ray runtime started" not in log.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise ClusterError(f"node {number} did not start: see {log}")
        time.sleep(0.2)
    while not _listens(psutil.Process(process.pid), agent):
        if process.poll() is not None or time.monotonic() > deadline:
            raise ClusterError(f"the agent of node {number} does not listen at port {agent}: see {log}")
        time.sleep(0.2)


def _end(parents: list[psutil.Process]) -> None:
    """SIGTERM to each, which ends its node; what of its processes is left then, is killed."""
    for parent in parents:
        family = [parent, *parent.children(recursive=True)]
        parent.terminate()
        _, alive = psutil.wait_procs(family, timeout=STOP_SECONDS)
        for process in alive:
            process.kill()
        psutil.wait_procs(alive, timeout=STOP_SECONDS)


def _nodes(state: Path) -> dict[int, psutil.Process]:
    """The nodes that run, by number. A process id that another process has by now is none of them."""
    if not (state / "cluster.json").exists():
        return {}
    found = {}
    for number, node in enumerate(_read(state)["nodes"]):
        try:
            process = psutil.Process(node["pid"])
        except psutil.NoSuchProcess:
            continue
        if process.create_time() == node["started_at"] and process.status() != psutil.STATUS_ZOMBIE:
            found[number] = process
    return found


def _read(state: Path) -> dict[str, Any]:
    held: dict[str, Any] = json.loads((state / "cluster.json").read_text())
    return held


def _write(state: Path, held: dict[str, Any]) -> None:
    (state / "cluster.json").write_text(json.dumps(held, indent=2))


def _listens(parent: psutil.Process, port: int) -> bool:
    """Does a process of the node listen at the port, at whatever address?"""
    for process in parent.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any(c.laddr.port == port and c.status == psutil.CONN_LISTEN for c in process.net_connections("tcp")):
                return True
    return False


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())

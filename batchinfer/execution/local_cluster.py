"""The environment of a local Ray cluster: a private folder, a writable home, and a token."""

from __future__ import annotations

import contextlib
import os
import pwd
import resource
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator

from batchinfer import signals
from batchinfer.catalog import GIB
from batchinfer.errors import ClusterError

ADDRESS = "127.0.0.1"
"""A cluster for one run listens on loopback only: anybody who can reach Ray's ports can run code."""

_LONGEST_FOLDER = 107 - 67
"""Bytes. A socket's path may have 107, and Ray adds session_2026-11-26_23-45-12_123456_1234567/sockets/plasma_store."""
_REACH_SECONDS = 5.0

LEAST_PROCESSES = 512
"""Processes and threads. A local cluster has some 300 threads before its first worker loads a model; with fewer
allowed, processes of Ray end without a message."""
LEAST_ADDRESSES = 16 * GIB
"""Bytes. Ray's processes map far more than they use; torch and vLLM reserve more still."""

_TOKEN = secrets.token_hex(32)
"""The token of every cluster that this process starts: Ray reads a token once in a process."""


@contextlib.contextmanager
def prepared() -> Iterator[str]:
    """The environment that a local cluster needs, and its folder, which only this user may enter.

    The folder is deleted at the end. Raises ClusterError, which says what to set.
    """
    _require_limits()
    _require_loopback()
    folder = _folder()
    changed = _environment(folder)
    # Ray sets the mode once it has found the token, and a later cluster of this process is to have the token too.
    before = {name: os.environ.get(name) for name in (*changed, "RAY_AUTH_MODE")}
    os.environ.update(changed)
    try:
        # Ray makes its folder writable for everybody, so the parent folder is one that only this user may enter.
        with signals.cleaning(lambda: shutil.rmtree(folder, ignore_errors=True)):
            yield os.path.join(folder, "r")
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(folder, ignore_errors=True)


def _require_limits() -> None:
    """Raise ClusterError if a limit is so low that processes of Ray end without a message."""
    for limit, least, name, remedy in (
        (resource.RLIMIT_NPROC, LEAST_PROCESSES, "processes and threads of this user", f"ulimit -u {LEAST_PROCESSES}"),
        (resource.RLIMIT_AS, LEAST_ADDRESSES, "bytes of addresses for a process", "ulimit -v unlimited"),
    ):
        soft, _ = resource.getrlimit(limit)
        # The limit on processes does not apply to root.
        counts = limit != resource.RLIMIT_NPROC or os.getuid() != 0
        if counts and soft != resource.RLIM_INFINITY and soft < least:
            raise ClusterError(f"Ray does not start with a limit of {soft} {name}; it needs {least}", f"set {remedy}")


def _require_loopback() -> None:
    """Raise ClusterError if this machine cannot connect to itself: Ray's processes would retry for minutes."""
    try:
        with socket.create_server((ADDRESS, 0)) as server:
            socket.create_connection(server.getsockname(), _REACH_SECONDS).close()
    except OSError as error:
        raise ClusterError(
            f"this machine cannot connect to itself at {ADDRESS}: {error.strerror or error}",
            "bring the loopback interface up: ip link set lo up",
        ) from error


def _folder() -> str:
    """A new folder of mode 0700 with a short path."""
    refused = ""
    for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/dev/shm")):
        if len(os.fsencode(parent)) + len("/bi-12345678/r/") > _LONGEST_FOLDER:
            refused = refused or f"{parent} is too long for the paths of sockets"
            continue
        try:
            return tempfile.mkdtemp(prefix="bi-", dir=parent)
        except OSError as error:
            refused = refused or f"{parent}: {error.strerror}"
    raise ClusterError(
        f"Ray has no folder for its files on this machine: {refused}",
        "set TMPDIR to a folder with a short path that can be written to",
    )


def _environment(folder: str) -> dict[str, str]:
    """The variables to set: a writable home, a user's name, and a token that is stored in no file."""
    changed = {}
    if os.environ.get("PYTHONWARNINGS"):
        # `error` makes every deprecation in Ray, torch and vLLM an exception in their processes.
        changed["PYTHONWARNINGS"] = ""
    home = os.path.expanduser("~")
    if home == "/" or not os.access(home, os.W_OK):
        # Ray, vLLM and torch keep files in the home folder.
        changed["HOME"] = folder
    if not any(os.environ.get(name) for name in ("LOGNAME", "USER")):
        try:
            pwd.getpwuid(os.getuid())
        except KeyError:
            # The user id has no name, as in some containers, and torch needs one.
            changed["USER"] = f"user-{os.getuid()}"
    if not any(os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        changed["RAY_AUTH_TOKEN"] = _TOKEN
    return changed


def require_reachable(address: str) -> None:
    """Raise ClusterError if nothing listens at host:port: Ray would retry for a quarter of an hour.

    Other forms of an address, such as `auto`, are left to Ray.
    """
    host, port = _host_and_port(address)
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), _REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"no cluster answers at {address}: {getattr(error, 'strerror', None) or error}",
            "check --address and RAY_ADDRESS; without either, a cluster is started on this machine",
        ) from error


def is_on_loopback_alone(address: str, outside: str) -> bool:
    """Whether `address` is on loopback, and nothing listens on its port at `outside`, this machine's own address.

    Ray would replace the loopback address by `outside`, and then retry for a quarter of an hour.
    """
    host, port = _host_and_port(address)
    if host not in (ADDRESS, "localhost", "::1") or not port.isdigit():
        return False
    try:
        socket.create_connection((outside, int(port)), _REACH_SECONDS).close()
    except OSError:
        return True
    return False


def _host_and_port(address: str) -> tuple[str, str]:
    """Both are empty texts if the address is of another form."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    return host.strip("[]"), port

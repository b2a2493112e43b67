from __future__ import annotations

import errno
import os
import resource
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from batchinfer.errors import ClusterError
from batchinfer.execution import local_cluster


def test_the_folder_is_this_users_alone_short_and_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    with local_cluster.prepared() as folder:
        parent = Path(folder).parent
        assert stat.S_IMODE(parent.stat().st_mode) == 0o700
        socket_path = f"{folder}/session_2026-11-26_23-45-12_123456_1234567/sockets/plasma_store"
        assert len(socket_path) <= 107
        assert os.environ["RAY_AUTH_TOKEN"]
    assert not parent.exists()
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_a_temporary_folder_with_a_long_path_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with local_cluster.prepared() as folder:
        assert not folder.startswith(str(long))


def test_without_any_folder_the_message_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(prefix: str, dir: str) -> str:  # noqa: A002
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(ClusterError, match="no folder for its files") as caught, local_cluster.prepared():
        pass
    assert caught.value.remedy == "set TMPDIR to a folder with a short path that can be written to"


@pytest.mark.parametrize("home", ["/", "/nowhere"])
def test_a_home_that_cannot_be_written_to_is_replaced_for_the_run(monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    monkeypatch.setenv("HOME", home)
    with local_cluster.prepared():
        assert os.access(os.environ["HOME"], os.W_OK)
        assert os.environ["HOME"] != home
    assert os.environ["HOME"] == home


def test_a_user_without_a_name_is_given_one_for_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USER", "LOGNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 4_000_000)
    with local_cluster.prepared():
        assert os.environ["USER"] == "user-4000000"


@pytest.mark.parametrize(("limit", "remedy"), [("RLIMIT_NPROC", "set ulimit -u 512"), ("RLIMIT_AS", "unlimited")])
def test_limits_under_which_ray_dies_are_named(monkeypatch: pytest.MonkeyPatch, limit: str, remedy: str) -> None:
    real = resource.getrlimit
    tight = getattr(resource, limit)
    monkeypatch.setattr("resource.getrlimit", lambda which: (60, 60) if which == tight else real(which))
    monkeypatch.setattr("os.getuid", lambda: 1000)
    with pytest.raises(ClusterError, match="a limit of 60") as caught, local_cluster.prepared():
        pass
    assert remedy in caught.value.remedy


def test_a_machine_that_cannot_connect_to_itself_is_told_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(address: tuple[str, int], timeout: float) -> socket.socket:
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr("socket.create_connection", unreachable)
    with pytest.raises(ClusterError, match=r"connect to itself at 127\.0\.0\.1: Network is unreachable") as caught:
        local_cluster.prepared().__enter__()
    assert caught.value.remedy == "bring the loopback interface up: ip link set lo up"


def test_warnings_that_are_errors_are_not_those_of_rays_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    with local_cluster.prepared():
        assert os.environ["PYTHONWARNINGS"] == ""
    assert os.environ["PYTHONWARNINGS"] == "error"


def test_a_token_of_the_user_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    with local_cluster.prepared():
        assert "RAY_AUTH_TOKEN" not in os.environ


def test_what_ray_sets_for_its_token_ends_with_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    tokens = []
    for _ in range(2):
        with local_cluster.prepared():
            tokens.append(os.environ["RAY_AUTH_TOKEN"])
            # As Ray does once it has found the token.
            os.environ["RAY_AUTH_MODE"] = "token"
    assert tokens[0] == tokens[1]
    assert "RAY_AUTH_MODE" not in os.environ


def test_a_cluster_that_is_gone_is_refused_within_seconds() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    began = time.monotonic()
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        with pytest.raises(ClusterError, match="no cluster answers") as caught:
            local_cluster.require_reachable(address)
        assert caught.value.exit_code == 2
    assert time.monotonic() - began < 10


def test_an_address_that_ray_looks_up_is_left_to_ray() -> None:
    local_cluster.require_reachable("auto")


def test_a_cluster_on_loopback_alone_is_told_apart_from_one_that_others_reach() -> None:
    # Each address that begins with 127 is this machine's own; 127.0.0.2 stands for the one that others reach.
    with socket.create_server(("127.0.0.1", 0)) as alone, socket.create_server(("0.0.0.0", 0)) as open_to_all:
        for host in ("127.0.0.1", "localhost"):
            assert local_cluster.is_on_loopback_alone(f"{host}:{alone.getsockname()[1]}", "127.0.0.2")
            assert not local_cluster.is_on_loopback_alone(f"{host}:{open_to_all.getsockname()[1]}", "127.0.0.2")
    for address in ("auto", "10.0.0.1:6379", "127.0.0.1"):
        assert not local_cluster.is_on_loopback_alone(address, "127.0.0.2")


BUSY = """
import ray
from batchinfer import events
from batchinfer.errors import BatchinferError
from batchinfer.execution import ray_pipeline

def init(**arguments):
    raise RuntimeError("The current node timed out during startup.")

ray.init = init
with events.heard_by(lambda name, **values: print(name, values["start"])):
    try:
        with ray_pipeline.connected(None):
            print("started")
    except BatchinferError as error:
        print(error.exit_code, error)
"""


@pytest.mark.integration
def test_a_cluster_that_does_not_start_in_time_is_no_mistake_of_the_user() -> None:
    # In a process of its own: this one may be connected to the cluster of other tests.
    done = subprocess.run([sys.executable, "-c", BUSY], capture_output=True, text=True, timeout=100, check=True)
    *attempts, last = done.stdout.splitlines()
    assert attempts == [f"cluster not started {start}" for start in (1, 2, 3)]
    assert last.startswith("1 Ray did not start on this machine")

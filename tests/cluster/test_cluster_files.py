"""The files in cluster/: Ray's own checker takes the launcher's, and the local cluster comes and goes."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from batchinfer.catalog import node_labels

ROOT = Path(__file__).parents[2]
LAUNCHED = ["aws", "onprem"]


def launcher(name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / "cluster" / f"{name}.yaml").read_text())
    return config


def prepared(name: str) -> dict[str, Any]:
    """What `ray up` makes of the file before it talks to anyone."""
    config: dict[str, Any] = prepare_config(launcher(name))
    validate_config(config)
    return config


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_up_takes_the_file(name):
    config = prepared(name)
    assert config["available_node_types"][config["head_node_type"]]
    with pytest.raises(Exception, match="misspelt"):
        validate_config(config | {"misspelt": 1})


@pytest.mark.parametrize("name", LAUNCHED)
def test_every_node_asks_for_the_token_and_gets_it_from_a_file(name):
    config = launcher(name)
    assert any(target.endswith("/.ray/auth_token") for target in config["file_mounts"])
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert all("RAY_AUTH_MODE=token" in command for command in commands if "ray start" in command)
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


@pytest.mark.parametrize("name", LAUNCHED)
def test_what_is_copied_to_the_nodes_is_here(name):
    for source in launcher(name)["file_mounts"].values():
        assert source.startswith("~") or (ROOT / source).exists()


def test_on_aws_the_head_is_on_demand_and_gpus_are_those_of_the_machine():
    types = prepared("aws")["available_node_types"]
    assert "InstanceMarketOptions" not in types["head"]["node_config"]
    spot = {name for name, node in types.items() if "InstanceMarketOptions" in node["node_config"]}
    assert spot == {"l40s_spot"}
    known = node_labels()["eks"].values
    machines = {types[name]["node_config"]["InstanceType"] for name in types.keys() - {"head"}}
    assert {machine.split(".")[0] for machine in machines} == {"g6e", "p5"}
    assert machines <= {*known["L40S"], *known["H100"]}
    assert all(node["node_config"]["IamInstanceProfile"] for node in types.values()), "no keys on the machines"


def local(state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "cluster" / "local.py"), "--state", str(state), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=400)


def resources(state: Path, environment: dict[str, str]) -> Any:
    """What the cluster has in all, seen by a client of its own."""
    address = json.loads((state / "cluster.json").read_text())["address"]
    code = f"import ray, json; ray.init('{address}', log_to_driver=False); print(json.dumps(ray.cluster_resources()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else done.stderr


@pytest.mark.end_to_end
@pytest.mark.timeout(600)
@pytest.mark.soak
def test_a_local_cluster_of_two_nodes_comes_loses_one_and_ends_without_a_trace(tmp_path):
    state = tmp_path / "cluster"
    # As while another cluster holds the ports that an agent, the client server and the dashboard ask for by default.
    taken = contextlib.ExitStack()
    for port in (52365, 10001, 8265):
        holder = taken.enter_context(socket.socket())
        with contextlib.suppress(OSError):
            holder.bind(("0.0.0.0", port))
            holder.listen()
    try:
        started = local(state, "start", "--workers", "2", "--cpus", "1", "--gpus", "4")
        assert started.returncode == 0, started.stderr
        token = state / "token"
        assert token.stat().st_mode & 0o077 == 0
        environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        assert f"RAY_AUTH_TOKEN_PATH={token}" in started.stdout
        held = json.loads((state / "cluster.json").read_text())
        family = [p for node in held["nodes"] for p in psutil.Process(node["pid"]).children(recursive=True)]
        assert len(held["nodes"]) == 3
        found = resources(state, environment)
        assert (found["CPU"], found["GPU"]) == (2, 8), found
        assert local(state, "start").returncode == 2, "one at a time"

        assert local(state, "remove", "2").returncode == 0
        deadline = time.monotonic() + 60
        while resources(state, environment)["GPU"] != 4:
            assert time.monotonic() < deadline
        assert local(state, "remove", "2").returncode == 2, "gone already"
        refused = resources(state, environment | {"RAY_AUTH_TOKEN_PATH": str(wrong_token(tmp_path))})
        assert isinstance(refused, str), "a wrong token gets nothing"
    finally:
        taken.close()
        stopped = local(state, "stop")
    assert stopped.stdout == "2 nodes ended\n"
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []
    assert not token.exists()
    assert not Path(held["folder"]).exists()
    assert local(state, "add").returncode == 2


def wrong_token(folder: Path) -> Path:
    path = folder / "wrong"
    path.write_text("0" * 64)
    return path

"""The variables of the environment that vLLM reads, as the engine sets them."""

from __future__ import annotations

import os

import psutil
import pytest

from batchinfer.engine.vllm import prepare_environment
from tests.support.builders import make_plan


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Of the test alone."""
    own = dict(os.environ)
    monkeypatch.setattr("os.environ", own)
    return own


def test_a_port_that_kubernetes_sets_for_a_service_is_not_vllms(environment: dict[str, str]) -> None:
    environment["VLLM_PORT"] = "tcp://10.43.1.39:8000"
    prepare_environment(make_plan())
    assert "VLLM_PORT" not in environment


def test_what_the_user_sets_stays(environment: dict[str, str]) -> None:
    environment |= {"VLLM_PORT": "8000", "VLLM_NO_USAGE_STATS": "0"}
    prepare_environment(make_plan())
    assert (environment["VLLM_PORT"], environment["VLLM_NO_USAGE_STATS"]) == ("8000", "0")


def test_an_engine_on_one_machine_talks_to_itself_on_loopback(environment: dict[str, str]) -> None:
    environment.pop("GLOO_SOCKET_IFNAME", None)
    prepare_environment(make_plan(nodes_per_replica=2))
    assert "GLOO_SOCKET_IFNAME" not in environment
    prepare_environment(make_plan(nodes_per_replica=1))
    addresses = psutil.net_if_addrs()[environment["GLOO_SOCKET_IFNAME"]]
    assert "127.0.0.1" in {address.address for address in addresses}

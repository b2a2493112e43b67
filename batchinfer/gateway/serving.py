"""The gateway on Ray Serve: the only place of the gateway that knows Ray."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import ray
from ray import serve

from batchinfer.gateway.dispatcher import Dispatcher, worker_command
from batchinfer.gateway.engines import Engines, load_engines
from batchinfer.gateway.keys import require_keys
from batchinfer.gateway.root import GatewayRoot
from batchinfer.reporting.console import event_log

_NAME = "batchinfer-gateway"

_CALLS_AT_ONCE = 256
"""Calls that a replica works on at once. Fewer would let one upload wait for another."""


def _api(root_uri: str, engines: Engines, replicas: int) -> Any:
    """The deployment that answers for the root."""

    def build() -> Any:
        from batchinfer.gateway.app import build_app

        return build_app(root_uri, engines)

    return serve.deployment(
        serve.ingress(build)(),
        name="api",
        num_replicas=replicas,
        max_ongoing_requests=_CALLS_AT_ONCE,
        # The replicas wait for a store most of the time: the CPUs are for the runs.
        ray_actor_options={"num_cpus": 0},
    )


@contextlib.contextmanager
def serving(root_uri: str, engines: Engines, host: str, port: int, replicas: int) -> Iterator[str]:
    """Serve the API at `host` and `port`, on the cluster that this process is connected to.

    Yields the address of the cluster, which other processes join.
    """
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": host, "port": port},
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    try:
        serve.run(_api(root_uri, engines, replicas).bind(), name=_NAME, route_prefix="/")
        yield str(ray.get_runtime_context().gcs_address)
    finally:
        serve.shutdown()


def app(args: Mapping[str, Any]) -> Any:
    """The whole gateway as an application of Ray Serve, as RayService starts it: the API, and an actor for the batches.

    `args`: `root` and `engines` as of the command, which every node must reach, and `replicas`. Raises UserError
    without keys, since a service listens to a network.
    """
    root_uri, engines_file = str(args["root"]), str(args["engines"])
    engines = load_engines(engines_file)
    require_keys(GatewayRoot(root_uri, engines.stores), "a service")
    batches = serve.deployment(_Batches, name="batches", num_replicas=1, ray_actor_options={"num_cpus": 0})
    return _api(root_uri, engines, int(args.get("replicas", 1))).bind(batches.bind(root_uri, engines_file))


class _Batches:
    """Starts the batches of the root, on the node of this actor."""

    def __init__(self, root_uri: str, engines_file: str) -> None:
        root = GatewayRoot(root_uri, load_engines(engines_file).stores)
        address = str(ray.get_runtime_context().gcs_address)
        self._dispatcher = Dispatcher(root, worker_command(root, engines_file, address), event_log())
        self._thread = threading.Thread(target=self._dispatcher.run, name="batches", daemon=True)
        self._thread.start()

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces an actor that raises here."""
        if not self._thread.is_alive():
            raise RuntimeError("no batch is started any more")

    def __del__(self) -> None:
        self._dispatcher.end()
        self._thread.join()

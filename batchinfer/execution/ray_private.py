"""All private names of Ray that a run uses: `require` looks each up at start, and no other file uses one."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

from batchinfer.private_names import Release

RAY = Release("ray", "2.60.0", ("ray",))

_NAMES = {
    "worker": "ray._private.worker:global_worker",
    "free": "ray._private.state:available_resources_per_node",
    "kv_get": "ray.experimental.internal_kv:_internal_kv_get",
    "autoscaling_key": "ray._private.ray_constants:DEBUG_AUTOSCALING_STATUS",
    "is_autoscaler_v2": "ray.autoscaler.v2.utils:is_autoscaler_v2",
    "cluster_status": "ray.autoscaler.v2.sdk:get_cluster_status",
    "constants": "ray._private.ray_constants",
    "printers": "ray._private.ray_logging:global_worker_stdstream_dispatcher",
}
_ATTEMPT = "get_current_task_attempt_number"
_CLUSTERS = "ENABLE_RAY_CLUSTER"
"""Ray's constant: whether nodes of other machines may join a cluster that this process starts."""


def require() -> None:
    """Raise WrongRelease unless every private name of Ray that a run uses is there. Imports Ray."""
    for path in _NAMES.values():
        RAY.name(path)
    # The core worker's instance exists only after this process is connected.
    RAY.name(f"ray._raylet:CoreWorker.{_ATTEMPT}")
    RAY.attribute(RAY.name(_NAMES["constants"]), _CLUSTERS)


@contextlib.contextmanager
def loopback_only() -> Iterator[None]:
    """In the block `ray.init` leaves a node's address of 127.0.0.1 as it is.

    By default, except on macOS and Windows, Ray replaces it by the address that other machines reach, and then its
    processes listen on all interfaces.
    """
    constants = RAY.name(_NAMES["constants"])
    before = RAY.attribute(constants, _CLUSTERS)
    setattr(constants, _CLUSTERS, False)
    try:
        yield
    finally:
        setattr(constants, _CLUSTERS, before)


def attempts_before() -> int:
    """How often Ray has run the calling thread's task before and lost its worker, node or result."""
    core_worker = RAY.attribute(RAY.name(_NAMES["worker"]), "core_worker")
    number: int = RAY.attribute(core_worker, _ATTEMPT)()
    return number


def free_resources_of_nodes() -> dict[str, dict[str, float]]:
    """The free resources of each node, by the node's id."""
    found: dict[str, dict[str, float]] = RAY.name(_NAMES["free"])()
    return found


def node_types() -> list[str]:
    """The autoscaler's name for the type of each node; from the two places that `ray status` reads."""
    if RAY.name(_NAMES["is_autoscaler_v2"])():
        import ray

        status = RAY.name(_NAMES["cluster_status"])(ray.get_runtime_context().gcs_address)
        return [node.ray_node_type_name for node in status.active_nodes + status.idle_nodes]
    found = json.loads(RAY.name(_NAMES["kv_get"])(RAY.name(_NAMES["autoscaling_key"])) or "{}")
    return list(found.get("autoscaler_report", {}).get("node_type_mapping", {}).values())


@contextlib.contextmanager
def data_context(context: Any, **values: Any) -> Iterator[None]:
    """A context in which fields of Ray Data's DataContext ("a__b": field b of field a) have these values.

    A DataContext accepts any name silently, so a renamed field would have no effect.
    """
    before: list[tuple[Any, str, Any]] = []
    for path, value in values.items():
        *owners, name = path.split("__")
        owner = context
        for each in owners:
            owner = RAY.attribute(owner, each)
        before.append((owner, name, RAY.attribute(owner, name)))
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


Sink = Callable[[str], None]
"""Is called with what a worker printed."""

_sinks: list[Sink] = []


@contextlib.contextmanager
def workers_heard_by(sink: Sink) -> Iterator[None]:
    """A context in which what the replicas print goes to `sink` instead of this process's standard streams."""
    _sinks.append(sink)
    try:
        yield
    finally:
        _sinks.remove(sink)


def log_level() -> int:
    """The level of Ray's own messages about a cluster that is started or joined."""
    return logging.ERROR if _sinks else logging.INFO


@contextlib.contextmanager
def diverted(all_workers: bool) -> Iterator[None]:
    """While it lasts, `workers_heard_by` holds: for `all_workers` of the connection, or for those of replicas."""
    if not _sinks:
        yield
        return
    printers = RAY.name(_NAMES["printers"])
    before = list(RAY.attribute(printers, "handlers"))

    def hear(batch: dict[str, Any]) -> None:
        named = f"{batch.get('actor_name')} {batch.get('task_name')}"
        if all_workers or "(Replica)" in named:
            for sink in list(_sinks):
                sink("\n".join(map(str, batch.get("lines", ()))))
        else:
            for _, printer in before:
                printer(batch)

    printers.handlers = [("batchinfer", hear)]
    try:
        yield
    finally:
        printers.handlers = before


def use_token_that_is_there() -> None:
    """Authenticate the job client if a token exists, as `ray.init` does without RAY_AUTH_MODE."""
    module = "ray._private.authentication"
    enable = RAY.name(f"{module}.authentication_token_setup:maybe_enable_token_auth_if_token_available")
    logging.getLogger(module).setLevel(logging.ERROR)
    enable(warn_if_disabled=False)


def limit_job_requests(client: Any, seconds: float) -> None:
    """Let each request of the job client fail that has no answer after `seconds`."""
    client._do_request = functools.partial(RAY.attribute(client, "_do_request"), timeout=seconds)


def job_request(client: Any, method: str, path: str) -> Any:
    """A request with the job client's token; Ray has no public call for other paths of the dashboard."""
    return RAY.attribute(client, "_do_request")(method, path)

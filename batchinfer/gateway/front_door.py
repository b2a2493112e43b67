"""The whole gateway in one process: a cluster, the API on it, and the batches."""

from __future__ import annotations

import contextlib
import errno
import os
import socket

from batchinfer import signals
from batchinfer.errors import UserError
from batchinfer.execution import ray_pipeline
from batchinfer.execution.progress import Listener
from batchinfer.gateway.dispatcher import Dispatcher, worker_command
from batchinfer.gateway.engines import Engines
from batchinfer.gateway.keys import require_keys
from batchinfer.gateway.root import GatewayRoot

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def open_gateway(
    root_uri: str,
    engines_file: str,
    engines: Engines,
    host: str,
    port: int,
    replicas: int,
    address: str | None,
    listener: Listener,
) -> None:
    """Answer calls and run batches until a signal. Raises UserError before anything is started."""
    root = GatewayRoot(root_uri, engines.stores)
    if host not in _LOOPBACK:
        require_keys(root, f"--host {host}")
    root.storage.require_writable(root.uri, "--root")
    _require_free(host, port)
    # Ray Serve ends a proxy that takes longer than 5 s to start, and after three of them itself: on a busy machine the
    # imports alone take longer. The processes of the cluster inherit these.
    for name in ("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S"):
        os.environ.setdefault(name, "120")
    with ray_pipeline.announced(address, listener):
        # Imports Ray Serve, which takes seconds.
        from batchinfer.gateway.serving import serving

        with serving(root.uri, engines, host, port, replicas) as cluster:
            signals.retake()
            dispatcher = Dispatcher(root, worker_command(root, os.path.abspath(engines_file), cluster), listener)
            with signals.handled(dispatcher.end):
                listener.event("gateway ready", url=f"http://{host}:{port}", root=root.uri)
                dispatcher.run()


def _require_free(host: str, port: int) -> None:
    """Raise UserError if the port is taken: Ray Serve would only log it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((host, port))
    except OSError as error:
        why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
        raise UserError(f"{host}:{port} {why}", "choose another --port, or end what listens there") from None

"""moto's S3 in a process of its own.

`python -m tests.support.s3_server` prints its address and serves until it is killed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server


class OneRequestAtATime:
    """moto checks the condition of a write and writes in two steps, which two requests at once could mix up;
    S3 does it in one."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self._application = application
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        with self._lock:
            return list(self._application(environ, start_response))


class Quiet(WSGIRequestHandler):
    """Keeps connections open, as S3 does, and writes no log."""

    protocol_version = "HTTP/1.1"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


if __name__ == "__main__":
    moto = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, OneRequestAtATime(moto), threaded=True, request_handler=Quiet)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()

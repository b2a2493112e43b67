"""A web server that keeps what is posted to it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import NamedTuple


class Posted(NamedTuple):
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes


class Receiver(HTTPServer):
    """Answers with the codes in `answers`, then with `usual`."""

    def __init__(self, usual: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.usual = usual
        self.received: list[Posted] = []
        self.answers: list[int] = []
        self.address = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:  # the name that http.server looks for
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append(Posted(self.path, dict(self.headers), body))
        self.send_response(self.server.answers.pop(0) if self.server.answers else self.server.usual)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def receiving(usual: int = 200) -> Iterator[Receiver]:
    """A receiver that listens until the context ends."""
    with Receiver(usual) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()

"""An HTTP proxy before a store that breaks requests on a seeded schedule."""

from __future__ import annotations

import contextlib
import http.client
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import urlsplit

FAULTS = ("slow_down", "error", "reset", "lost", "timeout", "truncated", "slow")
"""`reset`: the connection breaks before the store sees the request. `lost`: after the store has done it.
`truncated`: half of the body, then the end; without a body it is `lost`.
`timeout`: no answer for `hang` seconds. `slow`: a few bytes at a time."""

_XML = '<?xml version="1.0"?><Error><Code>{0}</Code><Message>{0} by the test</Message></Error>'


class FaultyStore:
    """Forwards to `target`; a `rate` of the requests meets one of `faults`. `injected` counts them by kind.

    `only` limits the faults to requests with this method; `rate` may be changed at any time. `conditions`
    is what becomes of a conditional write: "honour", "ignore", "refuse" as not implemented, "ignore large" for
    those above a MiB, "bare" where If-Match is compared with the bare tag, as Ceph does, "no match" where no tag
    ever matches. `etags` is what becomes of tags in answers: "keep", "weak", "drop", or "unlisted".
    `refuse`, where set, gives status, code and message for a request that is refused. `choose`, where set, gives
    the fault for a method instead of the schedule. Each answer takes `delay` seconds; `waited_alone` is how many
    requests did so with no other beside them.
    """

    def __init__(
        self, target: str, rate: float = 0.0, seed: int = 0, faults: Sequence[str] = FAULTS, hang: float = 3.0
    ) -> None:
        self.rate = rate
        self.faults = tuple(faults)
        self.only = ""
        self.conditions = "honour"
        self.etags = "keep"
        self.refuse: Callable[[str, str, dict[str, str]], tuple[int, str, str] | None] | None = None
        self.choose: Callable[[str], str | None] | None = None
        self.injected: Counter[str] = Counter()
        self.requests = 0
        self.delay = 0.0
        self.waited_alone = 0
        self._waiting_now, self._waited = 0, 0
        self._target = urlsplit(target).netloc
        self._hang = hang
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FaultyStore:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        with self._lock:
            alone = self._waiting_now == 0
            self._waiting_now += 1
            self._waited += 1
            before = self._waited
        yield
        with self._lock:
            self._waiting_now -= 1
            self.waited_alone += alone and self._waited == before

    def _draw(self, method: str) -> str | None:
        with self._lock:
            self.requests += 1
            if self.choose is not None:
                return self.choose(method)
            if self._random.random() >= self.rate or (self.only and method != self.only):
                return None
            fault = self._random.choice(self.faults)
            self.injected[fault] += 1
            return fault

    def _forward(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self._target, timeout=60)
        headers = {name: value for name, value in handler.headers.items() if name.lower() != "expect"}
        if self.conditions != "honour" and handler.command == "PUT":
            given = [name for name in headers if name.lower() in ("if-match", "if-none-match")]
            if given and self.conditions == "refuse":
                return 501, [("Content-Type", "application/xml")], _XML.format("NotImplemented").encode()
            if self.conditions in ("bare", "no match"):
                for name in [name for name in given if name.lower() == "if-match"]:
                    quoted = headers[name].startswith('"') or self.conditions == "no match"
                    headers[name] = '"never"' if quoted else headers[name]
            elif self.conditions == "ignore" or len(body) > 2**20:
                headers = {name: value for name, value in headers.items() if name not in given}
        with contextlib.closing(connection):
            connection.request(handler.command, handler.path, body, headers)
            answer = connection.getresponse()
            kept = [(n, v) for n, v in answer.getheaders() if n.lower() not in ("connection", "transfer-encoding")]
            return answer.status, self._retagged(kept), self._untagged(answer.read())

    def _retagged(self, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
        if self.etags == "drop":
            return [(n, v) for n, v in headers if n.lower() != "etag"]
        weak = self.etags == "weak"
        return [(n, f"W/{v}" if weak and n.lower() == "etag" else v) for n, v in headers]

    def _untagged(self, body: bytes) -> bytes:
        if self.etags not in ("drop", "unlisted") or b"<ListBucketResult" not in body:
            return body
        return re.sub(rb"<ETag>.*?</ETag>", b"", body)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                refused = store.refuse and store.refuse(self.command, self.path, dict(self.headers))
                fault = store._draw(self.command)
                with store._waiting():
                    time.sleep(store.delay)
                if refused:
                    status, code, said = refused
                    xml = _XML.format(code).replace(f"{code} by the test", said).encode()
                    self._answer(status, [("Content-Type", "application/xml")], xml)
                elif fault in ("slow_down", "error"):
                    status, code = (503, "SlowDown") if fault == "slow_down" else (500, "InternalError")
                    self._answer(status, [("Content-Type", "application/xml")], _XML.format(code).encode())
                elif fault == "reset":
                    self._break()
                elif fault == "timeout":
                    store._ended.wait(store._hang)
                    self._break()
                else:
                    status, headers, data = store._forward(self, body)
                    if fault == "lost" or (fault == "truncated" and (not data or self.command == "HEAD")):
                        self._break()
                    elif fault == "truncated":
                        self._answer(status, headers, data, data[: len(data) // 2])
                        self._break()
                    elif fault == "slow":
                        self._answer(status, headers, data, b"")
                        self._trickle(data)
                    else:
                        self._answer(status, headers, data)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815 # the base class's names

            def _answer(
                self, status: int, headers: list[tuple[str, str]], data: bytes, sent: bytes | None = None
            ) -> None:
                self.send_response_only(status)
                for name, value in headers:
                    if name.lower() != "content-length" or self.command == "HEAD":
                        self.send_header(name, value)
                if self.command != "HEAD":
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data if sent is None else sent)

            def _trickle(self, data: bytes) -> None:
                if self.command == "HEAD":
                    return
                size = max(1, len(data) // 10)
                for start in range(0, len(data), size):
                    time.sleep(0.03)
                    self.wfile.write(data[start : start + size])
                    self.wfile.flush()

            def _break(self) -> None:
                """End the connection by a reset, not by an orderly end."""
                self.close_connection = True
                with contextlib.suppress(OSError):
                    self.wfile.flush()
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()

            def handle_one_request(self) -> None:
                # A client that gave up waiting is no fault of the proxy's.
                with contextlib.suppress(OSError, ValueError):
                    super().handle_one_request()
                    return
                self.close_connection = True

            def log_message(self, message: str, *arguments: object) -> None:
                pass

        return Handler

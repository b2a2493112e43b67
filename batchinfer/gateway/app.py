"""The HTTP application: OpenAI's files, batches and models over the objects of a root, which any number may serve."""

from __future__ import annotations

import base64
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from batchinfer.errors import BatchinferError, StorageError
from batchinfer.gateway.batches import cancel_batch, create_batch
from batchinfer.gateway.engines import Engines
from batchinfer.gateway.keys import Caller, KeyRing
from batchinfer.gateway.listing import limit_of, page_of
from batchinfer.gateway.names import is_batch_id, is_file_id, new_file_id, queue_name
from batchinfer.gateway.problems import ApiProblem
from batchinfer.gateway.quotas import CallRates
from batchinfer.gateway.records import BatchRecord, FileRecord, batch_document
from batchinfer.gateway.root import GatewayRoot
from batchinfer.gateway.uploads import ReceivedFile, receive

MOST_BODY_BYTES = 2**17
"""Bytes of a body of JSON: a batch with all its metadata has some 20,000."""

_CHUNK = 2**20
"""Bytes that a download reads at a time."""

_UPLOAD_OVERHEAD = 2**16
"""Bytes of a form around its file."""

QUEUE_SECONDS = 5.0
"""Seconds between two looks at the queues for /metrics."""

_log = logging.getLogger("batchinfer.gateway")

T = TypeVar("T")
Endpoint = Callable[[Request, Caller], Awaitable[Response]]


def build_app(root_uri: str, engines: Engines) -> Starlette:
    """The application over the root."""
    return _Gateway(GatewayRoot(root_uri, engines.stores), engines).app()


class _Gateway:
    """The routes. Nothing here outlives a call but what was looked up in the last seconds, and counters."""

    def __init__(self, root: GatewayRoot, engines: Engines) -> None:
        self.root = root
        self.engines = engines
        self.keys = KeyRing(root)
        self.rates = CallRates()
        self.registry = CollectorRegistry()
        self.calls = Counter(
            "batchinfer_gateway_calls", "Calls of the API", ("method", "route", "status"), registry=self.registry
        )
        self.queue = Gauge(
            "batchinfer_gateway_unfinished_batches", "Batches that have not ended", ("model",), registry=self.registry
        )
        self._looked_at = 0.0

    def app(self) -> Starlette:
        routes = [
            self._route("/v1/files", "POST", self.upload),
            self._route("/v1/files", "GET", self.list_files),
            self._route("/v1/files/{file_id}", "GET", self.get_file),
            self._route("/v1/files/{file_id}", "DELETE", self.delete_file),
            self._route("/v1/files/{file_id}/content", "GET", self.content),
            self._route("/v1/batches", "POST", self.create),
            self._route("/v1/batches", "GET", self.list_batches),
            self._route("/v1/batches/{batch_id}", "GET", self.get_batch),
            self._route("/v1/batches/{batch_id}/cancel", "POST", self.cancel),
            self._route("/v1/models", "GET", self.models),
            self._route("/v1/models/{model:path}", "GET", self.model),
            Route("/healthz", self.health, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: _not_found, Exception: _failed})

    def _route(self, path: str, method: str, endpoint: Endpoint) -> Route:
        async def answer(request: Request) -> Response:
            try:
                caller = await run_in_threadpool(self._caller, request)
                response = await endpoint(request, caller)
            except ApiProblem as problem:
                response = _told(problem)
            except ClientDisconnect:
                response = Response(status_code=400)
            except StorageError:
                # Its message names places that are not the client's business.
                _log.exception("the store failed")
                response = _told(ApiProblem(503, "the store does not answer: try again", headers={"Retry-After": "5"}))
            except BatchinferError:
                _log.exception("a call failed")
                response = _told(ApiProblem(500, "the gateway failed"))
            self.calls.labels(method, path, str(response.status_code)).inc()
            return response

        return Route(path, answer, methods=[method])

    def _caller(self, request: Request) -> Caller:
        """Who calls. Raises ApiProblem for a key that does not work, or for too many calls."""
        if not self.keys.required() and not _is_local(request):
            raise ApiProblem(403, "a gateway without keys answers no page of a browser: make a key", code="key_needed")
        caller = self.keys.caller(_key_of(request.headers.get("authorization", "")))
        if caller is None:
            raise ApiProblem(
                401,
                "this needs a key of the gateway: Authorization: Bearer sk-bi-...",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        self.rates.take(caller.owner, caller.limits.requests_per_minute or self.engines.limits.requests_per_minute)
        return caller

    # Files

    async def upload(self, request: Request, caller: Caller) -> Response:
        most = caller.limits.max_file_bytes or self.engines.limits.max_file_bytes
        length = request.headers.get("content-length", "")
        if length.isascii() and length.isdigit() and len(length) < 20 and int(length) > most + _UPLOAD_OVERHEAD:
            raise ApiProblem(413, f"the file is larger than {most:,} bytes", param="file", code="file_too_large")

        def check(received: ReceivedFile) -> None:
            if received.fields.get("purpose") != "batch":
                raise ApiProblem(400, "purpose must be batch", param="purpose")
            if received.bytes == 0:
                raise ApiProblem(400, "the file is empty", param="file")

        now = time.time()
        file_id = new_file_id(now)
        uri = self.root.file_content(caller.owner, file_id)
        kind = request.headers.get("content-type", "")
        received = await receive(request.stream(), kind, most, self.root.storage, uri, check)
        record = FileRecord(
            id=file_id,
            bytes=received.bytes,
            created_at=int(now),
            filename=received.filename,
            purpose="batch",
            lines=received.lines,
        )
        await run_in_threadpool(self.root.add_file, caller.owner, record)
        return JSONResponse(record.document())

    async def list_files(self, request: Request, caller: Caller) -> Response:
        query = request.query_params
        limit, after = limit_of(query, 10_000, 10_000), _after(query.get("after"), is_file_id)
        order, purpose = query.get("order", "desc"), query.get("purpose")
        if order not in ("asc", "desc"):
            raise ApiProblem(400, "order must be asc or desc", param="order")

        def show(file_id: str) -> dict[str, Any] | None:
            record = self.root.file(caller.owner, file_id)
            return record.document() if record is not None and purpose in (None, record.purpose) else None

        def look() -> dict[str, Any]:
            ids: Iterator[str] = self.root.file_ids(caller.owner)
            if order == "asc":
                ids = reversed(list(ids))
            return page_of(ids, after, limit, show, newest_first=order == "desc")

        return JSONResponse(await run_in_threadpool(look))

    async def get_file(self, request: Request, caller: Caller) -> Response:
        return JSONResponse((await self._file(request, caller)).document())

    async def delete_file(self, request: Request, caller: Caller) -> Response:
        record = await self._file(request, caller)

        def delete() -> None:
            reader = next(self.root.readers(caller.owner, record.id), None)
            if reader is not None:
                raise ApiProblem(409, f"the batch {reader} reads that file: cancel it first", code="file_in_use")
            self.root.delete_file(caller.owner, record.id)

        await run_in_threadpool(delete)
        return JSONResponse({"id": record.id, "object": "file", "deleted": True})

    async def content(self, request: Request, caller: Caller) -> Response:
        record = await self._file(request, caller)
        first, last = _range(request.headers.get("range", ""), record.bytes)
        file = await run_in_threadpool(self.root.storage.open, self.root.file_content(caller.owner, record.id))

        def pieces() -> Iterator[bytes]:
            with file:
                file.seek(first)
                left = last + 1 - first
                while left > 0 and (piece := file.read(min(_CHUNK, left))):
                    left -= len(piece)
                    yield piece

        whole = (first, last) == (0, record.bytes - 1)
        headers = {
            "Content-Length": str(last + 1 - first),
            "Accept-Ranges": "bytes",
            "X-Content-Type-Options": "nosniff",
        }
        if not whole:
            headers["Content-Range"] = f"bytes {first}-{last}/{record.bytes}"
        return StreamingResponse(pieces(), 200 if whole else 206, headers, "application/octet-stream")

    async def _file(self, request: Request, caller: Caller) -> FileRecord:
        file_id = request.path_params["file_id"]
        found = await run_in_threadpool(self.root.file, caller.owner, file_id) if is_file_id(file_id) else None
        if found is None:
            raise ApiProblem(404, f"there is no file {file_id!r:.100}", param="file_id", code="file_not_found")
        return found

    # Batches

    async def create(self, request: Request, caller: Caller) -> Response:
        body = await _json(request)
        record = await run_in_threadpool(create_batch, self.root, self.engines, caller, body)
        return JSONResponse(await run_in_threadpool(self._shown, record))

    async def list_batches(self, request: Request, caller: Caller) -> Response:
        query = request.query_params
        limit, after = limit_of(query, 20, 100), _after(query.get("after"), is_batch_id)

        def show(batch_id: str) -> dict[str, Any] | None:
            record = self.root.batch(caller.owner, batch_id)
            return None if record is None else self._shown(record)

        ids = self.root.batch_ids(caller.owner)
        return JSONResponse(await run_in_threadpool(page_of, ids, after, limit, show))

    async def get_batch(self, request: Request, caller: Caller) -> Response:
        record = await self._batch(request, caller)
        return JSONResponse(await run_in_threadpool(self._shown, record))

    async def cancel(self, request: Request, caller: Caller) -> Response:
        record = await self._batch(request, caller)
        await run_in_threadpool(cancel_batch, self.root, record)
        return JSONResponse(await run_in_threadpool(self._shown, record))

    async def _batch(self, request: Request, caller: Caller) -> BatchRecord:
        batch_id = request.path_params["batch_id"]
        found = await run_in_threadpool(self.root.batch, caller.owner, batch_id) if is_batch_id(batch_id) else None
        if found is None:
            raise ApiProblem(404, f"there is no batch {batch_id!r:.100}", param="batch_id", code="batch_not_found")
        return found

    def _shown(self, record: BatchRecord) -> dict[str, Any]:
        return batch_document(record, self.root.marks(record.owner, record.id))

    # Models

    async def models(self, request: Request, caller: Caller) -> Response:
        names = [name for name, entry in self.engines.engines.items() if entry.is_for(caller.owner)]
        return JSONResponse({"object": "list", "data": [_model(name) for name in names]})

    async def model(self, request: Request, caller: Caller) -> Response:
        name = request.path_params["model"]
        entry = self.engines.engines.get(name)
        if entry is None or not entry.is_for(caller.owner):
            raise ApiProblem(404, f"there is no model {name!r:.100}", param="model", code="model_not_found")
        return JSONResponse(_model(name))

    # For operators

    async def health(self, request: Request) -> Response:
        try:
            await run_in_threadpool(self.root.storage.stat, self.root.uri)
        except BatchinferError:
            return JSONResponse({"status": "the store does not answer"}, 503)
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        now = time.monotonic()
        if now - self._looked_at > QUEUE_SECONDS:
            self._looked_at = now
            await run_in_threadpool(self._look_at_queues)
        return Response(generate_latest(self.registry), media_type="text/plain; version=0.0.4; charset=utf-8")

    def _look_at_queues(self) -> None:
        queued = self.root.queued()
        for name in self.engines.engines:
            self.queue.labels(name).set(len(queued.get(queue_name(name), ())))


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "batchinfer"}


def _told(problem: ApiProblem) -> Response:
    return JSONResponse(problem.document(), problem.status, problem.headers)


async def _not_found(request: Request, error: Exception) -> Response:
    """Paths and methods that no route has."""
    status = error.status_code if isinstance(error, HTTPException) else 404
    headers = error.headers if isinstance(error, HTTPException) else None
    return _told(ApiProblem(status, f"there is no {request.method} {request.url.path!r:.200}", headers=headers))


async def _failed(request: Request, error: Exception) -> Response:
    """A bug: the trace is the operator's."""
    _log.error("a call failed", exc_info=error)
    return _told(ApiProblem(500, "the gateway failed"))


def _is_local(request: Request) -> bool:
    """Whether a program of this machine calls by this machine's own name.

    A page of another site that a browser on this machine shows can send forms to 127.0.0.1, too. Its calls have an
    Origin, or the name of a host of its own that leads here.
    """
    return "origin" not in request.headers and request.url.hostname in ("127.0.0.1", "localhost", "::1")


def _key_of(authorization: str) -> str | None:
    """The key in the header: as a bearer's, or as the password of a browser."""
    kind, _, value = authorization.strip().partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() != "basic":
        return None
    try:
        return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
    except ValueError:
        return None


def _after(text: str | None, is_id: Callable[[str], bool]) -> str | None:
    if text is not None and not is_id(text):
        raise ApiProblem(400, "after must be the id of the last object that you have", param="after")
    return text


async def _json(request: Request) -> dict[str, Any]:
    """The body, an object of JSON. Raises ApiProblem."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MOST_BODY_BYTES:
            raise ApiProblem(413, f"the body is larger than {MOST_BODY_BYTES:,} bytes")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise ApiProblem(400, "the body is not JSON") from None
    if not isinstance(found, dict):
        raise ApiProblem(400, "the body must be an object of JSON")
    return found


def _range(header: str, size: int) -> tuple[int, int]:
    """The first and the last byte that are asked for; the whole file without a range that is understood."""
    found = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", header.strip(), re.ASCII)
    if found is None or not (found[1] or found[2]) or size == 0:
        return 0, size - 1
    if not found[1]:
        first, last = max(0, size - int(found[2])), size - 1
    else:
        first, last = int(found[1]), min(int(found[2] or size - 1), size - 1)
    if first > last:
        raise ApiProblem(416, "the file has no such bytes", headers={"Content-Range": f"bytes */{size}"})
    return first, last

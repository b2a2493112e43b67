"""Uploads: multipart bodies that stream into the store, checked on their way. Memory does not grow with the file."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from batchinfer.gateway.problems import ApiProblem
from batchinfer.storage import Storage

_PART_BYTES = 2**20
"""Bytes that go to the store at a time. More take memory, fewer take a change of threads for each few kilobytes."""

_PARTS_AHEAD = 4

_FIELD_BYTES = 4096
"""Bytes of a form field other than the file."""

_MOST_FIELDS = 32


@dataclass(slots=True)
class ReceivedFile:
    """A file that was received whole. `fields`: the other fields of the form."""

    filename: str = ""
    bytes: int = 0
    lines: int = 0
    fields: dict[str, str] = field(default_factory=dict)
    found: bool = False
    last: int = ord("\n")


class _Aborted(Exception):
    """The upload ended early: what was written is to be thrown away."""


class _Form:
    """The form as the parser meets it; `out` collects the bytes of the file that are not handed on yet."""

    def __init__(self, content_type: str, most_bytes: int) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not 1 <= len(boundary) <= 200:
            raise ApiProblem(400, "the body must be multipart/form-data with the parts file and purpose")
        self.received = ReceivedFile()
        self.out = bytearray()
        self.whole = False
        self._most = most_bytes
        self._name = self._header = b""
        self._value = b""
        self._text = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._in_file = False
        self.parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._on_header,
                "on_header_value": self._on_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers,
                "on_part_data": self._on_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )

    def _begin(self) -> None:
        self._headers, self._name = {}, b""
        self._text.clear()
        self._in_file = False

    def _on_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header = self._value = b""

    def _on_headers(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = options.get(b"name", b"")
        self._in_file = self._name == b"file" and b"filename" in options
        if self._in_file:
            if self.received.found:
                raise ApiProblem(400, "the body has two files", param="file")
            self.received.found = True
            self.received.filename = options[b"filename"].decode(errors="replace")[:200] or "upload.jsonl"

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if not self._in_file:
            self._text += data[start:end]
            if len(self._text) > _FIELD_BYTES:
                raise ApiProblem(400, "a field of the form is too long")
            return
        piece = data[start:end]
        received = self.received
        received.bytes += len(piece)
        if received.bytes > self._most:
            raise ApiProblem(413, f"the file is larger than {self._most:,} bytes", param="file", code="file_too_large")
        received.lines += piece.count(b"\n")
        received.last = piece[-1]
        self.out += piece

    def _on_part_end(self) -> None:
        if not self._in_file:
            self.received.fields[self._name.decode(errors="replace")] = self._text.decode(errors="replace")
            if len(self.received.fields) > _MOST_FIELDS:
                raise ApiProblem(400, "the form has too many fields")

    def _on_end(self) -> None:
        self.whole = True

    def feed(self, data: bytes) -> None:
        try:
            self.parser.write(data)
        except MultipartParseError:
            raise ApiProblem(400, "the body is not a valid multipart form") from None


async def receive(
    chunks: AsyncIterator[bytes],
    content_type: str,
    most_bytes: int,
    storage: Storage,
    uri: str,
    check: Callable[[ReceivedFile], None],
) -> ReceivedFile:
    """Write the file of the form to `uri`, unless the body is wrong, too large, or ends early; then nothing is there.

    `check` looks at the whole form before the file is kept, and raises ApiProblem. Raises ApiProblem.
    """
    form = _Form(content_type, most_bytes)
    parts: queue.Queue[bytes | _Aborted | None] = queue.Queue(_PARTS_AHEAD)
    gone = False

    def taken() -> Iterator[bytes]:
        while (part := parts.get()) is not None:
            if isinstance(part, _Aborted):
                raise part
            yield part

    def write() -> None:
        nonlocal gone
        try:
            storage.put_parts(uri, taken())
        except _Aborted:
            pass
        finally:
            gone = True

    def hand_on(part: bytes | _Aborted | None) -> None:
        while not gone:
            try:
                parts.put(part, timeout=0.5)
                return
            except queue.Full:
                continue

    writing = asyncio.ensure_future(asyncio.to_thread(write))
    last: _Aborted | None = _Aborted()
    try:
        async for chunk in chunks:
            form.feed(chunk)
            if len(form.out) >= _PART_BYTES:
                await asyncio.to_thread(hand_on, bytes(form.out))
                form.out.clear()
        if not form.whole:
            raise ApiProblem(400, "the body ends before its last boundary: the upload was cut off")
        if not form.received.found:
            raise ApiProblem(400, "the form has no file", param="file")
        if form.received.last != ord("\n"):
            form.received.lines += 1
        check(form.received)
        if form.out:
            await asyncio.to_thread(hand_on, bytes(form.out))
        last = None
    finally:
        await asyncio.to_thread(hand_on, last)
        # A failed write is the store's error, and is raised here.
        await writing
    return form.received

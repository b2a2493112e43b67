"""The interface of every store."""

from __future__ import annotations

import contextlib
import uuid
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from batchinfer.errors import InputError, OutputBusy, OutputError

_TEMPORARY = ".writing-"

NAMES_AT_LEAST = 1000
"""The names that `Storage.names` returns at least, if the folder has so many: what S3 lists in one request. More would
need several requests; fewer would hide existing names."""

REQUESTS_AT_ONCE = 16
"""Requests to a store that one step of a run has in flight. With fewer, many small files take round trip after round
trip; with more, stores throttle (the pool of connections to S3 has 64)."""

REQUESTS_AHEAD = 4 * REQUESTS_AT_ONCE
"""Reads that are begun before their turn: they fill the threads while the oldest is awaited, and bound the memory."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of a store. `size` is in bytes; `tag` changes whenever the content changes."""

    uri: str
    size: int
    tag: str


class Storage(Protocol):
    """The operations of a store. All of them raise StorageError with the URI."""

    def list(self, uri: str) -> Iterator[Entry]:
        """Every object at or below `uri`, in the store's order; nothing if there is none."""

    def match(self, pattern: str) -> Iterator[Entry]:
        """Every object whose URI matches `pattern`, in any order: `*`, `?`, `[...]` in a name, `**` for folders."""

    def names(self, uri: str) -> Sequence[str]:
        """The names directly in the folder `uri`, at least the first NAMES_AT_LEAST; empty if there are none."""

    def folders(self, uri: str) -> Iterator[str]:
        """The names of all folders directly in the folder `uri`, in the store's order; nothing if there are none."""

    def stat(self, uri: str) -> Entry | None:
        """The object at `uri`; None if there is none."""

    def open(self, uri: str, tag: str | None = None) -> BinaryIO:
        """A seekable reader of the object at `uri`. Raises InputError if its tag is not the given `tag`."""

    def read(self, uri: str) -> bytes:
        """The whole object at `uri`."""

    def create(self, uri: str, data: bytes) -> bool:
        """Create the object if there is none. Returns True to exactly one of all callers."""

    def replace(self, uri: str, data: bytes, tag: str) -> bool:
        """Replace the object's content if its tag is still `tag`; False if the tag has changed."""

    def put(self, uri: str, data: bytes) -> None:
        """Write the object, whole or not at all; the last writer wins. May be lost in a power cut."""

    def put_parts(self, uri: str, parts: Iterable[bytes]) -> None:
        """As `put`, for an object that need not fit into memory. The parts are read once, in order."""

    def delete(self, uri: str) -> None:
        """Delete the object if it exists."""

    def irregular(self, uri: str) -> Iterator[str]:
        """Everything at or below `uri` that is neither a folder nor a plain file: links, pipes, sockets.

        A write or a delete there could reach files elsewhere. A store of objects has none.
        """

    def remove_leftovers(self, uri: str) -> None:
        """Delete the temporary files (see `temporary_name`) that killed writers left directly in the folder `uri`.

        Best effort: a store may forbid deletes, and no result depends on this.
        """

    def require_writable(self, uri: str, key: str = "output.uri") -> None:
        """Raise OutputError unless a run can write below the folder `uri`. Tries every operation that commits need.

        `key`: the key of the spec that names the folder, for the remedy.
        """

    def lock(self, uri: str) -> contextlib.AbstractContextManager[Callable[[], None]]:
        """Hold the lock at `uri`, which ends with the process. Returns or fails in bounded time.

        Yields a function that raises StorageError if another process took the lock, and that waits while this is
        unknown. Raises OutputBusy if another process holds the lock, OutputError if the file at `uri` is no lock.
        """


def temporary_name() -> str:
    """A name for a file that is being written. After a crash such a file may remain, and is no part of any result.

    The name ends with its own checksum, so that `is_temporary` does not mistake a user's file for a temporary one.
    """
    return _temporary(uuid.uuid4().hex)


def fixed_temporary_name(purpose: str) -> str:
    """A temporary name for `purpose` that is equal in every process."""
    return _temporary(uuid.uuid5(uuid.NAMESPACE_OID, purpose).hex)


def _temporary(token: str) -> str:
    return f"{_TEMPORARY}{token}-{zlib.crc32(token.encode()):08x}"


def is_temporary(name: str) -> bool:
    """Did `temporary_name` make this name?"""
    token, _, checksum = name.removeprefix(_TEMPORARY).partition("-")
    return name.startswith(_TEMPORARY) and len(token) == 32 and checksum == f"{zlib.crc32(token.encode()):08x}"


def foreign_lock(uri: str) -> OutputError:
    """The error for a file at a lock's URI that is no lock."""
    return OutputError(
        f"{uri} stands where the lock of a run belongs, and batchinfer did not write it",
        "move that file away, or choose another output.uri; nothing was changed",
    )


def locked_output(holder: str) -> OutputBusy:
    """The error for a lock that a living process has; `holder` names it."""
    return OutputBusy(
        f"another batchinfer is writing to this output (process {holder})",
        "wait for it to end, or stop it; then run the same command again",
    )


def join(uri: str, *parts: str) -> str:
    """A URI below `uri`."""
    return "/".join((uri.rstrip("/"), *parts))


def input_changed(uri: str, gone: bool) -> InputError:
    """The error for a file that has changed, or is gone, since the manifest was cut."""
    return InputError(
        f"{uri} {'is gone' if gone else 'has changed'} since the run began",
        "put it back as it was, or run with --fresh to start over with the input as it is",
    )


def read_many(storage: Storage, uris: Iterable[str]) -> Iterator[bytes]:
    """The contents of the objects, in order. Several are read at a time, because a remote store has a high latency."""
    pool = ThreadPoolExecutor(REQUESTS_AT_ONCE)
    waiting: deque[Future[bytes]] = deque()
    try:
        for uri in uris:
            waiting.append(pool.submit(storage.read, uri))
            if len(waiting) >= REQUESTS_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def delete_many(storage: Storage, uris: Iterable[str]) -> None:
    """Delete the objects, several at a time."""
    pool = ThreadPoolExecutor(REQUESTS_AT_ONCE)
    try:
        for _ in pool.map(storage.delete, uris):
            pass
    finally:
        pool.shutdown(cancel_futures=True)

"""What batchinfer asks of a store, whichever it is."""

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
"""How many names of a folder `Storage.names` gives at least: what S3 lists in one request."""

REQUESTS_AT_ONCE = 16
"""Requests to a store that one step of a run has in flight. With fewer, many small files take round trip after round
trip; with more, stores throttle (the pool of connections to S3 has 64)."""

REQUESTS_AHEAD = 4 * REQUESTS_AT_ONCE
"""Reads that are begun before their turn: they fill the threads while the oldest is awaited, and bound the memory."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of a store. `tag` changes whenever the content does."""

    uri: str
    size: int
    tag: str


class Storage(Protocol):
    """What batchinfer asks of a store. All calls raise StorageError, naming the URI."""

    def list(self, uri: str) -> Iterator[Entry]:
        """Every object under `uri`, in order of its URI, as the store gives them; nothing when there is none."""

    def match(self, pattern: str) -> Iterator[Entry]:
        """Every object whose URI fits `pattern`, in any order: `*`, `?`, `[...]` in a name, `**` for folders."""

    def names(self, uri: str) -> Sequence[str]:
        """What lies directly in the folder `uri`, NAMES_AT_LEAST of it; nothing when there is none."""

    def stat(self, uri: str) -> Entry | None:
        """The object at `uri`, None when there is none."""

    def open(self, uri: str, tag: str | None = None) -> BinaryIO:
        """A seekable reader of the object at `uri`. Raises InputError when its tag is not `tag`."""

    def read(self, uri: str) -> bytes:
        """The whole object at `uri`."""

    def create(self, uri: str, data: bytes) -> bool:
        """Make the object unless there is one: True for exactly one of all callers, ever."""

    def replace(self, uri: str, data: bytes, tag: str) -> bool:
        """Swap the object's content if its tag is still `tag`; False if it has changed."""

    def put(self, uri: str, data: bytes) -> None:
        """Write the object, whole or not at all; the last writer wins. May be lost in a power cut."""

    def delete(self, uri: str) -> None:
        """Remove the object if it is there."""

    def irregular(self, uri: str) -> Iterator[str]:
        """What is at `uri` or below it and is neither a folder nor a plain file: links, pipes, sockets.

        A write or a delete there could reach something elsewhere. A store of objects has none.
        """

    def remove_leftovers(self, uri: str) -> None:
        """Delete the temporary files (see `temporary_name`) that killed writers left directly in the folder `uri`.

        At best effort where a store forbids it: no result rests on it.
        """

    def require_writable(self, uri: str) -> None:
        """Raise OutputError unless a run can write under the folder `uri`: tries there all that commits rest on."""

    def lock(self, uri: str) -> contextlib.AbstractContextManager[Callable[[], None]]:
        """Hold `uri` alone; raises OutputBusy if another process does, in bounded time. Ends with the process.

        Gives a call that raises StorageError once the lock was lost to another, and that waits while it is
        unknown whether it was. Raises OutputError where
        something stands at `uri` that no lock of this product wrote.
        """


def temporary_name() -> str:
    """A name for a file that is being written; one left behind by a crash is not part of any result.

    The name ends in a checksum of its own, so that `is_temporary` cannot mistake a user's file for one.
    """
    return _temporary(uuid.uuid4().hex)


def fixed_temporary_name(purpose: str) -> str:
    """The temporary name that every process gives to a file for `purpose`."""
    return _temporary(uuid.uuid5(uuid.NAMESPACE_OID, purpose).hex)


def _temporary(token: str) -> str:
    return f"{_TEMPORARY}{token}-{zlib.crc32(token.encode()):08x}"


def is_temporary(name: str) -> bool:
    """Did `temporary_name` make this name?"""
    token, _, checksum = name.removeprefix(_TEMPORARY).partition("-")
    return name.startswith(_TEMPORARY) and len(token) == 32 and checksum == f"{zlib.crc32(token.encode()):08x}"


def foreign_lock(uri: str) -> OutputError:
    """The error for a file that stands where a lock belongs."""
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
    """The error for a file that is not the one which the manifest was cut from."""
    return InputError(
        f"{uri} {'is gone' if gone else 'has changed'} since the run began",
        "put it back as it was, or run with --fresh to begin anew with the input as it is",
    )


def read_many(storage: Storage, uris: Iterable[str]) -> Iterator[bytes]:
    """The objects in order, several read at a time: a store far away takes as long for each as for many."""
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
    """Remove the objects, several at a time."""
    pool = ThreadPoolExecutor(REQUESTS_AT_ONCE)
    try:
        for _ in pool.map(storage.delete, uris):
            pass
    finally:
        pool.shutdown(cancel_futures=True)

"""What batchinfer asks of a store, whichever it is."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from batchinfer.errors import InputError

TEMPORARY = ".writing-"
"""Prefix of files that are being written; one left behind by a crash is not part of any result."""

_THREADS = 16
_AHEAD = 64


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
        """What lies directly in the folder `uri`, 1,000 names of it at least; nothing when there is none."""

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

    def remove_leftovers(self, uri: str) -> None:
        """Delete what writers that were killed left half-written under `uri`."""

    def require_writable(self, uri: str) -> None:
        """Raise OutputError unless objects can be made under the folder `uri`."""

    def lock(self, uri: str) -> contextlib.AbstractContextManager[Callable[[], None]]:
        """Hold `uri` alone; raises OutputError if another process does. Ends with the process.

        Gives a call that raises StorageError once the lock was lost to another.
        """


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
    pool = ThreadPoolExecutor(_THREADS)
    waiting: deque[Future[bytes]] = deque()
    try:
        for uri in uris:
            waiting.append(pool.submit(storage.read, uri))
            if len(waiting) >= _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def delete_many(storage: Storage, uris: Iterable[str]) -> None:
    """Remove the objects, several at a time."""
    pool = ThreadPoolExecutor(_THREADS)
    try:
        for _ in pool.map(storage.delete, uris):
            pass
    finally:
        pool.shutdown(cancel_futures=True)

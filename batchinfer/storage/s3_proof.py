"""Tests in the run's folder, before a run begins, that the store supports every operation of a commit.

Each operation is tried in the form in which the run uses it, and the error of the store is passed on. The message that
a store does not honour conditions requires that a plain write succeeded just before. So a mistake in the credentials
never leads to the advice to disable conditional writes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from batchinfer.errors import OutputError, StorageError, StoreRefused
from batchinfer.storage.base import NAMES_AT_LEAST, Storage, join, temporary_name
from batchinfer.storage.s3_client import is_unsupported

_LARGE_BYTES = 5 * 2**20 + 1
"""Bytes. From this size on some clients and gateways send in parts, and many stores then ignore a condition. A smaller
test would miss that."""

_WRITERS = 4
_NO_SUCH_TAG = "0" * 32


def prove(storage: Storage, uri: str, store: str, conditional: bool) -> None:
    """Raise OutputError unless the store supports every operation that a run with its output at `uri` needs.

    `store`: its address. `conditional`: test conditional writes, which keep two writers apart.
    """
    # Plain writes first, so that a failure of all writes is not reported as a failure of conditions.
    plain, raced = join(uri, temporary_name()), join(uri, temporary_name())
    try:
        _require_plain_writes(storage, uri, plain, store)
        if conditional:
            _require_conditions(storage, uri, plain, raced, store)
        for probe in (plain, raced):
            storage.delete(probe)
            if storage.stat(probe) is not None:
                raise _inconsistent(uri, store, "an object is still there after it was deleted")
    except StoreRefused as error:
        raise OutputError(f"cannot write to {error.message}", error.remedy) from error
    finally:
        for probe in (plain, raced):
            # After a failure the probes still exist; otherwise this delete has no effect.
            with contextlib.suppress(StorageError):
                storage.delete(probe)


def _require_plain_writes(storage: Storage, uri: str, probe: str, store: str) -> None:
    storage.put(probe, b"1")
    if storage.read(probe) != b"1":
        raise _inconsistent(uri, store, "an object has other bytes than were written")
    names = storage.names(uri)
    if probe.rpartition("/")[2] not in names and len(names) < NAMES_AT_LEAST:
        raise _inconsistent(uri, store, "an object that was just written is not listed")


def _require_conditions(storage: Storage, uri: str, probe: str, raced: str, store: str) -> None:
    with _passing_on(storage, uri, probe, store, "If-None-Match"):
        if storage.create(probe, b"2") or storage.read(probe) != b"1":
            raise _ignores(uri, store, "a second writer overwrites what the first has written")
        if storage.create(probe, bytes(_LARGE_BYTES)) or storage.read(probe) != b"1":
            raise _ignores(uri, store, f"a second writer of {_LARGE_BYTES:,} bytes overwrites what the first has")
        with ThreadPoolExecutor(_WRITERS) as pool:
            first = sum(pool.map(lambda me: storage.create(raced, b"%d" % me), range(_WRITERS)))
        if first != 1:
            raise _ignores(uri, store, f"of {_WRITERS} writers at once {first} were told to be the first")
    with _passing_on(storage, uri, probe, store, "If-Match"):
        if storage.replace(probe, b"3", _NO_SUCH_TAG):
            raise _ignores(uri, store, "a writer with an old tag overwrites what is new")
        now = storage.stat(probe)
        if now is None or not storage.replace(probe, b"4", now.tag) or storage.read(probe) != b"4":
            raise _ignores(uri, store, "a writer with the right tag is refused")


@contextlib.contextmanager
def _passing_on(storage: Storage, uri: str, probe: str, store: str, header: str) -> Iterator[None]:
    """Report that the store ignores conditions if it refuses a conditional write as unsupported, but accepts a plain
    one. If the plain write fails too, its error is raised."""
    try:
        yield
    except StoreRefused as error:
        if not is_unsupported(error):
            raise
        storage.put(probe, b"1")
        raise _ignores(uri, store, f"it refuses a write with {header}: {error.message}") from error


def _ignores(uri: str, store: str, what: str) -> OutputError:
    return OutputError(
        f"cannot write to {uri}: the store {store} does not honour conditional writes (If-None-Match, If-Match), "
        f"which keep two writers apart: {what}",
        "write to a store that does; or set storage: {" + uri + ": {conditional_writes: false}} and see to it "
        "yourself that only one run at a time writes there",
    )


def _inconsistent(uri: str, store: str, what: str) -> OutputError:
    return OutputError(
        f"cannot write to {uri}: at the store {store} {what}, and no run can be exact on such a store",
        "write to a store that shows a change as soon as it is made",
    )

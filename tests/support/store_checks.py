"""What every store must keep, whichever it is: tried on each real one that the tests start."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from batchinfer.storage import Storage

LARGE = 33 * 2**20
"""Bytes above what many clients write in one part."""


def keeps_writers_apart(storage: Storage, folder: str) -> None:
    """The proof that a run asks for passes, and leaves nothing behind."""
    storage.require_writable(folder)
    assert [name for name in storage.names(folder) if name.startswith(".")] == []


def has_one_first_creator(storage: Storage, uri: str) -> None:
    """Of four creators of one large object exactly one is the first, and its bytes are there."""
    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(lambda i: storage.create(uri, bytes([i]) * LARGE), range(4)))
    assert won.count(True) == 1
    data = storage.read(uri)
    assert len(data) == LARGE
    assert set(data) == {won.index(True)}


def renews_its_lock(storage: Storage, uri: str) -> None:
    """A lock is renewed, given back and taken again. The lease of `storage` is 3 s."""
    for _ in range(2):
        with storage.lock(uri) as require_held:
            time.sleep(4)
            require_held()

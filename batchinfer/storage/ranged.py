"""A seekable file that reads ranges of an object."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

FIRST_BYTES = 128 * 1024
MOST_BYTES = 8 * 2**20


class RangedReader(io.RawIOBase):
    """Reads an object of `size` bytes through `fetch(start, stop)`.

    Each sequential request doubles the read-ahead, so that a scan needs few requests. A seek resets the read-ahead, so
    that a jump, such as to a Parquet footer, fetches few unwanted bytes.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        super().__init__()
        self._fetch = fetch
        self._size = size
        self._at = 0
        self._start = 0
        self._held = b""
        self._ahead = FIRST_BYTES

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to {base + offset}")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        target = memoryview(buffer).cast("B")
        if not target.nbytes or self._at >= self._size:
            return 0
        end = self._start + len(self._held)
        if not self._start <= self._at < end:
            self._ahead = min(2 * self._ahead, MOST_BYTES) if self._at == end else FIRST_BYTES
            stop = min(self._size, self._at + max(target.nbytes, self._ahead))
            self._held, self._start = self._fetch(self._at, stop), self._at
        begin = self._at - self._start
        taken = min(target.nbytes, len(self._held) - begin)
        target[:taken] = memoryview(self._held)[begin : begin + taken]
        self._at += taken
        return taken

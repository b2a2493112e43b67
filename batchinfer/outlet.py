"""Standard streams that a command outlives: the work and its exit code do not depend on who reads along."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, TextIO, cast


class Outlet:
    """A text stream whose failures are the reader's: a closed pipe, a full disk, a terminal that is gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._broken = False
        self.reader_left = False
        """Whether it is a pipe whose reader has ended, as `head` does after its lines."""

    def write(self, text: str) -> int:
        """As the stream's own; what nobody can read is dropped."""
        if not self._broken:
            try:
                self._stream.write(text)
            except (OSError, ValueError) as error:
                self._fail(error)
        return len(text)

    def flush(self) -> None:
        """As the stream's own; what cannot be written is dropped, also from its buffer."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._fail(error)
            # The interpreter flushes once more at its end, and would end with an exit code of its own.
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)
                self._stream.flush()

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        with contextlib.suppress(OSError, ValueError):
            self._stream.close()

    def _fail(self, error: Exception) -> None:
        self._broken = True
        self.reader_left = self.reader_left or isinstance(error, BrokenPipeError)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_standard_streams() -> None:
    """Have stdin, stdout and stderr open, whatever they were handed over as, with characters for every text."""
    # A closed one would be the next file that is opened, and what is printed would end in there.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if isinstance(stream, Outlet):
            continue
        if stream is None:
            stream = os.fdopen(os.dup(number), "w", buffering=1)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, cast(TextIO, Outlet(stream)))

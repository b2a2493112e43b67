"""Standard streams whose failure does not end a command: its work and exit code do not depend on a reader."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, TextIO, cast


class Outlet:
    """A text stream that drops text instead of failing: on a closed pipe, a full disk or a closed terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._broken = False
        self.reader_left = False
        """Whether it is a pipe whose reader has ended, as `head` does after its lines."""

    def write(self, text: str) -> int:
        """Write to the stream; after a failure, all text is dropped."""
        if not self._broken:
            try:
                self._stream.write(text)
            except (OSError, ValueError) as error:
                self._fail(error)
        return len(text)

    def flush(self) -> None:
        """Flush the stream; if that fails, its buffer is dropped."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._fail(error)
            # The interpreter flushes again at its end, and a failure would replace the exit code.
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
    """Open stdin, stdout and stderr if the process was started without them, and escape characters that their encoding
    lacks."""
    # The next file that is opened would get the number of a closed stream, and prints would go into that file.
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

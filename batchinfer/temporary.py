"""Files that a process makes for itself, in this machine's folder for temporary files (TMPDIR)."""

from __future__ import annotations

import contextlib
import errno
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

from batchinfer.errors import ResourceError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_ELSEWHERE = "set TMPDIR to a folder that can be written to and has room"


class TemporaryFolder:
    """Deleted when nobody holds it any more, and when the process ends. Raises ResourceError if it cannot be made."""

    def __init__(self, purpose: str) -> None:
        with _made():
            self.path = tempfile.mkdtemp(prefix=f"batchinfer-{purpose}-")
        self.remove = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@contextlib.contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """A folder that is deleted afterwards. Raises ResourceError if it cannot be made, or is full."""
    with _made():
        folder = tempfile.TemporaryDirectory(prefix=f"batchinfer-{purpose}-", ignore_cleanup_errors=True)
    with folder as path, room_in(path):
        yield Path(path)


def temporary_file(suffix: str) -> tuple[int, str]:
    """The handle and the path of a new file. Raises ResourceError if it cannot be made."""
    with _made():
        return tempfile.mkstemp(prefix="batchinfer-", suffix=suffix)


@contextlib.contextmanager
def room_in(folder: str, remedy: str = _ELSEWHERE) -> Iterator[None]:
    """Raise ResourceError if the disk of `folder`, where the block writes temporary files, is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise ResourceError(f"there is no room for temporary files at {folder}: {error.strerror}", remedy) from error


@contextlib.contextmanager
def _made() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ResourceError(f"no temporary file can be made on this machine: {error}", _ELSEWHERE) from error

"""A folder for files that a process makes for itself, and which ends with whoever holds it."""

from __future__ import annotations

import shutil
import tempfile
import weakref


class TemporaryFolder:
    """Deleted when nobody holds it any more, and when the process ends."""

    def __init__(self, purpose: str) -> None:
        self.path = tempfile.mkdtemp(prefix=f"batchinfer-{purpose}-")
        self.remove = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)

"""A disk that is soon full, for tests that root runs."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(folder: Path, kibibytes: int) -> Iterator[Callable[[int], None]]:
    """Mount a disk at `folder`. What is given resizes it, to so many KiB. Skips the test where that is not allowed."""
    folder.mkdir()

    def mount(*options: str) -> int:
        return subprocess.run(["mount", *options, str(folder)], capture_output=True, check=False).returncode

    def resize(size: int) -> None:
        assert mount("-o", f"remount,size={size}k") == 0

    if mount("-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs"):
        pytest.skip("only root mounts a disk of its own")
    try:
        yield resize
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)

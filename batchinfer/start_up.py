"""Requirements of every command on its process, checked before the imports that would fail without them."""

from __future__ import annotations

import resource
import sys

from batchinfer.errors import UserError

OPEN_FILES = 1024
"""Open files that Ray and pyarrow need; with fewer, a command is refused. A run with many input files needs more, so
the limit is raised to the hard limit, at most `_MOST_OPEN_FILES`."""
_MOST_OPEN_FILES = 65_536


def require_process() -> None:
    """Raise the soft limit of open files; raise UserError, with the remedy, if Python's flags or that limit prevent a
    command."""
    if sys.flags.optimize > 1:
        raise UserError(
            "Python runs with PYTHONOPTIMIZE=2, which removes texts that packages of this product read",
            "unset PYTHONOPTIMIZE",
        )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES:
        raise UserError(
            f"this process may open {soft} files, and needs {OPEN_FILES}",
            f"raise the hard limit: ulimit -Hn {OPEN_FILES}, or LimitNOFILE of the service or container",
        )

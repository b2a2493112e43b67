"""What every command needs of its process, looked at before anything is imported that fails without it."""

from __future__ import annotations

import resource
import sys

from batchinfer.errors import UserError

OPEN_FILES = 1024
"""Ray's and pyarrow's own minimum; a run with many input files needs more, and takes what the hard limit allows."""
_MOST_OPEN_FILES = 65_536


def require_process() -> None:
    """Raise UserError, with what to set, if Python or the system was told to leave out what a command needs."""
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

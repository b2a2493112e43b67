"""The ids of files and batches, and the names of owners: made or checked here before they become part of a path."""

from __future__ import annotations

import hashlib
import re
import secrets

LOCAL_OWNER = "local"
"""Whose files and batches are those of a gateway without keys."""

_FILE = re.compile(r"file-[0-9a-f]{32}(-output|-errors)?")
_BATCH = re.compile(r"batch_[0-9a-f]{32}")
_OWNER = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")

_LAST_MS = 2**48 - 1
"""Milliseconds since 1970 that 12 hexadecimal digits count down from: some 8,900 years."""


def new_file_id(now: float) -> str:
    """An id for an uploaded file. `now`: seconds since 1970."""
    return f"file-{_token(now)}"


def new_batch_id(now: float) -> str:
    """An id for a batch. `now`: seconds since 1970."""
    return f"batch_{_token(now)}"


def _token(now: float) -> str:
    # The time counts backwards, so that a listing in the order of names has the newest first.
    return f"{_LAST_MS - int(now * 1000):012x}{secrets.token_hex(10)}"


def output_file_id(batch_id: str) -> str:
    """The id of the file with a batch's responses."""
    return f"file-{batch_id.removeprefix('batch_')}-output"


def error_file_id(batch_id: str) -> str:
    """The id of the file with a batch's failed requests."""
    return f"file-{batch_id.removeprefix('batch_')}-errors"


def batch_of_file(file_id: str) -> str | None:
    """The batch that wrote the file; None for an uploaded one."""
    token, _, kind = file_id.removeprefix("file-").partition("-")
    return f"batch_{token}" if kind else None


def is_file_id(text: str) -> bool:
    return _FILE.fullmatch(text) is not None


def is_batch_id(text: str) -> bool:
    return _BATCH.fullmatch(text) is not None


def is_owner(text: str) -> bool:
    return _OWNER.fullmatch(text) is not None


def queue_name(model: str) -> str:
    """The folder of the batches that wait for a model, whose name may hold anything."""
    return hashlib.sha256(model.encode()).hexdigest()[:16]

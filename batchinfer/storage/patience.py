"""How long this process waits for a store that has never answered: a run waits, a command before a run gives up."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

FIRST_ANSWER_SECONDS = 30.0
"""Seconds of retries under `impatient` for an address that has never answered, which is more often wrong than down.
Longer delays `validate` after a typo in the endpoint; shorter fails for a slow store."""

_impatient = 0


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """Within this context, for commands before a run, retries of a silent address end after FIRST_ANSWER_SECONDS."""
    global _impatient
    _impatient += 1
    try:
        yield
    finally:
        _impatient -= 1


def first_answer_seconds(retry_seconds: float) -> float:
    """Seconds of retries for an address that has never answered."""
    return min(FIRST_ANSWER_SECONDS, retry_seconds) if _impatient else retry_seconds

"""Whether this process waits for a store that it has not reached yet: a run does, a command before the run does not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

FIRST_ANSWER_SECONDS = 30.0
"""An address that has never answered is wrong more often than down. `impatient` ends the retries after this time,
so that a mistyped endpoint does not hold `validate` up for the whole of `retry_seconds`."""

_impatient = 0


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """Before a run begins: an address that has never answered is given up after FIRST_ANSWER_SECONDS."""
    global _impatient
    _impatient += 1
    try:
        yield
    finally:
        _impatient -= 1


def first_answer_seconds(retry_seconds: float) -> float:
    """For how long an address that has not answered yet is tried."""
    return min(FIRST_ANSWER_SECONDS, retry_seconds) if _impatient else retry_seconds

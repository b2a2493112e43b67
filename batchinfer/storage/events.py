"""What a store makes a person wait for, or warns of: handed to one listener of the process, or logged.

store retried        a request failed and is sent again: `uri`, `store`, `reason`, `attempt`, `gives_up_in_seconds`
store slow           the store throttles, and all requests of this process slow down: `requests_a_second`
store answers again  the first answer after `store retried` was told: `seconds`
store setting        what was found out about the store, and which key of the spec says it: `setting`
lock waited for      another process holds a lock, or may: `uri`, `holder`, `seconds`
lease taken          the lock of a run that ended without a release was taken over: `uri`, `holder`
lease late           a renewal is overdue, and the run waits until the store takes one: `uri`, `seconds`
lease lost           another process took the lock over: `uri`
leftover kept        a half-written file of a killed writer could not be deleted: `uri`, `reason`
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

_LOG = logging.getLogger("batchinfer.storage")

Listener = Callable[..., None]
"""Called with the event's name, and its values by name. May be called from any thread."""

_listeners: list[Listener] = []
_changing = threading.Lock()


@contextlib.contextmanager
def told_to(listener: Listener) -> Iterator[None]:
    """While this lasts, `listener` hears what this process meets; without one, it goes to the log."""
    with _changing:
        _listeners.append(listener)
    try:
        yield
    finally:
        with _changing:
            _listeners.remove(listener)


def tell(name: str, **values: Any) -> None:
    """Something happened that explains why a run waits or slows down."""
    with _changing:
        listener = _listeners[-1] if _listeners else None
    if listener is None:
        # A worker of Ray, whose log ends in the log of the run.
        _LOG.warning("%s: %s", name, ", ".join(f"{key} {value}" for key, value in values.items()))
    else:
        listener(name, **values)

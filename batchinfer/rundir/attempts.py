"""The notes of a recurring job in the folder `_schedule` beside its runs: since when a process holds the job's lock,
and the ticks whose attempts failed before there was a run.

Neither note decides whether a tick has run: only the runs do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from batchinfer.errors import BatchinferError, StorageError
from batchinfer.jobspec.cron import tick_name, tick_of
from batchinfer.storage import Stores, join, storage_for


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """A tick whose attempts failed: the error of the latest attempt, and the number of attempts. Times are UTC."""

    job: str
    tick: str
    attempts: int
    tried_at: str
    exit_code: int
    because: str
    remedy: str

    @property
    def at(self) -> datetime:
        return tick_of(self.tick)


def note_turn(root: str, job: str, since: datetime, stores: Stores) -> None:
    """Record that this process holds the job's lock since `since`. `root`: the folder of the job's runs."""
    about = {"job": job, "held_since": since.astimezone(UTC).isoformat()}
    _put(_turn(root, job), about, stores)


def held_since(root: str, job: str, stores: Stores) -> datetime | None:
    """Since when a process holds the job's lock, as it recorded; None if unknown."""
    found = _read(_turn(root, job), {"job", "held_since"}, stores)
    try:
        return None if found is None else datetime.fromisoformat(found["held_since"])
    except (TypeError, ValueError):
        return None


def note_failed(root: str, job: str, at: datetime, error: BatchinferError, now: datetime, stores: Stores) -> None:
    """Record that an attempt at the tick `at` failed with `error` at `now`."""
    place = _failed(root, job, at)
    earlier = _failed_attempt(place, stores)
    made = FailedAttempt(
        job=job,
        tick=tick_name(at),
        attempts=1 + (earlier.attempts if earlier is not None else 0),
        tried_at=now.astimezone(UTC).isoformat(timespec="seconds"),
        exit_code=error.exit_code,
        because=error.message,
        remedy=error.remedy,
    )
    _put(place, asdict(made), stores)


def forget_failed(root: str, job: str, at: datetime, stores: Stores) -> None:
    """Delete the record of the tick's failed attempts, because the tick has run."""
    place = _failed(root, job, at)
    if _failed_attempt(place, stores) is not None:
        storage_for(place, stores).delete(place)


def failed_attempts(root: str, job: str, stores: Stores) -> Iterator[FailedAttempt]:
    """The failed attempts of the job, one record for each tick, in order of the ticks."""
    folder = join(root, "_schedule", f"{job}.failed")
    for entry in storage_for(folder, stores).list(folder):
        found = _failed_attempt(entry.uri, stores)
        if found is not None and found.job == job:
            yield found


def _turn(root: str, job: str) -> str:
    return join(root, "_schedule", f"{job}.turn")


def _failed(root: str, job: str, at: datetime) -> str:
    return join(root, "_schedule", f"{job}.failed", f"{tick_name(at)}.json")


def _failed_attempt(place: str, stores: Stores) -> FailedAttempt | None:
    found = _read(place, set(FailedAttempt.__slots__), stores)
    try:
        made = None if found is None else FailedAttempt(**found)
        return made if made is not None and made.at and isinstance(made.attempts, int) else None
    except (TypeError, ValueError):
        return None


def _read(place: str, keys: set[str], stores: Stores) -> dict[str, Any] | None:
    """The note at `place`; None if there is no file, or the file is no such note."""
    storage = storage_for(place, stores)
    if storage.stat(place) is None:
        return None
    try:
        found = json.loads(storage.read(place))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.keys() == keys else None


def _put(place: str, about: dict[str, Any], stores: Stores) -> None:
    """Write the note. Raises StorageError instead of overwriting a file that is no such note."""
    storage = storage_for(place, stores)
    irregular = any(True for _ in storage.irregular(place))
    if irregular or (storage.stat(place) is not None and _read(place, set(about), stores) is None):
        raise StorageError(f"{place} stands where a note of the schedule belongs", "move that file away")
    storage.put(place, json.dumps(about, indent=2).encode())

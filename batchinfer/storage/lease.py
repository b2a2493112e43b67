"""A lock for a store without locks: an object that its holder renews, and that others may take if it is not renewed."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from batchinfer import signals
from batchinfer.errors import StorageError
from batchinfer.events import tell
from batchinfer.storage.base import foreign_lock, locked_output

RENEWALS_A_LEASE = 4
LEAVE_SECONDS = 10.0
SIGNALLED_SECONDS = 3.0
"""Seconds that a command which a signal ends waits for a renewal in flight. All clean-ups have 15 together; with more,
a store that hangs would leave none for the processes of a local cluster."""

WAITED_LEASES = 3.0
WAITED_SECONDS_MORE = 30.0
"""How long to wait for a lock: so many leases plus so many seconds. An abandoned lock lapses after one lease, so a
longer wait means that the store refuses to replace it. Shorter gives up on a slow store."""

_HELD: set[str] = set()
"""The leases that this process holds."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The lock object when it was read. `age`: seconds since it was written, by the store's clock."""

    tag: str
    data: bytes
    age: float


class Lease:
    """Holds the lock at `uri` and renews it, `seconds` at a time.

    A late renewal, such as after an outage of the store, succeeds if no other process took the lock meanwhile.
    `require_held` waits for it, up to `patience` seconds.

    The object is never deleted, and every change of it is conditional on its last tag. `create` and `replace` return
    the new tag, or None if another process was first.
    """

    def __init__(
        self,
        uri: str,
        seconds: float,
        patience: float,
        create: Callable[[bytes], str | None],
        replace: Callable[[bytes, str], str | None],
        look: Callable[[], Seen | None],
    ) -> None:
        self._uri = uri
        self._seconds = seconds
        self._patience = patience
        self._create = create
        self._replace = replace
        self._look = look
        self._lease = uuid.uuid4().hex
        self._me = {"lease": self._lease, "place": _place(), "pid": os.getpid(), "started": _started(os.getpid())}
        self._tag = ""
        self._renewed_at = 0.0
        self._taken = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._at_a_signal = contextlib.ExitStack()

    def __enter__(self) -> Lease:
        self._tag = self._take()
        self._renewed_at = time.monotonic()
        _HELD.add(self._lease)
        self._thread.start()
        self._at_a_signal.enter_context(signals.cleaning(lambda: self._release(SIGNALLED_SECONDS), after_others=True))
        return self

    def _take(self) -> str:
        """Take the lock; returns its tag. Waits for a holder that may be dead.

        Raises OutputBusy if the holder lives, StorageError if the store never lets the lock be taken.
        """
        first: Seen | None = None
        began = time.monotonic()
        told = False
        while True:
            tag = self._create(self._content())
            if tag is not None:
                return tag
            seen = self._look()
            waited = time.monotonic() - began
            if seen is not None:
                holder = _parse(seen.data)
                if "lease" not in holder:
                    raise foreign_lock(self._uri)
                named = str(holder.get("holder", "unknown"))
                alive = self._lives(holder)
                unchanged = waited if first is not None and first.tag == seen.tag else 0.0
                if holder.get("released") or alive is False or max(seen.age, unchanged) >= self._seconds:
                    tag = self._replace(self._content(), seen.tag)
                    if tag is not None:
                        if not holder.get("released"):
                            tell("lease taken", uri=self._uri, holder=named)
                        return tag
                elif alive or (first is not None and first.tag != seen.tag):
                    raise locked_output(named)
                elif not told:
                    told = True
                    tell("lock waited for", uri=self._uri, holder=named, seconds=round(self._seconds - seen.age))
                first = first or seen
            if waited > WAITED_LEASES * self._seconds + WAITED_SECONDS_MORE:
                raise StorageError(
                    f"{self._uri}: this lock could not be had in {waited:.0f} s: the store neither lets it be made "
                    "nor be taken over",
                    "end whatever else writes to this output; if nothing does, delete that file, "
                    "then run the same command again",
                )
            time.sleep(min(1.0, self._seconds / 10))

    def _lives(self, holder: dict[str, Any]) -> bool | None:
        """Does the holder live? None if it runs on another machine or in another container: only the lease tells."""
        if self._me["place"] is None or holder.get("place") != self._me["place"]:
            return None
        if holder.get("pid") == os.getpid():
            return holder.get("lease") in _HELD
        started = holder.get("started")
        return started is not None and _started(int(holder.get("pid", 0))) == started

    def _content(self, released: bool = False) -> bytes:
        name = f"{os.getpid()} on {socket.gethostname()}"
        # The nonce makes the tag of every renewal different.
        return json.dumps({"holder": name, **self._me, "released": released, "nonce": uuid.uuid4().hex}).encode()

    def _beat(self) -> None:
        while not self._stop.wait(self._seconds / RENEWALS_A_LEASE):
            try:
                tag = self._replace(self._content(), self._tag)
            except StorageError:
                # The next renewal may succeed; `require_held` notices if the lease ends before.
                continue
            if tag is None:
                self._taken = True
                tell("lease lost", uri=self._uri)
                return
            self._tag, self._renewed_at = tag, time.monotonic()

    def require_held(self) -> None:
        """Return if the lock is held, after waiting for a late renewal.

        Raises StorageError if another process took the lock, or if the renewal is later than `patience`.
        """
        told = False
        while not self._taken:
            late = time.monotonic() - self._renewed_at - self._seconds
            if late <= 0:
                return
            if late > self._patience or not self._thread.is_alive():
                break
            if not told:
                told = True
                tell("lease late", uri=self._uri, seconds=round(self._seconds + late))
            time.sleep(min(0.2, self._seconds / 10))
        raise StorageError(
            f"{self._uri}: this run could not renew its lock in time, and another may have taken it over",
            "look whether another run writes there; if not, run the same command again: committed shards are kept",
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._at_a_signal.close()
        _HELD.discard(self._lease)
        if kind is not None and issubclass(kind, StorageError):
            self._stop.set()
            self._thread.join(LEAVE_SECONDS)
        else:
            self._release(LEAVE_SECONDS)

    def _release(self, seconds: float) -> None:
        """Let the next holder in at once.

        A store that fails, or hangs in a renewal, would only hold the end of the run up. Nothing is lost without a
        release: the lease ends by itself, and on this machine its holder is seen to be gone.
        """
        self._stop.set()
        self._thread.join(seconds)
        if self._taken or self._thread.is_alive():
            return
        with contextlib.suppress(StorageError):
            self._replace(self._content(released=True), self._tag)


def _place() -> str | None:
    """The boot and the pid namespace of this process, within which a process id is unique; None if unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """The start of a process in ticks since boot, which no change of the clock affects; None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # The name may contain anything, so count from its closing bracket: field 0 is the state, 19 the start.
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def _parse(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}

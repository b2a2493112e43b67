"""Every run below a folder or a bucket, with the accounts of its replicas.

A run is a folder with `_run/`. Folders are listed level by level, and not below a run's results: a listing of every
object would take a request for a thousand files of results. What was read is kept in a file on this machine, so that
the next look reads only runs that have changed.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sqlite3
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from batchinfer.accounting.ledger import ReplicaAccount
from batchinfer.errors import BatchinferError
from batchinfer.rundir.accounts import AccountsState, accounts_state, read_accounts
from batchinfer.rundir.paths import Layout
from batchinfer.storage import REQUESTS_AHEAD, REQUESTS_AT_ONCE, Stores, join, normal_uri, storage_for

_OF_A_RUN = ("data", "accounting", "_run")

SETTLED_SECONDS = 600.0
"""Age of the last entry of a run without accounts from which its accounts are kept: younger, and it may go on."""

CACHE_VERSION = 1
"""Part of the cache's name. Raise it when the fields of an account change."""


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A run and its replicas' accounts; `problem` if they cannot be read."""

    root: str
    accounts: tuple[ReplicaAccount, ...]
    problem: str | None = None


def find_runs(roots: Iterable[str], stores: Stores, cache: Path | None = None) -> Iterator[FoundRun]:
    """Every run at or below `roots`, each once. `cache`: the file of what was read before; None: read everything."""
    with contextlib.closing(_Cache(cache)) as known, ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        seen: set[str] = set()
        waiting: deque[tuple[str, Future[tuple[AccountsState, FoundRun | None]]]] = deque()
        for root in _run_folders(roots, stores, pool):
            if root in seen:
                continue
            seen.add(root)
            waiting.append((root, pool.submit(_look, root, stores, known.get(root))))
            if len(waiting) >= REQUESTS_AHEAD:
                yield _found(*waiting.popleft(), known)
        while waiting:
            yield _found(*waiting.popleft(), known)


def default_cache() -> Path:
    """Where this user's accounts of runs are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "batchinfer" / f"costs-{CACHE_VERSION}.sqlite"


def _run_folders(roots: Iterable[str], stores: Stores, pool: ThreadPoolExecutor) -> Iterator[str]:
    pending: deque[str] = deque(normal_uri(root).rstrip("/") for root in roots)
    while pending:
        batch = [pending.popleft() for _ in range(min(len(pending), REQUESTS_AHEAD))]
        for folder, inside in zip(batch, pool.map(lambda one: _inside(one, stores), batch), strict=True):
            is_run = "_run" in inside
            if is_run:
                yield folder
            pending.extend(join(folder, name) for name in inside if not (is_run and name in _OF_A_RUN))


def _inside(folder: str, stores: Stores) -> list[str]:
    return list(storage_for(folder, stores).folders(folder))


def _look(root: str, stores: Stores, known: tuple[str, str] | None) -> tuple[AccountsState, FoundRun | None]:
    """The run's state and its accounts; None if the accounts in the cache are those."""
    layout = Layout(root, stores)
    state = AccountsState("", "")
    try:
        state = accounts_state(layout)
        if known is not None and known[0] == _key(state):
            return state, None
        return state, FoundRun(root, tuple(read_accounts(layout, state)))
    except BatchinferError as error:
        return state, FoundRun(root, (), error.message)


def _found(root: str, future: Future[tuple[AccountsState, FoundRun | None]], known: _Cache) -> FoundRun:
    state, run = future.result()
    if run is None:
        cached = known.get(root)
        assert cached is not None, "only a run in the cache is not read"
        return FoundRun(root, tuple(ReplicaAccount.model_validate(one) for one in json.loads(cached[1])))
    if run.problem is None and _settled(run):
        known.put(root, _key(state), json.dumps([one.model_dump(mode="json") for one in run.accounts]))
    return run


def _settled(run: FoundRun) -> bool:
    newest = max((account.finished_at_us for account in run.accounts), default=0)
    return time.time() - newest / 1e6 > SETTLED_SECONDS


def _key(state: AccountsState) -> str:
    return f"{state.journals} {state.replicas}"


class _Cache:
    """What was read of runs before, in one file. A cache that cannot be opened or read is no cache."""

    def __init__(self, path: Path | None) -> None:
        self._connection: sqlite3.Connection | None = None
        self._unsaved = itertools.count(1)
        if path is not None:
            with contextlib.suppress(OSError, sqlite3.Error):
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                connection = sqlite3.connect(path)
                os.chmod(path, 0o600)
                connection.execute("CREATE TABLE IF NOT EXISTS runs (root TEXT PRIMARY KEY, state TEXT, accounts TEXT)")
                self._connection = connection

    def get(self, root: str) -> tuple[str, str] | None:
        """The state that the run had, and its accounts as JSON."""
        if self._connection is None:
            return None
        with contextlib.suppress(sqlite3.Error):
            found = self._connection.execute("SELECT state, accounts FROM runs WHERE root = ?", (root,)).fetchone()
            return None if found is None else (str(found[0]), str(found[1]))
        return None

    def put(self, root: str, state: str, accounts: str) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("INSERT OR REPLACE INTO runs VALUES (?, ?, ?)", (root, state, accounts))
                if next(self._unsaved) % 500 == 0:
                    self._connection.commit()

    def close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.commit()
                self._connection.close()

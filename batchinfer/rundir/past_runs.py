"""The earlier runs of a job, read from their folders. There is no other record.

A run claims its input files when its manifest is written, and a tick is done when its report is written. A lock around
the writing of the manifest keeps two runs from claiming the same files.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime

from batchinfer.errors import InputError, InputTaken, OutputBusy, OutputError
from batchinfer.input import input_entries
from batchinfer.input.files import partition_values
from batchinfer.input.incremental import Claims, Selection, select
from batchinfer.input.manifest import ClaimedFiles, Manifest, claimed_files
from batchinfer.jobspec import JobSpec
from batchinfer.jobspec.cron import Tick, tick_name, tick_of
from batchinfer.jobspec.schedule import PastRun, State
from batchinfer.rundir.paths import LOCK, MANIFEST, REPORT, SKIPPED, Layout, reading
from batchinfer.storage import Entry, Stores, join, normal_uri, read_many, storage_for

CLAIM_WAIT_SECONDS = 600.0
LONGEST_PAUSE = 5.0
"""Seconds between two checks of a lock that another process holds. Shorter costs more requests (a check in a store
takes two), longer delays the run."""


def past_runs(root: str, job: str, stores: Stores) -> list[PastRun]:
    """Every run and every skipped tick of the job `job` below the folder `root`, in order of ticks."""
    kinds = _folders(root, stores)
    found = []
    for folder, claimed in _claimed(kinds[MANIFEST], stores):
        fingerprint = claimed.fingerprint
        if fingerprint.job == job and fingerprint.tick is not None:
            state: State = "done" if folder in kinds[REPORT] else "unfinished"
            if state == "unfinished" and folder in kinds[LOCK] and is_locked(folder + LOCK, stores):
                state = "running"
            found.append(PastRun(tick_of(fingerprint.tick), folder, state))
    for folder in kinds[SKIPPED] - kinds[MANIFEST]:
        with reading(folder + SKIPPED, "delete it: the tick that it leaves out is due again"):
            note = json.loads(storage_for(folder, stores).read(folder + SKIPPED))
            skipped = PastRun(tick_of(note["tick"]), folder, "skipped") if note["job"] == job else None
        if skipped is not None:
            found.append(skipped)
    return sorted(found, key=lambda run: (run.tick, run.root))


def note_skipped(folder: str, job: str, at: datetime, because: str, stores: Stores) -> None:
    """Record that the tick `at`, whose run would be in `folder` (an absolute URI), is skipped, and why."""
    about = {"job": job, "tick": tick_name(at), "because": because}
    storage_for(folder, stores).create(folder + SKIPPED, json.dumps(about, indent=2).encode())


def require_same_tick(old: Manifest | None, tick: Tick, layout: Layout) -> None:
    """Raise OutputError if the folder holds the run of another tick. `old`: the folder's manifest, if it has one."""
    other = None if old is None else old.fingerprint.tick
    if old is not None and other != tick.name:
        whose = f"the tick {other}" if other else "a job that ran without a schedule"
        raise OutputError(
            f"{layout.root} is the run of {whose}, and this is the tick {tick.name}",
            "put {{ run.time }} in output.uri, which no two ticks share",
        )


class FileChoice:
    """Selects the files of one incremental run, and ensures that no other run of the job claims them too."""

    def __init__(self, spec: JobSpec, tick: Tick, layout: Layout) -> None:
        assert spec.input.incremental is not None
        self._spec = spec
        self._rule = spec.input.incremental
        self._tick = tick
        self._layout = layout
        self.selection: Selection | None = None
        self._read: list[str] = []

    @classmethod
    def of(cls, spec: JobSpec, tick: Tick, layout: Layout) -> FileChoice | None:
        """The choice for `spec`, which must have absolute URIs; None if the job is not incremental."""
        return None if spec.input.incremental is None else cls(spec, tick, layout)

    def __call__(self, entries: list[Entry]) -> list[Entry]:
        """The entries that this run reads. Raises InputError."""
        if self._spec.input.is_table:
            self.selection = Selection(tuple(entries), 0, ())
            return entries
        claims = self._claims()
        uri, stores = self._spec.input.uri, self._spec.storage
        if not entries and not claims.tags and not _is_there(uri, stores):
            # The input does not exist and never had files, so it is a mistake: this call raises its error.
            input_entries(
                uri, self._spec.input.format, stores, ignore=self._spec.input.ignore, split=self._spec.input.split
            )
        self.selection = select(entries, claims, self._rule, self._partition)
        return list(self.selection.taken)

    def since(self) -> Sequence[str]:
        """The versions of the table that the job's other runs read."""
        others = _folders(self._tick.root, self._spec.storage)[MANIFEST] - {self._layout.root}
        told = (c.fingerprint for _, c in _claimed(others, self._spec.storage))
        self._read = sorted(f.table_version for f in told if f.job == self._spec.name and f.table_version)
        return self._read

    @contextlib.contextmanager
    def claiming(self, manifest: Manifest) -> Iterator[None]:
        """Hold the lock on the job's claims while the manifest is written.

        Raises InputTaken if another run has claimed a file of `manifest` since it was made.
        """
        place = join(self._tick.root, "_schedule", f"{self._spec.name}.claims")
        with waiting_lock(place, CLAIM_WAIT_SECONDS, self._spec.storage) as require_held:
            if self._spec.input.is_table:
                before = self._read
                if before != self.since():
                    raise InputTaken(
                        f"another run of {self._spec.name} read the table while this one was starting",
                        "run the same command again: it takes what is left",
                    )
                require_held()
                yield
                return
            files = {**(manifest.fingerprint.empty or {}), **manifest.files}
            mine = [Entry(uri, 0, tag) for uri, tag in files.items()]
            free = {e.uri for e in select(mine, self._claims(), self._rule, self._partition).taken}
            taken = sorted(set(files) - free)
            if taken:
                raise InputTaken(
                    f"another run of {self._spec.name} took {taken[0]}"
                    + (f" and {len(taken) - 1} more files" if len(taken) > 1 else "")
                    + " while this one was starting",
                    "run the same command again: it takes what is left",
                )
            # Reading the claims takes time, in which a lock in a store may be lost.
            require_held()
            yield

    def _claims(self) -> Claims:
        """The claims of the job's other runs."""
        stores = self._spec.storage
        others = _folders(self._tick.root, stores)[MANIFEST] - {self._layout.root}
        found = _claimed(others, stores)
        return Claims.of((c.files, c.with_rows) for _, c in found if c.fingerprint.job == self._spec.name)

    def _partition(self, uri: str) -> str:
        values = partition_values(self._spec.input.uri, uri)
        if not values:
            raise InputError(
                f"{uri} is in no partition, and input.incremental.by is partition",
                "give input.uri a folder of key=value folders, or take whole files: by: file",
            )
        return "/".join(f"{name}={value}" for name, value in values.items())


def _is_there(uri: str, stores: Stores) -> bool:
    """Does the folder exist, even if it is empty? An empty folder in a bucket exists only if a tool made its marker."""
    place = normal_uri(uri)
    _, scheme, path = place.rpartition("://")
    is_bucket = bool(scheme) and "/" not in path
    return is_bucket or storage_for(place, stores).stat(join(place, "")) is not None


def _folders(root: str, stores: Stores) -> dict[str, set[str]]:
    """By kind of file: the run folders below `root` that have one."""
    found: dict[str, set[str]] = {kind: set() for kind in (MANIFEST, REPORT, SKIPPED, LOCK)}
    for entry in storage_for(root, stores).list(root):
        for kind, folders in found.items():
            if entry.uri.endswith(kind):
                folders.add(entry.uri.removesuffix(kind))
    return found


def _claimed(folders: Iterable[str], stores: Stores) -> Iterator[tuple[str, ClaimedFiles]]:
    """Each run's folder, and the files that its manifest claims. Raises OutputError for a damaged manifest."""
    uris = [folder + MANIFEST for folder in sorted(folders)]
    if not uris:
        return
    # All runs lie below one folder, and therefore in one store.
    for uri, data in zip(uris, read_many(storage_for(uris[0], stores), uris), strict=True):
        with reading(uri, "restore it; or delete that run's folder, and the input files that it took are run again"):
            claimed = claimed_files(data)
        yield uri.removesuffix(MANIFEST), claimed


def is_locked(uri: str, stores: Stores) -> bool:
    """Does a living process hold the lock at `uri`?"""
    try:
        with storage_for(uri, stores).lock(uri):
            return False
    except OutputBusy:
        return True


@contextlib.contextmanager
def waiting_lock(uri: str, seconds: float, stores: Stores) -> Iterator[Callable[[], None]]:
    """Hold the lock at `uri`, after waiting for other holders. Raises OutputBusy after `seconds`.

    Yields the function that `Storage.lock` yields.
    """
    deadline, pause = time.monotonic() + seconds, 0.2
    with contextlib.ExitStack() as held:
        while True:
            try:
                require_held = held.enter_context(storage_for(uri, stores).lock(uri))
                break
            except OutputBusy:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        yield require_held

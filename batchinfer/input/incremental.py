"""Selects the files that an incremental run reads: those that no earlier run of the job has claimed. Pure.

A file is identified by its URI and its tag, which changes with the content. A run claims its files when its manifest
is written. A run that dies keeps its claim, because the same run is resumed with the same files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from batchinfer.errors import InputError
from batchinfer.jobspec import IncrementalSpec
from batchinfer.storage import Entry

Unit = Callable[[str], str]
"""Maps a file's URI to its partition."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What the runs of a job have claimed: every tag of each file, and the files that had rows at the time."""

    tags: Mapping[str, frozenset[str]] = field(default_factory=dict)
    with_rows: frozenset[str] = frozenset()

    def holds(self, entry: Entry) -> bool:
        return entry.tag in self.tags.get(entry.uri, ())

    @classmethod
    def of(cls, runs: Iterable[tuple[Mapping[str, str], Iterable[str]]]) -> Claims:
        """The union of the claims of `runs`; each is the tag of each file, and the files that have rows."""
        tags: dict[str, set[str]] = {}
        with_rows: set[str] = set()
        for files, having in runs:
            for uri, tag in files.items():
                tags.setdefault(uri, set()).add(tag)
            with_rows.update(having)
        return cls({uri: frozenset(seen) for uri, seen in tags.items()}, frozenset(with_rows))


@dataclass(frozen=True, slots=True)
class Selection:
    """What an incremental run reads.

    `taken`: the entries, in input order. `again`: how many changed files or partitions are among them. `ignored`: the
    changed files or partitions that are not read again.
    """

    taken: tuple[Entry, ...]
    again: int
    ignored: tuple[str, ...]


def select(entries: Iterable[Entry], claims: Claims, rule: IncrementalSpec, partition: Unit) -> Selection:
    """The files that a run reads. Raises InputError for a changed file or partition if the rule is `fail`.

    A file without rows has no results yet, so its changed content counts as new.
    """
    entries = list(entries)
    if rule.by == "file":
        groups = {entry.uri: [entry] for entry in entries}
        known = claims.with_rows
    else:
        groups = {}
        for entry in entries:
            groups.setdefault(partition(entry.uri), []).append(entry)
        known = frozenset(partition(uri) for uri in claims.with_rows)
    fresh = {name for name, group in groups.items() if not all(map(claims.holds, group))}
    changed = sorted(fresh & known)
    if changed and rule.changed == "fail":
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise InputError(
            f"{changed[0]}{more} changed after a run of this job had taken it",
            "put it back, or set input.incremental.changed to rerun or ignore",
        )
    kept = fresh - set(changed) if rule.changed == "ignore" else fresh
    taken = [entry for name, group in groups.items() if name in kept for entry in group]
    order = {entry.uri: place for place, entry in enumerate(entries)}
    return Selection(
        tuple(sorted(taken, key=lambda entry: order[entry.uri])),
        again=len(kept & set(changed)),
        ignored=tuple(changed) if rule.changed == "ignore" else (),
    )

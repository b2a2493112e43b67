"""Which files of an input a run takes, given what earlier runs of the job have taken. Pure.

A file is its URI and its tag, which changes whenever its content does. A run takes what its manifest names,
from the moment the manifest is written, whether it ends well or not: if it dies it is resumed, with its own files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from batchinfer.errors import InputError
from batchinfer.jobspec import IncrementalSpec
from batchinfer.storage import Entry

Unit = Callable[[str], str]
"""The partition that the file at a URI belongs to."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What the runs of a job have taken: every tag of each file, and which files had rows at the time."""

    tags: Mapping[str, frozenset[str]] = field(default_factory=dict)
    with_rows: frozenset[str] = frozenset()

    def holds(self, entry: Entry) -> bool:
        return entry.tag in self.tags.get(entry.uri, ())

    @classmethod
    def of(cls, runs: Iterable[tuple[Mapping[str, str], Iterable[str]]]) -> Claims:
        """What each run took (the tag of each file, and which of these have rows), taken together."""
        tags: dict[str, set[str]] = {}
        with_rows: set[str] = set()
        for files, having in runs:
            for uri, tag in files.items():
                tags.setdefault(uri, set()).add(tag)
            with_rows.update(having)
        return cls({uri: frozenset(seen) for uri, seen in tags.items()}, frozenset(with_rows))


@dataclass(frozen=True, slots=True)
class Selection:
    """The entries to run, in input order; of these, how many files or partitions are run again because they
    changed; and the changed ones that are left as they are."""

    taken: tuple[Entry, ...]
    again: int
    ignored: tuple[str, ...]


def select(entries: Iterable[Entry], claims: Claims, rule: IncrementalSpec, partition: Unit) -> Selection:
    """What a run takes. Raises InputError for a changed file or partition where the rule says so.

    A file that had no row when it was taken has done nothing yet: with other content it is new.
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

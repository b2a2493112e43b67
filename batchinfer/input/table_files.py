"""The files of a table's snapshot, as entries that know how the table's columns stand in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchinfer.errors import InputError
from batchinfer.input.column_types import CASTS
from batchinfer.jobspec import InputSpec
from batchinfer.jobspec.table_keys import catalog_of
from batchinfer.storage import REQUESTS_AT_ONCE, Entry, Stores, storage_for
from batchinfer.tables.base import DataFile
from batchinfer.tables.delta import delta_snapshot
from batchinfer.tables.iceberg import iceberg_snapshot


@dataclass(frozen=True, slots=True)
class TableEntry(Entry):
    """A file of a table. `stored`, `values`, `kept`: see `tables.base.DataFile`; the last is needed, and known, only
    while the manifest is cut."""

    stored: tuple[tuple[str, str | None], ...] | None = None
    values: tuple[tuple[str, str | None, str], ...] = ()
    kept: npt.NDArray[np.bool_] | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class FoundTable:
    """The snapshot that a run reads: its version, its files in order, and the names of the table's columns."""

    version: str
    entries: tuple[Entry, ...]
    columns: tuple[str, ...]


def find_table(given: InputSpec, stores: Stores, since: Sequence[str] | None = None) -> FoundTable:
    """The files of the table that `input` names, at its version or at the latest one.

    `since`: the versions that earlier runs of an incremental job read. Raises InputError.
    """
    changed = given.incremental.changed if given.incremental is not None else "rerun"
    if given.format == "delta":
        found = delta_snapshot(given.uri, stores, given.version, since, changed)
    else:
        found = iceberg_snapshot(given.uri, catalog_of(given.catalog), stores, given.version, since, changed)

    def look(file: DataFile) -> Entry:
        entry = storage_for(file.uri, stores).stat(file.uri)
        if entry is None:
            raise InputError(
                f"{file.uri} is a file of the table {given.uri} at version {found.version}, and it is gone",
                "restore it, or read a version whose files are there: input.version",
            )
        if file.stored is None and not file.values and file.kept is None:
            return entry
        return TableEntry(entry.uri, entry.size, entry.tag, file.stored, file.values, file.kept)

    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return FoundTable(found.version, tuple(pool.map(look, found.files)), found.columns)


def values_schema(entries: Iterable[Entry]) -> pa.Schema:
    """The columns that are not in the files of a table, with their types."""
    first = next((entry for entry in entries if isinstance(entry, TableEntry)), None)
    return pa.schema([(name, CASTS[kind]) for name, _, kind in (first.values if first is not None else ())])


def names_in_file(entry: Entry, columns: Iterable[str]) -> dict[str, str]:
    """The names that these columns have in the file; without those that it lacks."""
    if not isinstance(entry, TableEntry) or entry.stored is None:
        return {name: name for name in columns}
    known: Mapping[str, str | None] = dict(entry.stored)
    return {name: stored for name in columns if (stored := known.get(name)) is not None}


def names_of_table(entry: Entry, names: Sequence[str]) -> dict[str, str]:
    """By name in the file: the name in the table; without columns of the file that the table has no longer."""
    if not isinstance(entry, TableEntry) or entry.stored is None:
        return {name: name for name in names}
    return {stored: name for name, stored in entry.stored if stored is not None and stored in names}

"""Builds the manifest from an input URI: inspects every file, checks columns, selects rows, checks ids, cuts shards."""

from __future__ import annotations

import difflib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer.errors import InputError
from batchinfer.input.arrow import inspect_arrow
from batchinfer.input.bad_rows import BAD_ROW
from batchinfer.input.csv import inspect_csv
from batchinfer.input.cutting import cut
from batchinfer.input.files import Found, find_input, partition_schema, partition_values
from batchinfer.input.formats import Inspected, first_line
from batchinfer.input.gather import Gathered, gather, group_schema
from batchinfer.input.groups import Groups, find_groups
from batchinfer.input.ids import require_id_kind, require_unique
from batchinfer.input.jsonl import inspect_jsonl
from batchinfer.input.manifest import Fingerprint, InputFile, Manifest, Shard, Sources
from batchinfer.input.parquet import inspect_parquet
from batchinfer.input.row_bits import RowBits
from batchinfer.input.scan import Scan
from batchinfer.input.select_rows import kept_rows, select_rows
from batchinfer.input.shard_sizes import at_groups, shard_sizes, small_at_first
from batchinfer.input.table_files import find_table, names_of_table, values_schema
from batchinfer.input.unified_schema import casts_of, only_in_paths, require_same_values, unified_schema
from batchinfer.jobspec import InputSpec, JobSpec, ReduceSpec
from batchinfer.jobspec.reduce_keys import MEMBERS
from batchinfer.storage import REQUESTS_AT_ONCE, Entry, storage_for

_MOST_HELD = 2**27
"""Bytes of the ids of CSV files that are kept from the first look. Further ids are read once more: memory must not grow
with the number of rows."""


class Choice(Protocol):
    """Which part of the input an incremental run reads."""

    def __call__(self, entries: list[Entry]) -> list[Entry]:
        """The files that it reads, of all files of the input."""

    def since(self) -> Sequence[str]:
        """The versions of a table that earlier runs read."""


def build_manifest(
    spec: JobSpec,
    columns: Mapping[str, str],
    fingerprint: Fingerprint,
    choose: Choice | None = None,
) -> Manifest:
    """Cut the input of `spec` into shards.

    `columns` maps each needed column to the spec key that names it. `choose` selects the files of this run, possibly
    none; without `choose` the run reads all files.

    Raises InputError for unreadable files, missing columns, types that do not fit together, values that a conversion
    would change, and duplicate ids.
    """
    given = spec.input
    table = find_table(given, spec.storage, None if choose is None else choose.since()) if given.is_table else None
    if table is not None:
        fingerprint = fingerprint.model_copy(update={"table_version": table.version})
        there = Found(table.entries, ())
    else:
        there = find_input(given.uri, given.format, spec.storage, choose is not None, given.ignore, given.split)
    entries = list(there.entries)
    # Computed before `choose`, over all files, so that a partition column has the same type in every run.
    partitions = _values_schema(given, entries)
    if choose is not None:
        entries = choose(entries)
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        found, skipped = _readable(spec, entries, _inspect(spec, entries, list(columns), pool))
        partitions = only_in_paths(spec, partitions, found)
        whole = unified_schema(spec, columns, found, partitions)
        have = {name for one in found for name in one.names} | set(partitions.names)
        have |= set(table.columns if table is not None else ())
        # The columns of JSON lines are known only from rows, so an input without rows is not refused.
        if any(one.file.rows for one in found) or (found and given.is_parquet):
            _require_columns(columns, have)
        with_rows = [one for one in found if one.file.rows]
        require_same_values(spec, with_rows, whole, pool)
        scan = Scan(spec, partitions, pool)
        selected = select_rows(given, scan, with_rows, whole, kept_rows(with_rows))
        if given.id_column is not None:
            _require_unique_ids(given.id_column, scan, with_rows, whole, partitions, selected)
        if spec.reduce is not None:
            gathered = _gathered(spec, spec.reduce, columns, whole, scan, with_rows, selected)
        groups = None
        if given.group_by is not None:
            groups = find_groups(given.group_by, scan.column(with_rows, whole.field(given.group_by), selected))
    if any(one.bad_rows for one in found):
        whole = whole.append(pa.field(BAD_ROW, pa.string()))
    files = [one.file for one in with_rows]
    total_rows = sum(file.rows for file in files)
    unselected = [file.entry for i, file in enumerate(files) if selected is not None and not selected[i].count]
    empty = [one.file.entry for one in found if not one.file.rows]
    if choose is not None:
        fingerprint = fingerprint.model_copy(update={"empty": {entry.uri: entry.tag for entry in empty}})
    if spec.reduce is not None:
        _require_storable(gathered.schema, gathered.schema.names)
        return Manifest(
            shards=tuple(_cut(spec, gathered.files, None, None)),
            schema=gathered.schema,
            partitions=(),
            empty_files=tuple(entry.uri for entry in empty),
            fingerprint=fingerprint,
            skipped=tuple(skipped),
            hint=_hint(given, None, selected),
            left_out=there.left_out,
            sources=Sources(gathered.rows, tuple(file.entry for file in files)),
            temporary=gathered.folder,
        )
    schema = pa.schema([field for field in whole if columns.get(field.name) != "input.where"])
    _require_storable(schema, given.columns)
    return Manifest(
        shards=tuple(_cut(spec, files, groups, selected)),
        schema=schema,
        partitions=tuple(field.name for field in schema if field.name in partitions.names),
        empty_files=tuple(entry.uri for entry in empty),
        fingerprint=fingerprint,
        skipped=tuple(skipped),
        total_rows=None if selected is None else total_rows,
        unselected=tuple(unselected),
        hint=_hint(given, groups, selected),
        left_out=there.left_out,
    )


def _values_schema(given: InputSpec, entries: Sequence[Entry]) -> pa.Schema:
    """The columns that are not in the files: partitions."""
    if given.is_table:
        return values_schema(entries)
    return partition_schema(given.uri, [entry.uri for entry in entries])


def _gathered(
    spec: JobSpec,
    reduce: ReduceSpec,
    columns: Mapping[str, str],
    whole: pa.Schema,
    scan: Scan,
    found: Sequence[Inspected],
    selected: Sequence[RowBits] | None,
) -> Gathered:
    """The groups of the selected rows."""
    listed = [name for name, key in columns.items() if key not in ("reduce.key", "input.id_column", "input.where")]
    ids = spec.input.id_column if reduce.members else None
    kind = whole.field(ids).type if ids is not None else pa.int64()
    schema = group_schema(whole, reduce.key, listed, kind if reduce.members else None)
    read = pa.schema([whole.field(name) for name in dict.fromkeys([reduce.key, *listed, *filter(None, [ids])])])

    def rows() -> Iterator[pa.Table]:
        for numbers, table in scan.rows(found, read, selected):
            used = table.select([reduce.key, *listed])
            members = pa.array(numbers) if ids is None else table.column(ids)
            yield used.append_column(MEMBERS, members) if reduce.members else used

    return gather(rows(), schema, sum(group.size for one in found for group in one.file.groups))


def whole_schema(spec: JobSpec, manifest: Manifest) -> tuple[pa.Schema, tuple[str, ...]]:
    """Every column of the input that the manifest was cut from, and which of them are partitions.

    In the order of the first file if it is Parquet, otherwise by name. Raises InputError as `build_manifest` does.
    """
    entries = list(manifest.entries)
    partitions = _values_schema(spec.input, entries)
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        named = [one.names for one in _readable(spec, entries, _inspect(spec, entries, [], pool))[0]]
        names = sorted(frozenset(partitions.names).union(*named))
        if spec.input.is_parquet and entries:
            with storage_for(entries[0].uri, spec.storage).open(entries[0].uri) as file:
                in_file = names_of_table(entries[0], pq.read_schema(file).names)
            order = {name: place for place, name in enumerate(in_file.values())}
            names.sort(key=lambda name: order.get(name, len(order)))
        found, _ = _readable(spec, entries, _inspect(spec, entries, names, pool))
        partitions = only_in_paths(spec, partitions, found)
        schema = unified_schema(spec, dict.fromkeys(names, "input.columns"), found, partitions)
    return schema, tuple(name for name in schema.names if name in partitions.names)


def _hint(given: InputSpec, groups: Groups | None, selected: Sequence[RowBits] | None) -> str | None:
    """What the cutting has to say to a person."""
    if selected and not any(bits.count for bits in selected):
        return f"input.where selects no row: {given.where}"
    return None if groups is None else groups.scattered(str(given.group_by))


def _inspect(
    spec: JobSpec, entries: Sequence[Entry], columns: Sequence[str], pool: ThreadPoolExecutor
) -> Iterator[Inspected | InputError]:
    """For each file, what it holds of `columns`, or the error if it cannot be read."""
    kept = [name for name in (spec.input.id_column, spec.input.group_by) if name is not None]
    if spec.input.is_parquet:
        yield from inspect_parquet(entries, columns, kept, spec.storage, pool)
        return

    room = _Room(_MOST_HELD)

    def look(entry: Entry) -> Inspected | InputError:
        try:
            if spec.input.format == "csv":
                return inspect_csv(entry, columns, casts_of(spec), kept, room.take, spec.input.csv, spec.storage)
            if spec.input.format == "arrow":
                return inspect_arrow(entry, columns, spec.storage)
            return inspect_jsonl(entry, columns, casts_of(spec), spec.storage, spec.input.sets_aside)
        except InputError as error:
            return error

    yield from pool.map(look, entries)


class _Room:
    """So many bytes, for several threads to take from."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        with self._lock:
            fits = size <= self._left
            self._left -= size if fits else 0
            return fits


def _readable(
    spec: JobSpec, entries: Sequence[Entry], looked: Iterable[Inspected | InputError]
) -> tuple[list[Inspected], list[tuple[str, str]]]:
    """The readable files, and (URI, reason) of each skipped file.

    Raises InputError for the first bad file unless `input.on_bad_file` is `skip`. Also raises it if no file of a job
    that is not incremental can be read.
    """
    found: list[Inspected] = []
    bad: dict[str, str] = {}
    first: InputError | None = None
    for entry, one in zip(entries, looked, strict=True):
        if isinstance(one, Inspected):
            found.append(one)
            continue
        if spec.input.on_bad_file == "fail":
            raise one
        first = first or one
        bad[entry.uri] = str(one)
    incremental = spec.input.incremental
    if incremental is not None and incremental.by == "partition":
        # A partition is read as a whole: one bad file leaves the whole partition to a later run.
        worst = {_partition(spec, uri): uri for uri in bad}
        for one in found:
            uri = one.file.entry.uri
            if _partition(spec, uri) in worst:
                bad[uri] = f"{worst[_partition(spec, uri)]}, of the same partition, cannot be read"
        found = [one for one in found if one.file.entry.uri not in bad]
    if first is not None and not found and incremental is None:
        raise first
    return found, [(entry.uri, bad[entry.uri]) for entry in entries if entry.uri in bad]


def _partition(spec: JobSpec, uri: str) -> tuple[tuple[str, str | None], ...]:
    return tuple(partition_values(spec.input.uri, uri).items())


def _cut(
    spec: JobSpec, files: Sequence[InputFile], groups: Groups | None, selected: Sequence[RowBits] | None
) -> list[Shard]:
    there = sum(file.rows for file in files)
    rows = there if selected is None else sum(bits.count for bits in selected)
    size = sum(group.size for file in files for group in file.groups) * rows // max(1, there)
    sizes = shard_sizes(rows, size, spec.shards.rows, spec.answer_tokens, spec.resources.replicas)
    if spec.limits.max_cost_usd is not None and spec.shards.rows == "auto":
        sizes = small_at_first(sizes)
    settle = None if groups is None else at_groups(groups.begins, rows)
    return cut(files, sizes, spec.shards.max_bytes, settle, selected)


def _require_columns(columns: Mapping[str, str], have: set[str]) -> None:
    missing = [name for name in columns if name not in have]
    if not missing:
        return
    shown = ", ".join(sorted(have)[:30]) + (f" and {len(have) - 30} more" if len(have) > 30 else "")
    lines = []
    for name in missing:
        near = _near(name, have)
        hint = "" if near is None else f"; did you mean {near!r}?"
        if near is not None and not near.isidentifier() and near.startswith(name):
            # A template reads a column up to the first sign that no name has, and takes the rest for an operation.
            hint = f"; if you mean {near!r}, write row[{near!r}] there"
        lines.append(f"{columns[name]} names the column {name!r}, which the input does not have{hint}")
    raise InputError("\n".join(lines), f"the columns are: {shown}")


def _near(name: str, have: set[str]) -> str | None:
    """The column that was most likely meant."""
    same = [one for one in have if one.casefold() == name.casefold()]
    begin = [one for one in have if one.startswith(name) and not one.isidentifier()]
    return next(iter((*same, *difflib.get_close_matches(name, have, n=1), *begin)), None)


def _require_storable(schema: pa.Schema, passed: Sequence[str]) -> None:
    """Raise InputError for a type that Arrow cannot send or, for a passed-through column, that Parquet cannot store.

    JSON lines can produce such types: a hundred nested lists, or an object without keys.
    """
    for field in schema:
        try:
            one = pa.table([pa.nulls(1, field.type)], schema=pa.schema([field]))
            with pa.ipc.new_stream(pa.BufferOutputStream(), one.schema) as writer:
                writer.write_table(one)
            pa.ipc.read_schema(one.schema.serialize())
            if field.name in passed:
                pq.write_table(one, pa.BufferOutputStream())
        except (pa.ArrowException, OSError, RecursionError) as error:
            raise InputError(
                f"column {field.name!r} has the type {field.type!s:.100}, which cannot be "
                f"{'passed through' if field.name in passed else 'read'}: {first_line(error)}",
                "make it flatter, or leave it out of the job",
            ) from None


def _require_unique_ids(
    column: str,
    scan: Scan,
    found: Sequence[Inspected],
    whole: pa.Schema,
    partitions: pa.Schema,
    selected: Sequence[RowBits] | None,
) -> None:
    """Of the rows that run: the others are in no result."""
    if column in partitions.names:
        raise InputError(
            f"id column {column!r} is a partition: all rows of a file share it", "choose another id column"
        )
    for one in found:
        if column not in one.names:
            raise InputError(
                f"{one.file.entry.uri} has no id column {column!r}",
                "write the column in every file, or leave input.id_column out: rows are then numbered",
            )
    require_id_kind(column, whole.field(column).type)
    bits = {} if selected is None else {one.file.entry.uri: b for one, b in zip(found, selected, strict=True)}
    require_unique(
        column,
        lambda: scan.column(found, whole.field(column), selected),
        {one.file.entry.uri: one.bad_rows.get(column, 0) for one in found},
        lambda uri, number: bits[uri].nth(number) if bits else number,
    )

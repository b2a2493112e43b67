"""From an input URI to the manifest: look at every file, check the columns and the ids, find the groups, cut."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer.errors import InputError
from batchinfer.input.files import input_entries, partition_schema, partition_values
from batchinfer.input.formats import first_line, inspect_jsonl, inspect_parquet, jsonl_column, parquet_column
from batchinfer.input.groups import Groups, find_groups
from batchinfer.input.ids import require_unique
from batchinfer.input.manifest import Fingerprint, InputFile, Manifest, Shard, cut
from batchinfer.input.shard_sizes import at_groups, shard_sizes, small_at_first
from batchinfer.jobspec import JobSpec
from batchinfer.storage import Entry, Stores

_THREADS = 16


def build_manifest(
    spec: JobSpec,
    columns: Mapping[str, str],
    fingerprint: Fingerprint,
    choose: Callable[[list[Entry]], list[Entry]] | None = None,
) -> Manifest:
    """Cut the input of `spec`. `columns` maps each column that is needed to the spec key that needs it.
    `choose` picks which of the input's files this run takes, none if need be; without it, all.

    Raises InputError for a file that cannot be read, a column that does not exist, files that do not
    fit together, and ids that are not unique.
    """
    entries = input_entries(spec.input.uri, spec.input.format, spec.storage, none_is_fine=choose is not None)
    # Of all files, so that a partition column has one type in every run.
    partitions = partition_schema(spec.input.uri, [entry.uri for entry in entries])
    if choose is not None:
        entries = choose(entries)
    inspect = _inspect_parquet if spec.input.format == "parquet" else _inspect_jsonl
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(lambda entry: inspect(entry, list(columns), spec.storage), entries))
    schema = _unify([(file.entry.uri, seen) for file, seen, _ in found])
    have = {name for _, _, names in found for name in names} | set(partitions.names)
    # Files without a row say nothing about JSON columns.
    if any(file.rows for file, _, _ in found) or (found and spec.input.format == "parquet"):
        _require_columns(columns, have)
    files = [file for file, _, _ in found]
    if choose is not None:
        empty = {file.entry.uri: file.entry.tag for file in files if not file.rows}
        fingerprint = fingerprint.model_copy(update={"empty": empty})
    if spec.input.id_column is not None:
        _require_unique_ids(spec, [f.entry for f in files if f.rows], schema, partitions)
    groups = None
    if spec.input.group_by is not None:
        groups = _groups(spec, [(file, names) for file, _, names in found if file.rows], partitions)
    whole = pa.schema([_field(name, schema, partitions) for name in columns])
    _require_storable(whole, spec.input.columns)
    return Manifest(
        shards=tuple(_cut(spec, files, groups)),
        schema=whole,
        partitions=tuple(name for name in columns if name in partitions.names),
        empty_files=tuple(file.entry.uri for file in files if not file.rows),
        fingerprint=fingerprint,
        hint=groups.scattered(str(spec.input.group_by)) if groups is not None else None,
    )


def _cut(spec: JobSpec, files: Sequence[InputFile], groups: Groups | None) -> list[Shard]:
    rows = sum(file.rows for file in files)
    size = sum(group.size for file in files for group in file.groups)
    sizes = shard_sizes(rows, size, spec.shards.rows, spec.sampling.max_tokens, spec.resources.replicas)
    if spec.limits.max_cost_usd is not None and spec.shards.rows == "auto":
        sizes = small_at_first(sizes)
    return cut(files, sizes, spec.shards.max_bytes, None if groups is None else at_groups(groups.begins, rows))


def _field(name: str, schema: pa.Schema, partitions: pa.Schema) -> pa.Field:
    if name in partitions.names:
        return partitions.field(name)
    index = schema.get_field_index(name)
    return schema.field(index).with_nullable(True).remove_metadata() if index >= 0 else pa.field(name, pa.null())


def _inspect_parquet(entry: Entry, columns: Sequence[str], stores: Stores) -> tuple[InputFile, pa.Schema, set[str]]:
    file, schema = inspect_parquet(entry, columns, stores)
    for name in columns:
        if len(schema.get_all_field_indices(name)) > 1:
            raise InputError(f"{entry.uri} has two columns named {name!r}", "rename one of them")
    kept = pa.schema([schema.field(name) for name in columns if schema.get_field_index(name) >= 0])
    return file, kept, set(schema.names)


def _inspect_jsonl(entry: Entry, columns: Sequence[str], stores: Stores) -> tuple[InputFile, pa.Schema, set[str]]:
    return inspect_jsonl(entry, columns, stores)


def _unify(schemas: Sequence[tuple[str, pa.Schema]]) -> pa.Schema:
    """One schema that holds all of them; a column may be missing in some files and is null there."""
    whole, before = pa.schema([]), ""
    for uri, schema in schemas:
        bare = schema.remove_metadata()
        if bare.equals(whole):
            continue
        try:
            whole = _merged(whole, bare)
        except (pa.ArrowException, RecursionError) as error:
            other = next((u for u, s in schemas if not _fit(s.remove_metadata(), bare)), before)
            raise InputError(
                f"files do not fit together: {other} and {uri}: {first_line(error)}",
                "give the column the same type in both, or run them as two jobs",
            ) from None
        before = uri
    return whole


def _merged(one: pa.Schema, other: pa.Schema) -> pa.Schema:
    """Arrow's common schema; a dictionary in one and plain values in the other become plain values."""
    try:
        return pa.unify_schemas([one, other], promote_options="permissive")
    except pa.ArrowException:
        plain = [pa.schema([_without_dictionary(field) for field in schema]) for schema in (one, other)]
        return pa.unify_schemas(plain, promote_options="permissive")


def _without_dictionary(field: pa.Field) -> pa.Field:
    return field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field


def _fit(one: pa.Schema, other: pa.Schema) -> bool:
    try:
        _merged(one, other)
    except (pa.ArrowException, RecursionError):
        return False
    return True


def _require_columns(columns: Mapping[str, str], have: set[str]) -> None:
    missing = [name for name in columns if name not in have]
    if not missing:
        return
    shown = ", ".join(sorted(have)[:30]) + (f" and {len(have) - 30} more" if len(have) > 30 else "")
    lines = []
    for name in missing:
        near = difflib.get_close_matches(name, have, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        lines.append(f"{columns[name]} names the column {name!r}, which the input does not have{hint}")
    raise InputError("\n".join(lines), f"the columns are: {shown}")


def _require_storable(schema: pa.Schema, passed: Sequence[str]) -> None:
    """JSON lines may come to types that Arrow cannot send, such as a hundred lists in each other, or that
    Parquet cannot hold, such as an object without a key."""
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


def _require_unique_ids(spec: JobSpec, entries: Sequence[Entry], schema: pa.Schema, partitions: pa.Schema) -> None:
    column = str(spec.input.id_column)
    if column in partitions.names:
        raise InputError(
            f"id column {column!r} is a partition: all rows of a file share it", "choose another id column"
        )
    read = parquet_column if spec.input.format == "parquet" else jsonl_column

    def scan() -> Iterator[tuple[str, pa.Array]]:
        for entry in entries:
            for ids in read(entry, column, spec.storage):
                yield entry.uri, ids

    require_unique(column, scan)


def _groups(spec: JobSpec, files: Sequence[tuple[InputFile, set[str]]], partitions: pa.Schema) -> Groups:
    """The groups of `input.group_by`. `files` have rows, and the names of the columns that each has."""
    column = str(spec.input.group_by)
    read = parquet_column if spec.input.format == "parquet" else jsonl_column

    def scan() -> Iterator[tuple[str, pa.Array]]:
        for file, names in files:
            uri = file.entry.uri
            if column in partitions.names:
                yield uri, pa.repeat(pa.scalar(partition_values(spec.input.uri, uri)[column], pa.string()), file.rows)
            elif column in names:
                for values in read(file.entry, column, spec.storage):
                    yield uri, values
            else:
                yield uri, pa.nulls(file.rows)

    return find_groups(column, scan())

"""One schema for files of several: the columns' types in the whole input, which each value must fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from batchinfer.errors import InputError
from batchinfer.input.column_types import CASTS, JSON, PARSED, Misfit, common, may_lose
from batchinfer.input.formats import Inspected, fit
from batchinfer.input.json_types import require_exact, whole_numbers
from batchinfer.input.parquet import parquet_column, require_arrow_reads, require_exact_times
from batchinfer.jobspec import JobSpec


def only_in_paths(spec: JobSpec, partitions: pa.Schema, found: Sequence[Inspected]) -> pa.Schema:
    """The partitions that at least one file lacks as a column. A file's column overrides its folder's name."""
    kept = []
    for field in partitions:
        own = [one for one in found if field.name in one.names and one.file.rows]
        lacking = [one for one in found if field.name not in one.names and one.file.rows]
        if own and not lacking:
            continue
        if own and not spec.input.is_parquet:
            raise InputError(
                f"column {field.name!r} stands in the rows of {own[0].file.entry.uri}, and only in the folder's name "
                f"of {lacking[0].file.entry.uri}",
                "write it in all rows or in none",
            )
        texts = any(_is_text(one.schema.field(field.name).type) for one in own if field.name in one.schema.names)
        kept.append(pa.field(field.name, pa.string()) if texts else field)
    return pa.schema(kept)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind))


def casts_of(spec: JobSpec) -> dict[str, pa.DataType]:
    return {name: CASTS[kind] for name, kind in spec.input.casts.items()}


def unified_schema(
    spec: JobSpec, columns: Mapping[str, str], found: Sequence[Inspected], partitions: pa.Schema
) -> pa.Schema:
    """The needed columns with their types in the whole input.

    Files without rows do not influence the types, unless no file has rows. A column that a file lacks is null for its
    rows, or the value of its partition.
    """
    said = [one for one in found if one.file.rows] or found
    casts = casts_of(spec)
    unknown = sorted(casts.keys() - columns.keys())
    if unknown:
        raise InputError(
            f"input.cast names the column {unknown[0]!r}, which the job does not read",
            f"the columns that it reads are: {', '.join(columns)}",
        )
    fields = []
    for name in columns:
        kind = casts.get(name) or _whole_type(spec, name, said, partitions)
        parsed = kind == JSON and spec.input.format == "jsonl"
        fields.append(pa.field(name, kind, metadata=PARSED if parsed else None))
    whole = pa.schema(fields)
    for one in said:
        for name, (big, negative) in one.integers.items():
            require_exact(one.file.entry.uri, name, whole.field(name).type, big, negative)
    return whole


def _whole_type(spec: JobSpec, name: str, said: Sequence[Inspected], partitions: pa.Schema) -> pa.DataType:
    jsonl = spec.input.format == "jsonl"
    kind: pa.DataType = pa.null()
    seen: dict[int, Inspected] = {}
    for one in said:
        # Files with equal schemas share one schema object, so each schema is merged once.
        key = id(one.schema) if name in one.names or name not in partitions.names else -1
        if key in seen:
            continue
        seen[key] = one
        stored = _stored_type(one, name, partitions)
        try:
            kind = (whole_numbers(kind, stored) if jsonl else None) or common(kind, stored, objects=jsonl)
        except (Misfit, RecursionError) as error:
            raise _clash(name, stored, one, list(seen.values()), partitions, str(error)) from None
    return kind


def _stored_type(one: Inspected, name: str, partitions: pa.Schema) -> pa.DataType:
    # The schema of JSON lines has every needed column; a column that no line has is of type null.
    if name in one.schema.names and (name in one.names or name not in partitions.names):
        return one.schema.field(name).type
    return partitions.field(name).type if name in partitions.names else pa.null()


def _clash(
    name: str, stored: pa.DataType, one: Inspected, seen: Sequence[Inspected], partitions: pa.Schema, why: str
) -> InputError:
    """The error for two files whose types of the column `name` do not fit together."""
    other = seen[0]
    for before in seen:
        try:
            common(_stored_type(before, name, partitions), stored)
        except (Misfit, RecursionError):
            other = before
            break
    return InputError(
        f"files do not fit together: {other.file.entry.uri} and {one.file.entry.uri}: column {name!r} is "
        f"{_stored_type(other, name, partitions)!s:.100} vs {stored!s:.100}",
        f"set input.cast: {{{name}: string}}, or another of {', '.join(CASTS)}; "
        "or give the column one type in all files",
    )


def require_same_values(spec: JobSpec, found: Sequence[Inspected], whole: pa.Schema, pool: ThreadPoolExecutor) -> None:
    """Raise InputError for a value that the column's common type cannot hold without change.

    The check runs before the run starts, so that the error does not stop a paid run.
    """
    if not spec.input.is_parquet:
        return
    doubts: dict[int, list[str]] = {}
    for one in found:
        if id(one.schema) not in doubts:
            doubts[id(one.schema)] = [f.name for f in one.schema if may_lose(f.type, whole.field(f.name).type)]
    doubtful = [one for one in found if doubts[id(one.schema)] or one.int96 or one.legacy or one.doubtful]

    def look(one: Inspected) -> None:
        entry = one.file.entry
        for name in one.doubtful:
            require_arrow_reads(entry, name, spec.storage)
        require_exact_times(entry, one.int96, one.legacy, spec.storage)
        for name in doubts[id(one.schema)]:
            for values in parquet_column(entry, name, spec.storage):
                fit(values, whole.field(name), entry.uri)

    for _ in pool.map(look, doubtful):
        pass

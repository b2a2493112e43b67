"""Rows in memory, of any kind of table, as a stream of Arrow batches."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import pyarrow as pa

from batchinfer.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import ray.data

    class ArrowStream(Protocol):
        """What speaks Arrow's interface: its tables and readers, Polars' frames, DuckDB's relations."""

        def __arrow_c_stream__(self, requested_schema: Any = None) -> Any: ...

    class ArrowArray(Protocol):
        """A batch of Arrow's."""

        def __arrow_c_array__(self, requested_schema: Any = None) -> Any: ...

    Data: TypeAlias = (
        pd.DataFrame
        | pl.LazyFrame
        | ArrowStream
        | ArrowArray
        | ray.data.Dataset
        | Sequence[Mapping[str, Any]]
        | Sequence[str]
        | str
        | os.PathLike[str]
    )
    """Rows in memory, or the URI of a folder, a file or a glob."""

TEXT_COLUMN = "text"
"""The column of rows that are given as a list of texts."""

BATCH_ROWS = 2**16
"""Rows that are converted to Arrow at a time. More need more memory, fewer take longer."""

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class RowStream:
    """Rows whose schema is known. `batches` begins anew with each call if `again`, otherwise it may be called once."""

    schema: pa.Schema
    batches: Callable[[], Iterator[pa.RecordBatch]]
    again: bool = True


def row_stream(data: Data) -> RowStream:
    """The rows of `data`, converted as they are read. Raises InputError for what is no table."""
    try:
        stream = _stream(data)
        twice = {name for name in stream.schema.names if stream.schema.names.count(name) > 1}
        if twice:
            raise _twice(min(twice))
        return _storable(stream)
    except (pa.ArrowException, OverflowError) as error:
        raise _no_table(error) from None


def _twice(name: str) -> InputError:
    return InputError(f"two columns of the rows are named {name!r}", "rename one of them")


def _no_table(error: Exception) -> InputError:
    return InputError(
        f"the rows cannot be made a table: {str(error).splitlines()[0]}", "give each column values of one type"
    )


def _stream(data: Any) -> RowStream:
    if (pandas := sys.modules.get("pandas")) is not None and isinstance(data, pandas.DataFrame):
        return _of_pandas(data)
    if (polars := sys.modules.get("polars")) is not None and isinstance(data, polars.LazyFrame):
        data = data.collect()
    if isinstance(data, pa.RecordBatch):
        data = pa.Table.from_batches([data])
    if isinstance(data, pa.RecordBatchReader):
        return RowStream(data.schema, lambda: iter(data), again=False)
    if type(data).__module__.startswith("ray.data"):
        return _of_ray(data)
    if hasattr(data, "__arrow_c_stream__"):
        # Polars, DuckDB, Arrow tables, and whatever else speaks Arrow's interface.
        with pa.RecordBatchReader.from_stream(data) as reader:
            schema = reader.schema
        return RowStream(schema, lambda: iter(pa.RecordBatchReader.from_stream(data)))
    if isinstance(data, Sequence) and not isinstance(data, bytes):
        return _of_list(data)
    raise InputError(
        f"rows of type {type(data).__module__}.{type(data).__qualname__} cannot be read",
        "give a pandas or Polars frame, an Arrow table or reader, a DuckDB relation, a Ray Dataset, a list of "
        "dictionaries or texts, or a URI",
    )


def _of_pandas(frame: Any) -> RowStream:
    # An index with a name was made of a column; a plain one only numbers the rows.
    index = any(name is not None for name in frame.index.names)
    if not frame.columns.is_unique:
        raise _twice(frame.columns[frame.columns.duplicated()][0])
    if not all(isinstance(name, str) for name in frame.columns):
        raise InputError("a column of the frame has a name that is not text", "rename it: frame.columns = [...]")

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, len(frame), BATCH_ROWS):
            part = frame.iloc[start : start + BATCH_ROWS]
            yield pa.RecordBatch.from_pandas(part, schema=schema, preserve_index=index)

    schema = pa.Schema.from_pandas(frame.iloc[:0], preserve_index=index)
    if any(kind.kind == "O" for kind in frame.dtypes):
        # Columns of any objects: only their values say what they are.
        parts = (frame.iloc[start : start + BATCH_ROWS] for start in range(0, len(frame), BATCH_ROWS))
        schema = _common(pa.Schema.from_pandas(part, preserve_index=index) for part in parts) or schema
    schema = schema.remove_metadata()
    return RowStream(schema, batches)


def _of_list(rows: Sequence[Any]) -> RowStream:
    if any(not isinstance(row, Mapping if isinstance(rows[0], Mapping) else str) for row in rows):
        raise InputError("the list holds something other than dictionaries or texts", "give one of the two")
    if rows and isinstance(rows[0], str):
        schema = pa.schema([(TEXT_COLUMN, pa.string())])
        return RowStream(
            schema,
            lambda: (pa.record_batch([pa.array(part, pa.string())], schema=schema) for part in _chunks(rows)),
        )
    names = list(dict.fromkeys(name for row in rows for name in row))

    def table(part: Sequence[Any], schema: pa.Schema | None = None) -> pa.Table:
        columns = {name: [row.get(name) for row in part] for name in names}
        return pa.table(columns, schema=schema)

    found = _common(table(part).schema for part in _chunks(rows))
    whole = found if found is not None else pa.schema([])

    def batches() -> Iterator[pa.RecordBatch]:
        for part in _chunks(rows):
            yield from table(part, whole).to_batches()

    return RowStream(whole, batches)


def _of_ray(dataset: Any) -> RowStream:
    def batches() -> Iterator[pa.RecordBatch]:
        options = dataset.context.execution_options
        before = options.preserve_order
        # Otherwise each run of the dataset may have its rows in another order, and would be another input.
        options.preserve_order = True
        try:
            for table in dataset.iter_batches(batch_format="pyarrow", batch_size=BATCH_ROWS):
                yield from table.to_batches()
        finally:
            options.preserve_order = before

    found = dataset.schema()
    if found is None:
        raise InputError("the Ray Dataset has no rows", "give one with rows")
    base = found.base_schema
    if not isinstance(base, pa.Schema):
        # A dataset of pandas blocks knows only their dtypes.
        first = next(batches(), None)
        base = first.schema if first is not None else pa.schema([])
    return RowStream(base, batches)


def _chunks(rows: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
    return (rows[start : start + BATCH_ROWS] for start in range(0, len(rows), BATCH_ROWS))


def _common(schemas: Iterable[pa.Schema]) -> pa.Schema | None:
    """One schema for all parts: a part may have only nulls, or only whole numbers, where another has fractions."""
    found: pa.Schema | None = None
    for schema in schemas:
        plain = schema.remove_metadata()
        found = plain if found is None else pa.unify_schemas([found, plain], promote_options="permissive")
    return found


def _storable(stream: RowStream) -> RowStream:
    """The stream with one type for all spellings of texts: views and large texts become texts."""
    schema = pa.schema([pa.field(field.name, _plain(field.type)) for field in stream.schema])

    def batches() -> Iterator[pa.RecordBatch]:
        rows = stream.batches()
        while True:
            try:
                batch = next(rows, None)
                if batch is None:
                    return
                for part in _slices(batch):
                    yield part if part.schema == schema else part.select(schema.names).cast(schema)
            except (pa.ArrowException, OverflowError, KeyError) as error:
                raise _no_table(error) from None

    return RowStream(schema, batches, stream.again)


_CAST_BYTES = 2**28
"""Bytes of a batch that are cast at a time: a text column of Arrow's usual type holds 2 GiB."""


def _slices(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    parts = max(1, -(-batch.nbytes // _CAST_BYTES), -(-batch.num_rows // BATCH_ROWS))
    rows = max(1, -(-batch.num_rows // parts))
    return (batch.slice(start, rows) for start in range(0, max(1, batch.num_rows), rows))


def _plain(kind: pa.DataType) -> pa.DataType:
    types = pa.types
    if types.is_string_view(kind) or types.is_large_string(kind):
        return pa.string()
    if types.is_binary_view(kind) or types.is_large_binary(kind):
        return pa.binary()
    if types.is_dictionary(kind):
        return pa.dictionary(pa.int32(), _plain(kind.value_type))
    if types.is_struct(kind):
        return pa.struct([pa.field(field.name, _plain(field.type)) for field in kind])
    if types.is_large_list(kind) or types.is_list(kind):
        return pa.list_(_plain(kind.value_type))
    return kind

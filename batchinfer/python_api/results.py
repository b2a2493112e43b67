"""The results of a run as one table, in the order of the input, alone or beside the columns of the input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer.errors import InputError, OutputError, UserError
from batchinfer.input import read_shards, whole_schema
from batchinfer.input.manifest import Manifest, Shard
from batchinfer.jobspec import JobSpec
from batchinfer.rundir.commit import committed_shards, opened_results
from batchinfer.rundir.paths import Layout

if TYPE_CHECKING:
    import duckdb
    import pandas as pd
    import polars as pl
    import ray.data


def results(layout: Layout, manifest: Manifest, spec: JobSpec, join: bool) -> pa.Table:
    """What is committed of the run: the columns of `data`, with `join` after every column of the input."""
    done = committed_shards(layout)
    shards = [shard for shard in manifest.shards if shard.shard_id in done]
    tables = _joined(layout, manifest, spec, shards) if join else (_answers(layout, shard) for shard in shards)
    found = list(tables)
    if not found:
        raise OutputError(
            f"no shard of {layout.root} is committed yet", "wait for the run, or run the job again: it goes on"
        )
    return pa.concat_tables(found).replace_schema_metadata(None).unify_dictionaries()


def _answers(layout: Layout, shard: Shard) -> pa.Table:
    with opened_results(layout, shard.shard_id) as file:
        return pq.read_table(file).replace_schema_metadata(None)


def _joined(layout: Layout, manifest: Manifest, spec: JobSpec, shards: list[Shard]) -> Iterator[pa.Table]:
    grouped = manifest.sources is not None
    schema, partitions = (manifest.schema, manifest.partitions) if grouped else whole_schema(spec, manifest)
    taken = {spec.rows_input.id_column, *spec.rows_input.columns}
    for shard, rows in read_shards(shards, schema, partitions, spec.rows_input, spec.storage):
        answers = _answers(layout, shard)
        own = [name for name in answers.column_names if name not in taken]
        both = [name for name in own if name in rows.column_names]
        if both:
            raise UserError(
                f"the input and the results both have a column {both[0]!r}",
                "name another output.column in the job, or read the results without join",
            )
        if rows.num_rows != answers.num_rows:
            raise InputError(f"shard {shard.shard_id} has other rows than its results", "read them without join")
        yield pa.table([*rows.columns, *(answers.column(name) for name in own)], names=[*rows.column_names, *own])


def to_pandas(table: pa.Table) -> pd.DataFrame:
    """A frame whose whole numbers and truth values stay so where a failed row has none."""
    import pandas as pd

    kept: dict[pa.DataType, Any] = {
        pa.int8(): pd.Int8Dtype(), pa.int16(): pd.Int16Dtype(), pa.int32(): pd.Int32Dtype(),
        pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype(),
    }  # fmt: skip
    frame: pd.DataFrame = table.to_pandas(types_mapper=kept.get, maps_as_pydicts="lossy")
    return frame


def to_polars(table: pa.Table) -> pl.DataFrame:
    """A Polars frame. Raises UserError if Polars is not installed."""
    try:
        import polars as pl
    except ImportError:
        raise UserError("Polars is not installed", "pip install 'batchinfer[polars]'") from None
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame), "a table becomes a frame"
    return frame


def to_duckdb(table: pa.Table, connection: duckdb.DuckDBPyConnection | None) -> duckdb.DuckDBPyRelation:
    """A relation of the connection, without one of DuckDB's own."""
    import duckdb

    return (connection if connection is not None else duckdb.default_connection()).from_arrow(table)


def to_ray(table: pa.Table) -> ray.data.Dataset:
    """A Ray Dataset, on the connection that the caller has."""
    import ray.data

    return ray.data.from_arrow(table)

"""Columns of every type, written by every writer: what lies in the result is what lay in the input.

DuckDB compares: a reader that shares no code with Arrow, which reads the input and writes the results.
"""

from __future__ import annotations

import datetime
import decimal
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer.errors import InputError
from tests.support.through import through

pytestmark = pytest.mark.integration
"""Each of 400 files is read by a process of its own."""

duckdb = pytest.importorskip("duckdb")

BERLIN = "Europe/Berlin"
FAR = [datetime.datetime(1, 1, 1), None, datetime.datetime(9999, 12, 31, 23, 59, 59, 999_999)]
COLUMNS = {
    "text": pa.array(["a", None, "\U0001f600\0\r\n\ufeffé"]),
    "large_text": pa.array(["a", None, ""], pa.large_string()),
    "text_view": pa.array(["a", None, "a long text beyond twelve bytes"], pa.string_view()),
    "words": pa.array(["a", None, "b"]).dictionary_encode(),
    "bytes": pa.array([b"a", None, b"\xff\0"]),
    "fixed_bytes": pa.array([b"ab", None, b"\xff\0"], pa.binary(2)),
    "boolean": pa.array([True, None, False]),
    "int8": pa.array([-128, None, 127], pa.int8()),
    "int16": pa.array([-(2**15), None, 2**15 - 1], pa.int16()),
    "int32": pa.array([-(2**31), None, 2**31 - 1], pa.int32()),
    "int64": pa.array([-(2**63), None, 2**63 - 1], pa.int64()),
    "uint8": pa.array([0, None, 255], pa.uint8()),
    "uint32": pa.array([0, None, 2**32 - 1], pa.uint32()),
    "uint64": pa.array([0, None, 2**64 - 1], pa.uint64()),
    "half": pa.array(np.array([1.5, -0.0, 65504], np.float16)),
    "float": pa.array([1.1, None, -0.0], pa.float32()),
    "double": pa.array([float("nan"), None, float("-inf")]),
    "decimal": pa.array([decimal.Decimal("1.50"), None, decimal.Decimal("-99.99")], pa.decimal128(4, 2)),
    "wide_decimal": pa.array([decimal.Decimal(10**37), None, decimal.Decimal(-1)], pa.decimal128(38, 0)),
    "date": pa.array([datetime.date(1, 1, 1), None, datetime.date(9999, 12, 31)]),
    "time": pa.array([0, None, 86_399_999_999], pa.time64("us")),
    "time_ms": pa.array([0, None, 86_399_999], pa.time32("ms")),
    "micros": pa.array(FAR, pa.timestamp("us")),
    "millis": pa.array([0, None, -1], pa.timestamp("ms")),
    "nanos": pa.array([1_234_567_891, None, -1], pa.timestamp("ns")),
    "instant": pa.array([0, None, 10**15], pa.timestamp("us", "UTC")),
    "zone": pa.array([0, None, 10**15], pa.timestamp("us", BERLIN)),
    "duration": pa.array([1, None, 10**12], pa.duration("us")),
    "uuid": pa.ExtensionArray.from_storage(
        pa.uuid(), pa.array([uuid.UUID(int=1).bytes, None, uuid.UUID(int=2**127).bytes], pa.binary(16))
    ),
    "json": pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": 1}', None, "[]"])),
    "list": pa.array([[1, None], None, []], pa.list_(pa.int64())),
    "fixed_list": pa.array([[1.5, 2.5], None, [3.5, 4.5]], pa.list_(pa.float32(), 2)),
    "list_view": pa.array([["a"], None, ["b", "c"]], pa.list_view(pa.string())),
    "deep_views": pa.array([[["a"]], None, [["b", "c"], []]], pa.list_(pa.list_view(pa.string_view()))),
    "struct": pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": "y"}]),
    "strict_struct": pa.array([{"a": 1}] * 3, pa.struct([pa.field("a", pa.int32(), nullable=False)])),
    "categories": pa.StructArray.from_arrays([pa.array(["a", "b", "c"]).dictionary_encode()], ["c"]),
    "map": pa.array([[("b", 1), ("a", None)], None, []], pa.map_(pa.string(), pa.int64())),
    "structs": pa.array([[{"a": {"b": [1]}}], None, []]),
    "null": pa.nulls(3),
}


def by_arrow(**options):
    def write(table, path):
        # Two row groups, so that nothing depends on there being one.
        pq.write_table(table, path, row_group_size=2, **options)

    return write


def by_polars(table, path):
    polars = pytest.importorskip("polars")
    polars.from_arrow(table).write_parquet(path, row_group_size=2)


def by_duckdb(table, path):
    connection = duckdb.connect()
    connection.register("given", table)
    connection.execute(f"COPY given TO '{path}' (FORMAT parquet)")


def by_fastparquet(table, path):
    fastparquet = pytest.importorskip("fastparquet")
    fastparquet.write(str(path), table.to_pandas(), row_group_offsets=2)


def by_datafusion(table, path):
    datafusion = pytest.importorskip("datafusion")
    datafusion.SessionContext().from_arrow(table).write_parquet(str(path.parent))


def by_deltalake(table, path):
    deltalake = pytest.importorskip("deltalake")
    folder = path.parent.with_name("table")
    deltalake.write_deltalake(str(folder), table)
    path.write_bytes(next(folder.glob("*.parquet")).read_bytes())


WRITERS = {
    "pyarrow": by_arrow(),
    "pyarrow, no Arrow schema": by_arrow(store_schema=False),
    "pyarrow, format 1.0": by_arrow(version="1.0", store_schema=False),
    "pyarrow, pages of version 2": by_arrow(data_page_version="2.0", use_dictionary=False),
    "pyarrow, 96 bits": by_arrow(use_deprecated_int96_timestamps=True),
    "polars": by_polars,
    "duckdb": by_duckdb,
    "fastparquet": by_fastparquet,
    "datafusion": by_datafusion,
    "deltalake": by_deltalake,
}
"""Each raises for the types that it cannot write."""

REFUSED = {
    ("pyarrow, 96 bits", "nanos"): "column 'c' has timestamps of 96 bits finer than a microsecond",
    ("duckdb", "duration"): "column 'c' is an INTERVAL",
    ("duckdb", "fixed_list"): "Arrow cannot read the column 'c' as DuckDB wrote it",
}


SAID_BY_ARROW_ALONE = {("VARCHAR", "JSON"), ("BLOB", "UUID"), ("TIMESTAMP", "TIMESTAMP WITH TIME ZONE")}
"""Types that a writer put into the file's Arrow schema alone, as (what Parquet says, what the results say)."""


def kinds(before: list[tuple[str, str | None]], after: list[tuple[str, str | None]]) -> tuple[str, str]:
    return before[0][0], after[0][0]


def values(rows: list[tuple[str, str | None]]) -> list[str | None]:
    """The values without what their type adds to the text."""

    def bare(text: str) -> str:
        return text.replace("\\x", "").replace("-", "").removesuffix("+00").lower()

    return [None if text is None else bare(text) for _, text in rows]


def seen_by_duckdb(folder: Path, column: str) -> list[tuple[str, str | None]]:
    """Type and text of each value, in order of the files."""
    query = (
        f"SELECT typeof({column}), {column}::VARCHAR FROM read_parquet('{folder}/*.parquet', hive_partitioning=false)"
    )
    return duckdb.connect().execute(query).fetchall()


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_is_in_the_results_as_it_was_in_the_file(tmp_path, name, writer):
    folder = tmp_path / "in"
    folder.mkdir()
    table = pa.table({"n": [1, 2, 3], "c": COLUMNS[name]})
    try:
        WRITERS[writer](table, folder / "a.parquet")
        before = seen_by_duckdb(folder, "c")
    except Exception as error:
        pytest.skip(f"{writer} does not write it, or DuckDB does not read it: {str(error)[:100]}")
    if (writer, name) in REFUSED:
        with pytest.raises(InputError, match=REFUSED[writer, name]):
            through(folder, tmp_path / "out", ["c", "n"], {"column": "n"})
        return
    through(folder, tmp_path / "out", ["c", "n"], {"column": "n"})
    after = seen_by_duckdb(tmp_path / "out" / "data", "c")
    assert (after == before) or (values(after) == values(before) and kinds(before, after) in SAID_BY_ARROW_ALONE)
    assert len(before) == 3

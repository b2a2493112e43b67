"""Every kind of table becomes the same rows, and rows beside an output are recognised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer.errors import InputError
from batchinfer.jobspec import StoreSpec
from batchinfer.python_api import kept_rows
from batchinfer.python_api.data import row_stream
from batchinfer.python_api.kept_rows import (
    KeptRows,
    difference,
    fingerprint,
    newest_rows,
    remove_other_rows,
    write_rows,
)
from batchinfer.rundir.paths import Layout
from batchinfer.storage import LocalStorage, Storage

TABLE = pa.table({"id": [1, 2, 3], "body": ["one", None, "three"], "score": [0.5, float("nan"), None]})


def in_memory(data: Any) -> pa.Table:
    stream = row_stream(data)
    return pa.Table.from_batches(list(stream.batches()), schema=stream.schema)


def written(data: Any, folder: Path) -> KeptRows:
    return write_rows(row_stream(data), LocalStorage(), str(folder))


def differs(data: Any, kept: KeptRows) -> list[str]:
    return difference(row_stream(data), kept, LocalStorage())


KINDS = {
    "Arrow table": TABLE,
    "Arrow batch": TABLE.to_batches()[0],
    "pandas": TABLE.to_pandas(),
    "pandas of objects": TABLE.to_pandas().astype({"body": object}),
    "Polars": pl.from_arrow(TABLE),
    "Polars, lazy": pl.from_arrow(TABLE).lazy(),
    "DuckDB": duckdb.from_arrow(TABLE),
    "dictionaries": TABLE.to_pylist(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_table_has_the_same_columns_and_texts(kind: str) -> None:
    found = in_memory(KINDS[kind])
    assert found.schema.names == ["id", "body", "score"]
    assert found.schema.field("body").type == pa.string()
    assert found.column("id").to_pylist() == [1, 2, 3]
    assert found.column("body").to_pylist() == ["one", None, "three"]


def test_a_reader_is_read_once_and_a_list_of_texts_is_a_column() -> None:
    reader = pa.RecordBatchReader.from_batches(TABLE.schema, TABLE.to_batches())
    stream = row_stream(reader)
    assert not stream.again
    assert sum(batch.num_rows for batch in stream.batches()) == 3
    assert in_memory(["a", "b"]).to_pydict() == {"text": ["a", "b"]}


def test_a_column_is_typed_by_all_of_its_values() -> None:
    late = [{"a": None, "b": 1}] * 70_000 + [{"a": "x", "b": 1.5}]
    assert in_memory(late).schema == pa.schema([("a", pa.string()), ("b", pa.float64())])
    assert in_memory(pd.DataFrame(late).astype(object)).schema.field("a").type == pa.string()


def test_an_index_with_a_name_is_a_column_and_a_plain_one_is_not() -> None:
    frame = pd.DataFrame({"key": ["a", "b"], "n": [1, 2]})
    assert set(in_memory(frame.set_index("key")).schema.names) == {"key", "n"}
    assert in_memory(frame.iloc[::-1]).schema.names == ["key", "n"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pd.DataFrame({"a": [1, "x"]}, dtype=object), "cannot be made a table"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "two columns of the rows are named 'a'"),
        (pd.DataFrame({3: [1]}), "a name that is not text"),
        ([{"a": 1}, "x"], "something other than dictionaries or texts"),
        (["x", 1], "something other than dictionaries or texts"),
        (7, "rows of type builtins.int cannot be read"),
        (np.zeros(3), "rows of type numpy.ndarray cannot be read"),
    ],
)
def test_what_is_no_table_is_refused_in_words(data: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        in_memory(data)


def test_equal_rows_are_recognised_whatever_holds_them(tmp_path: Path) -> None:
    kept = written(TABLE, tmp_path)
    again = kept_rows.kept_rows(LocalStorage(), kept.uri)
    assert again == kept
    for data in (TABLE, pl.from_arrow(TABLE), duckdb.from_arrow(TABLE), TABLE.slice(0), TABLE.to_pandas()):
        assert differs(data, kept) == []
    assert pq.read_table(kept.uri).column("body").to_pylist() == ["one", None, "three"]


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"body": ["one", None, "drei"]}, "row 2 (counted from 0): 'body' was 'three' then, and is 'drei' now"),
        ({"score": [0.5, float("nan"), 2.0]}, "row 2 (counted from 0): "),
        ({"more": [1, 2, 3]}, "the column 'more' is new"),
        ({"id": ["1", "2", "3"]}, "the column 'id' was of type int64 then, and is string now"),
    ],
)
def test_the_first_difference_is_named(changed: dict[str, Any], line: str, tmp_path: Path) -> None:
    kept = written(TABLE, tmp_path)
    (found,) = differs(pa.table(TABLE.to_pydict() | changed), kept)
    assert found.startswith(line)


def test_a_column_that_is_gone_and_one_that_moved_are_named(tmp_path: Path) -> None:
    kept = written(TABLE, tmp_path)
    assert differs(TABLE.drop_columns("id"), kept) == ["the column 'id' is gone"]
    assert "order of the columns" in differs(TABLE.select(["body", "id", "score"]), kept)[0]


def test_rows_of_many_parts_are_compared_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_rows, "PART_BYTES", 4_000)
    rows = pa.table({"n": range(5_000)})
    batches = pa.Table.from_batches([b for start in range(0, 5_000, 100) for b in rows.slice(start, 100).to_batches()])
    kept = written(batches, tmp_path)
    assert len(kept.parts) > 5
    assert kept.rows == 5_000
    assert pq.read_table(kept.uri).column("n").to_pylist() == list(range(5_000))
    # However the same rows are cut into batches.
    assert differs(rows, kept) == []
    assert differs(rows.slice(0, 4_321), kept) == ["there were 5,000 rows then, and are 4,321 now"]
    assert differs(pa.concat_tables([rows, rows]), kept) == ["there were 5,000 rows then, and are 10,000 now"]
    numbers = list(range(5_000))
    numbers[3_210] = -1
    assert differs(pa.table({"n": numbers}), kept) == [
        "row 3,210 (counted from 0): 'n' was '3210' then, and is '-1' now"
    ]


def test_what_lies_under_a_null_makes_no_difference(tmp_path: Path) -> None:
    values = pa.array([1, 2, 3])
    hidden = pa.Array.from_buffers(pa.int64(), 3, [pa.array([1, None, 3]).buffers()[0], values.buffers()[1]])
    plain = pa.table({"n": pa.array([1, None, 3])})
    assert fingerprint(pa.table({"n": hidden})) != fingerprint(plain), "else this shows nothing"
    assert differs(pa.table({"n": hidden}), written(plain, tmp_path)) == []


def test_rows_that_were_not_written_to_their_end_are_not_taken_for_complete(tmp_path: Path) -> None:
    def broken() -> Any:
        yield from TABLE.to_batches()
        raise pa.ArrowInvalid("the source is gone")

    reader = pa.RecordBatchReader.from_batches(TABLE.schema, broken())
    with pytest.raises(InputError, match="the source is gone"):
        written(reader, tmp_path)
    assert all(kept_rows.kept_rows(LocalStorage(), str(folder)) is None for folder in tmp_path.iterdir())


def test_rows_are_kept_beside_an_output_in_a_store(bucket: str, store: Storage, s3_url: str) -> None:
    layout = Layout(f"{bucket}/out", {"s3://": StoreSpec(endpoint_url=s3_url)})
    assert newest_rows(layout) is None
    before = write_rows(row_stream(TABLE.slice(0, 1)), store, layout.kept_input_folder)
    kept = write_rows(row_stream(TABLE), store, layout.kept_input_folder)
    remove_other_rows(layout, kept.uri)
    assert newest_rows(layout) == kept
    assert kept_rows.kept_rows(store, before.uri) is None
    assert difference(row_stream(TABLE), kept, store) == []
    # A job that reads its rows elsewhere leaves the folder alone.
    remove_other_rows(layout, f"{bucket}/in")
    assert newest_rows(layout) == kept

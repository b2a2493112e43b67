from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer.errors import InputError
from batchinfer.input import read_shards
from batchinfer.input.manifest import from_parquet, read_together, to_parquet
from batchinfer.jobspec import InputSpec
from tests.support.builders import manifest_of, rows_of, write_lines, write_parquet

files = st.lists(
    st.tuples(st.integers(0, 120), st.integers(1, 50)), min_size=1, max_size=3
)  # rows, and rows of a row group


def make_input(folder, files, file_format):
    """Files of numbered rows; gives the rows. Some lines are blank, some rows lack the column `x`."""
    number, rows = 0, []
    for name, (count, group) in enumerate(files):
        made = [{"n": number + i, "text": "t" * (i % 7), "x": None if i % 3 else f"x{i}"} for i in range(count)]
        if file_format == "parquet":
            schema = pa.schema([("n", pa.int64()), ("text", pa.string()), ("x", pa.string())])
            columns = {c: pa.array([row[c] for row in made], schema.field(c).type) for c in schema.names}
            write_parquet(folder / f"{name}.parquet", columns, row_group_size=group)
        else:
            lines = [line for row in made for line in ([""] * (row["n"] % group == 1) + [row])]
            write_lines(folder / f"{name}.jsonl", *lines)
        number, rows = number + count, rows + made
    return rows


@settings(deadline=None, max_examples=40)
@given(
    files=files,
    shard=st.integers(1, 60),
    max_bytes=st.sampled_from([50, 500, 2**20]),
    file_format=st.sampled_from(["parquet", "jsonl"]),
)
def test_shards_read_in_any_company_hold_the_rows_of_the_input(files, shard, max_bytes, file_format):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = make_input(folder, files, file_format)
        manifest = manifest_of(folder, ["n", "text", "x"], file_format, rows=shard, max_bytes=max_bytes)
        manifest = from_parquet(to_parquet(manifest))
        assert rows_of(manifest, folder, file_format) == rows

        def read(shards):
            return read_shards(
                shards, manifest.schema, manifest.partitions, InputSpec(uri=str(folder), format=file_format)
            )

        together = [one for group in read_together(manifest.shards) for one in read(group)]
        assert [row for _, table in together for row in table.to_pylist()] == rows
        assert [s for s, _ in together] == list(manifest.shards)
        # A resume reads only some of them.
        for one, table in read(manifest.shards[1::2]):
            assert table.to_pylist() == rows[one.first_row : one.first_row + one.rows]
            assert table.schema == manifest.schema


def test_a_row_group_larger_than_a_batch_is_read_in_small_shards_by_one_reader(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"n": list(range(50_000))}, row_group_size=30_000)
    manifest = manifest_of(tmp_path, ["n"], rows=997)
    groups = list(read_together(manifest.shards))
    assert len(groups) == 2
    read = [row["n"] for row in rows_of(manifest, tmp_path)]
    assert read == list(range(50_000))


def test_values_of_every_common_type_come_through_unchanged(tmp_path):
    columns = {
        "texts": pa.array(["a", None, "ü"], pa.large_string()),
        "words": pa.array(["a", "b", "a"]).dictionary_encode(),
        "lists": [[1, 2], [], None],
        "structs": [{"role": "user", "content": None}, None, {"role": None, "content": "x"}],
        "when": pa.array([0, None, 10**15], pa.timestamp("us", tz="UTC")),
        "money": pa.array(["1.10", None, "2.20"]).cast(pa.decimal128(10, 2)),
        "bytes": [b"\xff", None, b""],
    }
    write_parquet(tmp_path / "a.parquet", columns, row_group_size=2)
    manifest = manifest_of(tmp_path, list(columns), rows=2)
    assert rows_of(manifest, tmp_path) == pa.table(columns).to_pylist()


def test_partitions_are_columns_of_the_rows(tmp_path):
    write_parquet(tmp_path / "day=9" / "kind=a" / "x.parquet", {"n": [1, 2]})
    write_parquet(tmp_path / "day=10" / "kind=__HIVE_DEFAULT_PARTITION__" / "x.parquet", {"n": [3]})
    manifest = manifest_of(tmp_path, ["kind", "n", "day"], rows=2)
    assert manifest.partitions == ("kind", "day")
    assert rows_of(manifest, tmp_path) == [
        {"kind": "a", "n": 1, "day": 9},
        {"kind": "a", "n": 2, "day": 9},
        {"kind": None, "n": 3, "day": 10},
    ]


def test_rows_of_which_only_the_partition_is_read_are_all_there(tmp_path):
    write_parquet(tmp_path / "day=1" / "x.parquet", {"n": [1, 2, 3]}, row_group_size=2)
    assert rows_of(manifest_of(tmp_path, ["day"], rows=2), tmp_path) == [{"day": 1}] * 3


@pytest.mark.parametrize("file_format", ["parquet", "jsonl"])
def test_a_column_of_the_file_goes_before_a_partition_of_its_name(tmp_path, file_format):
    if file_format == "parquet":
        write_parquet(tmp_path / "day=null" / "x.parquet", {"day": pa.array([None], pa.string()), "n": [2]})
        write_parquet(tmp_path / "day=07" / "x.parquet", {"day": ["7"], "n": [3]})
    else:
        write_lines(tmp_path / "day=null" / "x.jsonl", {"day": None, "n": 2})
        write_lines(tmp_path / "day=07" / "x.jsonl", {"day": "7", "n": 3})
    rows = rows_of(manifest_of(tmp_path, ["day", "n"], file_format), tmp_path, file_format)
    assert rows == [{"day": "7", "n": 3}, {"day": None, "n": 2}]


def test_a_text_column_of_one_file_and_a_partition_of_another_are_texts(tmp_path):
    write_parquet(tmp_path / "zip=1" / "x.parquet", {"zip": ["10115"], "n": [1]})
    write_parquet(tmp_path / "zip=2" / "x.parquet", {"n": [2]})
    assert rows_of(manifest_of(tmp_path, ["zip"]), tmp_path) == [{"zip": "10115"}, {"zip": "2"}]


def test_lines_with_a_partitions_name_in_some_files_only_are_refused(tmp_path):
    write_lines(tmp_path / "day=1" / "x.jsonl", {"day": 1, "n": 2})
    write_lines(tmp_path / "day=2" / "x.jsonl", {"n": 3})
    with pytest.raises(InputError, match="only in the folder's name of"):
        manifest_of(tmp_path, ["day"], "jsonl")


@pytest.mark.parametrize("file_format", ["parquet", "jsonl"])
@pytest.mark.parametrize(("change", "words"), [("gone", "is gone"), ("changed", "has changed")])
def test_a_file_that_is_not_the_one_that_was_cut_is_refused(tmp_path, file_format, change, words):
    make_input(tmp_path, [(3, 3), (3, 3)], file_format)
    manifest = manifest_of(tmp_path, ["n"], file_format, rows=3)
    path = tmp_path / f"1.{file_format}"
    if change == "gone":
        path.unlink()
    else:
        make_input(tmp_path, [(3, 3), (4, 3)], file_format)
    shards = read_shards(
        manifest.shards, manifest.schema, manifest.partitions, InputSpec(uri=str(tmp_path), format=file_format)
    )
    with pytest.raises(InputError) as caught:
        list(shards)
    assert (
        str(caught.value)
        == f"{tmp_path}/{'0' if change == 'changed' else '1'}.{file_format} {words} since the run began"
    )
    assert "--fresh" in caught.value.remedy


def test_a_file_that_was_only_touched_counts_as_changed(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"n": [1]})
    manifest = manifest_of(tmp_path, ["n"])
    os.utime(path, (1, 1))
    with pytest.raises(InputError, match="has changed since the run began"):
        rows_of(manifest, tmp_path)


def test_a_file_that_nobody_reads_may_go(tmp_path):
    make_input(tmp_path, [(3, 3), (3, 3)], "parquet")
    manifest = manifest_of(tmp_path, ["n"], rows=3)
    (tmp_path / "1.parquet").unlink()
    shards = read_shards(
        manifest.shards[:1], manifest.schema, manifest.partitions, InputSpec(uri=str(tmp_path), format="parquet")
    )
    assert [table.column("n").to_pylist() for _, table in shards] == [[0, 1, 2]]

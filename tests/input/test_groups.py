"""`input.group_by`: rows of a group stay together, and a person is told where they do not lie together."""

from __future__ import annotations

import datetime

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer.errors import InputError
from batchinfer.input import build_manifest
from batchinfer.input.groups import find_groups
from batchinfer.input.manifest import from_parquet, to_parquet
from batchinfer.prompting.prompts import needed_columns
from tests.support.builders import make_fingerprint, make_spec, rows_of, write_lines, write_parquet


def manifest_by(uri, group_by="doc", file_format="parquet", rows=4, **values):
    spec = make_spec(
        input={"uri": str(uri), "format": file_format, "group_by": group_by}, shards={"rows": rows, **values}
    )
    return build_manifest(spec, needed_columns(spec), make_fingerprint())


def groups_of(manifest, uri, file_format="parquet"):
    """The groups in each shard, in order."""
    docs = [row["doc"] for row in rows_of(manifest, uri, file_format)]
    return ["".join(docs[shard.first_row : shard.first_row + shard.rows]) for shard in manifest.shards]


@pytest.mark.parametrize("file_format", ["parquet", "jsonl"])
def test_shards_end_where_groups_end_across_files(tmp_path, file_format):
    docs = ["aaab", "bbccccccc", "dde"]
    for number, part in enumerate(docs):
        if file_format == "parquet":
            columns = {"doc": list(part), "text": ["x"] * len(part)}
            write_parquet(tmp_path / f"{number}.parquet", columns, row_group_size=2)
        else:
            write_lines(tmp_path / f"{number}.jsonl", *({"doc": doc, "text": "x"} for doc in part))
    manifest = manifest_by(tmp_path, file_format=file_format)
    assert groups_of(manifest, tmp_path, file_format) == ["aaa", "bbb", "cccc", "ccc", "dde"]
    assert manifest.hint is None


def test_the_column_is_read_with_the_rows_and_is_no_result_column():
    spec = make_spec(input={"uri": "/in", "group_by": "doc", "columns": ["title"]})
    assert needed_columns(spec) == {
        "title": "input.columns",
        "text": "prompt.template",
        "doc": "input.group_by",
    }
    assert "doc" not in spec.input.columns


def test_scattered_groups_are_named_with_numbers(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"doc": list("abc" * 20), "text": ["x"] * 60})
    manifest = manifest_by(tmp_path)
    assert manifest.hint == (
        "input.group_by: the rows of 3 groups lie in 60 separate runs of rows; an input sorted by 'doc' would let "
        "more rows share a prefix"
    )
    assert from_parquet(to_parquet(manifest)) == manifest


def test_a_row_without_a_value_is_a_group_of_its_own(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"doc": ["a", "a", None, None, None, None, "b", "b", "b"], "text": ["x"] * 9})
    manifest = manifest_by(tmp_path)
    assert [shard.rows for shard in manifest.shards] == [4, 2, 3]
    assert manifest.hint is None


def test_a_file_without_the_column_has_rows_without_a_group(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"doc": ["a", "a", "a"], "text": ["x"] * 3})
    write_parquet(tmp_path / "b.parquet", {"text": ["x"] * 5})
    assert [shard.rows for shard in manifest_by(tmp_path).shards] == [4, 4]


def test_a_partition_may_be_the_group(tmp_path):
    for number, (day, rows) in enumerate([(1, 3), (2, 2), (2, 2), (3, 1)]):
        write_parquet(tmp_path / f"day={day}" / f"{number}.parquet", {"text": ["x"] * rows})
    manifest = manifest_by(tmp_path, "day")
    assert [shard.rows for shard in manifest.shards] == [3, 4, 1]


def test_a_column_that_is_not_there_is_named_with_the_nearest(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"doc": ["a"], "text": ["x"]})
    with pytest.raises(InputError) as caught:
        manifest_by(tmp_path, "dox")
    assert str(caught.value).splitlines()[0] == (
        "input.group_by names the column 'dox', which the input does not have; did you mean 'doc'?"
    )


def test_a_column_that_is_neither_text_nor_number_is_refused(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"doc": [["a"]], "text": ["x"]})
    with pytest.raises(InputError) as caught:
        manifest_by(tmp_path)
    assert "input.group_by column 'doc' has type list<" in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1, 1, 2, 2]),
        pa.array([1.5, 1.5, None, 2.5]),
        pa.array([datetime.date(2026, 1, 1)] * 2 + [datetime.date(2026, 1, 2)] * 2),
        pa.array(["a", "a", "b", "b"]).dictionary_encode(),
        pa.array([True, True, False, False]),
        pa.nulls(4),
    ],
    ids=lambda array: str(array.type)[:10],
)
def test_texts_and_numbers_of_every_kind_are_grouped(values):
    found = find_groups("doc", [("a", values)])
    plain = values.to_pylist()
    begins = [i == 0 or v is None or v != plain[i - 1] for i, v in enumerate(plain)]
    assert [bool(found.begins[0] >> (7 - i) & 1) for i in range(4)] == begins


@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(st.sampled_from(["a", "b", "c", None]), max_size=12), max_size=8))
def test_groups_are_found_however_the_rows_are_handed_over(chunks):
    found = find_groups("doc", [("a", pa.array(chunk, pa.string())) for chunk in chunks])
    rows = [value for chunk in chunks for value in chunk]
    begins = [i == 0 or value is None or value != rows[i - 1] for i, value in enumerate(rows)]
    bits = [bool(found.begins[i // 8] >> (7 - i % 8) & 1) for i in range(len(rows))]
    assert bits == begins
    assert found.runs == sum(begin and value is not None for begin, value in zip(begins, rows, strict=True))
    assert found.groups == len({value for value in rows if value is not None})


def test_very_many_groups_are_counted_about():
    found = find_groups("doc", [("a", pa.array(range(i, i + 10_000))) for i in range(0, 100_000, 10_000)])
    assert found.runs == 100_000
    assert 90_000 < found.groups < 110_000

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer.errors import InputError
from batchinfer.input import build_manifest
from tests.support.builders import make_fingerprint, make_spec, manifest_of, rows_of, write_lines, write_parquet


def refusal(uri, columns, file_format="parquet"):
    with pytest.raises(InputError) as caught:
        manifest_of(uri, columns, file_format)
    return caught.value


@pytest.mark.parametrize("file_format", ["parquet", "jsonl"])
def test_a_column_that_is_missing_is_named_with_its_key_and_the_nearest(tmp_path, file_format):
    if file_format == "parquet":
        write_parquet(tmp_path / "a.parquet", {"text": ["a"], "title": ["b"]})
    else:
        write_lines(tmp_path / "a.jsonl", {"text": "a", "title": "b"})
    spec = make_spec(input={"uri": str(tmp_path), "format": file_format})
    with pytest.raises(InputError) as caught:
        build_manifest(
            spec, {"texts": "prompt.template", "title": "input.columns", "zzz": "evaluate.by"}, make_fingerprint()
        )
    assert str(caught.value).splitlines() == [
        "prompt.template names the column 'texts', which the input does not have; did you mean 'text'?",
        "evaluate.by names the column 'zzz', which the input does not have",
    ]
    assert caught.value.remedy == "the columns are: text, title"


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("Bestell", "if you mean 'Bestell-Datum', write row['Bestell-Datum'] there"),
        ("Order", "if you mean 'Order No.', write row['Order No.'] there"),
        ("ID", "did you mean 'id'?"),
    ],
)
def test_the_column_that_was_meant_is_named_as_it_is_to_be_written(tmp_path, written, hint):
    write_parquet(tmp_path / "a.parquet", {"Bestell-Datum": ["a"], "Order No.": ["b"], "id": ["c"]})
    assert refusal(tmp_path, [written]).message.endswith(f"which the input does not have; {hint}")


def test_many_columns_are_not_all_listed(tmp_path):
    write_parquet(tmp_path / "a.parquet", {f"column{i:02}": ["a"] for i in range(50)})
    assert refusal(tmp_path, ["zzz"]).remedy.endswith("column29 and 20 more")


def test_a_column_that_some_files_lack_is_null_there(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"text": ["a", "b"]})
    write_parquet(tmp_path / "b.parquet", {"other": [1, 2, 3]})
    write_parquet(tmp_path / "c.parquet", {"text": ["c"], "other": [4]})
    manifest = manifest_of(tmp_path, ["text", "other"], rows=4)
    assert [(row["text"], row["other"]) for row in rows_of(manifest, tmp_path)] == [
        *(("a", None), ("b", None)),
        *((None, 1), (None, 2), (None, 3)),
        ("c", 4),
    ]


@pytest.mark.parametrize(
    ("one", "other", "kind"),
    [
        (pa.int32(), pa.int64(), pa.int64()),
        (pa.int64(), pa.float64(), pa.float64()),
        (pa.string(), pa.large_string(), pa.large_string()),
        (pa.null(), pa.string(), pa.string()),
        (pa.timestamp("s"), pa.timestamp("us"), pa.timestamp("us")),
        (pa.list_(pa.int32()), pa.list_(pa.int64()), pa.list_(pa.int64())),
    ],
    ids=str,
)
def test_types_that_fit_together_become_the_wider_one(tmp_path, one, other, kind):
    for name, value_type in (("a", one), ("b", other)):
        write_parquet(tmp_path / f"{name}.parquet", {"x": pa.array([None], value_type)})
    manifest = manifest_of(tmp_path, ["x"])
    assert manifest.schema == pa.schema([("x", kind)])
    assert rows_of(manifest, tmp_path) == [{"x": None}, {"x": None}]


def test_types_that_do_not_fit_are_refused_with_the_two_files_that_clash(tmp_path):
    first = write_parquet(tmp_path / "a.parquet", {"x": [1]})
    write_parquet(tmp_path / "b.parquet", {"y": ["neither of the two"]})
    third = write_parquet(tmp_path / "c.parquet", {"x": ["text"]})
    error = refusal(tmp_path, ["x", "y"])
    assert str(error).startswith(f"files do not fit together: {first} and {third}: ")
    assert "int64 vs string" in str(error)


def test_types_of_columns_that_nobody_reads_may_clash(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"text": ["a"], "x": [1]})
    write_parquet(tmp_path / "b.parquet", {"text": ["b"], "x": ["1"]})
    assert rows_of(manifest_of(tmp_path, ["text"]), tmp_path) == [{"text": "a"}, {"text": "b"}]


def test_lines_of_two_files_fit_together_or_are_refused(tmp_path):
    write_lines(tmp_path / "a.jsonl", {"x": 1})
    write_lines(tmp_path / "b.jsonl", {"x": 1.5}, {"y": 1})
    assert manifest_of(tmp_path, ["x"], "jsonl").schema == pa.schema([("x", pa.float64())])
    write_lines(tmp_path / "b.jsonl", {"x": "a"})
    message = str(refusal(tmp_path, ["x"], "jsonl"))
    assert message.startswith(f"files do not fit together: {tmp_path}/a.jsonl and {tmp_path}/b.jsonl")


def test_a_number_that_the_common_type_cannot_hold_is_refused_when_read(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"x": [2**60 + 1]})
    write_parquet(tmp_path / "b.parquet", {"x": [1.5]})
    with pytest.raises(InputError, match=f"{path}: column 'x' does not fit double"):
        rows_of(manifest_of(tmp_path, ["x"]), tmp_path)


def test_two_columns_of_one_name_are_refused(tmp_path):
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["x", "x"]), tmp_path / "a.parquet")
    assert "has two columns named 'x'" in str(refusal(tmp_path, ["x"]))


def test_a_name_with_a_dot_is_a_name(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"a.b": ["x", "y"], "a": [1, 2]}, row_group_size=1)
    assert rows_of(manifest_of(tmp_path, ["a.b"], rows=1), tmp_path) == [{"a.b": "x"}, {"a.b": "y"}]
    assert rows_of(manifest_of(tmp_path, ["a"], rows=1), tmp_path) == [{"a": 1}, {"a": 2}]


def test_the_columns_come_in_the_order_that_was_asked_for(tmp_path):
    write_parquet(tmp_path / "k=1" / "a.parquet", {"a": [1], "b": [2], "c": [3]})
    assert manifest_of(tmp_path, ["c", "k", "a"]).schema.names == ["c", "k", "a"]


def test_shards_are_cut_by_rows_and_by_the_bytes_of_the_columns_that_are_read(tmp_path):
    texts = [f"{i:01000}" for i in range(100)]
    path = tmp_path / "a.parquet"
    write_parquet(path, {"id": list(range(100)), "text": texts}, use_dictionary=False, compression="none")
    assert len(manifest_of(path, ["id"], rows=30).shards) == 4
    assert len(manifest_of(path, ["id"], max_bytes=10_000).shards) == 1
    by_bytes = manifest_of(path, ["text"], max_bytes=10_100)
    assert 10 <= len(by_bytes.shards) <= 12
    assert by_bytes.rows == 100


def test_the_fingerprint_is_kept(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"text": ["a"]})
    spec = make_spec(input={"uri": str(tmp_path)})
    assert build_manifest(spec, {"text": "prompt.template"}, make_fingerprint(run_id="r")).fingerprint.run_id == "r"


def test_what_a_file_promises_about_a_column_is_not_promised_of_the_whole_input(tmp_path):
    strict = pa.schema([pa.field("x", pa.int64(), nullable=False, metadata={"a": "b"})])
    pq.write_table(pa.table({"x": [1]}, schema=strict), tmp_path / "a.parquet")
    manifest = manifest_of(tmp_path, ["x"])
    assert manifest.schema.equals(pa.schema([("x", pa.int64())]), check_metadata=True)
    assert rows_of(manifest, tmp_path) == [{"x": 1}]

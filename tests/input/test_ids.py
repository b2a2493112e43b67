from __future__ import annotations

import decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer.errors import InputError
from batchinfer.input.ids import require_unique
from tests.support.builders import manifest_of, write_lines, write_parquet


def refusal(uri, file_format="parquet", column="id"):
    with pytest.raises(InputError) as caught:
        manifest_of(uri, [column], file_format, id_column=column)
    return caught.value


def test_ids_that_differ_pass(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"id": ["a", "b", "A", "", " "]}, row_group_size=2)
    write_parquet(tmp_path / "b.parquet", {"id": ["c", "aa"]})
    assert manifest_of(tmp_path, ["id"], id_column="id").rows == 7


def test_an_id_that_is_null_is_refused_with_the_number_of_them(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"id": [1, None, 3, None]})
    error = refusal(tmp_path)
    assert str(error) == f"{path}: id column 'id' has 2 null values"
    assert "leave input.id_column out" in error.remedy


def test_an_id_that_occurs_twice_in_a_file_is_named_with_both_rows(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"id": ["x", "a", "y", "a", "z"]}, row_group_size=2)
    assert str(refusal(tmp_path)) == f"id column 'id' has 'a' twice: row 1 of {path} and row 3 of {path}"


def test_an_id_that_occurs_in_two_files_is_named_with_both(tmp_path):
    first = write_parquet(tmp_path / "a.parquet", {"id": list(range(40_000))})
    second = write_parquet(tmp_path / "b.parquet", {"id": [-1, -2, 39_999]})
    expected = f"id column 'id' has '39999' twice: row 39999 of {first} and row 2 of {second}"
    assert str(refusal(tmp_path)) == expected


def test_lines_are_checked_as_well(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", *({"id": i % 150} for i in range(200)))
    message = str(refusal(tmp_path, "jsonl"))
    assert message == f"id column 'id' has '0' twice: row 0 of {path} and row 150 of {path}"
    write_lines(path, {"id": "a"}, {"text": "b"})
    assert str(refusal(tmp_path, "jsonl")) == f"{path}: id column 'id' has 1 null values"


@pytest.mark.parametrize("values", [[[1], [2]], [{"a": 1}, {"a": 2}], [True, False]])
def test_a_kind_of_value_that_tells_no_rows_apart_is_no_id(tmp_path, values):
    write_parquet(tmp_path / "a.parquet", {"id": values})
    error = refusal(tmp_path)
    assert "id column 'id' has type " in str(error)
    assert "a text, a number, a date, a time or a UUID" in error.remedy


def test_bytes_that_are_no_text_are_no_id(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"id": [b"\xff", b"\xfe"]})
    assert "bytes that are not UTF-8" in str(refusal(tmp_path))


@pytest.mark.parametrize(
    "values",
    [
        pa.array([b"a", b"b"]),
        pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"a" * 16, b"b" * 16], pa.binary(16))),
        pa.array([decimal.Decimal("1.5"), decimal.Decimal("2.5")]),
        pa.array([1, 2], pa.date32()),
        pa.array([1, 2], pa.timestamp("us", "UTC")),
        pa.array([1.5, 2.5]),
    ],
    ids=lambda values: str(values.type),
)
def test_texts_numbers_dates_and_uuids_are_ids(tmp_path, values):
    write_parquet(tmp_path / "a.parquet", {"id": values})
    assert manifest_of(tmp_path, ["id"], id_column="id").rows == 2
    write_parquet(tmp_path / "b.parquet", {"id": values.slice(1)})
    assert " twice: row 1 of " in str(refusal(tmp_path))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            pa.array([decimal.Decimal("1.5")], pa.decimal128(10, 1)),
            pa.array([decimal.Decimal("1.50")], pa.decimal128(12, 2)),
        ),
        (pa.array([1_000], pa.timestamp("ms")), pa.array([1_000_000], pa.timestamp("us"))),
        (pa.array([7], pa.int32()), pa.array([7.0], pa.float64())),
        (pa.array([0.0]), pa.array([-0.0])),
        (pa.array(["a"]), pa.array([b"a"])),
        (pa.array([1]), pa.array([decimal.Decimal("1.00")])),
    ],
    ids=["decimals", "units", "float", "zeros", "bytes", "whole"],
)
def test_ids_are_compared_in_the_type_that_the_results_have(tmp_path, one, other):
    write_parquet(tmp_path / "a.parquet", {"id": one})
    write_parquet(tmp_path / "b.parquet", {"id": other})
    assert " twice: row 0 of " in str(refusal(tmp_path))


def test_a_file_without_the_id_column_is_named(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"id": [1]})
    write_parquet(tmp_path / "b.parquet", {"text": ["a"]})
    assert str(refusal(tmp_path)) == f"{tmp_path}/b.parquet has no id column 'id'"


def test_texts_stored_as_a_dictionary_are_texts(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"id": pa.array(["a", "b", "c"]).dictionary_encode()})
    assert manifest_of(tmp_path, ["id"], id_column="id").rows == 3
    write_parquet(tmp_path / "a.parquet", {"id": pa.array(["a", "b", "a"]).dictionary_encode()})
    assert "'a' twice" in str(refusal(tmp_path))


def test_a_partition_tells_no_rows_apart(tmp_path):
    write_parquet(tmp_path / "day=1" / "a.parquet", {"text": ["a"]})
    assert "id column 'day' is a partition" in str(refusal(tmp_path, column="day"))


@settings(deadline=None, max_examples=25)
@given(batches=st.lists(st.lists(st.integers(0, 40), max_size=8), max_size=6))
def test_exactly_what_occurs_twice_is_refused(batches):
    everything = [value for batch in batches for value in batch]
    repeated = {str(value) for value in everything if everything.count(value) > 1}

    def scan():
        return ((f"/file{i}", pa.array(batch, pa.int64())) for i, batch in enumerate(batches))

    if repeated:
        with pytest.raises(InputError) as caught:
            require_unique("id", scan)
        assert str(caught.value).split("'")[3] in repeated
    else:
        require_unique("id", scan)


def test_a_needle_in_many_ids_is_found():
    ids = np.arange(300_000)
    ids[299_999] = 123_456

    def scan():
        return (("/file", pa.array(part)) for part in np.split(ids, 10))

    with pytest.raises(InputError, match="'123456' twice: row 123456 of /file and row 299999 of /file"):
        require_unique("id", scan)

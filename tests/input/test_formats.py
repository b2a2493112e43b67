"""Files as they are found in the wild: damaged, empty, of another format."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from builders import manifest_of, rows_of, write_lines, write_parquet

from batchinfer.errors import InputError


def refusal(folder, columns=("text",), file_format="parquet", **values):
    with pytest.raises(InputError) as caught:
        manifest_of(folder, list(columns), file_format, **values)
    return str(caught.value)


def whole_parquet(tmp_path):
    return write_parquet(tmp_path / "other" / "x", {"text": ["a"] * 10_000}).read_bytes()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: b"", "is empty (zero bytes), not a Parquet file"),
        (lambda data: data[:-100], "is not a readable Parquet file"),
        (lambda data: data[:10], "is not a readable Parquet file"),
        (lambda data: b"id,text\n1,a\n" * 10, "is not a readable Parquet file"),
        (lambda data: data[:-4] + b"PARX", "is not a readable Parquet file"),
    ],
    ids=["empty", "cut", "stump", "csv", "magic"],
)
def test_a_parquet_file_that_is_none_is_named(tmp_path, damage, words):
    write_parquet(tmp_path / "in" / "a.parquet", {"text": ["a"]})
    (tmp_path / "in" / "b.parquet").write_bytes(damage(whole_parquet(tmp_path)))
    message = refusal(tmp_path / "in")
    assert message.startswith(str(tmp_path / "in" / "b.parquet"))
    assert words in message
    assert "\n" not in message


def test_a_parquet_file_damaged_in_the_middle_is_named_when_it_is_read(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"text": ["a"] * 10_000})
    data = path.read_bytes()
    path.write_bytes(data[:40] + bytes(30) + data[70:])
    manifest = manifest_of(tmp_path, ["text"])
    with pytest.raises(InputError, match=f"{path} cannot be read: "):
        rows_of(manifest, tmp_path)


def test_a_parquet_file_without_rows_is_noted_as_empty(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"text": ["a"]})
    empty = write_parquet(tmp_path / "b.parquet", {"text": ["a"]})
    write_parquet(empty, {"text": []})
    assert manifest_of(tmp_path / "a.parquet", ["text"]).empty_files == ()
    manifest = manifest_of(tmp_path, ["text"])
    assert manifest.empty_files == (str(empty),)
    assert rows_of(manifest, tmp_path) == [{"text": "a"}]


def test_blank_lines_are_no_rows(tmp_path):
    write_lines(tmp_path / "a.jsonl", "", {"text": "a"}, "   ", "\t", {"text": "b"}, "")
    assert rows_of(manifest_of(tmp_path, ["text"], "jsonl"), tmp_path, "jsonl") == [{"text": "a"}, {"text": "b"}]


def test_a_last_line_without_a_line_end_is_a_row(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "b"}')
    assert rows_of(manifest_of(tmp_path, ["text"], "jsonl"), tmp_path, "jsonl") == [{"text": "a"}, {"text": "b"}]


def test_lines_of_windows_and_a_byte_order_mark_are_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes('\ufeff{"text": "é"}\r\n{"text": "b"}\r\n'.encode())
    assert rows_of(manifest_of(tmp_path, ["text"], "jsonl"), tmp_path, "jsonl") == [{"text": "é"}, {"text": "b"}]


def test_an_empty_file_of_lines_has_no_rows(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"")
    (tmp_path / "b.jsonl").write_bytes(b"\n\n")
    manifest = manifest_of(tmp_path, ["text"], "jsonl")
    assert (manifest.shards, manifest.rows) == ((), 0)
    assert manifest.empty_files == (str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": "a"', "not a line of JSON"),
        ("text,a", "not a line of JSON"),
        ('{"text": "a"} {"text": "b"}', "not a line of JSON"),
        ("[" * 100_000, "not a line of JSON"),
        ('["a"]', "a line is a JSON object, not list"),
        ('"a"', "a line is a JSON object, not str"),
        ("null", "a line is a JSON object, not NoneType"),
    ],
)
@pytest.mark.parametrize("before", [1, 200])
def test_a_bad_line_is_named_by_its_number(tmp_path, line, words, before):
    path = write_lines(tmp_path / "a.jsonl", *[{"text": "a"}] * before, "", line, {"text": "b"})
    message = refusal(tmp_path, file_format="jsonl")
    assert message.startswith(f"{path}:{before + 2}: {words}")


def test_bytes_that_are_no_text_are_a_bad_line(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    assert refusal(tmp_path, file_format="jsonl").startswith(f"{tmp_path}/a.jsonl:2: not a line of JSON")


@pytest.mark.parametrize(
    ("values", "bad", "why"),
    [
        ((1, "a"), 2, "does not fit the type int64"),
        (("a", 1.5), 2, "does not fit the type string"),
        ((True, 2), 2, "does not fit the type bool"),
        ((2**70, 1), 1, "has more than 64 bits"),
        ((1, -(2**63) - 1), 2, "has more than 64 bits"),
    ],
)
@pytest.mark.parametrize("between", [0, 100])
def test_a_column_whose_values_fit_no_type_is_refused_with_its_line_and_a_remedy(tmp_path, values, bad, why, between):
    one, other = values
    path = write_lines(tmp_path / "a.jsonl", {"text": one}, *[{"text": None}] * between, {"text": other})
    with pytest.raises(InputError) as caught:
        manifest_of(tmp_path, ["text"], "jsonl")
    line = 1 if bad == 1 else between + 2
    assert str(caught.value).startswith(f"{path}:{line}: column 'text' holds values that do not fit one type: ")
    assert why in str(caught.value)
    assert "input.cast: {text: string}" in caught.value.remedy


def test_half_a_surrogate_pair_is_refused_with_its_line_and_column(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", {"text": "a"}, {"text": "\ud83d"})
    assert refusal(tmp_path, file_format="jsonl").startswith(f"{path}:2: column 'text' holds half of a surrogate pair")


def test_numbers_with_and_without_a_fraction_are_one_type(tmp_path):
    write_lines(tmp_path / "a.jsonl", {"x": 1}, *[{}] * 100, {"x": 1.5})
    rows = rows_of(manifest_of(tmp_path, ["x"], "jsonl"), tmp_path, "jsonl")
    assert [row["x"] for row in rows] == [1.0, *[None] * 100, 1.5]


def objects_of(tmp_path, *rows):
    write_lines(tmp_path / "a.jsonl", *rows)
    manifest = manifest_of(tmp_path, ["x"], "jsonl")
    return manifest, [row["x"] for row in rows_of(manifest, tmp_path, "jsonl")]


@pytest.mark.parametrize("between", [0, 100])
@pytest.mark.parametrize(
    "values",
    [
        ({"a": 1}, {"b": "c"}),
        ({"a": {"b": 1}}, {"a": {"c": 1}}),
        ([{"a": 1}], [{"a": 2}, {"b": 2}]),
        ({"a": 1}, "a"),
        ([1], 2),
        ([1, "a"], []),
        ({"a": 2**70}, {"a": 1}),
        ({}, {}),
        ([{}], []),
    ],
    ids=str,
)
def test_objects_that_fit_no_type_are_kept_as_their_own_json(tmp_path, values, between):
    one, other = values
    manifest, kept = objects_of(tmp_path, {"x": one}, *[{}] * between, {"x": other})
    assert manifest.schema.field("x").type == pa.json_()
    assert [json.loads(value) for value in kept if value is not None] == [one, other]


def test_objects_of_the_same_keys_are_one_type(tmp_path):
    manifest, kept = objects_of(tmp_path, {"x": {"a": 1, "b": None}}, *[{}] * 100, {"x": {"b": "c", "a": 2}})
    assert manifest.schema.field("x").type == pa.struct([("a", pa.int64()), ("b", pa.string())])
    assert (kept[0], kept[-1]) == ({"a": 1, "b": None}, {"a": 2, "b": "c"})


def test_objects_whose_keys_differ_from_file_to_file_are_kept_as_their_own_json(tmp_path):
    write_lines(tmp_path / "a.jsonl", {"x": {"a": 1}})
    write_lines(tmp_path / "b.jsonl", {"x": {"b": "é"}})
    manifest = manifest_of(tmp_path, ["x"], "jsonl")
    assert [row["x"] for row in rows_of(manifest, tmp_path, "jsonl")] == ['{"a": 1}', '{"b": "é"}']

"""Files as they are found in the wild: damaged, empty, of another format."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pytest

from batchinfer.errors import InputError
from batchinfer.input import build_manifest, jsonl, read_shards
from batchinfer.input.manifest import from_parquet, to_parquet
from batchinfer.jobspec import InputSpec
from tests.support.builders import make_fingerprint, make_spec, manifest_of, rows_of, write_lines, write_parquet
from tests.support.through import through


def refusal(folder, columns=("text",), file_format="parquet", **values):
    with pytest.raises(InputError) as caught:
        manifest_of(folder, list(columns), file_format, **values)
    return str(caught.value)


def test_a_packed_line_without_an_end_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "LONGEST_ROW", 2**22)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n{"text": "' + b"x" * 2**25))
    assert "a.jsonl.gz:2: a line is longer than 4,194,304 bytes" in refusal(tmp_path, file_format="jsonl")


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


@pytest.mark.parametrize(
    ("name", "file_format"), [("rows.csv", "csv"), ("rows.TSV", "csv"), ("rows.jsonl.gz", "jsonl")]
)
def test_a_named_file_of_another_format_is_told_its_format(tmp_path, name, file_format):
    (tmp_path / name).write_bytes(b"id,text\n1,a\n")
    with pytest.raises(InputError, match="is no Parquet file") as caught:
        manifest_of(tmp_path / name, ["text"])
    assert caught.value.remedy == f"set input.format: {file_format}"


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


def packed_input(tmp_path, name, pack, count=300):
    rows = [{"id": i, "text": f"é{i}" * (i % 7)} for i in range(count)]
    data = "".join(json.dumps(row) + "\n" * (1 + i % 2) for i, row in enumerate(rows)).encode()
    (tmp_path / name).write_bytes(pack(data))
    return rows


def zstd(data):
    return pa.compress(data, "zstd", asbytes=True)


PACKED = [("a.jsonl.gz", gzip.compress), ("a.ndjson.zst", zstd), ("a.jsonl", gzip.compress), ("a.jsonl.gz", bytes)]


@pytest.mark.parametrize(
    ("name", "pack"), PACKED, ids=["gzip", "zstd", "gzip by another name", "plain by another name"]
)
def test_packed_lines_are_read_whatever_the_file_is_called(tmp_path, name, pack):
    rows = packed_input(tmp_path, name, pack)
    manifest = manifest_of(tmp_path, ["id", "text"], "jsonl", id_column="id", rows=37)
    assert len(manifest.shards) == 9
    assert rows_of(manifest, tmp_path, "jsonl") == rows
    # A retry reads some of the shards, and in any order.
    for shard in (manifest.shards[5], manifest.shards[2]):
        ((_, table),) = read_shards([shard], manifest.schema, (), InputSpec(uri=str(tmp_path), format="jsonl"))
        assert table.to_pylist() == rows[shard.first_row : shard.first_row + shard.rows]


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_packed_parts_one_after_the_other_are_one_file(tmp_path, pack):
    rows = packed_input(tmp_path, "a.jsonl.gz", lambda data: pack(data[:1000]) + pack(data[1000:]))
    assert rows_of(manifest_of(tmp_path, ["id", "text"], "jsonl"), tmp_path, "jsonl") == rows


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_a_packed_file_that_is_cut_off_is_refused_by_name(tmp_path, pack):
    packed_input(tmp_path, "a.jsonl.gz", lambda data: pack(data)[:-20])
    assert f"{tmp_path}/a.jsonl.gz cannot be unpacked" in refusal(tmp_path, file_format="jsonl")


ROW = '{"text": "a"}'


@pytest.mark.parametrize(
    ("data", "what", "remedy"),
    [
        (f"{ROW}\n{ROW}\n".encode("utf-16"), "the file is UTF-16", "iconv -f UTF-16 -t UTF-8"),
        (f"{ROW}\n{ROW}\n".encode("utf-16-le"), "the file is UTF-16LE", "iconv -f UTF-16LE -t UTF-8"),
        (f"{ROW}\n".encode("utf-16-be"), "the file is UTF-16BE", "iconv -f UTF-16BE -t UTF-8"),
        ('{"text": "é"}\n'.encode("latin-1"), "it is not UTF-8", "iconv -f LATIN1 -t UTF-8"),
        (f"{ROW}\r{ROW}\r".encode(), "its lines end with CR alone", "tr"),
        (f"[{ROW},{ROW}]".encode(), "a JSON object, not list", "jq -c '.[]'"),
        (f"[\n{ROW},\n{ROW}]".encode(), "the file is an array of JSON", "jq -c '.[]'"),
        (b'{\n"text": "a"\n}\n', "the file is JSON over several lines", "jq -c ."),
        (f"{ROW},\n{ROW}\n".encode(), "a comma stands after the object", "sed 's/,$//'"),
        (b"PAR1" + bytes(20), "the file is a Parquet file", "input.format: parquet"),
        (b"BZh91AY" + bytes(20), "compressed with bzip2", "bunzip2"),
        (b'{"text": NaN}\n', "NaN is not JSON: write null", "mend or drop it"),
    ],
)
def test_a_file_of_another_kind_is_told_with_what_to_do(tmp_path, data, what, remedy):
    (tmp_path / "a.jsonl").write_bytes(data)
    with pytest.raises(InputError) as caught:
        manifest_of(tmp_path, ["text"], "jsonl")
    assert str(caught.value).startswith(f"{tmp_path}/a.jsonl:1: ")
    assert what in str(caught.value)
    assert remedy in caught.value.remedy


@pytest.mark.parametrize("number", ["1e400", "-1E+309", "{}.0".format("9" * 310), "[0.5, 1e999]", '{"a": 1e309}'])
def test_a_number_that_no_double_holds_is_refused_and_never_infinity(tmp_path, number):
    (tmp_path / "a.jsonl").write_text(f'{{"x": 1.5}}\n{{"x": {number}}}\n')
    told = refusal(tmp_path, ["x"], "jsonl")
    assert told.startswith(f"{tmp_path}/a.jsonl:2: not a line of JSON: ")
    assert "beyond the numbers that a double holds" in told


def test_the_largest_double_and_long_digits_are_kept(tmp_path):
    (tmp_path / "a.jsonl").write_text(f'{{"x": 1.7976931348623157e308, "t": "1e400 {"7" * 400}"}}\n')
    (row,) = rows_of(manifest_of(tmp_path, ["x", "t"], "jsonl"), tmp_path, "jsonl")
    assert row == {"x": 1.7976931348623157e308, "t": "1e400 " + "7" * 400}


@pytest.mark.parametrize("between", [0, 100])
def test_whole_numbers_of_64_bits_are_kept(tmp_path, between):
    write_lines(tmp_path / "a.jsonl", {"x": 1}, *[{}] * between, {"x": 2**64 - 1})
    manifest = manifest_of(tmp_path, ["x"], "jsonl")
    assert manifest.schema.field("x").type == pa.uint64()
    assert rows_of(manifest, tmp_path, "jsonl")[-1] == {"x": 2**64 - 1}


@pytest.mark.parametrize(("one", "other"), [(2**63, -1), (2**53 + 1, 0.5)])
@pytest.mark.parametrize("files", [1, 2])
def test_numbers_that_no_type_holds_without_loss_are_refused_before_a_run(tmp_path, one, other, files):
    write_lines(tmp_path / "a.jsonl", {"x": one}, *[{}] * 100, *([{"x": other}] if files == 1 else []))
    if files == 2:
        write_lines(tmp_path / "b.jsonl", {"x": other})
    assert "no type holds both without loss" in refusal(tmp_path, ["x"], "jsonl")


def test_a_cast_keeps_what_the_lines_say_as_text(tmp_path):
    values = [1, "a", True, None, 1.5, {"b": [1]}, 2**70]
    write_lines(tmp_path / "a.jsonl", *[{"x": value} for value in values])
    rows = rows_of(manifest_of(tmp_path, ["x"], "jsonl", cast={"x": "string"}), tmp_path, "jsonl")
    assert [row["x"] for row in rows] == ["1", "a", "true", None, "1.5", '{"b": [1]}', str(2**70)]


def test_a_prompt_has_the_keys_of_its_own_row_and_no_others(tmp_path):
    write_lines(tmp_path / "in" / "a.jsonl", {"m": {"a": 1}}, {"m": {"b": "é"}}, {"m": None})
    made = []
    template = "{{ m | default({}) | tojson }}{{ (m | default({})).a | default('-') }}"
    _, results = through(
        tmp_path / "in", tmp_path / "out", ["m"], {"template": template}, file_format="jsonl", made=made
    )
    assert [one.text for one in made] == ['{"a": 1}1', '{"b": "\\u00e9"}-', "{}-"]
    assert results.column("m").to_pylist() == ['{"a": 1}', '{"b": "é"}', None]


def test_messages_keep_the_calls_of_tools_and_their_names(tmp_path):
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "hi", "name": "Ann"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "4", "tool_call_id": "c1", "note": "mine"},
    ]
    write_lines(tmp_path / "in" / "a.jsonl", {"m": messages}, {"m": messages[:1]})
    made = []
    through(tmp_path / "in", tmp_path / "out", [], {"messages_column": "m"}, file_format="jsonl", made=made)
    # A template reads the arguments as an object.
    read = {**call, "function": {"name": "f", "arguments": {}}}
    kept = [
        messages[0],
        messages[1] | {"tool_calls": [read]},
        {key: messages[2][key] for key in ("role", "content", "tool_call_id")},
    ]
    assert [one.as_messages() for one in made] == [kept, messages[:1]]


def test_bad_files_are_skipped_and_listed_where_the_spec_says_so(tmp_path):
    write_lines(tmp_path / "a.jsonl", {"text": "a"})
    write_lines(tmp_path / "b.jsonl", "no JSON")
    assert "b.jsonl:1: not a line of JSON" in refusal(tmp_path, file_format="jsonl")
    manifest = from_parquet(to_parquet(manifest_of(tmp_path, ["text"], "jsonl", on_bad_file="skip")))
    ((uri, reason),) = manifest.skipped
    assert (uri, manifest.rows) == (f"{tmp_path}/b.jsonl", 1)
    assert "not a line of JSON" in reason
    (tmp_path / "a.jsonl").unlink()
    assert "b.jsonl:1: not a line of JSON" in refusal(tmp_path, file_format="jsonl", on_bad_file="skip")


def test_a_partition_with_a_bad_file_is_left_to_a_later_run_as_a_whole(tmp_path):
    for place in ("k=1/a", "k=1/b", "k=2/a"):
        write_lines(tmp_path / f"{place}.jsonl", {"text": place})
    write_lines(tmp_path / "k=1/b.jsonl", "no JSON")
    given = {"uri": str(tmp_path), "format": "jsonl", "on_bad_file": "skip", "incremental": {"by": "partition"}}
    manifest = build_manifest(make_spec(input=given), {"text": "prompt.template"}, make_fingerprint(), choose=list)
    assert list(manifest.files) == [f"{tmp_path}/k=2/a.jsonl"]
    assert [uri for uri, _ in manifest.skipped] == [f"{tmp_path}/k=1/a.jsonl", f"{tmp_path}/k=1/b.jsonl"]


def test_json_lines_have_the_partitions_of_their_paths(tmp_path):
    for day in (1, 2):
        write_lines(tmp_path / f"day={day}" / "rows.jsonl", {"id": f"{day}-a"}, {"id": f"{day}-b"})
    manifest = manifest_of(tmp_path, ["id", "day"], "jsonl")
    assert manifest.schema.field("day").type == pa.int64()
    found = [(row["id"], row["day"]) for row in rows_of(manifest, tmp_path, "jsonl")]
    assert found == [("1-a", 1), ("1-b", 1), ("2-a", 2), ("2-b", 2)]

"""Input made to break the reader: any type, any value, files that change under it. Rows in = rows out, or a
refusal in words."""

from __future__ import annotations

import decimal
import json
import os
import random
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer.errors import BatchinferError, InputError
from batchinfer.input import build_manifest, read_shards
from batchinfer.input.parquet import inspect_parquet
from batchinfer.input.parquet_footer import plain
from batchinfer.jobspec import InputSpec
from batchinfer.prompting.prompts import needed_columns
from batchinfer.storage import storage_for
from tests.support.builders import (
    make_fingerprint,
    make_spec,
    manifest_of,
    rows_of,
    write_lines,
    write_parquet,
)
from tests.support.through import through

pytestmark = pytest.mark.integration
"""Seconds a test: large and odd files."""


def bits(column: pa.ChunkedArray) -> list[str]:
    """The values, with bytes for texts and whole numbers for dates, written out: NaN and -0.0 tell themselves apart."""
    try:
        return [repr(value) for value in column.to_pylist()]
    except Exception:
        kind = column.type
        plain = pa.binary() if pa.types.is_string(kind) else pa.int32() if kind.bit_width == 32 else pa.int64()
        return [repr(value) for value in column.cast(plain).to_pylist()]


BAD_UTF8 = pa.Array.from_buffers(
    pa.string(), 3, [None, pa.py_buffer(np.array([0, 1, 2, 3], np.int32).tobytes()), pa.py_buffer(b"a\xff\xfe")]
)
TYPES = {
    "nested": pa.array([[[1], None], [], None]),
    "struct": pa.array([{"a": {"b": [1]}}, None, {"a": None}]),
    "map": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int64())),
    "decimal": pa.array([decimal.Decimal("1.23"), None, None], pa.decimal256(60, 2)),
    "zone": pa.array([0, None, 2**40], pa.timestamp("ns", tz="America/New_York")),
    "odd_ns": pa.array([1234567891, None, 1], pa.timestamp("ns")),
    "far": pa.array([2**62, None, -(2**62)], pa.timestamp("us")),
    "far_date": pa.array([0, 2**30, None], pa.date32()),
    "far_duration": pa.array([2**62, None, 5], pa.duration("s")),
    "time": pa.array([1, None, 5], pa.time64("ns")),
    "dictionary": pa.array(["a", "b", None]).dictionary_encode(),
    "numbers": pa.DictionaryArray.from_arrays(pa.array([0, 1, None], pa.int8()), pa.array([10, 20])),
    "nested_dictionary": pa.ListArray.from_arrays([0, 1, 2, 3], pa.array(["a", "b", "c"]).dictionary_encode()),
    "bytes": pa.array([b"\xff\x00", None, b""]),
    "fixed": pa.array([b"ab", None, b"cd"], pa.binary(2)),
    "large": pa.array(["a", None, "b"], pa.large_string()),
    "view": pa.array(["a", None, "b"], pa.string_view()),
    "null": pa.nulls(3),
    "unsigned": pa.array([2**64 - 1, None, 0], pa.uint64()),
    "half": pa.array(np.array([1, 2, np.nan], np.float16)),
    "nan": pa.array([float("nan"), float("inf"), -0.0], pa.float32()),
    "list_view": pa.array([[1], None, []], pa.list_view(pa.int8())),
    "uuid": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"a" * 16, None, b"b" * 16], pa.binary(16))),
    "json": pa.ExtensionArray.from_storage(pa.json_(), pa.array(["{}", None, "[]"], pa.string())),
    "marks": pa.array(["\0", "a\0b\u202e\ufeff", "\U0001f600\u0301"]),
    "bad_utf8": BAD_UTF8,
}


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("kind", ["column", "template", "messages"])
def test_a_column_of_any_type_is_passed_through_as_it_was_and_makes_prompts_or_errors(tmp_path, name, kind):
    write_parquet(tmp_path / "in" / "a.parquet", {"c": TYPES[name]})
    stored = pq.read_table(tmp_path / "in").column("c")
    prompts = {"column": {"column": "c"}, "template": {"template": "{{ c }}"}, "messages": {"messages_column": "c"}}
    _, results = through(tmp_path / "in", tmp_path / "out", ["c"], prompts[kind])
    assert results.column("c").type == plain(stored.type)
    assert bits(results.column("c")) == bits(stored)
    assert results.column("row_number").to_pylist() == [0, 1, 2]


def test_values_that_python_cannot_hold_are_this_rows_error(tmp_path):
    for name, values in {"text": BAD_UTF8, "when": TYPES["far"]}.items():
        write_parquet(tmp_path / name / "a.parquet", {"c": values})
        _, results = through(tmp_path / name, tmp_path / f"{name}-out", ["c"], {"column": "c"})
        assert results.column("error_code").to_pylist() == (
            [None, "prompt_invalid", "prompt_invalid"]
            if name == "text"
            else ["prompt_invalid", "prompt_empty", "prompt_invalid"]
        )


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
KINDS = {
    pa.string(): TEXTS,
    pa.large_string(): TEXTS,
    pa.binary(): st.binary(max_size=4),
    pa.int8(): st.integers(-128, 127),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.float64(): st.floats(),
    pa.float32(): st.floats(width=32),
    pa.bool_(): st.booleans(),
    pa.decimal128(20, 3): st.decimals(-(10**9), 10**9, places=3, allow_nan=False),
    pa.timestamp("us", tz="Asia/Tokyo"): st.integers(-(2**50), 2**50),
    pa.date32(): st.integers(-700_000, 2_900_000),
    pa.list_(pa.list_(pa.string())): st.lists(st.lists(TEXTS | st.none(), max_size=2) | st.none(), max_size=2),
    pa.struct([("a", pa.int32()), ("b", pa.list_(pa.string()))]): st.fixed_dictionaries(
        {"a": st.integers(0, 9) | st.none(), "b": st.none() | st.lists(TEXTS, max_size=2)}
    ),
    pa.map_(pa.string(), pa.float64()): st.lists(st.tuples(TEXTS, st.floats() | st.none()), max_size=2),
    pa.dictionary(pa.int32(), pa.string()): TEXTS,
}


@st.composite
def tables(draw):
    """Some files of one schema, each cut into row groups."""
    kinds = draw(st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=4))
    files = []
    for _ in range(draw(st.integers(1, 3))):
        rows = draw(st.integers(0, 12))
        columns = {"p": pa.array(draw(st.lists(TEXTS | st.none(), min_size=rows, max_size=rows)), pa.string())}
        for i, kind in enumerate(kinds):
            values = draw(st.lists(KINDS[kind] | st.none(), min_size=rows, max_size=rows))
            columns[f"c.{i}"] = pa.array(values, kind)
        files.append((pa.table(columns), draw(st.integers(1, 6))))
    return files


@settings(deadline=None, max_examples=25)
@given(files=tables(), shard=st.integers(1, 9), prompt=st.sampled_from([{"column": "p"}, {"template": "{{ p }}!"}]))
def test_rows_in_are_rows_out_whatever_they_hold_and_however_they_are_cut(files, shard, prompt):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        for number, (table, group) in enumerate(files):
            pq.write_table(table, folder / "in" / f"{number}.parquet", row_group_size=group)
        stored = pa.concat_tables([pq.read_table(path) for path in sorted((folder / "in").iterdir())])
        passed = [column for column in stored.column_names if column != "p"]
        manifest, results = through(folder / "in", folder / "out", passed, prompt, shard)
        if not stored.num_rows:
            assert manifest.shards == ()
            return
        assert results.column("row_number").to_pylist() == list(range(stored.num_rows))
        for column in passed:
            assert results.column(column).type == stored.column(column).type
            assert bits(results.column(column)) == bits(stored.column(column))
        failed = [value is None or not value.strip() for value in stored.column("p").to_pylist()]
        if "column" in prompt:
            assert [code is not None for code in results.column("error_code").to_pylist()] == failed


def test_a_dictionary_in_one_file_and_plain_values_in_another_are_one_column(tmp_path):
    words = pa.array(["a", "b", None])
    for order in (("d", "p"), ("p", "d")):
        folder = tmp_path / "".join(order)
        for place, kind in enumerate(order):
            write_parquet(folder / f"{place}.parquet", {"x": words.dictionary_encode() if kind == "d" else words})
        manifest = manifest_of(folder, ["x"])
        assert manifest.schema.field("x").type == pa.string()
        assert [row["x"] for row in rows_of(manifest, folder)] == ["a", "b", None] * 2


def test_a_thousand_columns_are_passed_through(tmp_path):
    width = 1000
    names = [f"column {i}" for i in range(width)]
    write_parquet(tmp_path / "in" / "a.parquet", {n: [i, None, -i] for i, n in enumerate(names)} | {"p": ["a"] * 3})
    _, results = through(tmp_path / "in", tmp_path / "out", names, {"column": "p"})
    assert results.column_names[1 : width + 1] == names
    assert results.column(names[-1]).to_pylist() == [width - 1, None, 1 - width]


@pytest.mark.parametrize("file_format", ["parquet", "jsonl"])
def test_texts_of_ten_megabytes_come_through_a_shard_at_a_time(tmp_path, file_format):
    texts = [letter * 10_000_000 for letter in "abcd"]
    if file_format == "parquet":
        write_parquet(tmp_path / "in" / "a.parquet", {"c": texts})
    else:
        write_lines(tmp_path / "in" / "a.jsonl", *[{"c": text} for text in texts])
    manifest, results = through(tmp_path / "in", tmp_path / "out", ["c"], {"template": "{{ c }}"}, 2, file_format)
    assert len(manifest.shards) == 2
    assert results.column("c").to_pylist() == texts
    assert results.column("error_code").null_count == 4


def test_a_column_with_a_dot_in_its_name_has_its_bytes_counted(tmp_path):
    texts = [os.urandom(500).hex() for _ in range(100)]
    path = write_parquet(tmp_path / "a.parquet", {"a.b": texts, "c": [1] * 100})
    entry = storage_for(str(path)).stat(str(path))
    with ThreadPoolExecutor(1) as pool:
        (found,) = inspect_parquet([entry], ["a.b"], [], {}, pool)
    assert found.file.groups[0].size > 100_000
    assert len(manifest_of(path, ["a.b"], max_bytes=20_000).shards) > 4


def test_a_link_to_a_folder_is_refused_and_a_pattern_takes_each_file_once(tmp_path):
    write_parquet(tmp_path / "elsewhere" / "b.parquet", {"x": [2]})
    write_parquet(tmp_path / "in" / "a.parquet", {"x": [1]})
    (tmp_path / "in" / "more").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="more is a link to a folder"):
        manifest_of(tmp_path / "in", ["x"])
    assert rows_of(manifest_of(f"{tmp_path}/in/*/*.parquet", ["x"]), f"{tmp_path}/in/*/*.parquet") == [{"x": 2}]
    (tmp_path / "in" / "more").unlink()
    (tmp_path / "in" / "round").symlink_to(tmp_path / "in")
    pattern = f"{tmp_path}/in/**/*.parquet"
    assert rows_of(manifest_of(pattern, ["x"]), pattern) == [{"x": 1}]


def test_a_file_whose_name_is_no_text_is_refused(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"x": [1]})
    os.rename(tmp_path / "a.parquet", os.fsencode(tmp_path) + b"/\xff.parquet")
    with pytest.raises(InputError, match="is not UTF-8"):
        manifest_of(tmp_path, ["x"])


@pytest.mark.parametrize("value", ["..", "..%2F..%2Fetc", "%2Fetc%2Fpasswd", "%00", "a%3Db", "{{ x }}"])
def test_a_partition_is_a_value_and_never_a_path(tmp_path, value):
    write_parquet(tmp_path / "in" / f"k={value}" / "a.parquet", {"p": ["a"]})
    _, results = through(tmp_path / "in", tmp_path / "out", ["k"], {"column": "p"})
    assert results.column("k").to_pylist() == [unquote(value)]
    assert {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()} == {"shard-000000.parquet"}


@pytest.mark.parametrize("file_format", ["parquet", "jsonl"])
@pytest.mark.parametrize("how", ["in place", "renamed", "gone"])
def test_a_file_that_changes_while_it_is_read_gives_no_rows(tmp_path, file_format, how):
    path = tmp_path / "in" / f"a.{file_format}"

    def write(target, letter):
        if file_format == "parquet":
            write_parquet(
                target, {"x": [f"{letter}{i:04}" for i in range(900)]}, compression="none", row_group_size=300
            )
        else:
            write_lines(target, *[{"x": f"{letter}{i:04}"} for i in range(900)])

    write(path, "a")
    manifest = manifest_of(tmp_path / "in", ["x"], file_format, rows=100)
    shards = read_shards(
        manifest.shards, manifest.schema, manifest.partitions, InputSpec(uri=str(tmp_path / "in"), format=file_format)
    )
    seen = [next(shards)[1].column("x").to_pylist()]
    # The same size, and what was open stays open.
    write(tmp_path / "other", "b")
    if how == "in place":
        path.write_bytes((tmp_path / "other").read_bytes())
    elif how == "renamed":
        os.rename(tmp_path / "other", path)
    else:
        path.unlink()
    with pytest.raises(InputError, match=r"is gone" if how == "gone" else "has changed"):
        seen.extend(table.column("x").to_pylist() for _, table in shards)
    assert {value[0] for values in seen for value in values} == {"a"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"x": 1, "x": 2}', "the key 'x' is there twice"),
        ('{"x": {"a": 1, "a": 2}}', "the key 'a' is there twice"),
        ('{"x": "\\ud800"}', "half of a surrogate pair"),
        ('{"x": NaN}', "NaN is not JSON: write null"),
        ('{"x": [-Infinity]}', "-Infinity is not JSON: write null"),
        ('{"x": ' + "9" * 5000 + "}", "Exceeds the limit"),
        ('{"x": "a\0b"}', "not a line of JSON"),
        ("\ufeff", "not a line of JSON"),
    ],
)
def test_a_line_that_no_table_can_hold_is_refused_in_words(tmp_path, line, words):
    write_lines(tmp_path / "a.jsonl", line)
    spec = make_spec(input={"uri": str(tmp_path), "format": "jsonl", "columns": ["x"]}, prompt={"column": "x"})
    with pytest.raises(InputError) as caught:
        build_manifest(spec, needed_columns(spec), make_fingerprint())
    assert words in f"{caught.value} {caught.value.remedy}"
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("value", [{}, [{}], "deep list", "deep object"])
def test_a_value_that_no_type_of_parquet_holds_is_kept_as_json(tmp_path, value):
    deep = {"deep list": "[" * 70 + "]" * 70, "deep object": '{"a":' * 100 + "1" + "}" * 100}
    line = deep[value] if isinstance(value, str) else json.dumps(value)
    write_lines(tmp_path / "in" / "a.jsonl", '{"x": ' + line + "}")
    _, results = through(tmp_path / "in", tmp_path / "out", ["x"], {"column": "x"}, file_format="jsonl")
    assert [json.loads(text) for text in results.column("x").to_pylist()] == [json.loads(line)]


def test_ids_that_are_no_text_are_refused_in_words(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"id": BAD_UTF8})
    with pytest.raises(InputError, match="id column 'id'"):
        manifest_of(tmp_path, ["id"], id_column="id")
    write_parquet(tmp_path / "a.parquet", {"id": pa.array(["a", "b", "a"]).dictionary_encode()})
    with pytest.raises(InputError, match="has 'a' twice"):
        manifest_of(tmp_path, ["id"], id_column="id")


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_parquet_file_is_read_or_refused_in_words(tmp_path, seed):
    """Bytes flipped anywhere, the file cut anywhere. Of a footer that ends the process, a child is the process."""
    rng = random.Random(seed)
    numbers = range(50)
    columns = {
        "id": [f"i{i}" for i in numbers],
        "text": ["tü" * i for i in numbers],
        "s": [{"a": [i]} for i in numbers],
    }
    whole = write_parquet(tmp_path / "whole", columns, row_group_size=20).read_bytes()
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    path = tmp_path / "in" / "a.parquet"
    path.parent.mkdir()
    for _ in range(60):
        data = bytearray(whole)
        begin = rng.choice([0, len(whole) - footer])
        for _ in range(rng.choice([1, 3, 20])):
            data[rng.randrange(begin, len(whole))] = rng.randrange(256)
        path.write_bytes(data[: rng.randrange(len(data))] if rng.random() < 0.2 else data)
        message = read_or_refused(path.parent, list(columns))
        assert message is None or str(path) in message or "id column" in message
        assert len(message or "") < 1500


def read_or_refused(folder: Path, columns: list[str]) -> str | None:
    """None if all rows were read, else the message of the BatchinferError."""
    try:
        manifest = manifest_of(folder, columns, id_column="id", rows=7)
        shards = read_shards(
            manifest.shards, manifest.schema, manifest.partitions, InputSpec(uri=str(folder), format="parquet")
        )
        assert sum(table.num_rows for _, table in shards) == 50
    except BatchinferError as error:
        return str(error)
    return None

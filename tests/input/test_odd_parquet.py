"""Parquet as other programs write it: text without the word for it, old timestamps, encryption, types of their own."""

from __future__ import annotations

import base64
import datetime
import decimal
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as encryption
import pytest

from batchinfer.errors import InputError, RowError
from batchinfer.prompting.prompts import Prompt
from tests.support.builders import manifest_of, rows_of, write_parquet
from tests.support.through import through

NOON = datetime.datetime(2024, 1, 1, 12)
FAR = [datetime.datetime(1, 1, 1), datetime.datetime(1582, 10, 4), datetime.datetime(9999, 12, 31, 23, 59, 59, 999_999)]


def refusal(folder, columns, **values):
    with pytest.raises(InputError) as caught:
        manifest_of(folder, columns, **values)
    return f"{caught.value} | {caught.value.remedy}"


def prompts_of(tmp_path, prompt, columns=(), **values):
    made = []
    _, results = through(tmp_path / "in", tmp_path / "out", list(columns), prompt, made=made, **values)
    return [one.text if isinstance(one, Prompt) else one for one in made], results


def write_marked(path, table, keys, **options):
    """A file with keys in its footer, as a program other than Arrow writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, table.schema, store_schema=False, **options) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(keys)


def patched(path, table, old, new):
    """A file in whose footer some bytes are others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, store_schema=False)
    data = path.read_bytes()
    assert data.count(old) >= 1
    path.write_bytes(data.replace(old, new))


@pytest.mark.parametrize("prompt", [{"column": "c"}, {"template": "{{ c }}"}])
def test_bytes_are_the_text_that_they_are(tmp_path, prompt):
    write_parquet(tmp_path / "in" / "a.parquet", {"c": [b"text of 0", "é".encode()]})
    assert prompts_of(tmp_path, prompt)[0] == ["text of 0", "é"]


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_a_column_is_text_where_one_file_says_so_and_the_other_stores_bytes(tmp_path, names):
    one, other = names
    write_parquet(tmp_path / "in" / f"{one}.parquet", {"c": ["said"]})
    write_parquet(tmp_path / "in" / f"{other}.parquet", {"c": [b"stored"]})
    texts, results = prompts_of(tmp_path, {"column": "c"}, ["c"])
    assert results.column("c").type == pa.string()
    assert sorted(texts) == sorted(results.column("c").to_pylist()) == ["said", "stored"]


def test_a_row_that_is_not_utf8_fails_alone(tmp_path):
    write_parquet(tmp_path / "in" / "a.parquet", {"c": [b"a", b"\xff", b"b"]})
    texts, _ = prompts_of(tmp_path, {"template": "{{ c }}"})
    assert texts == ["a", RowError("prompt_invalid", "the row holds text that is not UTF-8"), "b"]


def test_an_enum_is_text_in_prompt_and_column(tmp_path):
    # A string becomes an ENUM: the old type 4 and the new type 4, where UTF8 is 0 and STRING is 1.
    patched(
        tmp_path / "in" / "a.parquet",
        pa.table({"c": ["SPAM"]}),
        b"\x25\x00\x4c\x1c\x00\x00",
        b"\x25\x08\x4c\x4c\x00\x00",
    )
    assert "ENUM" in str(pq.ParquetFile(tmp_path / "in" / "a.parquet").schema.column(0)).upper()
    texts, results = prompts_of(tmp_path, {"template": "it is {{ c }}"}, ["c"])
    assert (texts, results.column("c").to_pylist()) == (["it is SPAM"], ["SPAM"])


def test_a_uuid_without_arrows_schema_is_a_uuid_in_prompt_column_and_id(tmp_path):
    one = uuid.UUID(int=2**100)
    array = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([one.bytes], pa.binary(16)))
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"c": array}), tmp_path / "in" / "a.parquet", store_schema=False)
    texts, results = prompts_of(tmp_path, {"template": "{{ c }}"}, [], id_column="c")
    assert texts == [str(one)]
    assert results.column("c").to_pylist() == [one]


def test_timestamps_of_96_bits_are_microseconds_of_every_year(tmp_path):
    table = pa.table({"c": pa.array([*FAR, NOON], pa.timestamp("us"))})
    write_marked(tmp_path / "in" / "a.parquet", table, {}, use_deprecated_int96_timestamps=True)
    texts, results = prompts_of(tmp_path, {"template": "{{ c }}"}, ["c"])
    assert texts == [str(value) for value in [*FAR, NOON]]
    assert results.column("c").type == pa.timestamp("us")
    assert results.column("c").to_pylist() == [*FAR, NOON]


def test_sparks_timestamps_of_96_bits_are_instants(tmp_path):
    table = pa.table({"c": pa.array([NOON], pa.timestamp("us"))})
    keys = {"org.apache.spark.version": "3.5.1"}
    write_marked(tmp_path / "in" / "a.parquet", table, keys, use_deprecated_int96_timestamps=True)
    texts, results = prompts_of(tmp_path, {"template": "{{ c }}"}, ["c"])
    assert results.column("c").type == pa.timestamp("us", "UTC")
    assert texts == ["2024-01-01 12:00:00+00:00"]


def test_a_timestamp_of_96_bits_with_nanoseconds_is_refused(tmp_path):
    table = pa.table({"c": pa.array([1_000, 1_001], pa.timestamp("ns"))})
    write_marked(tmp_path / "in" / "a.parquet", table, {}, use_deprecated_int96_timestamps=True)
    assert "column 'c' has timestamps of 96 bits finer than a microsecond" in refusal(tmp_path / "in", ["c"])


@pytest.mark.parametrize(
    ("values", "options", "refused"),
    [
        (pa.array([datetime.date(1582, 10, 14)]), {}, True),
        (pa.array([datetime.date(1582, 10, 15)]), {}, False),
        (pa.array([datetime.datetime(1899, 12, 31)], pa.timestamp("us")), {}, True),
        (pa.array([datetime.datetime(1900, 1, 1)], pa.timestamp("us")), {}, False),
        (pa.array([FAR[0]], pa.timestamp("us")), {"use_deprecated_int96_timestamps": True}, True),
        (pa.array([[datetime.date(1000, 1, 1)]]), {}, True),
    ],
    ids=["date", "late date", "time", "late time", "96 bits", "list"],
)
def test_days_of_sparks_old_calendar_are_refused_where_the_calendars_differ(tmp_path, values, options, refused):
    keys = {
        "org.apache.spark.version": "3.5",
        "org.apache.spark.legacyDateTime": "",
        "org.apache.spark.legacyINT96": "",
    }
    write_marked(tmp_path / "in" / "a.parquet", pa.table({"c": values}), keys, **options)
    if refused:
        assert "of the calendar of Spark 2" in refusal(tmp_path / "in", ["c"])
    else:
        assert manifest_of(tmp_path / "in", ["c"]).rows == 1


class Keys(encryption.KmsClient):
    def __init__(self, _):
        super().__init__()

    def wrap_key(self, key, _):
        return base64.b64encode(key)

    def unwrap_key(self, key, _):
        return base64.b64decode(key)


@pytest.mark.parametrize("plain_footer", [True, False])
def test_an_encrypted_file_is_refused_by_name_and_the_process_lives(tmp_path, plain_footer):
    table = pa.table({"secret": [1], "text": ["a"]})
    how = encryption.EncryptionConfiguration(
        footer_key="f", column_keys={"c": ["secret"]}, plaintext_footer=plain_footer
    )
    properties = encryption.CryptoFactory(Keys).file_encryption_properties(encryption.KmsConnectionConfig(), how)
    path = tmp_path / "a.parquet"
    with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    for columns in (["secret"], ["secret", "text"]):
        told = refusal(tmp_path, columns)
        assert told.startswith(f"{path} is not a readable Parquet file")
        assert "encrypted" in told
    write_parquet(tmp_path / "b.parquet", {"secret": [2], "text": ["b"]})
    skipping = manifest_of(tmp_path, ["secret"], on_bad_file="skip")
    assert [uri for uri, _ in skipping.skipped] == [str(path)]
    assert rows_of(skipping, tmp_path) == [{"secret": 2}]


def test_a_codec_that_nobody_here_reads_is_named_with_its_column(tmp_path):
    # The codec of a column chunk follows its name: 1 (SNAPPY) is stored as 2, 3 (LZO) as 6.
    patched(tmp_path / "in" / "a.parquet", pa.table({"cc": ["a"]}), b"\x18\x02cc\x15\x02", b"\x18\x02cc\x15\x06")
    assert "column 'cc' is compressed with LZO" in refusal(tmp_path / "in", ["cc"])


def test_numbers_of_128_bits_are_no_matter_where_nobody_reads_them(tmp_path):
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"a": [1], "wide": [2**100]}, schema={"a": polars.Int64, "wide": polars.Int128})
    frame.write_parquet(tmp_path / "a.parquet")
    assert rows_of(manifest_of(tmp_path, ["a"]), tmp_path) == [{"a": 1}]
    assert "column 'wide' has a type that Arrow cannot read" in refusal(tmp_path, ["wide"])


@pytest.mark.parametrize("value", ["{'a': 1}::VARIANT", "INTERVAL 1 MONTH", "[INTERVAL 1 DAY]"])
def test_a_type_that_arrow_reads_in_parts_or_not_at_all_is_refused_where_it_is_read(tmp_path, value):
    duckdb = pytest.importorskip("duckdb")
    write = f"COPY (SELECT 1 AS n, {value} AS v) TO '{tmp_path}/a.parquet' (FORMAT parquet)"
    duckdb.connect().execute(write)
    assert rows_of(manifest_of(tmp_path, ["n"]), tmp_path) == [{"n": 1}]
    told = refusal(tmp_path, ["v", "n"])
    assert told.startswith(f"{tmp_path}/a.parquet: column 'v")
    assert "leave it out of the job" in told


def test_bson_has_no_text_and_is_refused(tmp_path):
    # A string becomes BSON: the old type 20 and the new type 13, where UTF8 is 0 and STRING is 1.
    patched(
        tmp_path / "a.parquet",
        pa.table({"c": ["x"]}),
        b"\x25\x00\x4c\x1c\x00\x00",
        b"\x25\x28\x4c\xdc\x00\x00",
    )
    assert "BSON" in str(pq.ParquetFile(tmp_path / "a.parquet").schema.column(0)).upper()
    assert "column 'c' is BSON" in refusal(tmp_path, ["c"])


def test_a_struct_with_the_fields_of_a_variant_is_a_struct(tmp_path):
    value = {"metadata": b"m", "value": b"v"}
    write_parquet(tmp_path / "a.parquet", {"c": [value]})
    assert rows_of(manifest_of(tmp_path, ["c"]), tmp_path) == [{"c": value}]


def test_a_file_without_rows_has_no_say_in_the_types(tmp_path):
    write_parquet(tmp_path / "in" / "a.parquet", {"n": pa.array([], pa.float64())})
    write_parquet(tmp_path / "in" / "b.parquet", {"n": [1]})
    texts, results = prompts_of(tmp_path, {"template": "n is {{ n }}"}, id_column="n")
    assert (texts, results.column("n").to_pylist()) == (["n is 1"], [1])
    assert results.column("n").type == pa.int64()


FIT = [
    (pa.array(["a"]), pa.array(["b"], pa.string_view()), ["a", "b"]),
    (pa.array(["a"], pa.large_string()), pa.array([b"b"]), ["a", "b"]),
    (pa.array([1]), pa.array([decimal.Decimal("2.50")]), [decimal.Decimal("1.00"), decimal.Decimal("2.50")]),
    (pa.array([-1], pa.int8()), pa.array([2**32 - 1], pa.uint32()), [-1, 2**32 - 1]),
    (pa.array([2**53]), pa.array([0.5]), [2.0**53, 0.5]),
    (pa.array([0], pa.timestamp("ms")), pa.array([NOON], pa.timestamp("us")), [datetime.datetime(1970, 1, 1), NOON]),
    (
        pa.array([NOON], pa.timestamp("us", "UTC")),
        pa.array([NOON], pa.timestamp("ms", "+00:00")),
        [NOON.replace(tzinfo=datetime.UTC)] * 2,
    ),
    (pa.array([[1, 2]], pa.list_(pa.int8(), 2)), pa.array([[3]]), [[1, 2], [3]]),
    (pa.array([{"a": 1}]), pa.array([{"a": 2.5}]), [{"a": 1.0}, {"a": 2.5}]),
]


@pytest.mark.parametrize(("one", "other", "values"), FIT, ids=[f"{one.type}, {other.type}" for one, other, _ in FIT])
@pytest.mark.parametrize("turned", [False, True])
def test_types_that_fit_without_loss_become_one(tmp_path, one, other, values, turned):
    first, second = (other, one) if turned else (one, other)
    write_parquet(tmp_path / "a.parquet", {"c": first})
    write_parquet(tmp_path / "b.parquet", {"c": second})
    rows = [row["c"] for row in rows_of(manifest_of(tmp_path, ["c"]), tmp_path)]
    assert rows == (values[::-1] if turned else values)


LOSE = [
    (pa.array([2**53 + 1]), pa.array([0.5]), "does not fit double"),
    (pa.array([2**64 - 1], pa.uint64()), pa.array([-1]), "does not fit int64"),
    (pa.array([FAR[2]], pa.timestamp("us")), pa.array([1], pa.timestamp("ns")), "does not fit timestamp[ns]"),
    (pa.array([decimal.Decimal("0.1")]), pa.array([0.5]), "do not fit together"),
    (pa.array([True]), pa.array([1]), "column 'c' is bool vs int64"),
    (pa.array([NOON], pa.timestamp("us")), pa.array([NOON], pa.timestamp("us", "UTC")), "do not fit together"),
    (pa.array([datetime.date(2024, 1, 1)]), pa.array([NOON], pa.timestamp("us")), "do not fit together"),
]


@pytest.mark.parametrize(("one", "other", "words"), LOSE, ids=[f"{one.type}, {other.type}" for one, other, _ in LOSE])
def test_types_that_would_lose_something_are_refused_before_a_run_and_cast_to_text(tmp_path, one, other, words):
    write_parquet(tmp_path / "a.parquet", {"c": one})
    write_parquet(tmp_path / "b.parquet", {"c": other})
    told = refusal(tmp_path, ["c"])
    assert words in told
    assert "input.cast: {c: string}" in told
    manifest = manifest_of(tmp_path, ["c"], cast={"c": "string"})
    texts = [values.cast(pa.string())[0].as_py() for values in (one, other)]
    assert [row["c"] for row in rows_of(manifest, tmp_path)] == texts


@pytest.mark.parametrize(
    ("values", "kind", "made"),
    [
        (pa.array([True, None]), "int64", [1, None]),
        (pa.array(["7"]), "int64", [7]),
        (pa.array([datetime.date(2024, 1, 1)]), "timestamp", [datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)]),
        (pa.array([NOON], pa.timestamp("ns")), "timestamp", [NOON.replace(tzinfo=datetime.UTC)]),
        (
            pa.array([0], pa.timestamp("us", "Asia/Tokyo")),
            "timestamp",
            [datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)],
        ),
        (pa.array(["a"]), "binary", [b"a"]),
        (pa.array([1]), "double", [1.0]),
    ],
)
def test_a_cast_says_which_type_is_meant(tmp_path, values, kind, made):
    write_parquet(tmp_path / "a.parquet", {"c": values})
    assert [row["c"] for row in rows_of(manifest_of(tmp_path, ["c"], cast={"c": kind}), tmp_path)] == made


@pytest.mark.parametrize(
    ("values", "kind"), [(["x"], "int64"), ([1.5], "int64"), ([[1]], "string"), ([2**60], "double")]
)
def test_a_value_that_a_cast_cannot_make_is_refused_with_its_column(tmp_path, values, kind):
    write_parquet(tmp_path / "a.parquet", {"c": values})
    assert f"{tmp_path}/a.parquet: column 'c' does not fit" in refusal(tmp_path, ["c"], cast={"c": kind})


def test_a_cast_of_a_column_that_nobody_reads_is_refused(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"c": [1]})
    assert "input.cast names the column 'd'" in refusal(tmp_path, ["c"], cast={"d": "string"})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (pa.array([1.1], pa.float32()), "1.1"),
        (pa.array([1.1], pa.float16()), "1.1"),
        (pa.array([65504, 3.14], pa.float16())[:1], "65504.0"),
        (pa.array([1.1]), "1.1"),
        (pa.array([True]), "true"),
        (pa.array([["a", None]]), '["a", null]'),
        (pa.array([{"a": 1, "b": [1.5]}]), '{"a": 1, "b": [1.5]}'),
        (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())), '{"k": 1}'),
        (pa.array([[1.1]], pa.list_(pa.float32())), "[1.1]"),
        (pa.array([[b"a"]]), '["a"]'),
        (pa.array([decimal.Decimal("0.0000000000")]), "0.0000000000"),
        (pa.array([93_784_500_000], pa.duration("us")), "26:03:04.5"),
        (pa.array(["a"]).dictionary_encode(), "a"),
        (pa.array([datetime.date(2024, 1, 1)]), "2024-01-01"),
        (pa.array([2**64 - 1], pa.uint64()), str(2**64 - 1)),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
@pytest.mark.parametrize("prompt", [{"column": "c"}, {"template": "{{ c }}"}, {"template": "{{ row['c'] ~ '' }}"}])
def test_a_prompt_has_the_text_of_the_column(tmp_path, value, text, prompt):
    write_parquet(tmp_path / "in" / "a.parquet", {"c": value})
    assert prompts_of(tmp_path, prompt)[0] == [text]


JSON_TEXTS = [
    (pa.array([decimal.Decimal("1.50")]), '"1.50"'),
    (pa.array([datetime.date(1, 1, 1)]), '"0001-01-01"'),
    (pa.array([NOON], pa.timestamp("us", "UTC")), '"2024-01-01 12:00:00+00:00"'),
    (pa.array([1], pa.timestamp("ns")), '"1970-01-01 00:00:00.000000001"'),
    (pa.array([93_784_500_000], pa.duration("us")), '"26:03:04.5"'),
    (pa.array([uuid.UUID(int=1).bytes], pa.uuid()), '"00000000-0000-0000-0000-000000000001"'),
]


@pytest.mark.parametrize(("value", "text"), JSON_TEXTS, ids=[str(value.type) for value, _ in JSON_TEXTS])
def test_tojson_writes_a_value_by_itself_as_it_does_inside_a_list(tmp_path, value, text):
    write_parquet(tmp_path / "in" / "a.parquet", {"c": value})
    made = prompts_of(tmp_path, {"template": "{{ c | tojson }} {{ [c] | tojson }}"})[0]
    assert made == [f"{text} [{text}]"]


def test_tojson_of_a_null_is_an_error_of_its_row_that_names_the_column(tmp_path):
    write_parquet(tmp_path / "in" / "a.parquet", {"c": [1, None]})
    one, other = prompts_of(tmp_path, {"template": "{{ c | tojson }}"})[0]
    assert one == "1"
    assert other == RowError("template_error", "the template met a missing value: null in this row: c")


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("prompt", [{"column": "c"}, {"template": "{{ c }}"}])
def test_the_time_24_00_is_an_error_of_its_row_and_stays_in_the_column(tmp_path, unit, prompt):
    second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    kind = pa.time32(unit) if unit in ("s", "ms") else pa.time64(unit)
    times = pa.array([86_399 * second, 86_400 * second, None], kind)
    write_parquet(tmp_path / "in" / "a.parquet", {"c": times})
    texts, results = prompts_of(tmp_path, prompt, ["c"])
    assert texts[0] == "23:59:59"
    assert "24:00" in texts[1].message
    whole = results.column("c").combine_chunks()
    assert whole.cast(pa.int32() if whole.type.bit_width == 32 else pa.int64())[1].as_py() == (
        86_400 * (second if unit != "s" else 1000)
    )


def test_messages_may_be_a_list_of_maps(tmp_path):
    kind = pa.list_(pa.map_(pa.string(), pa.string()))
    write_parquet(tmp_path / "in" / "a.parquet", {"m": pa.array([[[("role", "user"), ("content", "hi")]]], kind)})
    made = []
    through(tmp_path / "in", tmp_path / "out", [], {"messages_column": "m"}, made=made)
    assert [one.as_messages() for one in made] == [[{"role": "user", "content": "hi"}]]


def test_a_map_is_read_by_key_and_in_pairs(tmp_path):
    write_parquet(tmp_path / "in" / "a.parquet", {"m": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64()))})
    template = "{{ m.k }} {{ m['k'] }}{% for key, value in m %} {{ key }}={{ value }}{% endfor %} {{ m | tojson }}"
    assert prompts_of(tmp_path, {"template": template})[0] == ['1 1 k=1 {"k": 1}']


@pytest.mark.parametrize("name", ["Text mit Leerzeichen", "class", "row", "a.b", "é"])
@pytest.mark.parametrize("template", ["{{ row[NAME] }}", "{% if row[NAME] %}{{ row[NAME] | trim }}{% endif %}"])
def test_row_reaches_a_column_of_any_name(tmp_path, name, template):
    write_parquet(tmp_path / "in" / "a.parquet", {name: ["hi", "there"]})
    assert prompts_of(tmp_path, {"template": template.replace("NAME", f"'{name}'")})[0] == ["hi", "there"]


def test_row_is_a_variable_where_the_template_sets_it(tmp_path):
    write_parquet(tmp_path / "in" / "a.parquet", {"rows": [[{"a": "x"}, {"a": "y"}]]})
    template = "{% for row in rows %}{{ row['a'] }}{% endfor %}"
    assert prompts_of(tmp_path, {"template": template})[0] == ["xy"]


def test_a_null_that_row_reaches_is_the_rows_error_and_names_the_column(tmp_path):
    write_parquet(tmp_path / "in" / "a.parquet", {"a b": pa.array([None], pa.string())})
    (error,), _ = prompts_of(tmp_path, {"template": "{{ row['a b'] }}"})
    assert error == RowError("template_error", "the template met a missing value: null in this row: a b")


SPARK = Path(__file__).parent / "spark"
"""Written by PySpark with its default timestamps of 96 bits: two rows, rebase modes CORRECTED and LEGACY."""


def test_what_spark_wrote_comes_through_with_every_year(tmp_path):
    file = str(SPARK / "corrected.parquet")
    rows = rows_of(manifest_of(file, ["t", "d", "s", "b"]), file)
    assert [row["t"] for row in rows] == [FAR[0].replace(tzinfo=datetime.UTC), FAR[2].replace(tzinfo=datetime.UTC)]
    assert [row["d"] for row in rows] == [datetime.date(1500, 1, 1), datetime.date(2024, 1, 1)]
    assert [(row["s"], row["b"]) for row in rows] == [({"a": 1}, b"t0"), ({"a": 2}, b"t1")]


@pytest.mark.parametrize("column", ["t", "d"])
def test_what_spark_wrote_in_its_old_calendar_is_refused(column):
    assert f"column '{column}' has days before" in refusal(str(SPARK / "legacy.parquet"), [column])

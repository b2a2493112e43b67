"""A valid answer comes out of Parquet as it was in JSON; whatever its type cannot hold is its row's error."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchinfer.engine import Completion
from batchinfer.errors import RowError
from batchinfer.execution.result_rows import result_table
from batchinfer.jobspec import JobSpec, OutputSpec
from batchinfer.jobspec.answer_types import answer_kind, json_parts
from batchinfer.prompting.answers import OutputCheck
from batchinfer.prompting.typed import arrow_type, type_lines
from tests.support.builders import make_envelope, make_spec

INVOICE = {
    "type": "object",
    "properties": {
        "number": {"type": "integer"},
        "total": {"type": "number"},
        "paid": {"type": "boolean"},
        "currency": {"enum": ["EUR", "USD"]},
        "day": {"type": "string", "format": "date"},
        "sent": {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}]},
        "buyer": {"$ref": "#/$defs/party"},
        "lines": {"type": "array", "items": {"$ref": "#/$defs/line"}},
        "note": {"type": ["string", "null"]},
    },
    "required": ["number"],
    "$defs": {
        "party": {"type": "object", "properties": {"name": {"type": "string"}, "vat": {"type": ["string", "null"]}}},
        "line": {"type": "object", "properties": {"text": {"type": "string"}, "price": {"type": "number"}}},
    },
}


def spec_for(schema: Any, **output: Any) -> JobSpec:
    return make_spec(output={"uri": "/out", "json_schema": schema} | output)


def table(spec: JobSpec, texts: list[str | None]) -> pa.Table:
    """The result rows of these answers; None is a row that the engine never ran."""
    check = OutputCheck(spec.output, spec.sampling.max_tokens)
    completions = []
    for text in texts:
        if text is None:
            completions.append(Completion.failed(RowError("prompt_empty", "it is empty")))
            continue
        answer = check.check(text)
        error = None if answer.problem is None else RowError("output_invalid", answer.problem)
        values = [answer.value] if error is None else None
        completions.append(Completion([text], ["stop"], 1, 0, 1, error, values=values))
    rows = pa.table({"id": pa.array(range(len(texts)), pa.int64())})
    return result_table(spec, rows, make_envelope(), [completions])


def test_types_follow_from_the_schema():
    spec = spec_for(INVOICE, **{"as": "columns"})
    made = table(spec, [])
    party = pa.struct([("name", pa.string()), ("vat", pa.string())])
    line = pa.struct([("text", pa.string()), ("price", pa.float64())])
    wanted = {
        "number": pa.int64(),
        "total": pa.float64(),
        "paid": pa.bool_(),
        "currency": pa.dictionary(pa.int32(), pa.string()),
        "day": pa.date32(),
        "sent": pa.timestamp("us", tz="UTC"),
        "buyer": party,
        "lines": pa.list_(line),
        "note": pa.string(),
    }
    assert {name: made.schema.field(name).type for name in wanted} == wanted
    assert "output" not in made.column_names
    assert table(spec_for(INVOICE, **{"as": "struct"}), []).schema.field("output").type == pa.struct(
        list(wanted.items())
    )


def test_shards_have_one_schema_whatever_their_rows_answered():
    for how in ("struct", "columns"):
        spec = spec_for(INVOICE, **{"as": how})
        full = json.dumps(
            {"number": 1, "buyer": {"name": "x"}, "lines": [{"text": "a", "price": 1}], "currency": "USD"}
        )
        shards = [table(spec, texts) for texts in ([full], ["{}"], [None], ["no JSON"], [])]
        assert len({str(shard.schema) for shard in shards}) == 1
        assert pa.concat_tables(shards).num_rows == 4


def test_an_answer_is_read_back_typed(tmp_path):
    answer = {"number": 7, "total": 9.5, "paid": True, "currency": "EUR", "day": "2026-02-28"}
    answer |= {"sent": "2026-02-28T23:30:00+01:00", "buyer": {"name": "ü"}, "lines": [{"text": "a", "price": 2}]}
    made = table(spec_for(INVOICE, **{"as": "columns"}), [json.dumps(answer), '{"number": 1}'])
    pq.write_table(made, tmp_path / "a.parquet")
    columns = "number, total, paid, currency, day, epoch(sent)::BIGINT, buyer.name, lines[1].price, note"
    first, second = duckdb.sql(f"SELECT {columns} FROM '{tmp_path}/a.parquet' ORDER BY id").fetchall()
    instant = int(datetime(2026, 2, 28, 22, 30, tzinfo=UTC).timestamp())
    assert first == (7, 9.5, True, "EUR", date(2026, 2, 28), instant, "ü", 2.0, None)
    assert second == (1, *[None] * 8)


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ({"type": "integer"}, 2**63, "integer of 64 bits"),
        ({"type": "integer"}, -(2**63) - 1, "integer of 64 bits"),
        ({"type": "number"}, 10**400, "number of 64 bits"),
        ({"type": "string", "format": "date"}, "2026-02-30", "is no date"),
        ({"type": "string", "format": "date"}, "20260228", "YYYY-MM-DD"),
        ({"type": "string", "format": "date-time"}, "yesterday", "instant"),
        ({"type": "string", "format": "date-time"}, "9999-12-31T23:59:59-23:00", "instant"),
        ({"type": "string", "format": "date-time"}, "2026-01-01T25:00:00Z", "instant"),
        ({"type": "object", "properties": {"a": {"type": "integer"}}}, {"a": 1, "b": 2}, "'b' at $.x has no column"),
    ],
)
def test_a_value_that_its_type_cannot_hold_is_its_rows_error(part, value, words):
    spec = spec_for({"type": "object", "properties": {"x": part}}, **{"as": "columns"})
    made = table(spec, [json.dumps({"x": value}), "{}"])
    assert made.column("error_code").to_pylist() == ["output_invalid", None]
    assert words in made.column("error_message")[0].as_py()
    assert made.column("x").to_pylist() == [None, None]


def test_half_of_a_surrogate_pair_is_its_rows_error_and_json_text_keeps_it():
    told = '{"x": "\\ud800"}'
    typed = table(spec_for({"type": "object", "properties": {"x": {"type": "string"}}}, **{"as": "struct"}), [told])
    assert typed.column("error_code").to_pylist() == ["output_invalid"]
    kept = table(spec_for({"type": "object", "properties": {"x": {}}}, **{"as": "columns"}), [told])
    assert json.loads(kept.column("x")[0].as_py()) == "\ud800"


def test_an_answer_that_does_not_fit_is_told_with_its_beginning():
    made = table(spec_for(INVOICE, **{"as": "struct"}), ['{"number": "seven"}'])
    assert 'the answer begins \'{"number": "seven"}' in made.column("error_message")[0].as_py()


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({}, "any value"),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, "several types"),
        ({"type": ["string", "integer"]}, "several types"),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, "keys of any name"),
        ({"type": "object", "patternProperties": {"^a": {}}, "properties": {"a": {}}}, "keys of any name"),
        ({"type": "array", "prefixItems": [{"type": "string"}], "items": {"type": "integer"}}, "types of their own"),
        ({"type": "array"}, "any value"),
        ({"enum": ["a", 1]}, "several types"),
        ({"allOf": [{"type": "object"}, {"type": "object"}]}, "allOf"),
        ({"type": "null"}, "null"),
    ],
)
def test_what_arrow_cannot_type_is_json_text_and_says_why(schema, why):
    whole = {"type": "object", "properties": {"a": {"type": "integer"}, "x": schema}}
    ((path, said),) = json_parts(answer_kind(whole))
    assert path == "x"
    assert why in said
    assert (
        type_lines(OutputSpec(uri="/o", json_schema=whole, **{"as": "struct"}))[1] == f"kept as JSON text: x ({said})"
    )


def test_a_tree_is_typed_down_to_where_it_refers_to_itself():
    node = {
        "type": "object",
        "properties": {"v": {"type": "integer"}, "sub": {"type": "array", "items": {"$ref": "#"}}},
    }
    assert str(arrow_type(answer_kind(node))) == "struct<v: int64, sub: list<item: string>>"
    made = table(spec_for(node, **{"as": "struct"}), ['{"v": 1, "sub": [{"v": 2, "sub": []}]}'])
    assert made.column("output").to_pylist() == [{"v": 1, "sub": ['{"v": 2, "sub": []}']}]


def test_ten_lines_that_stand_for_millions_of_fields_are_refused():
    defs: dict[str, Any] = {}
    for i in range(20):
        below = {"$ref": f"#/$defs/d{i + 1}"}
        defs[f"d{i}"] = {"type": "object", "properties": {"a": below, "b": below}}
    schema = {"$ref": "#/$defs/d0", "$defs": defs | {"d20": {"type": "integer"}}}
    with pytest.raises(ValueError, match="more than 2,000 columns"):
        OutputSpec(uri="/o", json_schema=schema, **{"as": "struct"})


TEXTS = st.text(st.characters(codec="utf-8"), max_size=6)
DAYS = st.dates().map(str)
TIMES = st.datetimes(min_value=datetime(1700, 1, 1), max_value=datetime(2200, 1, 1)).map(lambda t: t.isoformat() + "Z")
ANY = st.recursive(st.none() | st.booleans() | st.integers() | TEXTS, lambda s: st.lists(s, max_size=3), max_leaves=4)

Pair = tuple[Any, st.SearchStrategy[Any]]


def nullable(pair: Pair) -> Pair:
    return {"anyOf": [pair[0], {"type": "null"}]}, st.none() | pair[1]


def listed(pair: Pair) -> Pair:
    return {"type": "array", "items": pair[0]}, st.lists(pair[1], max_size=3)


def an_object(pairs: dict[str, Pair]) -> Pair:
    schema = {"type": "object", "properties": {name: schema for name, (schema, _) in pairs.items()}}
    return schema, st.fixed_dictionaries({}, optional={name: values for name, (_, values) in pairs.items()})


LEAVES: st.SearchStrategy[Pair] = st.sampled_from(
    [
        ({"type": "integer"}, st.integers(-(2**63), 2**63 - 1)),
        ({"type": "number"}, st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)),
        ({"type": "boolean"}, st.booleans()),
        ({"type": "string"}, TEXTS),
        ({"enum": ["a", "b", "ü"]}, st.sampled_from(["a", "b", "ü"])),
        ({"const": "only"}, st.just("only")),
        ({"enum": [1, 5]}, st.sampled_from([1, 5])),
        ({"type": "string", "format": "date"}, DAYS),
        ({"type": "string", "format": "date-time"}, TIMES),
        ({}, ANY),
        ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, TEXTS | st.integers()),
        ({"type": "object", "additionalProperties": True}, st.dictionaries(TEXTS, ANY, max_size=2)),
    ]
)
NAMES = st.sampled_from(["a", "b.c", "ü", "A", "x y", '"q"'])
SCHEMAS: st.SearchStrategy[Pair] = st.recursive(
    LEAVES,
    lambda inner: (
        inner.map(nullable) | inner.map(listed) | st.dictionaries(NAMES, inner, min_size=1, max_size=3).map(an_object)
    ),
    max_leaves=6,
)


def same(kind: Any, read: Any, said: Any) -> bool:
    """Is what was read what was said? An absent key and null are one."""
    if said is None or read is None:
        return said is None and read is None
    if kind.name == "json":
        return bool(json.loads(read) == said)
    if kind.name == "struct":
        return all(same(inner, read[name], said.get(name)) for name, inner in kind.fields)
    if kind.name == "list":
        return len(read) == len(said) and all(same(kind.item, one, two) for one, two in zip(read, said, strict=True))
    if kind.name == "date":
        return bool(read == date.fromisoformat(said))
    if kind.name == "time":
        return bool(read == datetime.fromisoformat(said))
    return bool(read == said)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_valid_answer_is_in_parquet_what_it_was_in_json(data):
    schema, values = data.draw(SCHEMAS)
    answers = data.draw(st.lists(values, min_size=1, max_size=3))
    spec = spec_for(schema, **{"as": "struct"})
    made = table(spec, [json.dumps(answer) for answer in answers])
    assert made.column("error_message").to_pylist() == [None] * len(answers)
    sink = pa.BufferOutputStream()
    pq.write_table(made, sink)
    read = pq.read_table(pa.BufferReader(sink.getvalue())).column("output").to_pylist()
    assert all(same(spec.output.kind, one, two) for one, two in zip(read, answers, strict=True)), (read, answers)

"""What the engine's grammar does not take is told before an engine starts, with the part that is refused."""

from __future__ import annotations

import pytest

from batchinfer.engine import grammars
from batchinfer.engine.grammar_child import parts
from batchinfer.engine.grammars import require_grammar
from batchinfer.errors import SpecError
from batchinfer.jobspec import OutputSpec
from tests.support import ROOT

pytestmark = pytest.mark.integration

MODEL = str(ROOT / "jobs" / "demo" / "model")
ORDER = {"type": "object", "properties": {"price": {"type": "number"}, "day": {"type": "string", "format": "date"}},
         "required": ["price", "day"], "additionalProperties": False}  # fmt: skip


def output(**keys):
    return OutputSpec(uri="/out", **keys)


@pytest.mark.parametrize("folder", [None, MODEL])
@pytest.mark.parametrize("keys", [{"json_schema": ORDER}, {"regex": "[0-9]{4}-[0-9]{2}"},
                                  {"choices": ["a", 'a "b"\n', "\x01"]}, {}])  # fmt: skip
def test_what_the_grammar_takes_is_not_refused(folder, keys):
    require_grammar(output(**keys), folder)


@pytest.mark.parametrize(
    ("schema", "part", "why"),
    [
        ({"properties": {"name": {"type": "string", "minLength": 5, "maxLength": 2}}}, ".properties.name", "minLength"),
        ({"properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"enum": []}}}, ".$defs.x", "enum"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "", "incompatible types"),
        ({"properties": {"n": {"type": "integer", "minimum": 5, "maximum": 1}}}, ".properties.n", "range"),
    ],
)
def test_the_part_that_is_refused_is_named(schema, part, why):
    with pytest.raises(SpecError) as refused:
        require_grammar(output(json_schema={"type": "object"} | schema if "properties" in schema else schema), None)
    assert str(refused.value).startswith(f"output.json_schema{part} cannot be turned into a grammar")
    assert why in str(refused.value)


def test_a_schema_that_takes_minutes_to_compile_is_refused_in_seconds(monkeypatch):
    monkeypatch.setattr(grammars, "COMPILE_SECONDS", 2)
    monkeypatch.setattr(grammars, "PART_SECONDS", 2)
    bomb = {"type": "object", "properties": {"ok": {"type": "integer"},
            "bomb": {"type": "string", "pattern": "a{1,10000}b{1,9000}"}}}  # fmt: skip
    with pytest.raises(SpecError, match="more than 2 s"):
        require_grammar(output(json_schema=bomb), MODEL)


def test_parts_of_a_schema_come_before_what_holds_them():
    schema = {"properties": {"a": {"items": {"anyOf": [{"type": "string"}]}}}, "additionalProperties": False}
    assert [".".join(path) for path, _ in parts(schema)] == [
        "properties.a.items.anyOf.0", "properties.a.items", "properties.a", ""
    ]  # fmt: skip

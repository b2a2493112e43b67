"""`output.as` and `output.model`: what is said of them when a spec is read."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from batchinfer.errors import SpecError
from batchinfer.jobspec import JobSpec, parse, to_yaml
from batchinfer.jobspec.python_classes import schema_of_class
from tests.support.builders import make_spec, spec_text

SCHEMA = {"type": "object", "properties": {"total": {"type": "number"}, "id": {"type": "string"}}}


def output(**keys):
    return {"uri": "/out", "json_schema": SCHEMA} | keys


def refusal(**sections):
    with pytest.raises(SpecError) as caught:
        make_spec(**sections)
    return str(caught.value)


def test_answers_are_json_text_unless_the_spec_says_otherwise():
    assert make_spec(output=output()).output.as_ == "json"
    assert make_spec(output=output()).output.columns == ("output",)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"output": output(**{"as": "columns"})}, "input column 'id' would collide"),
        ({"output": {"uri": "/o", "as": "struct"}}, "needs a json_schema"),
        ({"output": {"uri": "/o", "as": "struct", "choices": ["a"]}}, "needs a json_schema"),
        (
            {"output": output(json_schema={"type": "array", "items": {}}, **{"as": "columns"})},
            "an object with named keys",
        ),
        ({"output": output(column="x", **{"as": "columns"}), "input": {"uri": "/in"}}, "leave it out"),
        ({"output": output(**{"as": "table"})}, "'table'"),
        ({"output": output(ass="struct")}, "did you mean 'as'?"),
        (
            {"output": output(**{"as": "columns"}), "input": {"uri": "/in"}, "sampling": {"n": 2, "temperature": 1}},
            "needs sampling.n = 1",
        ),
        ({"output": output(), "evaluate": {"expected": "e", "part": "totl"}}, "did you mean 'total'?"),
        ({"output": output(**{"as": "struct"}), "evaluate": {"expected": "e"}}, "evaluate.part must name the key"),
    ],
)
def test_a_typed_output_that_cannot_be_is_refused(sections, words):
    assert words in refusal(**sections)


def test_a_key_of_the_schema_may_not_have_the_name_of_a_result_column():
    named = {"type": "object", "properties": {"error_code": {"type": "string"}}}
    told = refusal(output=output(json_schema=named, **{"as": "columns"}), input={"uri": "/in"})
    assert "the key 'error_code' of output.json_schema is the name of a result column" in told


CLASSES = """
    from enum import Enum
    from pydantic import BaseModel

    class Currency(Enum):
        EUR = "EUR"
        USD = "USD"

    class Line(BaseModel):
        text: str
        price: float

    class Invoice(BaseModel):
        number: int
        currency: Currency
        note: str | None = None
        lines: list[Line] = []
"""


@pytest.fixture
def classes(tmp_path, monkeypatch):
    (tmp_path / "bi_invoices.py").write_text(textwrap.dedent(CLASSES))
    (tmp_path / "bi_broken.py").write_text("raise RuntimeError('no database')")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("bi_invoices", "bi_broken"):
        sys.modules.pop(name, None)


def test_only_the_schema_of_a_class_travels(classes, tmp_path_factory, monkeypatch):
    spec = make_spec(output={"uri": "/out", "model": "bi_invoices:Invoice", "as": "struct"})
    assert spec.output.json_schema["properties"]["number"] == {"title": "Number", "type": "integer"}
    text = to_yaml(spec)
    sys.modules.pop("bi_invoices")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert parse(text).output.json_schema == spec.output.json_schema
    assert JobSpec.model_validate(spec.model_dump(mode="json")) == spec
    assert "bi_invoices" not in sys.modules


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("bi_invoices:Invoce", "did you mean Invoice?"),
        ("bi_invoices:Currency", "is not a pydantic class"),
        ("bi_nowhere:Invoice", "there is no module 'bi_nowhere'"),
        ("bi_broken:Invoice", "it raises RuntimeError: no database"),
        ("bi_invoices.py", "is not of the form package.module:Class"),
    ],
)
def test_a_class_that_cannot_be_had_is_a_mistake_of_the_spec(classes, reference, words):
    assert words in refusal(output={"uri": "/out", "model": reference})


def test_a_schema_that_is_given_beside_the_class_is_taken_and_nothing_is_imported():
    spec = parse(spec_text(output=output(model="bi_nowhere:Invoice")))
    assert spec.output.json_schema == SCHEMA


@pytest.mark.integration
def test_the_installed_command_looks_in_the_current_folder(classes):
    code = "import sys; sys.path[:] = sys.path[1:]; from batchinfer.jobspec.python_classes import schema_of_class as s;"
    code += " print(s('bi_invoices:Invoice')['title'])"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", code], cwd=classes, env=environment, capture_output=True, text=True)
    assert ran.stdout == "Invoice\n", ran.stderr


def test_a_class_is_found_by_its_full_name(classes):
    assert schema_of_class("bi_invoices:Line")["required"] == ["text", "price"]

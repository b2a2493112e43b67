"""Every key of the spec is described where it is declared, and can be explained by its path."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from batchinfer.accounting.report import Report
from batchinfer.catalog import QUANTIZATIONS
from batchinfer.errors import UserError
from batchinfer.jobspec import JobSpec, parse
from batchinfer.jobspec.explain import EXAMPLE, explain, json_schema, whole_spec
from tests.support.commands import forked

SPEC = JobSpec.model_json_schema()
REPORT = Report.model_json_schema()


def described(schema: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Every model and every property of the schema, with its description."""
    for name, model in {str(schema["title"]): schema, **schema["$defs"]}.items():
        yield name, model.get("description")
        for key, value in model["properties"].items():
            yield f"{name}.{key}", value.get("description")


def paths(schema: dict[str, Any], definitions: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The path of every key that a spec may hold, straight from the JSON Schema."""
    for name, value in schema.get("properties", {}).items():
        path = f"{prefix}{name}"
        yield path
        for member in value.get("anyOf", [value]):
            values = member.get("additionalProperties")
            below = f"{path}." if "$ref" in member else f"{path}.s3://bucket."
            inside = values if isinstance(values, dict) else member
            if "$ref" in inside:
                yield from paths(definitions[inside["$ref"].rpartition("/")[2]], definitions, below)


PATHS = list(paths(SPEC, SPEC["$defs"]))


@pytest.mark.parametrize("schema", [SPEC, REPORT], ids=["spec", "report"])
def test_every_property_has_a_description(schema):
    found = dict(described(schema))
    assert len(found) > 40
    assert [name for name, text in found.items() if not text] == []


@pytest.mark.parametrize("schema", [SPEC, REPORT], ids=["spec", "report"])
def test_every_description_is_of_whole_and_short_sentences(schema):
    for name, text in described(schema):
        assert text is not None
        assert text.endswith("."), name
        sentences = re.split(r"(?<=[.;:])\s", text)
        assert [sentence for sentence in sentences if len(sentence.split()) > 25] == [], name


@pytest.mark.parametrize("path", PATHS)
def test_every_path_of_the_schema_can_be_explained(path):
    key = explain(path)
    assert key.path == path
    assert key.type
    assert key.description


def test_the_tree_has_every_path_of_the_schema():
    shown = [key.path.replace("s3://...", "s3://bucket") for key in whole_spec().walk()]
    assert [path for path in shown if path != "storage.s3://bucket"] == PATHS


@pytest.mark.parametrize(
    ("path", "facts"),
    [
        ("output.choices", ("list of string | mapping to string", "null", "at least 1 item(s); at least 1 key(s)", ())),
        ("sampling.max_tokens", ("integer", "256", "at least 1", ())),
        ("sampling.top_p", ("number", "1.0", "above 0.0, at most 1.0", ())),
        ("sampling.stop", ("string | list of string", "null", "", ())),
        ("sampling.logit_bias", ("mapping to number", "null", "", ())),
        ("sampling.logit_bias.50256", ("number", "", "", ())),
        ("input.on_bad_row", ("fail | set_aside", "fail", "", ("fail", "set_aside"))),
        ("output.format", ("parquet | openai_batch", "parquet", "", ("parquet", "openai_batch"))),
        ("input.columns", ("list of string", "[]", "", ())),
        ("resources.replicas", ("auto | integer | section", "auto", "at least 1", ("auto",))),
        ("resources.replicas.min", ("integer", "required", "at least 1", ())),
        ("model", ("section", "required", "", ())),
        ("limits", ("section", "", "", ())),
        ("schedule", ("section", "null", "", ())),
        ("labels", ("mapping to string", "{}", "", ())),
        ("labels.team", ("string", "", "", ())),
        ("storage", ("mapping to section", "{}", "", ())),
        ("storage.s3://...", ("section", "", "", ())),
        ("storage.s3://my.bucket/in.d", ("section", "", "", ())),
        ("storage.s3://my.bucket/in.d.max_attempts", ("integer", "null", "at least 1, at most 1000000", ())),
        ("output.json_schema.properties.x", ("anything", "", "", ())),
    ],
)
def test_a_key_is_explained_with_its_type_default_limits_and_values(path, facts):
    key = explain(path)
    assert (key.type, key.default, key.limits, key.values) == facts


@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        ("output.choises", "did you mean output.choices?"),
        ("Output", "did you mean output?"),
        ("temperature", "did you mean sampling.temperature?"),
        ("seed", "did you mean input.sample.seed or sampling.seed or engine.seed?"),
        ("input.column", "did you mean input.columns?"),
        ("model.lora.pth", "did you mean model.lora.path?"),
        ("resources.replicas.mim", "did you mean resources.replicas.min?"),
        ("storage.s3://my.bucket.regoin", "did you mean storage.s3://my.bucket.region?"),
        ("storage.region", "its keys begin with s3://, as in storage.s3://..."),
        ("input.columns.0", "it has no keys of its own: see `batchinfer explain input.columns`"),
        ("shards.zzz", "its keys are rows, max_bytes"),
        (".", "its keys are name, task, model"),
    ],
)
def test_a_key_that_there_is_not_is_refused_with_the_nearest_that_there_is(path, remedy):
    with pytest.raises(UserError) as caught:
        explain(path)
    assert caught.value.exit_code == 2
    assert caught.value.remedy.startswith(remedy)


@pytest.mark.parametrize("path", ["", *PATHS])
def test_the_json_schema_of_a_key_stands_alone(path):
    part = json_schema(explain(path))
    Draft202012Validator.check_schema(part)
    referred = set(json.dumps(part).split('"#/$defs/')[1:])
    assert {name.partition('"')[0] for name in referred} == set(part.get("$defs", {}))


def test_the_json_schema_of_a_section_refuses_what_the_code_refuses():
    validator = Draft202012Validator(json_schema(explain("resources")))
    assert not list(validator.iter_errors({"replicas": {"min": 1, "max": 2}}))
    assert list(validator.iter_errors({"replicas": {"min": 0, "max": 2}}))
    assert json_schema(explain("")) == SPEC


def test_the_example_is_a_spec():
    assert parse(EXAMPLE).output.choices == ("billing", "outage", "other")


def test_the_description_of_the_quantization_names_each_there_is():
    assert [name for name in ("auto", *QUANTIZATIONS) if f"`{name}`" not in explain("model.quantization").summary] == []


def test_the_command_prints_every_key_and_a_spec_to_start_from():
    done = forked("explain")
    assert (done.returncode, done.stderr) == (0, "")
    tree = done.stdout.partition("`batchinfer explain KEY`")[0].splitlines()
    # A sentence that goes on in the next line begins far to the right.
    assert [line.split()[0] for line in tree[1:] if line[:12].strip()] == [key.name for key in whole_spec().walk()]
    assert done.stdout.endswith(f"{EXAMPLE}\n")


def test_the_command_prints_all_about_a_key():
    done = forked("explain", "resources.replicas")
    assert (done.returncode, done.stderr) == (0, "")
    shown = " ".join(done.stdout.split())
    key = explain("resources.replicas")
    for part in (key.path, key.type, *key.description.split("\n\n"), *(inner.summary for inner in key.keys)):
        assert part in shown


def test_the_command_prints_the_json_schema():
    assert json.loads(forked("explain", "--json").stdout) == SPEC
    assert json.loads(forked("explain", "output", "--json").stdout) == json_schema(explain("output"))


def test_the_command_refuses_a_key_that_there_is_not():
    done = forked("explain", "sampling.max_token")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: sampling has no key 'max_token'\n  -> did you mean sampling.max_tokens?\n"

"""The schemas in the repository are those of the code, and say of a spec what the code says."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from tests.support import ROOT

_SPEC = importlib.util.spec_from_file_location("generate", ROOT / "schemas" / "generate.py")
assert _SPEC is not None
assert _SPEC.loader is not None
generate = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(generate)


@pytest.mark.parametrize("name", list(generate.MODELS))
def test_the_schema_in_the_repository_is_up_to_date(name: str) -> None:
    path = ROOT / "schemas" / f"{name}.schema.json"
    assert path.read_text(encoding="utf-8") == generate.schema_text(generate.MODELS[name]), "run `make schemas`"


def test_the_dictionaries_of_the_sections_are_up_to_date() -> None:
    assert generate.KEYS.read_text(encoding="utf-8") == generate.keys_text(), "run `make schemas`"


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda path: path.name)
def test_the_jobs_fit_the_schema(path: Path) -> None:
    validator = Draft202012Validator(json.loads((ROOT / "schemas" / "job-spec.schema.json").read_text()))
    assert list(validator.iter_errors(yaml.safe_load(path.read_text()))) == []


def test_the_schema_refuses_what_the_code_refuses() -> None:
    validator = Draft202012Validator(json.loads((ROOT / "schemas" / "job-spec.schema.json").read_text()))
    spec = yaml.safe_load((ROOT / "jobs" / "demo.yaml").read_text())
    assert list(validator.iter_errors(spec | {"outptu": {}}))
    assert list(validator.iter_errors(spec | {"limits": {"max_error_rate": 2}}))

"""Write the JSON Schemas in this folder, and the types of a spec's dictionaries in Python, from the package's own
models: `make schemas`.

An editor that knows YAML schemas completes and checks a job spec with job-spec.schema.json; report.schema.json
says what `batchinfer report --json` prints. batchinfer/python_api/keys.py lets an editor do the same for `Job`.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from batchinfer.accounting.report import Report
from batchinfer.jobspec import JobSpec
from batchinfer.jobspec.base import Keys, keys_of

MODELS: dict[str, type[BaseModel]] = {"job-spec": JobSpec, "report": Report}


def schema_text(model: type[BaseModel]) -> str:
    """The schema as it stands in its file."""
    return json.dumps(model.model_json_schema(), indent=2, ensure_ascii=False) + "\n"


KEYS = Path(__file__).parent.parent / "batchinfer" / "python_api" / "keys.py"

_HEAD = '''"""The sections of a job spec as dictionaries, for type checkers. Written by schemas/generate.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict


'''


def keys_text() -> str:
    """The module of the dictionaries as it stands in its file, inner sections first."""
    return _HEAD + "\n".join(_typed_dict(model) for model in _sections(JobSpec, []) if model is not JobSpec)


def _sections(model: type[Keys], found: list[type[Keys]]) -> list[type[Keys]]:
    for field in model.model_fields.values():
        for inner in _models(field.annotation):
            if inner not in found:
                _sections(inner, found)
    found.append(model)
    return found


def _models(annotation: Any) -> Iterator[type[Keys]]:
    if isinstance(annotation, type) and issubclass(annotation, Keys):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from _models(inner)


def _name(model: type[Keys]) -> str:
    return model.__name__.removesuffix("Spec") + "Keys"


def _typed_dict(model: type[Keys]) -> str:
    fields = {key: _type(field.annotation) for key, field in keys_of(model).items()}
    odd = {key: kind for key, kind in fields.items() if not key.isidentifier() or key in ("as",)}
    base, lines = "TypedDict", []
    if odd:
        # Words that Python keeps for itself.
        base = f"_{_name(model)}"
        inside = ", ".join(f'"{key}": {kind!r}' for key, kind in odd.items())
        lines += [f'{base} = TypedDict("{base}", {{{inside}}}, total=False)', "", ""]
    lines += [f"class {_name(model)}({base}, total=False):", f'    """{_said(model.__doc__)}"""', ""]
    for key, field in keys_of(model).items():
        if key not in odd:
            lines += [f"    {key}: {fields[key]}", f'    """{_said(field.description)}"""']
    return "\n".join(lines) + "\n\n"


def _said(text: str | None) -> str:
    """The first paragraph, on one line."""
    first = " ".join((text or "").strip().split("\n\n")[0].split())
    return first.replace("\\", "\\\\")


def _type(annotation: Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(inner[0])
    if origin in (typing.Union, types.UnionType):
        return " | ".join(dict.fromkeys(_type(one) for one in inner))
    if origin is typing.Literal:
        return f"Literal[{', '.join(json.dumps(one) for one in inner)}]"
    if origin is tuple:
        return f"Sequence[{_type(inner[0])}]"
    if origin is dict:
        return f"Mapping[{_type(inner[0])}, {_type(inner[1])}]"
    if annotation is types.NoneType:
        return "None"
    if annotation is Any:
        return "Any"
    return _name(annotation) if issubclass(annotation, Keys) else str(annotation.__name__)


def main() -> None:
    """Write every schema, and the dictionaries."""
    KEYS.write_text(keys_text(), encoding="utf-8")
    for name, model in MODELS.items():
        (Path(__file__).parent / f"{name}.schema.json").write_text(schema_text(model), encoding="utf-8")


if __name__ == "__main__":
    main()

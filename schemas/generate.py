"""Write the JSON Schemas in this folder from the package's own models: `make schemas`.

An editor that knows YAML schemas completes and checks a job spec with job-spec.schema.json; report.schema.json
says what `batchinfer report --json` prints.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel

from batchinfer.accounting.report import Report
from batchinfer.jobspec import JobSpec

MODELS: dict[str, type[BaseModel]] = {"job-spec": JobSpec, "report": Report}


def schema_text(model: type[BaseModel]) -> str:
    """The schema as it stands in its file."""
    return json.dumps(model.model_json_schema(), indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Write every schema."""
    for name, model in MODELS.items():
        (Path(__file__).parent / f"{name}.schema.json").write_text(schema_text(model), encoding="utf-8")


if __name__ == "__main__":
    main()

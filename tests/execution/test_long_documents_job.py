"""A document far beyond the context on the real engine: one row in, one row out, and its two kinds of requests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer.execution import runner
from batchinfer.execution.preview import validate
from batchinfer.jobspec import JobSpec
from tests.support import ROOT
from tests.support.scripted_jobs import KeepingListener, assert_ledger_adds_up, results

pytestmark = pytest.mark.end_to_end

CHARACTERS = 300_000


def sources() -> str:
    """The first of the standard library's modules, as one text."""
    text = ""
    for path in sorted(Path(sys.prefix if sys.prefix == sys.base_prefix else sys.base_prefix).rglob("python3.11/*.py")):
        text += path.read_text(encoding="utf-8", errors="replace")
        if len(text) > CHARACTERS:
            return text[:CHARACTERS]
    raise AssertionError("the standard library is not where it should be")


def test_a_document_of_300_000_characters_goes_through_a_context_of_512_tokens(
    tmp_path: Path, ray_cluster: object
) -> None:
    rows = pa.table({"id": ["long", "short", "none"], "text": [sources(), "def read(self): read a file", None]})
    pq.write_table(rows, tmp_path / "in.parquet")
    values: dict[str, Any] = {
        "name": "long-documents",
        "model": {"source": str(ROOT / "jobs" / "demo" / "model"), "dtype": "float32"},
        "input": {"uri": str(tmp_path / "in.parquet"), "id_column": "id"},
        "prompt": {"template": "{{ text }}"},
        "chunk": {"column": "text", "tokens": 450},
        "combine": {"template": "{% for a in answers %}{{ a }}\n{% endfor %}"},
        "sampling": {"max_tokens": 16, "ignore_eos": True},
        "output": {"uri": str(tmp_path / "out")},
        "engine": {"max_model_len": 512, "enforce_eager": True, "kv_cache_memory_bytes": 2**28},
        "limits": {"max_error_rate": 0.5},
    }
    spec = JobSpec.model_validate(values)
    assert validate(spec).manifest.rows == 3
    report = runner.run(spec, KeepingListener())
    long, short, none = results(tmp_path / "out").to_pylist()
    assert (long["error_code"], short["error_code"]) == (None, None)
    assert none["error_code"] == "template_error"
    assert long["chunks"] > 100
    assert 2 <= long["levels"] <= 5
    assert (short["chunks"], short["levels"]) == (1, 0)
    assert long["output"]
    assert report.steps["chunk"].rows == long["chunks"] + 1
    assert 1 <= report.steps["combine"].rows < long["chunks"]
    assert report.steps["chunk"].errors == report.steps["combine"].errors == {}
    assert report.input_tokens == sum(step.input_tokens for step in report.steps.values())
    assert report.input_tokens > CHARACTERS / 8
    assert sum(step.work_seconds for step in report.steps.values()) == pytest.approx(report.seconds.work)
    assert_ledger_adds_up(tmp_path / "out")

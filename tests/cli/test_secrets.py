"""A secret of the environment is nowhere in what a run leaves behind or says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

pytestmark = pytest.mark.integration

MARKER = "a-secret-that-must-not-leak-7f3a91"
NAMES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")


def test_no_byte_of_a_run_holds_a_secret_of_the_environment(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    spec = {
        "name": "secrets",
        "model": {"source": "scripted"},
        "input": {"uri": str(tmp_path / "in"), "id_column": "id"},
        # Whatever a template finds to read, the environment is not in it.
        "prompt": {"template": "{{ text }}{{ environ | default('') }}{{ HF_TOKEN | default('') }}"},
        "output": {"uri": str(tmp_path / "out")},
        "engine": {"scripted": {"reject_on": "bad"}},
        "limits": {"max_error_rate": 1.0},
    }
    columns = pa.table({"id": [1, 2, 3], "text": ["a", "b", "bad"], "environ": pa.nulls(3), "HF_TOKEN": pa.nulls(3)})
    pq.write_table(columns, tmp_path / "in" / "a.parquet")
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(spec))
    done = subprocess.run(
        [sys.executable, "-m", "batchinfer", "run", str(tmp_path / "job.yaml"), "--json"],
        capture_output=True,
        timeout=240,
        env=os.environ | dict.fromkeys(NAMES, MARKER),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {"spec.yaml", "plan.json", "report.json", "run.log", "manifest.parquet"} <= {path.name for path in files}
    assert [path for path in files if MARKER.encode() in path.read_bytes()] == []
    assert MARKER.encode() not in done.stdout + done.stderr

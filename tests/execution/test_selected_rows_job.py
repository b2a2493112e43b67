"""A whole job over packed CSV with a selection: its driver is killed, and the resume selects nothing anew."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from batchinfer.deploy.ray_jobs import submitted_progress
from tests.support import ROOT
from tests.support.scripted_jobs import assert_ledger_adds_up, results

pytestmark = pytest.mark.end_to_end

ROWS, LIMIT = 1000, 200


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "batchinfer", *arguments]


def test_a_killed_run_over_packed_csv_ends_with_the_rows_that_were_selected_at_first(tmp_path: Path) -> None:
    corpus, output = tmp_path / "in", tmp_path / "out"
    corpus.mkdir()
    lines = [f'{i:05},{"de" if i % 2 else "en"},"text, of ""{i}""\nin two lines"\n' for i in range(ROWS)]
    for number, part in enumerate((lines[:600], lines[600:])):
        packed = gzip.compress(("key,lang,body\n" + "".join(part)).encode())
        (corpus / f"part-{number:04}.csv.gz").write_bytes(packed)
    spec = {
        "name": "selected",
        "model": {"source": "scripted"},
        "input": {
            "uri": str(corpus),
            "format": "csv",
            "columns": ["key"],
            "where": "lang = 'de' AND CAST(key AS INT) >= 300",
            "limit": LIMIT,
        },
        "prompt": {"column": "body"},
        "output": {"uri": str(output)},
        "sampling": {"max_tokens": 8},
        "shards": {"rows": 20},
        "engine": {"scripted": {"seconds_per_batch": 2.0}},
    }
    (tmp_path / "job.yaml").write_text(json.dumps(spec))
    job = str(tmp_path / "job.yaml")

    told = subprocess.run(command("validate", job), cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"is valid: {LIMIT} of {ROWS:,} rows in 10 shards" in told

    first = subprocess.Popen(command("run", job), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    # Most of it is the start of Ray on a machine that does other things as well.
    until = time.monotonic() + 300
    while len(list((output / "data").glob("*.parquet"))) < 2 and time.monotonic() < until:
        assert first.poll() is None
        time.sleep(0.1)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    manifest = (output / "_run" / "manifest.parquet").read_bytes()
    committed = {path.name: path.read_bytes() for path in (output / "data").iterdir()}
    assert 2 <= len(committed) <= 10

    # Another selection is another run.
    other = command("run", job, "--set", "input.limit=100")
    refused = subprocess.run(other, cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert f"input.limit: {LIMIT} then, 100 now" in refused.stderr

    done = subprocess.run(command("run", job), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (output / "_run" / "manifest.parquet").read_bytes() == manifest
    assert {name: (output / "data" / name).read_bytes() for name in committed} == committed
    shown = subprocess.run(command("report", str(output)), cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.search(rf"selected +{LIMIT} of {ROWS:,} rows", shown)
    assert json.loads((output / "_run" / "report.json").read_text())["selected_from"] == ROWS
    progress = submitted_progress(done.stderr)
    assert progress is not None
    assert (progress["rows_done"], progress["selected_from"]) == (LIMIT, ROWS)
    rows = results(output)
    wanted = [i for i in range(300, ROWS) if i % 2][:LIMIT]
    assert rows.column("row_number").to_pylist() == wanted
    assert rows.column("key").to_pylist() == [f"{i:05}" for i in wanted]
    assert rows.column("output").to_pylist() == [f'text, of "{i}"\nin two lines'[:32] for i in wanted]
    assert_ledger_adds_up(output)

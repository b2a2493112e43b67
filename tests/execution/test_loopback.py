from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer.jobspec import to_yaml
from tests.support.scripted_jobs import scripted_spec

pytestmark = pytest.mark.end_to_end


def listening(process: subprocess.Popen[bytes]) -> set[tuple[str, int]]:
    """The addresses on which the process and all that it started listen."""
    found: set[tuple[str, int]] = set()
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return found
    for one in family:
        try:
            held = one.net_connections(kind="inet")
        except psutil.Error:
            continue
        found |= {(each.laddr.ip, each.laddr.port) for each in held if each.status == psutil.CONN_LISTEN}
    return found


def test_a_run_on_this_machine_listens_on_loopback_alone(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(
        pa.table({"id": [f"r{i}" for i in range(40)], "text": ["x"] * 40, "topic": ["y"] * 40}), folder / "a.parquet"
    )
    engine = {"max_num_seqs": 4, "scripted": {"seconds_per_batch": 0.5}}
    path = tmp_path / "job.yaml"
    path.write_text(to_yaml(scripted_spec(folder, tmp_path / "out", engine=engine)))
    run = subprocess.Popen(
        [sys.executable, "-m", "batchinfer", "run", str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    seen: set[tuple[str, int]] = set()
    while run.poll() is None:
        seen |= listening(run)
        time.sleep(0.2)
    assert run.returncode == 0
    assert len(seen) >= 3, "the store of the cluster, its nodes and its workers listen"
    assert {address for address, _ in seen} <= {"127.0.0.1", "::1"}

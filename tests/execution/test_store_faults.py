"""A store that fails: some of the time, and for good."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import ray

from batchinfer.execution import runner
from batchinfer.jobspec import to_yaml
from batchinfer.storage import Storage, join
from tests.support.faulty_store import FAULTS, FaultyStore
from tests.support.s3_runs import assert_whole, spec_on
from tests.support.scripted_jobs import KeepingListener

# Short, so that a fault costs a test seconds where it would cost a run minutes.
PATIENT = {"max_attempts": 12, "connect_timeout": 2, "read_timeout": 1, "lease_seconds": 20}
HASTY = {"max_attempts": 3, "connect_timeout": 1, "read_timeout": 1, "lease_seconds": 5}


pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_at_ten_percent_faults_every_row_comes_out_once(
    s3_url: str, bucket: str, store: Storage, remote_corpus: str, listener: KeepingListener
) -> None:
    output = f"{bucket}/out"
    with FaultyStore(s3_url, rate=0.1, seed=8, hang=2) as faulty:
        report = runner.run(spec_on(faulty.url, remote_corpus, output, PATIENT), listener)
        print(f"{faulty.injected.total()} faults in {faulty.requests} requests: {dict(faulty.injected)}")
    assert (report.rows, report.rows_failed, report.complete) == (1000, 0, True)
    assert_whole(store, output)
    assert set(faulty.injected) == set(FAULTS)
    assert len(listener.records) == 10, "no attempt took its own write for another's and ran again"
    assert report.seconds.waste == pytest.approx(0, abs=1e-6)


def test_a_store_that_fails_for_good_ends_the_run_in_time_and_resumable(
    s3_url: str, bucket: str, store: Storage, remote_corpus: str, tmp_path: Path
) -> None:
    output = f"{bucket}/out"
    with FaultyStore(s3_url, seed=1, hang=2) as faulty:
        spec = spec_on(
            faulty.url,
            remote_corpus,
            output,
            HASTY,
            shards={"rows": 25},
            engine={"scripted": {"seconds_per_batch": 0.3}},
        )
        (tmp_path / "job.yaml").write_text(to_yaml(spec))
        command = [sys.executable, "-m", "batchinfer", "run", str(tmp_path / "job.yaml")]
        command += ["--address", ray.get_runtime_context().gcs_address]
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(run.stderr or ()), daemon=True)
        reader.start()
        deadline = time.monotonic() + 200
        while len(list(store.list(join(output, "data")))) < 3:
            assert time.monotonic() < deadline, lines
            assert run.poll() is None, lines
            time.sleep(0.1)
        began = time.monotonic()
        faulty.rate, faulty.faults = 1.0, tuple(fault for fault in FAULTS if fault != "slow")
        code = run.wait(timeout=100)
        seconds = time.monotonic() - began
        reader.join()
        message = "".join(lines[-2:])
        print(f"ended {seconds:.1f} s after the store, {dict(faulty.injected)}: {message}")
        assert code == 1, lines
        assert seconds < 60
        assert message.startswith("error: s3://")
        assert faulty.url in message
        assert "run the same command again" in message
        assert "Traceback" not in message
        log = Path(message.rpartition("the log is ")[2].strip())
        assert log.stat().st_size > 0
        log.unlink()
        before = len(list(store.list(join(output, "data"))))
        assert before < 40

        faulty.rate = 0.0
        done = subprocess.run(command, capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count('"shard committed"') == 40 - before
    assert_whole(store, output)
    assert b"Ray" in store.read(join(output, "_run", "run.log"))

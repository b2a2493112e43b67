"""The demo job on the real engine, undisturbed and with everything killed that can be: real `kill -9`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import ROOT
from tests.support.scripted_jobs import assert_ledger_adds_up, results

pytestmark = pytest.mark.end_to_end

RUN = "BATCHINFER_TEST_RUN"
MARKS = {"BATCHINFER_DRIVER", "BATCHINFER_REPLICA"}
COMPARED = ["id", "area", "split", "predicted", "finish_reason", "input_tokens", "output_tokens", "error_code"]


@pytest.fixture(scope="module")
def docstrings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's input: all that was held out from training, and a quarter of the rest."""
    folder = tmp_path_factory.mktemp("docstrings")
    subprocess.run([sys.executable, ROOT / "jobs/demo/docstrings.py", folder], check=True, capture_output=True)
    for path in (folder / "split=train").glob("part-[1-9]*.parquet"):
        path.unlink()
    return folder


def command(docstrings: Path, output: Path) -> list[str]:
    # So few slots that most of the shards still wait when something is killed or stopped.
    changes = [f"input.uri={docstrings}", f"output.uri={output}", "shards.rows=100", "engine.max_num_seqs=64"]
    changes.append("limits.engine_timeout_seconds=20")
    sets = [argument for change in changes for argument in ("--set", change)]
    return [sys.executable, "-m", "batchinfer", "run", "jobs/demo.yaml", *sets]


@dataclass
class Run:
    """A running job, in a process group of its own, as a terminal would start it."""

    process: subprocess.Popen[str]
    output: Path
    mark: str

    @classmethod
    def start(cls, docstrings: Path, output: Path) -> Run:
        # Everything that the run starts inherits it: other runs on this machine are not its business.
        mark = uuid.uuid4().hex
        process = subprocess.Popen(
            command(docstrings, output),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {RUN: mark},
        )
        return cls(process, output, mark)

    def committed(self) -> int:
        return len(list((self.output / "data").glob("shard-*.parquet")))

    def wait_for_commits(self, number: int) -> None:
        """Until so many more shards are committed than when it was called."""
        target = self.committed() + number
        self._until(lambda: self.committed() >= target, 400)

    def _until(self, happened: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline, "it did not happen in time"
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.05)

    def processes(self, title: str) -> list[psutil.Process]:
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True) + self.own():
            try:
                if " ".join(process.cmdline()).startswith(title) and process not in found:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def own(self) -> list[psutil.Process]:
        return marked_processes(self.mark)

    def finish(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=400)
        return self.process.returncode, out, err

    def assert_nothing_is_left(self) -> None:
        deadline = time.monotonic() + 15
        while self.own():
            assert time.monotonic() < deadline, [p.cmdline() for p in self.own()]
            time.sleep(0.1)


def marked_processes(mark: str) -> list[psutil.Process]:
    """Everything that batchinfer has started for the run that was started with `mark`."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ() if process.status() != psutil.STATUS_ZOMBIE else {}
            if environment.get(RUN) == mark and MARKS & environment.keys():
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def _watch_sockets(run: Run, found: dict[str, set[str]]) -> None:
    """Until the run ends: by process, the addresses at which it listens, and those that it speaks to."""
    while run.process.poll() is None:
        with contextlib.suppress(psutil.Error):
            for process in (psutil.Process(run.process.pid), *psutil.Process(run.process.pid).children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    for socket in process.net_connections("inet"):
                        ends = (socket.laddr, socket.raddr)
                        found.setdefault(process.name(), set()).update(end.ip for end in ends if end)
        time.sleep(0.3)


@pytest.fixture(scope="module")
def sockets() -> dict[str, set[str]]:
    """What `_watch_sockets` saw of the undisturbed run."""
    return {}


@pytest.fixture(scope="module")
def undisturbed(
    docstrings: Path, sockets: dict[str, set[str]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    run = Run.start(docstrings, output)
    watching = threading.Thread(target=_watch_sockets, args=(run, sockets))
    watching.start()
    code, _, err = run.finish()
    watching.join()
    assert code == 0, err
    run.assert_nothing_is_left()
    return output, json.loads((output / "_run" / "report.json").read_text())


def test_no_process_of_a_run_with_a_real_engine_listens_or_speaks_beyond_loopback(
    undisturbed: tuple[Path, dict[str, Any]], sockets: dict[str, set[str]]
) -> None:
    assert {"gcs_server", "raylet", "VLLM::EngineCore"} <= sockets.keys()
    assert {ip.removeprefix("::ffff:") for found in sockets.values() for ip in found} <= {"127.0.0.1", "::1"}, sockets


@pytest.mark.timeout(600)
def test_the_demo_reaches_its_accuracy_on_rows_training_never_saw(undisturbed: tuple[Path, dict[str, Any]]) -> None:
    output, report = undisturbed
    heldout = report["accuracy"]["heldout"]
    assert heldout["compared"] > 1000
    assert heldout["accuracy"] >= 0.85
    rows = results(output)
    choices = {"data", "files", "system", "concurrency", "network", "markup", "gui", "tools", "runtime"}
    assert set(rows.column("predicted").to_pylist()) <= choices
    assert rows.num_rows == report["rows"] == report["rows_in_input"]
    assert report["rows_failed"] == 0
    assert report["seconds"]["waste"] == pytest.approx(0, abs=1e-6)
    assert_ledger_adds_up(output)


@pytest.mark.timeout(1500)
def test_kills_lose_nothing_double_nothing_and_leave_nothing(
    docstrings: Path, undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    # How many docstrings there are depends on the Python that runs.
    shards = undisturbed[1]["shards"]

    # The driver, by kill -9: nothing of its run survives it.
    run = Run.start(docstrings, output)
    run.wait_for_commits(3)
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait()
    run.assert_nothing_is_left()
    assert 3 <= run.committed() < shards

    # vLLM's engine process killed, then stopped for good, then the replica's actor: the run goes on by itself
    # with a new engine each.
    run = Run.start(docstrings, output)
    run.wait_for_commits(3)
    (engine,) = run.processes("VLLM::EngineCore")
    engine.kill()
    run.wait_for_commits(5)
    (engine,) = run.processes("VLLM::EngineCore")
    engine.suspend()
    run.wait_for_commits(5)
    assert not engine.is_running(), "an engine that hangs is killed"
    (actor,) = run.processes("ray::MapWorker(MapBatches(Replica))")
    (engine,) = run.processes("VLLM::EngineCore")
    actor.kill()
    assert psutil.wait_procs([engine], timeout=10)[1] == [], "an engine outlived its replica"

    # Ctrl-C, which a terminal sends to the whole group: what is in flight ends, and the exit code says so.
    run.wait_for_commits(3)
    os.killpg(run.process.pid, signal.SIGINT)
    code, _, err = run.finish()
    assert code == 4, err
    assert "Traceback" not in err
    assert "the same command goes on" in err
    run.assert_nothing_is_left()
    before = run.committed()
    assert before < shards

    run = Run.start(docstrings, output)
    code, _, err = run.finish()
    assert code == 0, err
    run.assert_nothing_is_left()
    committed = [json.loads(line) for line in err.splitlines() if '"shard committed"' in line]
    assert len(committed) == shards - before, "no committed shard ran again"

    whole = results(undisturbed[0]).select(COMPARED)
    assert results(output).select(COMPARED).equals(whole)
    assert_ledger_adds_up(output)
    replicas = pq.read_table(output / "_run" / "replicas.parquet")
    assert replicas.column("killed").to_pylist().count(True) == 2, "the driver's and the actor's"
    assert pa.compute.sum(replicas.column("wasted_seconds")).as_py() > 0
    assert max(pq.read_table(output / "accounting").column("attempt").to_pylist()) >= 2

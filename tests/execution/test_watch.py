"""What the driver notices of replicas while a run lasts."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pytest

from batchinfer.errors import OutputError
from batchinfer.execution import stop_and_budget
from batchinfer.execution.job import RunningJob
from batchinfer.execution.ray_pipeline import Work
from batchinfer.execution.replica_events import ReplicaEvents
from batchinfer.execution.stop_and_budget import Stopper, Tally, Watch
from batchinfer.input.manifest import Manifest
from batchinfer.rundir.commit import commit
from batchinfer.rundir.paths import Layout
from tests.support import ROOT
from tests.support.builders import make_plan, make_record, make_spec, manifest_of, write_parquet
from tests.support.scripted_jobs import KeepingListener

REPLICA = """
import sys, time
from batchinfer.accounting.meter import Meter
from batchinfer.execution.job import RunningJob
from batchinfer.execution.journal import Clock, Journal
from batchinfer.rundir.paths import Layout
from tests.support.builders import make_plan, make_spec
journal = Journal(RunningJob("run", make_spec(), make_plan(), Layout(sys.argv[1]), 3), Meter(1, Clock()))
journal.ready()
journal.begin(1)
print("begun", flush=True)
time.sleep(600)
"""


@pytest.fixture
def watching(tmp_path: Path) -> tuple[Watch, KeepingListener, Layout]:
    write_parquet(tmp_path / "in" / "a.parquet", {"text": ["x"] * 4})
    manifest = manifest_of(tmp_path / "in", ["text"], rows=2)
    layout = Layout(str(tmp_path / "out"))
    job = RunningJob("run", make_spec(limits={"max_cost_usd": 1000}), make_plan(), layout, 3)
    listener = KeepingListener()
    tally = Tally(job, cast(Manifest, manifest), Work(list(manifest.shards)), lambda journals: None)
    stopper = cast(Stopper, SimpleNamespace(reason="", stop=lambda reason: None, heed=lambda: None))
    return Watch(tally, stopper, ReplicaEvents(layout), listener), listener, layout


def until(condition: Any, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.integration
def test_a_replica_whose_process_was_killed_is_told_once_with_its_shards(
    watching: tuple[Watch, KeepingListener, Layout], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, listener, layout = watching
    # Longer than a journal's second on a busy machine, and no more than a test can wait.
    monkeypatch.setattr(stop_and_budget, "LOST_AFTER_SECONDS", 4.0)
    replica = subprocess.Popen(
        [sys.executable, "-c", REPLICA, layout.root], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert replica.stdout is not None
        assert replica.stdout.readline() == "begun\n"
        with watch:
            time.sleep(6)
            assert [name for name, _ in listener.events if name == "worker lost"] == [], "it lives"
            replica.kill()
            until(lambda: any(name == "worker lost" for name, _ in listener.events))
            time.sleep(3)
    finally:
        replica.kill()
        replica.wait()
    (lost,) = [values for name, values in listener.events if name == "worker lost"]
    assert lost["shards"] == [1]
    assert layout.storage.stat(layout.journal(lost["replica_id"])) is not None


def test_a_journal_that_others_damage_while_a_run_lasts_ends_it_with_one_message(
    watching: tuple[Watch, KeepingListener, Layout],
) -> None:
    watch, _, layout = watching
    with watch:
        layout.storage.put(layout.journal("0123456789ab"), b"not a journal")
        until(lambda: not watch._thread.is_alive())
        with pytest.raises(OutputError, match=r"0123456789ab\.json"):
            watch.check()


def test_a_row_is_expected_to_cost_what_it_takes_at_this_sessions_price(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in" / "a.parquet", {"text": ["x"] * 12})
    manifest = manifest_of(tmp_path / "in", ["text"], rows=4)
    layout = Layout(str(tmp_path / "out"))
    # An earlier session, in which a device was a tenth as dear: 4 device-seconds for 4 rows.
    commit(layout, pa.table({"id": [0]}), make_record(0, price_per_gpu_hour=0.36))
    job = RunningJob("run", make_spec(), make_plan(price_per_gpu_hour=3.6), layout, 3, session=2)
    tally = Tally(job, cast(Manifest, manifest), Work(list(manifest.shards[1:])), lambda journals: None)
    assert tally._standing().cost_per_row == pytest.approx(0.001)
    tally.add(make_record(1, gpu_seconds=8.0), won=True)
    assert tally._standing().cost_per_row == pytest.approx(0.002)


@pytest.mark.parametrize("begun", [True, False])
def test_a_stop_file_lets_the_shards_in_flight_end_unless_nothing_has_begun(begun: bool) -> None:
    listener, announced, asked = KeepingListener(), [], [False]
    stopper = Stopper(lambda: announced.append(True), lambda: asked[0], lambda: begun, lambda: False, listener)
    stopper.heed()
    assert stopper.reason == ""
    asked[0] = True
    stopper.heed()
    stopper.heed()
    assert stopper.reason == "stopped by a request"
    assert (announced, stopper.at_once) == (([True], False) if begun else ([], True))
    assert [name for name, _ in listener.events] == (["stopping"] if begun else [])


def test_a_stop_file_after_the_last_shard_changes_nothing() -> None:
    stopper = Stopper(lambda: None, lambda: True, lambda: True, lambda: True, KeepingListener())
    stopper.heed()
    assert stopper.reason == ""

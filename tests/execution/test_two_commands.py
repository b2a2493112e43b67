"""Two commands on one output: the second is refused, or finds what the first left, in whichever order they began."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchinfer.errors import OutputError
from batchinfer.execution import runner
from batchinfer.jobspec import JobSpec, to_yaml
from batchinfer.storage import Storage, join, storage_for
from tests.support.s3_runs import assert_whole, spec_on
from tests.support.scripted_jobs import KeepingListener, assert_ledger_adds_up, results, scripted_spec

pytestmark = pytest.mark.usefixtures("ray_cluster")


class Overtaken(KeepingListener):
    """While its command starts, after it has looked at the output, another command does all of its work there."""

    def __init__(self, other: Callable[[], object]) -> None:
        super().__init__()
        self._other: Callable[[], object] | None = other

    def event(self, name: str, **values: Any) -> None:
        super().event(name, **values)
        other, self._other = (self._other, None) if name == "connecting" else (None, self._other)
        if other is not None:
            other()

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.events]


def files(output: Path, *folders: str) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for folder in folders for p in sorted((output / folder).rglob("*")) if p.is_file()}


def test_a_run_that_another_one_overtook_leaves_its_results_alone(corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    spec = scripted_spec(corpus, output)
    left: dict[str, bytes] = {}

    def other() -> None:
        runner.run(spec, KeepingListener())
        left.update(files(output, "data", "accounting"))

    with pytest.raises(OutputError, match=r"another command ran in .* while this one started") as caught:
        runner.run(spec, Overtaken(other))
    assert caught.value.exit_code == 2
    assert len(left) == 20
    assert files(output, "data", "accounting") == left

    again = KeepingListener()
    assert runner.run(spec, again).rows == 1000
    assert again.records == []


def test_a_resume_that_another_one_overtook_runs_no_shard_twice(corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    spec = scripted_spec(corpus, output)
    runner.run(spec, KeepingListener())
    for shard in (2, 7):
        for folder in ("data", "accounting"):
            (output / folder / f"shard-{shard:06d}.parquet").unlink()
    first = KeepingListener()
    second = Overtaken(lambda: runner.run(spec, first))
    assert runner.run(spec, second).complete
    assert {record.shard_id for record in first.records} == {2, 7}
    assert second.records == []
    assert second.names[-1] == "nothing to do"
    assert_ledger_adds_up(output)


def test_a_retry_that_another_one_overtook_has_nothing_to_do(corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    refusing = {"scripted": {"reject_on": "row-07"}}
    runner.run(scripted_spec(corpus, output, engine=refusing, limits={"max_error_rate": 1}), KeepingListener())
    mended = ["engine.scripted.reject_on=no such row"]
    second = Overtaken(lambda: runner.retry(str(output), KeepingListener(), overrides=mended))
    report = runner.retry(str(output), second, overrides=mended)
    assert (report.rows_failed, second.records, second.names[-1]) == (0, [], "nothing to do")
    assert results(output).column("id").to_pylist() == [f"row-{i:04d}" for i in range(1000)]


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("place", ["local", "s3"])
@pytest.mark.parametrize("wakes", [False, True], ids=["killed", "stopped and woken"])
def test_while_one_runs_the_other_is_refused_and_once_it_is_dead_takes_over(
    place: str, wakes: bool, corpus: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    slow = {"engine": {"max_num_seqs": 50, "scripted": {"seconds_per_batch": 2}}, "shards": {"rows": 50}}
    if place == "s3":
        url, bucket = request.getfixturevalue("s3_url"), request.getfixturevalue("bucket")
        remote = request.getfixturevalue("remote_corpus")
        spec = spec_on(url, remote, f"{bucket}/out", {"lease_seconds": 5}, **slow)
    else:
        spec = scripted_spec(corpus, tmp_path / "out", **slow)
        spec = spec.model_copy(update={"input": spec.input.model_copy(update={"columns": ("topic",)})})
    store = storage_for(spec.output.uri, spec.storage)
    (tmp_path / "job.yaml").write_text(to_yaml(spec))
    command = [sys.executable, "-m", "batchinfer", "run", str(tmp_path / "job.yaml")]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))
    try:
        _wait(lambda: bool(_shards(store, spec)), 300)
        with pytest.raises(OutputError, match=f"{first.pid} on ") as caught:
            runner.run(spec, KeepingListener())
        assert caught.value.exit_code == 2
        if wakes and place == "s3":
            # A machine that stands still for longer than its lease.
            first.send_signal(signal.SIGSTOP)
        else:
            first.kill()
            first.wait()
        before = _shards(store, spec)
        second = KeepingListener()
        assert runner.run(spec, second).complete
        assert {record.shard_id for record in second.records}.isdisjoint(before)
    finally:
        first.send_signal(signal.SIGCONT)
        if not wakes:
            first.kill()
        code = first.wait(300)
    assert code != 0
    assert len(_shards(store, spec)) == 20
    if place == "s3":
        assert_whole(store, spec.output.uri)
    else:
        assert results(tmp_path / "out").column("id").to_pylist() == [f"row-{i:04d}" for i in range(1000)]
        assert_ledger_adds_up(tmp_path / "out")


def _shards(store: Storage, spec: JobSpec) -> set[int]:
    names = [entry.uri.rpartition("/")[2] for entry in store.list(join(spec.output.uri, "data"))]
    return {int(name[6:12]) for name in names if name.startswith("shard-")}


def _wait(happened: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.3)

"""Scheduled, incremental jobs on real Ray: files arrive between the ticks, processes die, every row comes out once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from batchinfer.errors import InputError, OutputBusy, UserError
from batchinfer.input.manifest import from_parquet
from batchinfer.jobspec import JobSpec, ScheduleSpec, to_yaml
from batchinfer.jobspec.cron import tick_name
from batchinfer.rundir.past_runs import past_runs, waiting_lock
from batchinfer.scheduling import recurring
from tests.support import ROOT
from tests.support.scripted_jobs import KeepingListener, assert_ledger_adds_up, results, scripted_spec

pytestmark = pytest.mark.usefixtures("ray_cluster")


def arrive(folder: Path, name: str, rows: int = 200) -> set[str]:
    """A file with `rows` rows, whole from the start. Returns the rows' ids."""
    ids = [f"{name}-{i:03d}" for i in range(rows)]
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": ids, "text": ids}), folder / f".{name}")
    (folder / f".{name}").rename(folder / f"{name}.parquet")
    return set(ids)


def nightly(inbox: Path, output: Path, /, **changes: Any) -> JobSpec:
    values: dict[str, Any] = {
        "name": "nightly",
        "input": {"uri": str(inbox), "id_column": "id", "incremental": {}},
        "schedule": {"cron": "0 2 * * *", "timezone": "UTC"},
    }
    return scripted_spec(inbox, output, **(values | changes))


def at(day: int, hour: int = 3) -> Callable[[], datetime]:
    return lambda: datetime(2026, 11, day, hour, tzinfo=UTC)


def tick(output: Path, day: int) -> Path:
    return output / tick_name(datetime(2026, 11, day, 2, tzinfo=UTC))


def run_due(spec: JobSpec, day: int) -> recurring.DueOutcome:
    assert spec.schedule is not None
    return recurring.run_due(spec, spec.schedule, KeepingListener(), clock=at(day))


def files(run: Path) -> list[str]:
    manifest = from_parquet((run / "_run" / "manifest.parquet").read_bytes())
    return [Path(uri).stem for uri in manifest.files]


def ids(run: Path) -> list[str]:
    found: list[str] = results(run).column("id").to_pylist()
    return found


def killed_half_way(spec: JobSpec, path: Path, run: Path, when: str) -> None:
    """The tick `when` in a process of its own, and kill -9 when it has committed something."""
    path.write_text(to_yaml(spec))
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "batchinfer", "run", str(path), "--at", when, "--address", address]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(run.glob("data/shard-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_over_all_ticks_every_row_comes_out_once(tmp_path: Path) -> None:
    inbox, output = tmp_path / "inbox", tmp_path / "out"
    spec = nightly(inbox, output)
    expected = arrive(inbox, "a") | arrive(inbox, "b")

    (first,) = run_due(spec, 18).reports
    assert (first.rows, first.tick) == (400, "20261118T020000Z")
    assert files(tick(output, 18)) == ["a", "b"]

    # The next night's run is killed when part of it is committed; what comes after it is not its own.
    expected |= arrive(inbox, "c", 600)
    slow = nightly(inbox, output, engine={"scripted": {"seconds_per_batch": 0.4}}, shards={"rows": 100})
    killed_half_way(slow, tmp_path / "nightly.yaml", tick(output, 19), "2026-11-19T02:00")
    assert [run.state for run in past_runs(str(output), "nightly", {})] == ["done", "unfinished"]
    before = {path: path.stat().st_mtime_ns for path in tick(output, 19).glob("data/shard-*")}
    assert 0 < len(before) < 6
    expected |= arrive(inbox, "d")

    # A night later: the dead run first, with its own files, then the tick of this night with the rest.
    outcome = run_due(slow, 20)
    assert [report.tick for report in outcome.reports] == ["20261119T020000Z", "20261120T020000Z"]
    assert [files(tick(output, day)) for day in (18, 19, 20)] == [["a", "b"], ["c"], ["d"]]
    assert all(path.stat().st_mtime_ns == then for path, then in before.items()), "no committed shard ran again"

    # Nothing new: nothing to do in the same night, a report of no rows in the next.
    assert run_due(slow, 20).reports == []
    (empty,) = run_due(spec.model_copy(update={"engine": slow.engine}), 21).reports
    assert (empty.rows, empty.rows_in_input, empty.complete, empty.shards) == (0, 0, True, 0)

    # A changed file comes again, by rule, and nothing else does. A night that was missed is made up for.
    again = arrive(inbox, "b", 150)
    missed, latest = run_due(slow, 23).reports
    assert (missed.tick, latest.tick) == ("20261122T020000Z", "20261123T020000Z")
    assert (missed.rows, files(tick(output, 22)), latest.rows) == (150, ["b"], 0)
    assert set(ids(tick(output, 22))) == again

    found = [one for day in (18, 19, 20) for one in ids(tick(output, day))]
    assert len(found) == len(set(found))
    assert set(found) == expected
    for day in (18, 19, 20, 22):
        assert_ledger_adds_up(tick(output, day))


def test_two_runs_that_look_at_the_same_time_do_not_take_the_same_file(tmp_path: Path) -> None:
    inbox, output = tmp_path / "inbox", tmp_path / "out"
    arrive(inbox, "a")
    spec = nightly(inbox, output, schedule={"cron": "0 2 * * *", "overlap": "allow"})
    listener = RunsAnother(lambda: run_due(spec, 18))
    assert spec.schedule is not None
    (late,) = recurring.run_due(spec, spec.schedule, listener, clock=at(19)).reports
    assert files(tick(output, 18)) == ["a"]
    assert (late.tick, late.rows) == ("20261119T020000Z", 0)


class RunsAnother(KeepingListener):
    """Lets another tick of the job run, whole, after this one has chosen its files and before it has claimed them."""

    def __init__(self, another: Callable[[], object]) -> None:
        super().__init__()
        self._another: Callable[[], object] | None = another

    def event(self, name: str, **values: Any) -> None:
        if name == "connecting" and self._another is not None:
            another, self._another = self._another, None
            another()


class LooksFromOutside(KeepingListener):
    """At the first commit of a run, lets another process see what is due on 19 November."""

    def __init__(self, spec: Path) -> None:
        super().__init__()
        self._spec = spec
        self.seen: subprocess.CompletedProcess[str] | None = None

    def advance(self, *values: Any) -> None:
        if self.seen is None:
            code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from tests.scheduling.test_recurring import run_due; from batchinfer.jobspec import load
print(run_due(load({str(self._spec)!r}), 19))"""
            self.seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_while_a_tick_runs_the_next_one_is_skipped_and_stays_so(tmp_path: Path) -> None:
    inbox, output = tmp_path / "inbox", tmp_path / "out"
    arrive(inbox, "a")
    spec = nightly(inbox, output)
    (tmp_path / "nightly.yaml").write_text(to_yaml(spec))
    outside = LooksFromOutside(tmp_path / "nightly.yaml")
    assert spec.schedule is not None
    recurring.run_due(spec, spec.schedule, outside, clock=at(18))
    assert outside.seen is not None
    assert outside.seen.stdout.strip() == "DueOutcome(reports=[], errors=[])", outside.seen.stderr
    assert [run.state for run in past_runs(str(output), "nightly", {})] == ["done", "skipped"]
    assert "20261118T020000Z was running" in (tick(output, 19) / "_run" / "skipped.json").read_text()
    assert run_due(spec, 19).reports == []


def test_a_job_that_is_held_refuses_a_run_by_hand(tmp_path: Path) -> None:
    inbox, output = tmp_path / "inbox", tmp_path / "out"
    arrive(inbox, "a")
    spec = nightly(inbox, output)
    with waiting_lock(f"{output}/_schedule/nightly.lock", 0, {}), pytest.raises(OutputBusy, match="the job nightly"):
        recurring.run(spec, KeepingListener(), at=at(18)())
    assert not tick(output, 18).exists()


def test_a_run_that_cannot_be_resumed_is_named_and_keeps_nobody_waiting(tmp_path: Path) -> None:
    inbox, output = tmp_path / "inbox", tmp_path / "out"
    spec = nightly(inbox, output)
    arrive(inbox, "a")
    run_due(spec, 18)
    # As if it had died before its second shard, and its file were gone since.
    (tick(output, 18) / "data" / "shard-000001.parquet").unlink()
    (tick(output, 18) / "_run" / "report.json").unlink()
    (inbox / "a.parquet").unlink()
    arrive(inbox, "b")
    outcome = run_due(spec, 19)
    assert [type(error) for error in outcome.errors] == [InputError]
    assert "a.parquet is gone" in outcome.errors[0].message
    assert files(tick(output, 19)) == ["b"]
    assert [run.state for run in past_runs(str(output), "nightly", {})] == ["unfinished", "done"]


def test_a_backfill_is_a_run_a_tick_and_only_what_is_missing(tmp_path: Path) -> None:
    output = tmp_path / "out"
    for day in (18, 19, 20):
        arrive(tmp_path / "in" / f"2026-11-{day - 1}", f"day{day}", 50)
    spec = nightly(
        tmp_path, output, input={"uri": str(tmp_path / "in" / "{{ run.date - 1 }}"), "id_column": "id"},
        output={"uri": str(output / "{{ run.date }}")},
    )  # fmt: skip
    run_due(spec, 19)
    listener = KeepingListener()
    reports = recurring.backfill(spec, [at(day, 2)() for day in (18, 19, 20)], listener)
    assert [report.rows for report in reports] == [50, 50, 50]
    assert [name for name, _ in listener.events].count("started") == 2
    for day in (18, 19, 20):
        assert ids(output / f"2026-11-{day}") == [f"day{day}-{i:03d}" for i in range(50)]
    with pytest.raises(UserError, match="2026-11-20 14:00 is no tick, and a run for it would take the folder"):
        recurring.run(spec, KeepingListener(), at=at(20, 14)())


def test_a_day_that_has_run_is_done_when_its_tick_is_moved(tmp_path: Path) -> None:
    inbox, output = tmp_path / "inbox", tmp_path / "out"
    arrive(inbox, "a", 20)
    spec = nightly(inbox, output, output={"uri": str(output / "{{ run.date }}")})
    run_due(spec, 18)
    later = spec.model_copy(update={"schedule": ScheduleSpec(cron="0 3 * * *")})
    listener = KeepingListener()
    assert later.schedule is not None
    outcome = recurring.run_due(later, later.schedule, listener, clock=at(18, 4))
    assert (outcome.reports, outcome.errors) == ([], [])
    (told,) = [values for name, values in listener.events if name.startswith("the schedule changed")]
    assert (told["tick"], told["ran"]) == ("20261118T030000Z", "20261118T020000Z")
    standing = recurring.standing(recurring.Scheduled("x.yaml", later, later.schedule), at(18, 4)())
    assert (standing.due, standing.ticks_due, standing.state) == (None, 0, "done")


def test_the_schedule_remembers_why_a_tick_failed_until_it_has_run(tmp_path: Path) -> None:
    output = tmp_path / "out"
    spec = nightly(
        tmp_path, output, input={"uri": str(tmp_path / "in" / "{{ run.date }}"), "id_column": "id"},
        output={"uri": str(output / "{{ run.date }}")},
    )  # fmt: skip
    arrive(tmp_path / "in" / "2026-11-17", "a", 20)
    run_due(spec, 17)
    arrive(tmp_path / "in" / "2026-11-19", "c", 20)
    assert spec.schedule is not None
    job = recurring.Scheduled("x.yaml", spec, spec.schedule)
    for attempt in (1, 2):
        outcome = run_due(spec, 18)
        assert [type(error) for error in outcome.errors] == [InputError]
        stands = recurring.standing(job, at(18)())
        assert (stands.state, stands.last_tick, stands.due) == ("failed", "2026-11-18T02:00:00+00:00", stands.last_tick)
        assert stands.problem is not None
        assert "2026-11-18" in stands.problem
        assert f"tried {attempt}x" in stands.problem
    # The night after it is not kept from its files, and the failed one is due until its files are there.
    assert [report.tick for report in run_due(spec, 19).reports] == ["20261119T020000Z"]
    arrive(tmp_path / "in" / "2026-11-18", "b", 20)
    assert [report.tick for report in run_due(spec, 19).reports] == ["20261118T020000Z"]
    stands = recurring.standing(job, at(19)())
    assert (stands.state, stands.problem, stands.ticks_due) == ("done", None, 0)
    assert list((output / "_schedule").glob("*.failed/*")) == []


def test_serve_runs_what_is_due_and_lets_it_drain_at_sigterm(tmp_path: Path) -> None:
    inbox, quick, slow, specs = (tmp_path / name for name in ("inbox", "quick", "slow", "specs"))
    expected = arrive(inbox, "a")
    specs.mkdir()
    (specs / "quick.yaml").write_text(to_yaml(nightly(inbox, quick)))
    lasting = nightly(
        inbox, slow, name="slow", engine={"max_num_seqs": 2, "scripted": {"seconds_per_batch": 3}}, shards={"rows": 5}
    )
    (specs / "slow.yaml").write_text(to_yaml(lasting))
    (specs / "once.yaml").write_text(to_yaml(scripted_spec(inbox, tmp_path / "once")))
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "batchinfer", "schedule"]
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        process = subprocess.Popen([*command, "serve", str(specs), "--address", address], stdout=out, stderr=err)
    deadline = time.monotonic() + 150
    while not (list(slow.glob("*/data/shard-*")) and '"tick ended"' in (tmp_path / "err").read_text()):
        assert process.poll() is None, (tmp_path / "err").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.terminate()
    assert process.wait(90) == 4
    events = [json.loads(line) for line in (tmp_path / "err").read_text().splitlines() if line.startswith("{")]
    ended = {event["job"]: event["exit_code"] for event in events if event["event"] == "tick ended"}
    assert ended == {"nightly": 0, "slow": 4}
    assert "200 of 200" in (tmp_path / "out").read_text()
    (run,) = quick.glob("*Z")
    assert set(ids(run)) == expected

    listed = subprocess.run([*command, "list", str(specs), "--json"], capture_output=True, text=True, check=True)
    rows = {row["name"]: row for row in json.loads(listed.stdout)}
    assert (rows["nightly"]["state"], rows["nightly"]["due"], rows["nightly"]["output"]) == ("done", None, str(run))
    assert rows["slow"]["state"] == "unfinished"
    assert not (tmp_path / "once").exists()

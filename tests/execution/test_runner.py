"""Whole jobs on real Ray Data with the scripted engine."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from batchinfer.accounting.report import Report
from batchinfer.errors import (
    EngineError,
    InputError,
    OutputError,
    Stopped,
    StorageError,
    TooManyFailedRows,
    UserError,
    WorkersLost,
)
from batchinfer.execution import reports, runner
from batchinfer.input.manifest import from_parquet
from batchinfer.jobspec import JobSpec
from tests.support.scripted_jobs import KeepingListener, assert_ledger_adds_up, results, scripted_spec, write_corpus
from tests.support.small_disk import small_disk

pytestmark = pytest.mark.usefixtures("ray_cluster")


@dataclass(frozen=True)
class Ran:
    """A job that was run to its end without a fault."""

    spec: JobSpec
    report: Report
    corpus: Path
    output: Path


@pytest.fixture(scope="module")
def ran_once(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("ran")
    corpus, output = write_corpus(folder / "corpus"), folder / "out"
    spec = scripted_spec(corpus, output, resources={"price_per_gpu_hour": 3.6})
    made = Ran(spec, runner.run(spec, KeepingListener()), corpus, output)
    shutil.copytree(output, folder / "kept")
    return made


@pytest.fixture
def ran(ran_once: Ran) -> Ran:
    """Its output as the run left it; the corpus is not to be changed."""
    shutil.rmtree(ran_once.output)
    shutil.copytree(ran_once.output.parent / "kept", ran_once.output)
    return ran_once


def test_every_row_comes_out_once_in_input_order(ran: Ran) -> None:
    output, report = ran.output, ran.report
    rows = results(output)
    assert rows.column("id").to_pylist() == [f"row-{i:04d}" for i in range(1000)]
    assert rows.column("output").to_pylist() == [f"the text of row-{i:04d}" for i in range(1000)]
    assert rows.column("topic").to_pylist() == ["even", "odd"] * 500
    assert rows.column("error_code").null_count == 1000
    assert sorted(p.name for p in (output / "data").iterdir()) == [f"shard-{i:06d}.parquet" for i in range(10)]
    for path in (output / "data").iterdir():
        assert pq.read_metadata(path).num_rows == 100, "a shard is a file, neither merged nor split"
    assert report.complete
    assert (report.rows, report.rows_failed, report.shards, report.replicas) == (1000, 0, 10, 1)
    assert_ledger_adds_up(output)


def test_the_files_of_a_run_hold_what_the_report_says(ran: Ran) -> None:
    output, report = ran.output, ran.report
    accounting = pq.read_table(output / "accounting")
    assert accounting.num_rows == 10
    for row in accounting.to_pylist():
        assert row["cost_usd"] == pytest.approx(row["gpu_seconds"] * 3.6 / 3600)
        assert row["tokens_per_second"] * row["wall_seconds"] == pytest.approx(
            row["input_tokens"] + row["output_tokens"]
        )
    replicas = pq.read_table(output / "_run" / "replicas.parquet")
    assert report.cost_usd == pytest.approx(sum(replicas.column("gpu_seconds").to_pylist()) * 3.6 / 3600)
    assert report.input_tokens == pc.sum(results(output).column("input_tokens")).as_py()
    assert json.loads((output / "_run" / "report.json").read_text()) == json.loads(report.model_dump_json())
    assert reports.report(str(output)) == report
    for name in ("spec.yaml", "plan.json", "manifest.parquet"):
        assert (output / "_run" / name).exists()


def test_a_local_cluster_listens_on_loopback_alone_and_wants_its_token(ran: Ran) -> None:
    listening: dict[str, list[tuple[str, int]]] = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            for socket in process.net_connections("inet"):
                if socket.status == psutil.CONN_LISTEN:
                    listening.setdefault(process.name(), []).append(socket.laddr)
    # The store, the node and the agents of Ray; its workers may have ended.
    assert {"gcs_server", "raylet"} < listening.keys()
    addresses = {ip.removeprefix("::ffff:") for sockets in listening.values() for ip, _ in sockets}
    assert addresses <= {"127.0.0.1", "::1"}, listening
    # A raylet listens for leases of workers and for objects, each on a port of its own.
    for name, methods in {
        "gcs_server": ["ray.rpc.InternalKVGcsService/InternalKVGet"],
        "raylet": ["ray.rpc.NodeManagerService/RequestWorkerLease", "ray.rpc.ObjectManagerService/Push"],
    }.items():
        told = {called_without_token(port, method) for _, port in listening[name] for method in methods}
        assert told <= {"UNAUTHENTICATED", "UNIMPLEMENTED"}, (name, told)
        assert "UNAUTHENTICATED" in told


def called_without_token(port: int, method: str) -> str:
    """The status with which a gRPC server on this machine answers an empty request."""
    import grpc

    def same(data: bytes) -> bytes:
        return data

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            channel.unary_unary(f"/{method}", request_serializer=same, response_deserializer=same)(b"", timeout=30)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


def test_running_again_does_nothing_and_says_so(ran: Ran, listener: KeepingListener) -> None:
    before = {p: p.stat().st_mtime_ns for p in (ran.output / "data").iterdir()}
    assert runner.run(ran.spec, listener) == ran.report
    assert [name for name, _ in listener.events] == ["nothing to do"]
    assert {p: p.stat().st_mtime_ns for p in (ran.output / "data").iterdir()} == before


def test_a_resume_runs_only_what_is_missing(ran: Ran) -> None:
    output = ran.output
    whole = results(output)
    for shard in (2, 7):
        (output / "data" / f"shard-{shard:06d}.parquet").unlink()
        (output / "accounting" / f"shard-{shard:06d}.parquet").unlink()
    # A commit that was cut off between its two writes.
    (output / "accounting" / "shard-000005.parquet").unlink()

    again = KeepingListener()
    report = runner.run(ran.spec, again)
    assert {record.shard_id for record in again.records} == {2, 7}
    assert results(output).equals(whole)
    assert pq.read_table(output / "accounting").num_rows == 10
    assert report.replicas == 2
    assert_ledger_adds_up(output)


def test_rows_that_kill_the_engine_are_set_aside_and_all_others_run(
    corpus: Path, tmp_path: Path, listener: KeepingListener
) -> None:
    output = tmp_path / "out"
    engine = {"max_num_seqs": 32, "scripted": {"kill_on": "row-0950", "hang_on": "row-0123"}}
    spec = scripted_spec(corpus, output, engine=engine, limits={"engine_timeout_seconds": 0.4})
    report = runner.run(spec, listener)
    rows = results(output)
    assert rows.column("id").to_pylist() == [f"row-{i:04d}" for i in range(1000)]
    killed = [123, 950]
    assert [i for i, code in enumerate(rows.column("error_code").to_pylist()) if code] == killed
    outputs = rows.column("output").to_pylist()
    assert outputs == [None if i in killed else f"the text of row-{i:04d}" for i in range(1000)]
    assert report.errors == {"engine_killed": 2}
    assert (report.replicas, report.replicas_killed) == (1, 0), "the replica outlives its engines"
    assert_ledger_adds_up(output)
    attempts = pq.read_table(output / "accounting").sort_by("shard_id").column("attempt").to_pylist()
    assert min(attempts[1], attempts[9]) > 4
    assert min(attempts) == 1, "a shard that was in no engine that died has one attempt"


def test_an_engine_that_dies_too_often_ends_the_run_resumable(
    corpus: Path, tmp_path: Path, listener: KeepingListener
) -> None:
    output = tmp_path / "out"
    engine = {"scripted": {"kill_on": "row-0950"}}
    spec = scripted_spec(corpus, output, engine=engine, limits={"max_engine_restarts": 1})
    with pytest.raises(EngineError, match=r"max_engine_restarts.*shards are left, in flight were .*9") as caught:
        runner.run(spec, listener)
    assert caught.value.exit_code == 1
    done = len(list((output / "data").iterdir()))
    assert 0 < done < 10
    again = KeepingListener()
    report = runner.run(scripted_spec(corpus, output, engine=engine), again)
    assert report.complete
    assert len(again.records) == 10 - done, "no committed shard runs again"
    assert report.errors == {"engine_killed": 1}
    assert_ledger_adds_up(output)


def kill_replica_after(commits: int, listener: KeepingListener) -> threading.Thread:
    """Kill -9 the actor of the run that `listener` hears of, once it has committed so many shards."""

    def kill() -> None:
        while len(listener.records) < commits:
            time.sleep(0.02)
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if " ".join(process.cmdline()).startswith("ray::MapWorker(MapBatches(Replica))"):
                    process.kill()

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread


def test_losses_of_workers_have_a_budget_of_their_own(corpus: Path, tmp_path: Path, listener: KeepingListener) -> None:
    output = tmp_path / "out"
    values: dict[str, Any] = {
        "engine": {"max_num_seqs": 25, "scripted": {"seconds_per_batch": 0.4}},
        "shards": {"rows": 25},
    }
    none = {"max_lost_workers": 0, "max_engine_restarts": 5}
    thread = kill_replica_after(3, listener)
    with pytest.raises(WorkersLost, match=r"max_lost_workers.*shards are left, in flight were") as caught:
        runner.run(scripted_spec(corpus, output, **values, limits=none), listener)
    thread.join(timeout=30)
    assert caught.value.exit_code == 1
    done = len(list((output / "data").iterdir()))
    assert 3 <= done < 40

    again = KeepingListener()
    thread = kill_replica_after(3, again)
    some = {"max_lost_workers": 3, "max_engine_restarts": 0}
    report = runner.run(scripted_spec(corpus, output, **values, limits=some), again)
    thread.join(timeout=30)
    assert report.complete
    assert (report.replicas, report.replicas_killed) == (3, 2)
    assert results(output).column("id").to_pylist() == [f"row-{i:04d}" for i in range(1000)]
    attempts = pq.read_table(output / "accounting").column("attempt").to_pylist()
    assert max(attempts) > 1, "what was lost with a replica counts, in this session and in the one before"
    assert_ledger_adds_up(output)


def test_failed_rows_are_rows(tmp_path: Path, listener: KeepingListener) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    texts = ["good", None, "", "   ", "x" * 400, "refuse me", "good too"]
    pq.write_table(pa.table({"id": list(range(7)), "text": texts}), folder / "a.parquet")
    spec = scripted_spec(
        folder,
        output,
        input={"uri": str(folder), "id_column": "id"},
        prompt={"column": "text"},
        engine={"max_model_len": 50, "scripted": {"reject_on": "refuse"}},
        limits={"max_error_rate": 1.0},
    )
    report = runner.run(spec, listener)
    rows = results(output)
    assert rows.column("error_code").to_pylist() == [
        None, "prompt_empty", "prompt_empty", "prompt_empty", "prompt_too_long", "engine_rejected", None,
    ]  # fmt: skip
    assert rows.column("output").to_pylist() == ["good", None, None, None, None, None, "good too"]
    assert report.errors == {"prompt_empty": 3, "prompt_too_long": 1, "engine_rejected": 1}
    assert report.rows_failed == 5
    assert_ledger_adds_up(output)


def test_max_tokens_reached_is_a_finish_reason_not_a_failure(
    corpus: Path, tmp_path: Path, listener: KeepingListener
) -> None:
    report = runner.run(scripted_spec(corpus, tmp_path / "out", sampling={"max_tokens": 2}), listener)
    assert report.finish_reasons == {"length": 1000}
    assert report.rows_failed == 0


def test_too_many_failed_rows_is_an_error_after_the_report(
    corpus: Path, tmp_path: Path, listener: KeepingListener
) -> None:
    spec = scripted_spec(corpus, tmp_path / "out", engine={"scripted": {"reject_on": "5"}})
    report = runner.run(spec, listener)
    assert report.complete
    with pytest.raises(TooManyFailedRows) as caught:
        reports.require_limits(report)
    assert caught.value.exit_code == 3
    assert f"batchinfer retry {report.output}" in caught.value.remedy


def test_retry_runs_the_failed_rows_only(corpus: Path, tmp_path: Path, listener: KeepingListener) -> None:
    output = tmp_path / "out"
    spec = scripted_spec(corpus, output, engine={"scripted": {"reject_on": "7"}}, limits={"max_error_rate": 1})
    before = runner.run(spec, listener)
    failed = sum("7" in f"{i:04d}" for i in range(1000))
    assert before.rows_failed == failed
    untouched = {p.name: p.read_bytes() for p in (output / "data").iterdir()}
    written = (output / "_run" / "spec.yaml").read_bytes()
    for wrong in ("prompt.template=x", "sampling.n=2", "output.uri=/elsewhere", "model.source=x"):
        with pytest.raises(UserError, match="a retry cannot change that"):
            runner.retry(str(output), listener, overrides=[wrong])

    again = KeepingListener()
    after = runner.retry(str(output), again, overrides=["engine.scripted.reject_on=row-0070"])
    assert (output / "_run" / "spec.yaml").read_bytes() == written
    rows = results(output)
    assert rows.column("id").to_pylist() == [f"row-{i:04d}" for i in range(1000)]
    assert [c for c in rows.column("error_code").to_pylist() if c] == ["engine_rejected"]
    assert rows.column("output").to_pylist()[700] == "the text of row-0700"
    assert sum(record.rows for record in again.records) == failed
    assert (after.rows, after.rows_failed) == (1000, 1)
    assert after.finish_reasons == {"stop": 999}, "each row that did not fail counts once"
    assert after.cost_usd > before.cost_usd
    assert_ledger_adds_up(output)
    assert pq.read_table(output / "accounting").filter(pc.field("generation") == 1).num_rows == len(again.records)
    assert untouched["shard-000007.parquet"] != (output / "data" / "shard-000007.parquet").read_bytes()

    once_more = runner.retry(str(output), KeepingListener(), overrides=["engine.scripted.reject_on=row-0070"])
    assert once_more.rows_failed == 1


def test_n_above_one_gives_lists(corpus: Path, tmp_path: Path, listener: KeepingListener) -> None:
    output = tmp_path / "out"
    runner.run(scripted_spec(corpus, output, sampling={"n": 3, "temperature": 1.0, "max_tokens": 64}), listener)
    rows = results(output)
    assert rows.schema.field("output").type == pa.list_(pa.string())
    assert rows.column("output").to_pylist()[41] == ["the text of row-0041"] * 3
    assert rows.column("finish_reason").to_pylist()[41] == ["stop"] * 3


def test_rows_are_numbered_where_no_id_is_named(corpus: Path, tmp_path: Path, listener: KeepingListener) -> None:
    output = tmp_path / "out"
    runner.run(scripted_spec(corpus, output, input={"uri": str(corpus)}), listener)
    assert results(output).column("row_number").to_pylist() == list(range(1000))


def test_jsonl_and_hive_partitions(tmp_path: Path, listener: KeepingListener) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    for day in (1, 2):
        (folder / f"day={day}").mkdir(parents=True)
        lines = [json.dumps({"id": f"{day}-{i}", "text": f"{i}"}) for i in range(150)]
        (folder / f"day={day}" / "rows.jsonl").write_text("\n".join(lines) + "\n\n")
    spec = scripted_spec(
        folder,
        output,
        input={"uri": str(folder), "format": "jsonl", "id_column": "id", "columns": ["day"]},
        prompt={"template": "{{ text }} of day {{ day }}"},
    )
    runner.run(spec, listener)
    rows = results(output)
    assert rows.column("output").to_pylist() == [f"{i} of day {d}" for d in (1, 2) for i in range(150)]
    assert rows.column("day").to_pylist() == [1] * 150 + [2] * 150


def test_an_answer_of_the_wrong_shape_is_kept_but_never_right(
    corpus: Path, tmp_path: Path, listener: KeepingListener
) -> None:
    output = tmp_path / "out"
    spec = scripted_spec(
        corpus,
        output,
        engine={"scripted": {"answer": "even"}},
        output={"uri": str(output), "regex": "odd"},
        evaluate={"expected": "topic"},
        limits={"max_error_rate": 1},
    )
    report = runner.run(spec, listener)
    assert report.errors == {"output_invalid": 1000}
    assert set(results(output).column("output").to_pylist()) == {"even"}
    assert (report.accuracy["all"].right, report.accuracy["all"].compared) == (0, 1000)
    assert report.finish_reasons == {}


def test_an_input_without_rows_is_a_run_without_rows(tmp_path: Path, listener: KeepingListener) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    schema = pa.schema([("id", pa.string()), ("text", pa.string())])
    pq.write_table(schema.empty_table(), folder / "none.parquet")
    spec = scripted_spec(folder, output, input={"uri": str(folder), "id_column": "id"})
    report = runner.run(spec, listener)
    assert (report.rows, report.complete, report.cost_usd) == (0, True, 0.0)


def test_accuracy_is_counted_by_group(corpus: Path, tmp_path: Path, listener: KeepingListener) -> None:
    spec = scripted_spec(
        corpus,
        tmp_path / "out",
        engine={"scripted": {"answer": "even"}},
        evaluate={"expected": "topic", "by": "topic"},
    )
    report = runner.run(spec, listener)
    assert {group: (a.right, a.compared) for group, a in report.accuracy.items()} == {
        "even": (500, 500),
        "odd": (0, 500),
    }


COST_OF_ENDING = 0.002
"""Two seconds at the price below: between the last shard's end and the replica's."""


def test_a_budget_of_nothing_starts_nothing(corpus: Path, tmp_path: Path, listener: KeepingListener) -> None:
    for limits in ({"max_cost_usd": 0.0}, {"max_runtime_hours": 0.0}):
        with pytest.raises(Stopped, match="is reached: 10 of 10 shards are left") as caught:
            runner.run(scripted_spec(corpus, tmp_path / "out", limits=limits), listener)
        assert "with a higher limit" in caught.value.remedy
    assert not (tmp_path / "out" / "_run" / "replicas").exists()


def test_a_time_limit_also_ends_a_run_whose_model_still_loads(
    corpus: Path, tmp_path: Path, listener: KeepingListener
) -> None:
    spec = scripted_spec(
        corpus, tmp_path / "out", engine={"scripted": {"load_seconds": 4}}, limits={"max_runtime_hours": 1 / 3600}
    )
    with pytest.raises(Stopped, match=r"limits.max_runtime_hours"):
        runner.run(spec, listener)
    assert listener.records == []
    (replica,) = pq.read_table(tmp_path / "out" / "_run" / "replicas.parquet").to_pylist()
    assert replica["load_seconds"] >= 4


def test_a_cost_limit_stops_and_a_higher_one_goes_on(corpus: Path, tmp_path: Path, listener: KeepingListener) -> None:
    output = tmp_path / "out"
    slow = {"max_num_seqs": 8, "scripted": {"seconds_per_batch": 0.7}}
    cheap: dict[str, Any] = {"engine": slow, "shards": {"rows": 25}, "resources": {"price_per_gpu_hour": 3.6}}
    spec = scripted_spec(corpus, output, **cheap, limits={"max_cost_usd": 0.004})
    with pytest.raises(Stopped, match=r"limits.max_cost_usd") as caught:
        runner.run(spec, listener)
    assert caught.value.exit_code == 4
    done = len(list((output / "data").iterdir()))
    assert 0 < done < 40
    replicas = pq.read_table(output / "_run" / "replicas.parquet")
    dearest = max(record.cost_usd for record in listener.records)
    in_flight = 3  # shards of three times as many rows as the engine has slots: see planner.shards_in_flight
    assert sum(replicas.column("cost_usd").to_pylist()) <= 0.004 + in_flight * dearest + COST_OF_ENDING

    before = replicas.num_rows
    with pytest.raises(Stopped, match=r"limits.max_cost_usd"):
        runner.run(spec, KeepingListener())
    assert len(list((output / "_run" / "replicas").iterdir())) == before, "nothing was loaded for no shard"

    report = runner.run(scripted_spec(corpus, output, **cheap), KeepingListener())
    assert report.complete
    assert results(output).column("id").to_pylist() == [f"row-{i:04d}" for i in range(1000)]
    assert_ledger_adds_up(output)


def test_a_disk_that_fills_ends_with_one_message_and_nothing_is_lost_or_twice_on_resume(
    tmp_path: Path, listener: KeepingListener
) -> None:
    texts = [os.urandom(4000).hex() for _ in range(100)]
    pq.write_table(pa.table({"id": [f"row-{i}" for i in range(100)], "text": texts}), tmp_path / "in.parquet")
    full = tmp_path / "full"
    spec = scripted_spec(
        tmp_path / "in.parquet",
        full / "out",
        input={"uri": str(tmp_path / "in.parquet"), "id_column": "id"},
        sampling={"max_tokens": 4000},
        shards={"rows": 10},
    )
    with small_disk(full, 260) as resize:
        with pytest.raises(StorageError, match=r"^[^\n]*No space left on device$") as caught:
            runner.run(spec, listener)
        assert caught.value.exit_code == 1
        assert "make room there, then run the same command again: committed shards are kept" in caught.value.remedy
        committed = {record.shard_id for record in listener.records}
        assert 0 < len(committed) < 10
        resize(16 * 1024)
        again = KeepingListener()
        assert runner.run(spec, again).complete
        assert committed.isdisjoint(record.shard_id for record in again.records)
        rows = results(full / "out")
        assert rows.column("id").to_pylist() == [f"row-{i}" for i in range(100)]
        assert rows.column("output").to_pylist() == texts
        assert_ledger_adds_up(full / "out")


def test_another_spec_is_refused_with_the_difference(ran: Ran, listener: KeepingListener) -> None:
    with pytest.raises(OutputError, match=r"sampling.max_tokens: 64 then, 65 now"):
        runner.run(scripted_spec(ran.corpus, ran.output, sampling={"max_tokens": 65}), listener)
    # What shapes no result may change.
    assert runner.run(scripted_spec(ran.corpus, ran.output, limits={"max_error_rate": 0.5}), listener).complete


def test_fresh_begins_anew(ran: Ran, listener: KeepingListener) -> None:
    assert runner.given_up_by_fresh(ran.spec) == []
    second = runner.run(ran.spec, listener, fresh=True)
    assert len(listener.records) == 10
    assert ran.report.run_id != second.run_id
    assert (second.rows, second.replicas) == (1000, 1)


def test_fresh_means_it_for_another_spec_too(ran: Ran, listener: KeepingListener) -> None:
    changed = scripted_spec(ran.corpus, ran.output, prompt={"template": "{{ topic }}"})
    assert runner.given_up_by_fresh(changed) == [
        f"{ran.output} has 10 shards of results of another spec:",
        "prompt.template: '{{ text }}' then, '{{ topic }}' now",
    ]
    assert runner.run(changed, listener, fresh=True).rows == 1000
    assert set(results(ran.output).column("output").to_pylist()) == {"even", "odd"}
    assert runner.given_up_by_fresh(changed) == []


def test_a_changed_input_is_refused_with_the_file_named(
    corpus: Path, tmp_path: Path, listener: KeepingListener
) -> None:
    spec = scripted_spec(corpus, tmp_path / "out")
    runner.run(spec, listener)
    (corpus / "part-3.parquet").write_bytes((corpus / "part-2.parquet").read_bytes())
    os.utime(corpus / "part-0.parquet")
    with pytest.raises(InputError, match=r"(?s)part-0.parquet has changed.*part-3.parquet is new"):
        runner.run(spec, listener)


def test_an_input_that_changes_during_the_run_fails_it_with_the_file_named(
    corpus: Path, tmp_path: Path, listener: KeepingListener
) -> None:
    output = tmp_path / "out"
    spec = scripted_spec(corpus, output, engine={"scripted": {"load_seconds": 4}})
    stop = threading.Event()

    def change() -> None:
        while not (output / "_run" / "manifest.parquet").exists() and not stop.is_set():
            time.sleep(0.01)
        os.utime(corpus / "part-2.parquet")

    thread = threading.Thread(target=change)
    thread.start()
    try:
        with pytest.raises(InputError, match=r"part-2.parquet has changed"):
            runner.run(spec, listener)
    finally:
        stop.set()
        thread.join()


def test_an_attempt_that_ends_late_loses_and_its_seconds_are_waste(
    ran: Ran, tmp_path: Path, listener: KeepingListener
) -> None:
    # Another replica of the run, believed dead, commits its shard while a second attempt is at it.
    zombie, output, late = ran.output, tmp_path / "out", tmp_path / "late.parquet"
    name = "shard-000003.parquet"

    def commit_meanwhile() -> None:
        while not listener.progress:
            time.sleep(0.01)
        for place in ("_run/replicas", "data"):
            (output / place).mkdir(parents=True, exist_ok=True)
        ids = [
            from_parquet((run / "_run/manifest.parquet").read_bytes()).fingerprint.run_id for run in (zombie, output)
        ]
        for journal in (zombie / "_run" / "replicas").iterdir():
            (output / "_run" / "replicas" / journal.name).write_text(journal.read_text().replace(*ids))
        rows = pq.read_table(zombie / "data" / name)
        old, new = (run_id.encode() for run_id in ids)
        pq.write_table(
            rows.replace_schema_metadata({k: v.replace(old, new) for k, v in rows.schema.metadata.items()}), late
        )
        os.link(late, output / "data" / name)

    thread = threading.Thread(target=commit_meanwhile)
    thread.start()
    try:
        slow = {"scripted": {"load_seconds": 2, "seconds_per_batch": 0.5}}
        report = runner.run(scripted_spec(ran.corpus, output, engine=slow), listener)
    finally:
        thread.join(timeout=30)
    assert report.complete
    assert {record.shard_id for record in listener.records} == set(range(10)) - {3}, "its attempt did not count"
    assert (output / "data" / name).read_bytes() == late.read_bytes()
    assert results(output).equals(results(zombie))
    assert report.seconds.waste > 0.01
    assert_ledger_adds_up(output)


def test_a_write_that_fails_fails_the_run(corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"

    class InTheWay(KeepingListener):
        """Once the run has begun, a folder stands where a file has to go: not even root can write it."""

        def event(self, name: str, **values: Any) -> None:
            if name == "started":
                (output / "data" / "shard-000003.parquet").mkdir(parents=True)

    report = None
    with pytest.raises(Exception, match=r"shard-000003") as caught:
        report = runner.run(scripted_spec(corpus, output), InTheWay())
    assert report is None
    assert getattr(caught.value, "exit_code", None) == 1

"""Submitting to a real Ray head of this machine, with its token authentication on."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import ray

import batchinfer
from batchinfer.cli import submit as cli
from batchinfer.deploy.ray_jobs import JobClient, connect, submit, submitted_progress
from batchinfer.errors import ClusterError, InputError
from batchinfer.jobspec import to_yaml
from batchinfer.rundir.journals import read_journals
from batchinfer.rundir.paths import Layout
from tests.support.heads import BIN, Head, cluster_environment, end, free_port, head, started
from tests.support.scripted_jobs import KeepingListener, assert_ledger_adds_up, results, scripted_spec

pytestmark = pytest.mark.end_to_end

SLOW = {"scripted": {"seconds_per_batch": 3.5}, "max_num_seqs": 30}
"""A shard takes longer than the three seconds that Ray gives a stopped job if nothing is set, and not all are in
flight at once."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Head]:
    with head(cpus=2) as made:
        yield made


@pytest.fixture(scope="module")
def client(cluster: Head) -> JobClient:
    made = connect(cluster.url)
    until(lambda: _has_started(made))
    return made


def _has_started(client: JobClient) -> bool:
    """The dashboard answers before the head's own node has joined."""
    with contextlib.suppress(ClusterError):
        return bool(client.nodes())
    return False


def until(happened: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.3)
    return found


def ended(client: JobClient, job_id: str) -> Any:
    return until(lambda: job if (job := client.job(job_id)).ended else None)


def events(client: JobClient, job_id: str, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in client.logs(job_id).splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == name]


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "batchinfer", *arguments],
        env=cluster_environment() | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def assert_refused(done: subprocess.CompletedProcess[str], message: str) -> None:
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.timeout(400)
def test_a_job_is_submitted_once_drained_when_stopped_and_goes_on_when_submitted_again(
    cluster: Head, client: JobClient, corpus: Path, tmp_path: Path, listener: KeepingListener, capsys: Any
) -> None:
    output = tmp_path / "out"
    spec = scripted_spec(corpus, output, engine=SLOW, labels={"team": "search"})
    sent = submit(spec, client, listener)
    assert (sent.already, sent.state) == (False, "running")
    assert sent.plan is not None
    assert sent.plan.accelerator == "cpu"
    assert not client.cluster().may_grow, "a cluster started by hand has no autoscaler"

    again = submit(spec.model_copy(update={"labels": {}}), client, listener)
    assert (again.id, again.already) == (sent.id, True)

    until(lambda: events(client, sent.id, "shard committed"))
    assert client.job(sent.id).labels == {"team": "search"}
    progress = submitted_progress(client.logs(sent.id))
    assert progress is not None
    assert 0 < progress["rows_done"] < progress["rows_total"] == 1000
    assert client.stop(sent.id)
    assert ended(client, sent.id).state == "stopped"
    logs = client.logs(sent.id)
    assert "error: stopped by SIGTERM" in logs
    committed = len(list((output / "data").glob("shard-*.parquet")))
    assert 0 < committed < 10
    (stopping,) = events(client, sent.id, "stopping")
    late = [e for e in events(client, sent.id, "shard committed") if e["timestamp"] > stopping["timestamp"]]
    assert late, "a shard in flight ended after the signal"

    spec_path = tmp_path / "job.yaml"
    spec_path.write_text(to_yaml(spec))
    fast = ("--set", "resources.replicas=1", "--set", "engine.max_num_seqs=2000", "--label", "owner=me")
    done = command("submit", str(spec_path), "--address", cluster.url, *fast, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["id"], document["already"]) == (f"{sent.id}-2", False)
    assert document["plan"]["chosen"]["replicas"] == 1
    shown: list[str] = []
    client.follow(document["id"], shown.append)
    assert "1,000 of 1,000" in "".join(shown)
    assert ended(client, document["id"]).state == "succeeded"
    assert len(events(client, document["id"], "shard committed")) == 10 - committed
    assert results(output).num_rows == 1000
    assert_ledger_adds_up(output)
    labels = pq.read_table(output / "accounting").column("labels").to_pylist()
    assert set(labels) == {'{"team": "search"}', '{"owner": "me", "team": "search"}'}

    capsys.readouterr()
    cli.list_jobs(cluster.url, as_json=True)
    listed = json.loads(capsys.readouterr().out)
    assert [(job["id"], job["state"]) for job in listed] == [(document["id"], "succeeded"), (sent.id, "stopped")]
    cli.status(document["id"], address=cluster.url)
    assert "1,000 of 1,000" in capsys.readouterr().out
    cli.stop(sent.id, address=cluster.url)
    assert "had ended before: stopped" in capsys.readouterr().out


@pytest.mark.timeout(300)
def test_every_command_that_follows_a_job_ends_with_its_exit_code(
    cluster: Head, client: JobClient, corpus: Path, tmp_path: Path
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(to_yaml(scripted_spec(corpus, tmp_path / "out", engine={"scripted": {"reject_on": "5"}})))
    # As behind a company's proxy, which is not asked for what lies on this machine.
    proxy = f"http://127.0.0.1:{free_port()}"
    where = {"HTTP_PROXY": proxy, "http_proxy": proxy, "RAY_API_SERVER_ADDRESS": cluster.url}
    sent = command("submit", str(path), "--wait", **where)
    assert sent.returncode == 3, sent.stderr
    assert "engine_rejected" in sent.stderr
    job_id = sent.stdout.strip()
    assert "1,000 of 1,000" in command("logs", job_id, **where).stdout
    followed = command("logs", job_id, "--follow", **where)
    assert followed.returncode == 3, followed.stderr
    assert "engine_rejected" in followed.stdout
    assert command("status", job_id, "--exit-code", **where).returncode == 3
    assert command("status", job_id, **where).returncode == 0


@pytest.mark.timeout(300)
def test_plain_ray_job_submit_queues_for_the_cluster_and_logs_progress_and_report(
    cluster: Head, client: JobClient, corpus: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "project"
    (folder / "jobs").mkdir(parents=True)
    spec = scripted_spec(corpus, tmp_path / "out")
    (folder / "jobs" / "x.yaml").write_text(to_yaml(spec))
    # Every CPU is taken until the job has said that it waits.
    gate = tmp_path / "gate"
    hold = f"while [ ! -e {gate} ]; do sleep 0.2; done"
    taken = client._client.submit_job(entrypoint=hold, entrypoint_num_cpus=2)
    until(lambda: client.job(taken).state == "running")
    asked = ["job", "submit", "--address", cluster.url, "--no-wait", "--submission-id", "plain"]
    done = subprocess.run(
        [BIN / "ray", *asked, "--working-dir", folder, "--", "python", "-m", "batchinfer", "run", "jobs/x.yaml"],
        env=cluster_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (waiting,) = until(lambda: events(client, "plain", "waiting"))
    assert waiting["needs"]["CPU"] > waiting["free"]["CPU"] == 0
    gate.touch()
    assert ended(client, "plain").state == "succeeded"
    assert len(events(client, "plain", "shard committed")) == 10
    assert "1,000 of 1,000" in client.logs("plain")
    assert results(tmp_path / "out").num_rows == 1000
    assert "plain" not in [job.id for job in client.jobs()], "list shows what batchinfer submitted"


@pytest.mark.timeout(300)
def test_an_output_that_ray_would_delete_is_refused_and_a_job_that_waits_stops_at_once(
    cluster: Head, client: JobClient, corpus: Path, tmp_path: Path, listener: KeepingListener
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    spec = scripted_spec(corpus, tmp_path / "out")
    (folder / "x.yaml").write_text(to_yaml(spec).replace(str(tmp_path / "out"), "runs/out"))
    entrypoint = "exec python -m batchinfer run x.yaml"
    client.send("relative", entrypoint, {"working_dir": str(folder)}, {})
    assert ended(client, "relative").exit_code == 2
    assert "which Ray deletes after the job" in client.logs("relative")

    taken = client._client.submit_job(entrypoint="sleep 300", entrypoint_num_cpus=2)
    until(lambda: client.job(taken).state == "running")
    sent = submit(spec, client, listener)
    until(lambda: events(client, sent.id, "waiting"))
    client.stop(sent.id)
    assert ended(client, sent.id).state == "stopped"
    assert "10 of 10 shards are left" in client.logs(sent.id)
    client.stop(taken)
    ended(client, taken)


@pytest.mark.timeout(300)
def test_a_node_joins_and_is_used_and_when_it_leaves_its_shards_run_elsewhere(
    cluster: Head, client: JobClient, corpus: Path, tmp_path: Path, listener: KeepingListener
) -> None:
    spec = scripted_spec(corpus, tmp_path / "out", engine=SLOW, shards={"rows": 50}, resources={"replicas": 2})
    # All of the head but half a CPU is taken: one replica fits there, the other has to be on the node that joins.
    taken = client._client.submit_job(entrypoint="sleep 300", entrypoint_num_cpus=1.2)
    until(lambda: client.job(taken).state == "running")
    with started(f"--address={cluster.address}", "--num-cpus=1") as node:
        until(lambda: len(client.nodes()) == 2)
        sent = submit(spec, client, listener, with_package=True)
        layout = Layout(str(tmp_path / "out"))
        until(lambda: sum(bool(journal.shards_in_flight) for journal in read_journals(layout)) == 2)
        end(node)
        client.stop(taken)
        assert ended(client, sent.id).state == "succeeded", client.logs(sent.id)
    assert results(tmp_path / "out").num_rows == 1000
    assert_ledger_adds_up(tmp_path / "out")
    records = pq.read_table(tmp_path / "out" / "accounting").to_pylist()
    assert len({row["replica_id"] for row in records}) >= 2
    assert max(row["attempt"] for row in records) >= 2, "a shard that was on the node ran again"
    assert pq.read_table(tmp_path / "out" / "_run" / "replicas.parquet").column("killed").to_pylist().count(True) == 1


def test_what_a_cluster_refuses_is_one_message_and_nothing_is_sent(
    cluster: Head, client: JobClient, corpus: Path, tmp_path: Path
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(to_yaml(scripted_spec(corpus, tmp_path / "out")))
    before = client.jobs()
    submission = ("submit", str(path), "--address")
    assert_refused(
        command(*submission, cluster.url, RAY_AUTH_TOKEN="wrong" * 10), "rejects the token, or received none"
    )
    assert_refused(command(*submission, f"http://127.0.0.1:{free_port()}"), "no cluster answers at")
    assert_refused(command("run", str(path), "--address", cluster.url), "not where a driver joins it")
    for address in ("ray://127.0.0.1:1", "http://", "http://127.0.0.1:99999"):
        with pytest.raises(ClusterError):
            connect(address)
    for act in (client.job, client.logs, client.stop):
        with pytest.raises(ClusterError, match="there is no job nothing"):
            act("nothing")
    assert client.jobs() == before
    assert not (tmp_path / "out").exists()


def test_a_spec_that_cannot_run_is_refused_here(
    client: JobClient, corpus: Path, tmp_path: Path, listener: KeepingListener
) -> None:
    spec = scripted_spec(corpus, tmp_path / "out", prompt={"template": "{{ txt }}"})
    with pytest.raises(InputError, match="did you mean 'text'"):
        submit(spec, client, listener)
    assert listener.events == []


@pytest.mark.timeout(200)
def test_another_version_on_the_cluster_is_said_and_nothing_runs(
    client: JobClient, corpus: Path, tmp_path: Path, listener: KeepingListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batchinfer, "__version__", "9.9.9")
    with pytest.raises(ClusterError, match=r"the cluster has batchinfer .*, this is 9\.9\.9"):
        submit(scripted_spec(corpus, tmp_path / "out"), client, listener)
    assert not (tmp_path / "out").exists()


def test_a_cluster_elsewhere_cannot_see_local_paths(
    client: JobClient, corpus: Path, tmp_path: Path, listener: KeepingListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As from another machine: none of the cluster's addresses is one of ours.
    monkeypatch.setattr(psutil, "net_if_addrs", dict)
    monkeypatch.setattr("batchinfer.deploy.ray_jobs.client._is_loopback", lambda ip: False)
    before = client.jobs()
    with pytest.raises(ClusterError, match=r"names paths of this one: input\.uri .*, output\.uri "):
        submit(scripted_spec(corpus, tmp_path / "out"), client, listener)
    assert client.jobs() == before


def test_the_proxy_on_the_way_to_a_cluster_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = f"127.0.0.1:{free_port()}"
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, f"http://me:secret@{proxy}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "elsewhere")
    with pytest.raises(ClusterError, match=rf"no cluster answers at .*\(through the proxy {proxy}\)") as caught:
        connect("http://head.example:8265")
    assert "NO_PROXY" in caught.value.remedy
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"ray_version": "2.9.0"}', "runs Ray 2.9.0, this is Ray"),
        (b"<html>", "is no Ray dashboard"),
        (b'{"ray_version": {}}', "is no Ray dashboard"),
        (b'{"ray_version": "none"}', "is no Ray dashboard"),
    ],
)
def test_a_server_that_is_not_our_ray(body: bytes, message: str) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ClusterError, match=message):
            connect(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"data": 5}', b'{"data": {"clusterStatus": 5, "result": [1]}}', b"5"])
def test_answers_of_another_form_are_one_message(body: bytes) -> None:
    version = json.dumps({"ray_version": ray.__version__}).encode()

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(version if self.path == "/api/version" else body)

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = connect(f"http://127.0.0.1:{server.server_port}")
        for ask in (lambda: client.job("a"), client.nodes, client.cluster, client.is_here):
            with pytest.raises(ClusterError, match="is no Ray dashboard"):
                ask()
        server.shutdown()


def test_a_dashboard_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchinfer.deploy.ray_jobs.client.ANSWER_SECONDS", 0.5)
    # It accepts connections, and reads nothing.
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ClusterError, match="no cluster answers"):
        connect(f"http://127.0.0.1:{silent.getsockname()[1]}")

"""The gateway as a client meets it: the official client, unchanged, against Ray Serve with the scripted engine."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from batchinfer.execution.process_guard import DRIVER
from batchinfer.gateway.names import new_batch_id
from tests.support import ROOT
from tests.support.commands import forked

pytestmark = pytest.mark.end_to_end

CHAT = "/v1/chat/completions"
SECONDS = 400.0
"""For a batch or a start: on a quiet machine some 10 s, on a busy one many times as long."""

ENGINES = """
engines:
  gpt-4o-mini:
    model: {source: scripted}
    resources: {price_per_gpu_hour: 3.6}
    shards: {rows: 10}
  slow:
    model: {source: scripted}
    engine: {scripted: {seconds_per_batch: 1}, max_num_seqs: 5}
    shards: {rows: 5}
"""


class Gateway:
    """A `batchinfer gateway` in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "root"
        (folder / "engines.yaml").write_text(ENGINES)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / "gateway.log"

    def start(self) -> None:
        command = [sys.executable, "-m", "batchinfer", "gateway", "--root", str(self.root)]
        command += ["--engines", str(self.folder / "engines.yaml"), "--port", str(self.port)]
        for _ in range(3):
            with self.log.open("wb") as log:
                # In a session of its own, so that a test may kill the group.
                self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
            deadline = time.monotonic() + SECONDS
            while self.process.poll() is None and time.monotonic() < deadline:
                if "gateway ready" in self.log.read_text():
                    return
                time.sleep(0.2)
            if self.process.poll() is None:
                self.kill()
            if "Ray did not start" not in self.log.read_text():
                break
        raise AssertionError(self.log.read_text())

    def kill(self) -> None:
        """kill -9 of the process group, as a node's end."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(SECONDS)

    def client(self) -> Any:
        from openai import OpenAI

        return OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    made = Gateway(tmp_path_factory.mktemp("gateway"))
    made.start()
    yield made
    if made.process is not None and made.process.poll() is None:
        assert made.stop() == 0
        assert_nothing_left(made)


def assert_nothing_left(gateway: Gateway) -> None:
    """No process of the gateway, of its cluster or of its batches lives on."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        left = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if str(gateway.root) in " ".join(process.cmdline()) and DRIVER in process.environ():
                    left.append(process.cmdline())
        if not left:
            return
        time.sleep(0.5)
    raise AssertionError(left)


def requests(count: int, model: str, **special: str) -> bytes:
    lines = []
    for number in range(count):
        body = {"model": model, "messages": [{"role": "user", "content": f"text {number}"}]}
        one = {"custom_id": f"r-{number}", "method": "POST", "url": CHAT, "body": body}
        lines.append(special.get(f"line{number}", json.dumps(one)))
    return "\n".join(lines).encode()


def created(client: Any, content: bytes, window: str = "24h", **more: Any) -> Any:
    file = client.files.create(file=("in.jsonl", io.BytesIO(content)), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window=window, **more)


def ended(client: Any, batch_id: str) -> tuple[Any, list[str]]:
    """The batch at its end, and the statuses that it was seen in."""
    seen: list[str] = []
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        # While the gateway is being started again, a call is refused at most.
        with contextlib.suppress(Exception) if not seen else contextlib.nullcontext():
            batch = client.batches.retrieve(batch_id)
            seen += [batch.status] if batch.status not in seen else []
            if batch.status in ("completed", "failed", "expired", "cancelled"):
                return batch, seen
        time.sleep(0.1)
    raise AssertionError(seen)


def answers(client: Any, file_id: str) -> dict[str, str]:
    found = [json.loads(line) for line in client.files.content(file_id).text.splitlines()]
    made = {one["custom_id"]: one["response"]["body"]["choices"][0]["message"]["content"] for one in found}
    assert len(made) == len(found)
    return made


def test_a_batch_goes_through_its_statuses_and_every_answer_is_its_own_requests(gateway: Gateway) -> None:
    client = gateway.client()
    content = requests(40, "gpt-4o-mini", line7="{broken", line9=requests(10, "other").decode().splitlines()[9])
    made = created(client, content, metadata={"team": "search"})
    batch, seen = ended(client, made.id)
    assert batch.status == "completed", batch
    order = ["validating", "in_progress", "finalizing", "completed"]
    assert seen == [one for one in order if one in seen]
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (40, 38, 2)
    assert answers(client, batch.output_file_id) == {f"r-{i}": f"text {i}" for i in range(40) if i not in (7, 9)}
    errors = [json.loads(line) for line in client.files.content(batch.error_file_id).text.splitlines()]
    assert [one["response"]["status_code"] for one in errors] == [400, 404]
    assert batch.metadata == {"team": "search"}
    assert batch.usage.total_tokens == batch.usage.input_tokens + batch.usage.output_tokens > 0
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    assert batch.id in [one.id for one in client.batches.list()]
    assert batch.output_file_id in [one.id for one in client.files.list(purpose="batch_output")]
    assert [one.id for one in client.models.list()] == ["gpt-4o-mini", "slow"]
    # The batch is an ordinary run, with its bill.
    report = forked("report", str(gateway.root / "owners" / "local" / "batches" / batch.id), "--json")
    told = json.loads(report.stdout)
    assert (told["rows"], told["complete"], told["labels"]) == (40, True, {"owner": "local"})
    assert told["cost_usd"] > 0


def test_the_code_of_the_how_to_page_works(gateway: Gateway, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "how-to" / "gateway.md").read_text()
    code = page.partition('```python title="client.py"\n')[2].partition("```")[0]
    assert "127.0.0.1:8000" in code
    done = subprocess.run(
        [sys.executable, "-c", code.replace("127.0.0.1:8000", f"127.0.0.1:{gateway.port}")],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == ["ticket-0 I was charged twice.", "ticket-1 No internet since Monday."]


def test_a_batch_is_cancelled_or_expires_and_what_is_done_is_kept(gateway: Gateway) -> None:
    client = gateway.client()
    running = created(client, requests(2000, "slow"))
    waiting = created(client, requests(10, "slow"), window="60d")
    client.batches.cancel(waiting.id)
    deadline = time.monotonic() + SECONDS
    while client.batches.retrieve(running.id).request_counts.completed == 0 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert client.batches.cancel(running.id).status == "cancelling"
    batch, seen = ended(client, running.id)
    assert (batch.status, seen[-1]) == ("cancelled", "cancelled")
    done = answers(client, batch.output_file_id)
    assert 0 < len(done) == batch.request_counts.completed < 2000
    assert all(done[name] == f"text {name.removeprefix('r-')}" for name in done)
    # One that never began has no files.
    never, _ = ended(client, waiting.id)
    assert (never.status, never.output_file_id, never.request_counts.completed) == ("cancelled", None, 0)

    late = created(client, requests(3000, "slow"), window="25s")
    batch, _ = ended(client, late.id)
    assert batch.status == "expired"
    assert batch.expired_at >= batch.expires_at == batch.created_at + 25
    if batch.output_file_id is not None:
        done = answers(client, batch.output_file_id)
        missed = [json.loads(line) for line in client.files.content(batch.error_file_id).text.splitlines()]
        assert {one["error"]["code"] for one in missed} == {"batch_expired"}
        assert sorted([*done, *(one["custom_id"] for one in missed)]) == sorted(f"r-{i}" for i in range(3000))


@pytest.mark.soak
def test_after_kill_9_of_the_gateway_the_next_one_goes_on(gateway: Gateway) -> None:
    client = gateway.client()
    made = [created(client, requests(200, "slow")), created(client, requests(50, "gpt-4o-mini"))]
    deadline = time.monotonic() + SECONDS
    while client.batches.retrieve(made[0].id).request_counts.completed == 0 and time.monotonic() < deadline:
        time.sleep(0.1)
    gateway.kill()
    assert_nothing_left(gateway)
    gateway.start()
    for one, count in zip(made, (200, 50), strict=True):
        batch, _ = ended(client, one.id)
        assert batch.status == "completed", batch
        assert batch.request_counts.completed == count
        assert answers(client, batch.output_file_id) == {f"r-{i}": f"text {i}" for i in range(count)}
    assert not list((gateway.root / "queues").rglob("*.batch_*"))


def test_what_cannot_be_served_is_refused_before_anything_starts(tmp_path: Path) -> None:
    engines = tmp_path / "engines.yaml"
    engines.write_text(ENGINES)
    arguments = ["gateway", "--root", str(tmp_path / "root"), "--engines", str(engines)]
    open_to_all = forked(*arguments, "--host", "0.0.0.0")
    assert (open_to_all.returncode, "no keys" in open_to_all.stderr) == (2, True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused = forked(*arguments, "--port", str(taken.getsockname()[1]))
    assert (refused.returncode, "is taken" in refused.stderr) == (2, True)
    for text, told in (
        ("engines: {}", "engines"),
        ("engines: {m: {modell: {}}}", "modell"),
        ("engines: {m: {model: {source: scripted}, limits: 5}}", "limits"),
        ("- 1", "the file"),
    ):
        engines.write_text(text)
        wrong = forked(*arguments)
        assert (wrong.returncode, told in wrong.stderr, "Traceback" in wrong.stderr) == (2, True, False)
    made = forked("keys", "create", "one", "--owner", "team-a", "--root", str(tmp_path / "root"))
    assert (made.returncode, made.stdout.startswith("sk-bi-")) == (0, True)
    assert "team-a" in forked("keys", "list", "--root", str(tmp_path / "root")).stdout
    assert forked("keys", "create", "one", "--owner", "../x", "--root", str(tmp_path / "root")).returncode == 2
    assert forked("keys", "revoke", "two", "--root", str(tmp_path / "root")).returncode == 2
    assert new_batch_id(2.0) < new_batch_id(1.0)

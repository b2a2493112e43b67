"""The gateway under clients that poll: how long GET /v1/batches/{id} takes, each client asking once a second.

    python benchmarks/gateway.py --clients 50 --seconds 30

It starts a gateway of its own on the scripted engine, with `--batches` batches in its queue, and prints the percentiles
in milliseconds. `--url` measures one that runs. Beside the gateway it measures how long this process itself is late
(its own timer), because on a busy machine the client waits for a CPU too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

CHAT = "/v1/chat/completions"
ENGINES = "engines: {m: {model: {source: scripted}, engine: {scripted: {seconds_per_batch: 3600}}}}\n"


@contextmanager
def gateway(folder: Path) -> Iterator[str]:
    """A gateway whose batches never end, so that each poll reads one that runs or waits."""
    (folder / "engines.yaml").write_text(ENGINES)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "batchinfer", "gateway", "--root", str(folder / "root"), "--port", str(port)]
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--engines", str(folder / "engines.yaml")], stdout=file, stderr=file, start_new_session=True
        )
    try:
        while "gateway ready" not in log.read_text():
            if process.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def batches(url: str, count: int) -> list[str]:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    line = json.dumps({"custom_id": "a", "method": "POST", "url": CHAT, "body": body})
    with httpx.Client(base_url=url, timeout=120) as client:
        sent = client.post("/v1/files", files={"file": ("in.jsonl", line * 1)}, data={"purpose": "batch"})
        asked = {"input_file_id": sent.json()["id"], "endpoint": CHAT, "completion_window": "24h"}
        return [client.post("/v1/batches", json=asked).json()["id"] for _ in range(count)]


async def poll(
    client: httpx.AsyncClient, batch: str, begin: float, end: float, took: list[float], late: list[float]
) -> None:
    at = begin
    while at < end:
        await asyncio.sleep(max(0.0, at - time.monotonic()))
        began = time.monotonic()
        late.append(began - at)
        answer = await client.get(f"/v1/batches/{batch}")
        took.append(time.monotonic() - began)
        assert answer.status_code == 200, answer.text
        at += 1.0


async def measure(url: str, ids: list[str], clients: int, seconds: float) -> tuple[list[float], list[float]]:
    took: list[float] = []
    late: list[float] = []
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=clients)) as client:
        await asyncio.gather(*(client.get(f"/v1/batches/{ids[0]}") for _ in range(clients)))
        begin = time.monotonic()
        await asyncio.gather(
            *(poll(client, ids[i % len(ids)], begin + i / clients, begin + seconds, took, late) for i in range(clients))
        )
    return took, late


def told(name: str, values: list[float]) -> str:
    ordered = sorted(values)
    at = {p: ordered[min(len(ordered) - 1, int(len(ordered) * p / 100))] * 1000 for p in (50, 90, 99)}
    return (
        f"{name}: n {len(ordered)}, "
        + ", ".join(f"p{p} {ms:.0f} ms" for p, ms in at.items())
        + (f", most {ordered[-1] * 1000:.0f} ms")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--batches", type=int, default=50)
    parser.add_argument("--url")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        if given.url:
            ids = batches(given.url, given.batches)
            took, late = asyncio.run(measure(given.url, ids, given.clients, given.seconds))
        else:
            with gateway(Path(name)) as url:
                ids = batches(url, given.batches)
                took, late = asyncio.run(measure(url, ids, given.clients, given.seconds))
    print(told("GET /v1/batches/{id}", took))
    print(told("the client's own timer was late by", late))
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")


if __name__ == "__main__":
    main()

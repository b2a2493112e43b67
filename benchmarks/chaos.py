"""Break things while a job runs, by a seeded schedule, and prove that nothing is lost, doubled or unaccounted for.

    python benchmarks/chaos.py [--kills 100] [--seed 1] [--shards 300] [--minutes 120] [--json]

A local Ray cluster of two nodes; the scripted engine with two replicas and one row that kills it; whole
`batchinfer run` commands, started again whenever they end, until the job is done; then the next job, until
all kills have happened. Results are compared with those of a run that nothing disturbed. Kills are real
`kill -9`; a full disk is a full tmpfs (needs root), lost permission an immutable folder (root) or its mode.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MARK = "BATCHINFER_CHAOS"
os.environ |= {MARK: uuid.uuid4().hex, "SPT_NOENV": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
# A folder of its own: from Ray's usual one, anybody's `ray.init()` would find and join this cluster.
os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="chaos-")

import psutil  # noqa: E402 # the mark has to be there first: Ray's processes inherit it
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from batchinfer.engine.scripted import PROCESS_NAME  # noqa: E402
from batchinfer.execution.process_guard import marked  # noqa: E402

ROWS_PER_SHARD = 50
REPLICAS = 2
ACTOR = "ray::MapWorker(MapBatches(Replica))"
WORKERS = ("ray::ReadShardSource", "ray::MapBatches(_commit)", "ray::IDLE")
"""Readers and committers, at work or between two tasks. Not Ray's agents: with one of those its node ends."""
KILLS = {"engine process": 36, "replica (actor)": 28, "worker process": 20, "driver": 10, "second node (raylet)": 6}
OTHERS = {
    "replica, SIGTERM": 4,
    "driver, SIGTERM": 3,
    "disk full": 3,
    "permission lost": 3,
    "second driver": 2,
    "node cut off, back later": 2,
}
"""How many of each come to 100 kills."""
PATIENCE_SECONDS = 20.0
COMPARED = ["id", "output", "finish_reason", "input_tokens", "output_tokens", "error_code"]


class Machines:
    """Two Ray nodes on this machine; the second one comes and goes."""

    def __init__(self) -> None:
        quick = {
            "health_check_initial_delay_ms": 2000,
            "health_check_period_ms": 1000,
            "health_check_failure_threshold": 5,
        }
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "_system_config": quick})
        self._second = self._cluster.add_node(num_cpus=1)
        self.address = self._cluster.address

    @property
    def raylet(self) -> psutil.Process:
        (info,) = self._second.all_processes["raylet"]
        return psutil.Process(info.process.pid)

    def replace(self) -> None:
        """The second node is gone: clear away what is left of it, and add another."""
        with contextlib.suppress(AssertionError):
            self._cluster.remove_node(self._second, allow_graceful=False)
        for last in (False, False, True):
            try:
                self._second = self._cluster.add_node(num_cpus=1)
                return
            except Exception:
                # On a busy machine a node may not start in the time that Ray gives it.
                if last:
                    raise

    def end(self) -> None:
        self._cluster.shutdown()


@dataclass
class Job:
    """One job on one output, run by as many drivers as it takes."""

    folder: Path
    output: Path
    address: str
    driver: subprocess.Popen[bytes] | None = None
    codes: Counter[int] = field(default_factory=Counter)

    def start(self) -> None:
        self.driver = self.launch(self.folder / f"{self.output.name}.log")

    def launch(self, log: Path) -> subprocess.Popen[bytes]:
        """Another `batchinfer run` of this job."""
        command = [sys.executable, "-m", "batchinfer", "run", str(self.folder / "job.yaml")]
        command += ["--set", f"output.uri={self.output}", "--address", self.address]
        with open(log, "ab") as file:
            return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)

    def committed(self) -> int:
        return len(list((self.output / "data").glob("shard-*.parquet")))

    def processes(self, part: str) -> list[psutil.Process]:
        """This benchmark's processes whose command line contains `part`."""
        found = []
        for process in marked(MARK, os.environ[MARK]):
            with contextlib.suppress(psutil.Error):
                if part in " ".join(process.cmdline()):
                    found.append(process)
        return found


class Chaos:
    """Strikes the running job."""

    def __init__(self, machines: Machines, job: Job, chance: random.Random) -> None:
        self._machines = machines
        self._job = job
        self._chance = chance

    def strike(self, kind: str) -> bool:
        """Do it; False if there is nothing of that kind to strike now."""
        job, driver = self._job, self._job.driver
        assert driver is not None
        if driver.poll() is not None:
            return False
        if kind == "driver":
            driver.kill()
            return True
        if kind == "driver, SIGTERM":
            driver.terminate()
            driver.wait(timeout=300)
            return True
        if kind == "second node (raylet)":
            self._machines.raylet.kill()
            self._machines.replace()
            return True
        if kind == "node cut off, back later":
            return self._cut_off()
        if kind == "disk full":
            return self._fill_disk()
        if kind == "permission lost":
            return self._forbid()
        if kind == "second driver":
            return self._second_driver()
        number = signal.SIGTERM if "SIGTERM" in kind else signal.SIGKILL
        parts = {"engine process": (PROCESS_NAME,), "worker process": WORKERS}.get(kind, (ACTOR,))
        found = [process for part in parts for process in job.processes(part)]
        if not found:
            return False
        with contextlib.suppress(psutil.NoSuchProcess):
            self._chance.choice(found).send_signal(number)
        return True

    def _cut_off(self) -> bool:
        """A node that Ray believes dead works on: its attempts end late, beside those that replace them."""
        raylet = self._machines.raylet
        raylet.suspend()
        time.sleep(8)
        with contextlib.suppress(psutil.NoSuchProcess):
            raylet.resume()
        time.sleep(2)
        self._machines.replace()
        return True

    def _fill_disk(self) -> bool:
        if not os.path.ismount(self._job.output):
            return False
        ballast = self._job.output / "ballast"
        with contextlib.suppress(OSError), open(ballast, "wb") as file:
            while True:
                file.write(bytes(2**16))
                file.flush()
        self._await_failure()
        ballast.unlink()
        return True

    def _forbid(self) -> bool:
        data = self._job.output / "data"
        if os.path.ismount(self._job.output) or not data.exists():
            return False
        if os.getuid() == 0:
            subprocess.run(["chattr", "+i", data], check=True)
        else:
            data.chmod(0o500)
        self._await_failure()
        if os.getuid() == 0:
            subprocess.run(["chattr", "-i", data], check=True)
        else:
            data.chmod(0o700)
        return True

    def _await_failure(self) -> None:
        assert self._job.driver is not None
        code = self._job.driver.wait(timeout=300)
        assert code in (0, 1), f"a place that cannot be written ended the run with {code}"

    def _second_driver(self) -> bool:
        """Refused, unless the first has ended meanwhile."""
        log = self._job.folder / "second.log"
        log.unlink(missing_ok=True)
        second = self._job.launch(log)
        code = second.wait(timeout=300)
        text = log.read_text()
        first = self._job.driver
        if first is not None and first.poll() is None:
            assert code == 2, text
            assert "another batchinfer is writing to this output" in text, text
            return True
        return False


def run_job(job: Job, machines: Machines, schedule: list[str], chance: random.Random, done: Counter[str]) -> None:
    """Run the job to its end while the schedule lasts; takes from `schedule`, counts into `done`."""
    chaos = Chaos(machines, job, chance)
    deadline = time.monotonic() + 3600
    struck_at, committed = 0.0, 0
    job.start()
    while True:
        assert job.driver is not None
        assert time.monotonic() < deadline, "the job does not end"
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = job.driver.wait(timeout=chance.uniform(0.2, 2.0))
            job.codes[code] += 1
            expected = (0, 1, 4, -signal.SIGKILL)
            assert code in expected, f"exit code {code}; see {job.folder}"
            if code == 0:
                return
            job.start()
            continue
        # Some work between two faults, or all of them would hit commands that are just starting.
        moved = job.committed() > committed or time.monotonic() > struck_at + PATIENCE_SECONDS
        if schedule and job.committed() and moved:
            # One whose victim is not there now comes later.
            for at, kind in enumerate(schedule):
                if chaos.strike(kind):
                    done[kind] += 1
                    del schedule[at]
                    struck_at, committed = time.monotonic(), job.committed()
                    print(f"{sum(done.values())}: {kind}, {job.committed()} shards", file=sys.stderr, flush=True)
                    break


def verify(job: Job, expected: pa.Table) -> dict[str, float]:
    """Every row once and as expected, the ledger's law; gives what was done again and wasted."""
    rows = pq.read_table(job.output / "data")
    lost = set(expected["id"].to_pylist()) - set(rows["id"].to_pylist())
    assert not lost, f"{len(lost)} rows lost"
    assert rows.num_rows == expected.num_rows, "rows doubled"
    assert rows.select(COMPARED).equals(expected.select(COMPARED)), "results differ"
    shards = pq.read_table(job.output / "accounting").to_pylist()
    replicas = pq.read_table(job.output / "_run" / "replicas.parquet").to_pylist()
    lifetimes = sum((r["finished_at"] - r["started_at"]).total_seconds() * r["num_gpus"] for r in replicas)
    work = sum(s["gpu_seconds"] for s in shards)
    waste = sum(r["wasted_seconds"] for r in replicas)
    rest = sum(r["load_seconds"] + r["idle_seconds"] for r in replicas)
    assert abs(work + rest + waste - lifetimes) < 1e-6 * max(1, len(replicas)), "the ledger's law is broken"
    return {
        "rows": rows.num_rows,
        "shards": len(shards),
        "again": sum(s["attempt"] - 1 for s in shards),
        "work": work,
        "waste": waste,
        "replicas": len(replicas),
        "error": abs(work + rest + waste - lifetimes),
    }


def write_job(folder: Path, shards: int) -> None:
    """The input, and a spec with a row that kills its engine."""
    (folder / "in").mkdir()
    ids = [f"row-{i:06d}" for i in range(shards * ROWS_PER_SHARD)]
    pq.write_table(pa.table({"id": ids, "text": [f"the text of {i}" for i in ids]}), folder / "in" / "rows.parquet")
    spec = {
        "name": "chaos",
        "model": {"source": "scripted"},
        "input": {"uri": str(folder / "in"), "id_column": "id"},
        "prompt": {"column": "text"},
        "output": {"uri": str(folder / "undisturbed")},
        "shards": {"rows": ROWS_PER_SHARD},
        "resources": {"replicas": REPLICAS, "accelerator": "cpu"},
        "engine": {
            "max_num_seqs": 32,
            "scripted": {"seconds_per_batch": 0.5, "load_seconds": 0.2, "kill_on": ids[len(ids) // 2]},
        },
        "limits": {"max_engine_restarts": 1000, "engine_timeout_seconds": 60},
    }
    (folder / "job.yaml").write_text(json.dumps(spec))


@contextlib.contextmanager
def place(folder: Path, number: int) -> Iterator[Path]:
    """Where a job's output goes: every other one to a small file system of its own, if that may be mounted."""
    output = folder / f"job-{number}"
    output.mkdir()
    small = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(output)]
    mounted = number % 2 == 0 and os.getuid() == 0 and subprocess.run(small, capture_output=True).returncode == 0
    try:
        yield output
    finally:
        if mounted:
            subprocess.run(["umount", "-l", output], check=True)


def make_schedule(kills: int, chance: random.Random) -> list[str]:
    """Kills in the proportions above, and the other faults in theirs, shuffled."""
    wanted = {kind: max(1, round(number * kills / 100)) for kind, number in KILLS.items()}
    wanted |= {kind: round(number * kills / 100) for kind, number in OTHERS.items()}
    wanted["engine process"] += max(0, kills - sum(wanted[kind] for kind in KILLS))
    schedule = [kind for kind, number in wanted.items() for _ in range(number)]
    chance.shuffle(schedule)
    return schedule


def main() -> None:
    """Run it all and print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shards", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=120, help="begin no further job after so long")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    schedule = make_schedule(options.kills, chance)
    done: Counter[str] = Counter()
    codes: Counter[int] = Counter()
    figures: list[dict[str, float]] = []
    began = time.monotonic()
    machines = Machines()
    try:
        with tempfile.TemporaryDirectory(prefix="batchinfer-chaos-") as name:
            folder = Path(name)
            write_job(folder, options.shards)
            calm = Job(folder, folder / "undisturbed", machines.address)
            run_job(calm, machines, [], chance, done)
            expected = pq.read_table(calm.output / "data")
            while schedule:
                with place(folder, len(figures)) as output:
                    job = Job(folder, output, machines.address)
                    run_job(job, machines, schedule, chance, done)
                    figures.append(verify(job, expected))
                    codes += job.codes
                    print(json.dumps(figures[-1]), file=sys.stderr, flush=True)
                    if time.monotonic() - began > options.minutes * 60:
                        break
    finally:
        machines.end()
        shutil.rmtree(os.environ["RAY_TMPDIR"], ignore_errors=True)
    total: dict[str, Any] = {name: sum(f[name] for f in figures) for name in figures[0]}
    total |= {"jobs": len(figures), "faults": dict(done), "kills": sum(done[kind] for kind in KILLS)}
    total |= {"exit_codes": dict(codes), "seconds": time.monotonic() - began, "seed": options.seed}
    print(json.dumps(total) if options.json else _table(total))


def _table(total: dict[str, Any]) -> str:
    lines = ["|figure|value|", "|---|---|"]
    lines += [f"|{name}|{value:,.6g}|" for name, value in total.items() if isinstance(value, int | float)]
    lines += [f"|{kind}|{number}|" for kind, number in total["faults"].items()]
    lines += [f"|commands that ended with {code}|{number}|" for code, number in total["exit_codes"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

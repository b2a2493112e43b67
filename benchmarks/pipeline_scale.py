"""The pipeline alone: speed, CPU time and memory against the number of rows and of shards, on the scripted engine.

    python benchmarks/pipeline_scale.py                      (10 thousand to 2 million rows, 10 to 1,000 shards)
    python benchmarks/pipeline_scale.py --full               (and 10 million rows, and 10,000 shards)
    python benchmarks/pipeline_scale.py 200000 2000000/500   (ROWS or ROWS/SHARDS; `shards.rows: auto` without)

Each run is a `batchinfer run` of its own. Speed is rows over the seconds in which the replica was ready, from the
run's own report. CPU time is that of all processes of the run, Ray's among them, looked at ten times a second: what
each spends after the last look is missed. "Beyond the start" takes off the CPU time of the table's first run, which
has few rows: what a row costs once everything runs. Memory is the peak resident set (VmHWM) of the driver and of the
replica, which holds the rows in flight.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

FILES = 20
TEXT = "a line of text that is about as long as the summary of a ticket, number "
DEFAULT = ("10000/10", "200000", "200000/1000", "2000000")
FULL = (*DEFAULT, "10000000", "10000000/10000")
COLUMNS = ("rows", "shards", "rows/s", "wall s", "CPU s", "CPU us/row", "beyond the start", "of it driver", "replica")
MEMORY = ("driver peak MiB", "replica peak MiB")


def write_input(folder: Path, rows: int) -> None:
    """`rows` rows in 20 files: a unique id and a text of about 80 bytes."""
    folder.mkdir(parents=True)
    for number in range(FILES):
        span = range(number * rows // FILES, (number + 1) * rows // FILES)
        table = pa.table({"id": [f"row-{i:09d}" for i in span], "text": [f"{TEXT}{i}" for i in span]})
        pq.write_table(table, folder / f"part-{number:03d}.parquet")


def peak_memory(pid: int) -> int:
    """The process's peak resident set so far in KiB, 0 once it is gone."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) if found else 0


@dataclass
class Seen:
    """CPU seconds and peak KiB of a process as they were when it was last looked at."""

    name: str = ""
    cpu_seconds: float = 0.0
    peak: int = 0


def watch(process: subprocess.Popen[str]) -> dict[int, Seen]:
    """Look at the process and all that descend from it until it ends; what was seen by process id."""
    seen: dict[int, Seen] = {}
    root = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            found = [root, *root.children(recursive=True)]
        except psutil.Error:
            found = []
        for one in found:
            try:
                spent = one.cpu_times()
                name = "driver" if one == root else " ".join(one.cmdline())
            except psutil.Error:
                continue
            entry = seen.setdefault(one.pid, Seen())
            # A worker has its name while it works only.
            entry.name = "replica" if "Replica" in name + entry.name else name
            entry.cpu_seconds = max(entry.cpu_seconds, spent.user + spent.system)
            entry.peak = max(entry.peak, peak_memory(one.pid))
        time.sleep(0.1)
    return seen


def measure(folder: Path, rows: int, shards: int | None) -> dict[str, float]:
    """Run `rows` rows, in about `shards` shards, and return what it took."""
    write_input(folder / "in", rows)
    spec = {
        "name": "scale",
        "model": {"source": "scripted"},
        "input": {"uri": str(folder / "in"), "id_column": "id"},
        "prompt": {"template": "Summarize: {{ text }}"},
        "sampling": {"max_tokens": 16},
        "shards": {"rows": -(-rows // shards) if shards else "auto"},
        "output": {"uri": str(folder / "out")},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(spec))
    command = [sys.executable, "-m", "batchinfer", "run", str(folder / "job.yaml"), "--json"]
    began = time.monotonic()
    with open(folder / "report.json", "w+") as out, open(folder / "log", "w") as log:
        process = subprocess.Popen(command, stdout=out, stderr=log, text=True)
        seen = watch(process).values()
        wall = time.monotonic() - began
    if process.returncode:
        sys.exit((folder / "log").read_text()[-2000:])
    report = json.loads((folder / "report.json").read_text())
    assert report["rows"] == rows, report
    measured = {"rows": rows, "shards": report["shards"], "rows/s": report["rows_per_second"], "wall s": wall}
    measured["CPU s"] = sum(entry.cpu_seconds for entry in seen)
    for name in ("driver", "replica"):
        measured[f"{name} CPU s"] = sum(entry.cpu_seconds for entry in seen if entry.name == name)
        measured[f"{name} peak MiB"] = max(entry.peak for entry in seen if entry.name == name) / 1024
    return measured


def table_row(m: dict[str, float], first: dict[str, float]) -> str:
    """A line of the table; `first` is the run whose CPU time counts as the start's."""

    def beyond(name: str) -> str:
        rows = m["rows"] - first["rows"]
        return f"{(m[name] - first[name]) / rows * 1e6:.1f}" if rows > 0 else ""

    cells = [f"{m['rows']:,}", f"{m['shards']:,}", f"{m['rows/s']:,.0f}", f"{m['wall s']:.1f}", f"{m['CPU s']:.1f}"]
    cells += [f"{m['CPU s'] / m['rows'] * 1e6:.1f}", *map(beyond, ("CPU s", "driver CPU s", "replica CPU s"))]
    return "|" + "|".join([*cells, *(f"{m[name]:.0f}" for name in MEMORY)]) + "|"


def main() -> None:
    """Measure every case and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*", metavar="ROWS[/SHARDS]")
    parser.add_argument("--full", action="store_true", help="10 million rows and 10,000 shards too")
    arguments = parser.parse_args()
    print("|" + "|".join((*COLUMNS, *MEMORY)) + "|\n" + "|---" * len((*COLUMNS, *MEMORY)) + "|", flush=True)
    first: dict[str, float] = {}
    for case in arguments.cases or (FULL if arguments.full else DEFAULT):
        rows, _, shards = case.partition("/")
        with tempfile.TemporaryDirectory(prefix="batchinfer-scale-") as folder:
            measured = measure(Path(folder), int(rows), int(shards) if shards else None)
        first = first or measured
        print(table_row(measured, first), flush=True)


if __name__ == "__main__":
    main()

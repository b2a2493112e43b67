"""The pipeline alone: speed and the driver's memory against the number of rows, on the scripted engine.

    python benchmarks/pipeline_scale.py [ROWS ...]        (default: 200000 2000000)

Each run is a `batchinfer run` of its own. Memory is the driver's peak resident set (VmHWM), speed is rows
over the seconds in which the replica was ready, from the run's own report.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

FILES = 20
TEXT = "a line of text that is about as long as the summary of a ticket, number "


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


def measure(folder: Path, rows: int) -> dict[str, float]:
    """Run `rows` rows and return what it took."""
    write_input(folder / "in", rows)
    spec = {
        "name": "scale",
        "model": {"source": "scripted"},
        "input": {"uri": str(folder / "in"), "id_column": "id"},
        "prompt": {"template": "Summarize: {{ text }}"},
        "sampling": {"max_tokens": 16},
        "output": {"uri": str(folder / "out")},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(spec))
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "batchinfer", "run", str(folder / "job.yaml"), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, peak_memory(process.pid))
        time.sleep(0.05)
    wall = time.monotonic() - began
    report = json.loads(process.communicate()[0])
    assert report["rows"] == rows, report
    return {
        "rows": rows,
        "shards": report["shards"],
        "rows_per_second": report["rows_per_second"],
        "wall_seconds": wall,
        "driver_peak_mib": peak / 1024,
    }


def main() -> None:
    """Measure every size and print a table."""
    sizes = [int(argument) for argument in sys.argv[1:]] or [200_000, 2_000_000]
    print("|rows|shards|rows/s|wall s|driver peak MiB|\n|---|---|---|---|---|")
    for rows in sizes:
        with tempfile.TemporaryDirectory(prefix="batchinfer-scale-") as folder:
            m = measure(Path(folder), rows)
            print(
                f"|{m['rows']:,}|{m['shards']:,}|{m['rows_per_second']:,.0f}|{m['wall_seconds']:.1f}"
                f"|{m['driver_peak_mib']:.0f}|",
                flush=True,
            )


if __name__ == "__main__":
    main()

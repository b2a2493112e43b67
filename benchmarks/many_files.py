"""Many rows in many files: the manifest, the driver's memory, and what a resume costs, on the scripted engine.

    python benchmarks/many_files.py [ROWS FILES [ROWS_PER_SHARD]]        (default: 10000000 2000, shards as `auto` cuts)

Each step is a `batchinfer` command of its own: `validate` (which builds the manifest and throws it away), `run`,
`run` again when all is done, and `run` after 1% of the shards lost their results and their accounting. Memory is the
driver's resident set: its peak, and how it stood at a quarter of the shards and at the last one. Bytes read are
the driver's own system calls (`rchar` in /proc/PID/io): what it read again of the run and of the input.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pipeline_scale import TEXT, peak_memory


def write_input(folder: Path, rows: int, files: int) -> int:
    """`rows` rows in `files` files: a unique id and a text of about 80 bytes. Returns their bytes."""
    folder.mkdir(parents=True)
    for number in range(files):
        span = range(number * rows // files, (number + 1) * rows // files)
        table = pa.table({"id": [f"row-{i:09d}" for i in span], "text": [f"{TEXT}{i}" for i in span]})
        pq.write_table(table, folder / f"part-{number:05d}.parquet")
    return sum(path.stat().st_size for path in folder.iterdir())


def status(pid: int, file: str, key: str) -> int:
    """A number from /proc/PID/FILE; 0 once the process is gone."""
    try:
        found = re.search(rf"^{key}:\s+(\d+)", Path(f"/proc/{pid}/{file}").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0


def command(*arguments: str) -> dict[str, float]:
    """Run one command and return what it took of the driver, and its events."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "batchinfer", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    seen: dict[str, float] = {"peak_mib": 0, "read_mib": 0, "committed": 0, "events_s": 0}

    def watch() -> None:
        while process.poll() is None:
            seen["peak_mib"] = max(seen["peak_mib"], peak_memory(process.pid) / 1024)
            seen["read_mib"] = max(seen["read_mib"], status(process.pid, "io", "rchar") / 2**20)
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    answer: list[str] = []
    reader = threading.Thread(target=lambda: answer.append(process.stdout.read() if process.stdout else ""))
    reader.start()
    for line in process.stderr or ():
        try:
            event = json.loads(line)
        except ValueError:
            print(line, end="", file=sys.stderr)
            continue
        if event["event"] in ("started", "resumed"):
            seen["begun_s"] = time.monotonic() - began
            seen["left"] = event["shards"] - event["committed"]
        elif event["event"] == "shard committed":
            seen["committed"] += 1
            if seen["committed"] == -(-seen["left"] // 4):
                seen["quarter_mib"] = status(process.pid, "status", "VmRSS") / 1024
            seen["end_mib"] = status(process.pid, "status", "VmRSS") / 1024
            seen["last_s"] = time.monotonic() - began
    process.wait()
    reader.join()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"batchinfer {' '.join(arguments)} ended with {process.returncode}")
    report = json.loads(answer[0]) if answer[0].startswith("{") else {}
    return seen | {"wall_s": time.monotonic() - began, "rows": report.get("rows", 0), "shards": report.get("shards", 0)}


def lose_one_percent(output: Path) -> int:
    """Delete every hundredth shard's results and accounting. Returns how many."""
    lost = sorted(path.name for path in (output / "data").iterdir())[::100]
    for name in lost:
        (output / "data" / name).unlink()
        (output / "accounting" / name).unlink()
    return len(lost)


def main() -> None:
    """Measure each step and print a table."""
    rows, files, *shard = [int(argument) for argument in sys.argv[1:]] or [10_000_000, 2_000]
    with tempfile.TemporaryDirectory(prefix="batchinfer-many-") as name:
        folder = Path(name)
        size = write_input(folder / "in", rows, files)
        spec = {
            "name": "many-files",
            "model": {"source": "scripted"},
            "input": {"uri": str(folder / "in"), "id_column": "id"},
            "prompt": {"template": "Summarize: {{ text }}"},
            "sampling": {"max_tokens": 16},
            "output": {"uri": str(folder / "out")},
            "shards": {"rows": shard[0] if shard else "auto"},
        }
        job = folder / "job.yaml"
        job.write_text(yaml.safe_dump(spec))
        print(f"{rows:,} rows in {files:,} files of {size / 2**20:,.0f} MiB together\n")
        print("|step|wall s|shards run|driver peak MiB|at 1/4 MiB|at the end MiB|driver read MiB|", flush=True)
        print("|---|---|---|---|---|---|---|")

        def told(step: str, m: dict[str, float]) -> None:
            print(
                f"|{step}|{m['wall_s']:.1f}|{m['committed']:,.0f}|{m['peak_mib']:.0f}"
                f"|{m.get('quarter_mib', 0):.0f}|{m.get('end_mib', 0):.0f}|{m['read_mib']:.0f}|",
                flush=True,
            )

        told("validate", command("validate", str(job)))
        whole = command("run", str(job), "--json")
        told("run", whole)
        again = command("run", str(job), "--json")
        told("run again", again)
        lost = lose_one_percent(folder / "out")
        resumed = command("run", str(job), "--json")
        told("resume of 99%", resumed)
        results = sum(pq.read_metadata(path).num_rows for path in (folder / "out" / "data").iterdir())
        assert whole["rows"] == again["rows"] == resumed["rows"] == results == rows
        assert resumed["committed"] == lost, resumed
        print(
            f"\nrun: {whole['begun_s']:.1f} s to the start, {rows / whole['wall_s']:,.0f} rows/s over the whole command"
        )
        print(f"resume: {resumed['begun_s']:.1f} s to the start, {resumed['last_s']:.1f} s to the last shard")
        print(f"manifest.parquet: {(folder / 'out/_run/manifest.parquet').stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

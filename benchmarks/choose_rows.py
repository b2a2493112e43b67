"""What it takes to choose rows: `where` over ten million rows, and a large `csv.gz`; writes the lines of RESULTS.md.

`python benchmarks/choose_rows.py [--rows 10000000] [--csv-bytes 1000000000]`
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer.input import build_manifest, read_shards
from batchinfer.input.manifest import Fingerprint, read_together, to_parquet
from batchinfer.jobspec import JobSpec
from batchinfer.prompting.prompts import needed_columns

FILES = 10
ROWS_OF_A_GROUP = 100_000


def write_parquet(folder: Path, rows: int) -> None:
    """Files of ids, a language, a random share and a short text."""
    random = np.random.default_rng(1)
    for number in range(FILES):
        count = rows // FILES
        first = number * count
        table = pa.table(
            {
                "id": np.arange(first, first + count),
                "lang": pa.array(np.array(["de", "en", "fr", "es"])[random.integers(0, 4, count)]),
                "share": random.random(count),
                "body": pa.array([f"text of the row {i}" for i in range(first, first + count)]),
            }
        )
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=ROWS_OF_A_GROUP)


def write_csv(path: Path, size: int) -> int:
    """A packed file of about `size` bytes; returns the bytes that it unpacks to."""
    random = np.random.default_rng(1)
    number = unpacked = 0
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b"id,lang,body\n")
        while path.stat().st_size < size:
            noise = random.bytes(10_000 * 40).hex()
            lines = [
                f'{number + i:010},{"de" if i % 2 else "en"},"text, with ""quotes"" {noise[i * 80 : i * 80 + 80]}"\n'
                for i in range(10_000)
            ]
            data = "".join(lines).encode()
            file.write(data)
            number, unpacked = number + len(lines), unpacked + len(data)
    return unpacked


def measure(folder: str, file_format: str, keys: str) -> None:
    """In a process of its own, so that its peak of memory is its own."""
    spec = JobSpec.model_validate(
        {
            "name": "rows",
            "model": {"source": "scripted"},
            "input": {"uri": folder, "format": file_format, "id_column": "id", **json.loads(keys)},
            "prompt": {"column": "body"},
            "output": {"uri": "/tmp/never-written"},
        }
    )
    start = time.monotonic()
    manifest = build_manifest(spec, needed_columns(spec), Fingerprint(run_id="r", spec={}))
    cut = time.monotonic() - start
    written = len(to_parquet(manifest))
    start, rows = time.monotonic(), 0
    for group in read_together(manifest.shards):
        for _, table in read_shards(group, manifest.schema, (), spec.input):
            rows += table.num_rows
    read = time.monotonic() - start
    # Of this program alone: `ru_maxrss` begins with what the process was before.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    print(
        f"|{keys}|{manifest.rows_of_all}|{len(manifest.shards)}|{cut:.1f}|{read:.1f}|{used:.1f}|{peak:.0f}|{written:,}|"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--csv-bytes", type=int, default=1_000_000_000)
    parser.add_argument("--measure", nargs=3)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure)
        return
    print("|keys of input|rows|shards|cut (s)|read all shards (s)|CPU (s)|peak (MiB)|manifest (bytes)|")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as place:
        for name in ("parquet", "csv"):
            Path(place, name).mkdir()
        runs = []
        if options.rows:
            write_parquet(Path(place, "parquet"), options.rows)
            for keys in ({}, {"where": "share < 0.5"}, {"where": "lang = 'de' AND share < 0.001"}, {"limit": 5000}):
                runs.append(("parquet", keys))
            runs.append(("parquet", {"sample": {"rows": 200, "seed": 7}}))
        if options.csv_bytes:
            unpacked = write_csv(Path(place, "csv", "part-0000.csv.gz"), options.csv_bytes)
            print(f"the csv.gz unpacks to {unpacked:,} bytes", file=sys.stderr)
            runs += [("csv", {}), ("csv", {"where": "lang = 'de'"})]
        for name, keys in runs:
            subprocess.run(
                [sys.executable, __file__, "--measure", str(Path(place, name)), name, json.dumps(keys)], check=True
            )


if __name__ == "__main__":
    main()

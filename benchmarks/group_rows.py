"""What it takes to bring the rows of groups together: `reduce` over ten million rows; writes the line of RESULTS.md.

`python benchmarks/group_rows.py [--rows 10000000] [--groups 100000] [--text 200]`
"""

from __future__ import annotations

import argparse
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
from batchinfer.input.manifest import Fingerprint
from batchinfer.jobspec import JobSpec
from batchinfer.prompting.prompts import needed_columns

FILES = 10
ROWS_OF_A_GROUP = 100_000


def write_input(folder: Path, rows: int, groups: int, text: int) -> None:
    """Files of ids, a customer at random, and a text of so many characters."""
    random = np.random.default_rng(1)
    for number in range(FILES):
        with pq.ParquetWriter(
            folder / f"{number}.parquet",
            pa.schema([("id", pa.int64()), ("customer", pa.string()), ("body", pa.string())]),
        ) as writer:
            for first in range(number * rows // FILES, (number + 1) * rows // FILES, ROWS_OF_A_GROUP):
                ids = np.arange(first, min(first + ROWS_OF_A_GROUP, (number + 1) * rows // FILES))
                noise = random.bytes(len(ids) * text // 2).hex()
                columns = {
                    "id": ids,
                    "customer": [f"customer-{n}" for n in random.integers(0, groups, len(ids))],
                    "body": [noise[i * text : (i + 1) * text] for i in range(len(ids))],
                }
                writer.write_table(pa.table(columns))


def measure(folder: str) -> None:
    """In a process of its own, so that its peak of memory is its own."""
    values = {
        "name": "groups",
        "model": {"source": "scripted"},
        "input": {"uri": folder, "id_column": "id"},
        "reduce": {"key": "customer", "members": True},
        "prompt": {"template": "{{ body }}"},
        "output": {"uri": "/nowhere"},
    }
    spec = JobSpec.model_validate(values)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.monotonic()
    manifest = build_manifest(spec, needed_columns(spec), Fingerprint(run_id="r", spec={}))
    took = time.monotonic() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = sum(entry.size for entry in manifest.read_files)
    start, rows = time.monotonic(), 0
    for _, table in read_shards(manifest.shards, manifest.schema, manifest.partitions, spec.rows_input):
        rows += sum(table.column("count").to_pylist())
    read = time.monotonic() - start
    print(
        f"|{manifest.rows_of_all}|{len(manifest.shards):,}|{took:.1f}|{read:.1f}|{before:,.0f}|{peak:,.0f}|"
        f"{size / 1e9:.2f}|{rows:,}|"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--groups", type=int, default=100_000)
    parser.add_argument("--text", type=int, default=200)
    parser.add_argument("--measure", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        measure(options.measure)
        return
    with tempfile.TemporaryDirectory(prefix="batchinfer-groups-") as folder:
        write_input(Path(folder), options.rows, options.groups, options.text)
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        print(f"{size / 1e9:.2f} GB of Parquet; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
        print("|groups|shards|s to group|s to read|MB before|MB at most|GB written|rows read|")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        subprocess.run([sys.executable, __file__, "--measure", folder], check=True)


if __name__ == "__main__":
    main()

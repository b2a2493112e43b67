"""How much memory it takes to write the results of a run into a table, by rows.

`python benchmarks/publish.py --rows 1000000 --shards 50` prints one JSON line for each way. Each is a process of its
own; its peak is the kernel's (VmHWM), less what the process had before the commit. Run it with two sizes: flat memory
is the same figure for both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

WAYS = {
    "delta append": ("delta", {}),
    "delta upsert": ("delta", {"mode": "upsert", "join_cols": ["id"]}),
    "iceberg append": ("iceberg", {}),
    "iceberg append, partitioned": ("iceberg", {}),
    "iceberg upsert": ("iceberg", {"mode": "upsert", "join_cols": ["id"]}),
}


def write_results(folder: Path, rows: int, shards: int) -> str:
    """A complete run of `rows` rows with answers of 200 characters that do not compress; returns its folder."""
    from batchinfer.rundir.commit import committed_shards
    from tests.support import mixed_runs

    mixed_runs.ROWS = rows // shards
    past = mixed_runs.PastReplica(1_000, work=[1.0] * shards)
    checked = mixed_runs.write_run(folder, [mixed_runs.PastSession(1.0, [past])])
    each = rows // shards
    for shard in committed_shards(checked.layout):
        place = checked.layout.data(shard)
        footer = pq.read_schema(place).metadata
        table = pa.table({
            "id": range(shard * each, (shard + 1) * each),
            "output": [os.urandom(100).hex() for _ in range(each)],
            "error_code": pa.nulls(each, pa.string()),
        })  # fmt: skip
        pq.write_table(table.replace_schema_metadata(footer), place)
    return checked.layout.root


def published(root: str, lake_folder: Path, way: str) -> dict[str, Any]:
    """Publish the run into a table with one row, and measure it."""
    from batchinfer.execution import reports, runner
    from tests.support.lakes import Lake

    setattr(reports, "_write_page", lambda *story: None)  # noqa: B010 # drawing has its own memory
    to, values = WAYS[way]
    lake = Lake(to, lake_folder)
    lake.write(pa.table({"id": [-1], "output": ["x"], "error_code": pa.nulls(1, pa.string())}))
    if "partitioned" in way:
        from pyiceberg.transforms import BucketTransform

        with lake.open().load_table("db.t").update_spec() as change:
            change.add_field("id", BucketTransform(4), "id_bucket")
    before = status("VmRSS")
    began = time.monotonic()
    made = runner.publish(root, [f"output.publish={json.dumps(lake.keys(**values))}"])
    assert made.published is not None
    return {
        "way": way, "rows": made.rows, "seconds": round(time.monotonic() - began, 1),
        "more_mib": (status("VmHWM") - before) // 1024,
    }  # fmt: skip


def status(field: str) -> int:
    """KiB of this process, as the kernel counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def main() -> None:
    """Print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=50)
    parser.add_argument("--way", choices=WAYS, action="append")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(published(given.child[0], Path(given.child[1]), given.way[0])))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = write_results(Path(folder), given.rows, given.shards)
        for number, way in enumerate(given.way or WAYS):
            command = [sys.executable, __file__, "--way", way, "--child", root, f"{folder}/lake-{number}"]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            print(done.stdout.strip().splitlines()[-1] if done.returncode == 0 else done.stderr[-2000:], flush=True)


if __name__ == "__main__":
    main()

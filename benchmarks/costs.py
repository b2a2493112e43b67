"""How long `batchinfer costs` takes over many runs, and its memory: `python benchmarks/costs.py --runs 10000`.

The runs are synthetic: each has two replicas, their journals and accounts, as a run leaves them. The first look reads
every run, the second one only looks whether it has changed.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
import uuid
from pathlib import Path

from batchinfer.accounting.costs import Window
from batchinfer.accounting.ledger import replica_accounts
from batchinfer.accounting.records import MeterReading, ReplicaRecord
from batchinfer.execution.costs import costs
from batchinfer.rundir.accounts import journals_state, write_accounts
from batchinfer.rundir.paths import Layout

DAY = 86_400 * 10**6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--in", dest="folder", help="a folder with runs of an earlier call, or for new ones")
    given = parser.parse_args()
    folder = given.folder or tempfile.mkdtemp()
    if not Path(folder, "job-0").exists():
        began = time.monotonic()
        for number in range(given.runs):
            _write_run(Path(folder, f"job-{number % 20}", f"run-{number:05d}"), number)
        print(f"{given.runs:,} runs written to {folder} in {time.monotonic() - began:.1f} s")
    cache = Path(folder, "cache.sqlite")
    for name in ("first look", "second look"):
        began = time.monotonic()
        made = costs([folder], ["team", "day"], Window(), cache=cache)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{name}: {made.runs:,} runs, ${made.total.usd:,.2f} in {len(made.table.groups):,} groups, "
            f"{time.monotonic() - began:.1f} s, peak {peak:,.0f} MiB"
        )


def _write_run(root: Path, number: int) -> None:
    layout = Layout(str(root))
    journals = []
    for replica in range(2):
        start = 1_767_225_600 * 10**6 + number % 365 * DAY + replica * 10**6
        seconds = 600.0 + number % 977
        journals.append(
            ReplicaRecord(
                replica_id=uuid.uuid4().hex[:12], run_id=f"{number:012x}", job_name=f"job-{number % 20}", node="n",
                num_gpus=1, model="a-model", labels={"team": f"team-{number % 5}"}, accelerator="H100",
                quantization="none", dtype="auto", tensor_parallel=1, pipeline_parallel=1, price_per_gpu_hour=2.69,
                started_at_us=start, ready_at_us=start + 60 * 10**6, finished_at_us=start + round(seconds * 1e6),
                meter=MeterReading(
                    at_us=start + round(seconds * 1e6), load_seconds=60.0, busy_seconds=seconds - 60.0, idle_seconds=0.0
                ),
                shards_in_flight=(), price_source="a list", session=1,
            )
        )  # fmt: skip
        layout.storage.put(layout.journal(journals[-1].replica_id), journals[-1].model_dump_json().encode())
    write_accounts(layout, replica_accounts([], journals), journals_state(layout))


if __name__ == "__main__":
    main()

"""Are the plan's intervals honest? Trials of random sizes, then the job itself: how often its time lies inside.

    python benchmarks/intervals.py --pairs 50 --seed 1 --model scripted
    python benchmarks/intervals.py --pairs 3 --seed 1 --model demo

Each pair is a random job: lengths of prompts and answers, slots, time for a token, for a call and for loading, rows.
A trial runs the first rows of its input, the plan of the whole job is read, and the whole job is run. Printed are, for
each pair, the plan's interval and the time that the job took, and at the end the share of jobs inside. All
jobs run on one Ray cluster, which is started for them; with `--here` they run without Ray, in this process: replica,
engine, meter and commit alone. `--append FILE` adds a JSON line a pair, so that a run may be
split; `--of FILE` prints the shares of such a file.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer.accounting.report import Report
from batchinfer.execution import preview, ray_pipeline, runner
from batchinfer.execution.checks import check
from batchinfer.execution.plan_job import plan_job
from batchinfer.execution.progress import Progress
from batchinfer.execution.replica import Replica
from batchinfer.execution.reports import conclude
from batchinfer.execution.runner import _job, _write_run_files
from batchinfer.execution.shard_block import Envelope, seal, unseal
from batchinfer.execution.this_machine import host_cluster
from batchinfer.input import read_shards
from batchinfer.jobspec import JobSpec
from batchinfer.rundir.commit import commit

ROOT = Path(__file__).parent.parent
LONGEST_PROMPT = 2000
"""Tokens, four characters each."""
WORK_SECONDS = (2.0, 15.0)
"""What the whole job's tokens take one scripted engine."""


class Quiet:
    """Shows nothing of a run."""

    def event(self, name: str, **values: Any) -> None:
        pass

    def begin(self, progress: Progress) -> None:
        pass

    def advance(self, progress: Progress, record: Any) -> None:
        pass

    def end(self) -> None:
        pass


@dataclass(frozen=True)
class Pair:
    """A trial, the plan after it, and the job. Seconds of one replica's lifetime."""

    model: str
    seed: int
    rows_of_trial: int
    rows: int
    low: float
    expected: float
    high: float
    took: float
    trial: dict[str, float]
    """Device-seconds of the trial: load, work, idle, waste."""
    job: dict[str, float]
    """Those of the job."""

    @property
    def inside(self) -> bool:
        return self.low <= self.took <= self.high

    @property
    def width(self) -> float:
        return self.high / self.low


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1, help="of the first pair; the next ones count on")
    parser.add_argument("--model", choices=("scripted", "demo"), default="scripted")
    parser.add_argument("--here", action="store_true", help="without Ray, in this process")
    parser.add_argument("--append", type=Path, help="a file for a JSON line a pair")
    parser.add_argument("--of", type=Path, help="run nothing, and print the shares of this file")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no pair after so many seconds")
    given = parser.parse_args()
    if given.of is not None:
        print(shares([Pair(**json.loads(line)) for line in given.of.read_text().splitlines()]))
        return
    began, pairs = time.monotonic(), []
    cluster = contextlib.nullcontext() if given.here else ray_pipeline.connected(None)
    with cluster, tempfile.TemporaryDirectory(prefix="intervals-") as folder:
        for seed in range(given.seed, given.seed + given.pairs):
            if time.monotonic() - began > given.seconds:
                break
            place = Path(folder) / str(seed)
            place.mkdir()
            pairs.append(measure(place, seed, given.model, run_here if given.here else run_on_ray))
            print(row(pairs[-1]), flush=True)
            if given.append is not None:
                with given.append.open("a") as file:
                    file.write(json.dumps(asdict(pairs[-1])) + "\n")
    print(shares(pairs))


def run_on_ray(spec: JobSpec) -> Report:
    """As the command does."""
    return runner.run(spec, Quiet())


def run_here(spec: JobSpec) -> Report:
    """The job on one replica in this process."""
    checked = check(spec, "run")
    plan = plan_job(checked, host_cluster())
    job = _job(checked.spec, plan, checked.layout, checked.manifest)
    _write_run_files(job.layout, checked, plan)
    replica = Replica(job, Counter(), lambda: 0)
    shards = read_shards(
        checked.manifest.shards, checked.manifest.schema, checked.manifest.partitions, job.spec.input, job.spec.storage
    )
    with ThreadPoolExecutor(job.shards_in_flight) as pool:
        blocks = (
            seal(rows, Envelope(shard_id=shard.shard_id, generation=0, first_row=shard.first_row))
            for shard, rows in shards
        )
        for block in pool.map(replica, blocks):
            results, envelope = unseal(block)
            if envelope.record is None:
                raise RuntimeError("a replica ran a shard and made no record")
            commit(job.layout, results, envelope.record)
    atexit.unregister(replica._leave)
    replica._leave()
    return conclude(job.layout, job.spec, checked.manifest)


def measure(folder: Path, seed: int, model: str, run: Callable[[JobSpec], Report]) -> Pair:
    """The trial, the plan and the job of this seed."""
    chance = np.random.default_rng(seed)
    rows = round(math.exp(chance.uniform(math.log(400), math.log(8000 if model == "scripted" else 4000))))
    trial = min(rows // 2, round(math.exp(chance.uniform(math.log(20), math.log(500)))))
    lengths = np.exp(chance.normal(math.log(chance.uniform(20, 200)), chance.uniform(0.0, 1.0), rows))
    tokens = np.clip(lengths, 1, LONGEST_PROMPT if model == "scripted" else 100).astype(int)
    words = "def sum(a, b): return a + b\n"
    texts = [(f"{i} " + words * (4 * n // len(words) + 1))[: 4 * n] for i, n in enumerate(tokens)]
    for name, count in (("trial", trial), ("all", rows)):
        (folder / name).mkdir()
        pq.write_table(pa.table({"id": np.arange(count), "text": texts[:count]}), folder / name / "rows.parquet")
    keys = scripted_keys(chance, tokens) if model == "scripted" else demo_keys(chance)

    def spec(name: str) -> JobSpec:
        return JobSpec.model_validate(
            {
                "name": "pair",
                "input": {"uri": str(folder / name), "id_column": "id"},
                "prompt": {"template": "{{ text }}"},
                "output": {"uri": str(folder / "runs" / name)},
                "resources": {"accelerator": "cpu", "replicas": 1, "price_per_gpu_hour": 1.0},
                "limits": {"max_error_rate": 1.0},
            }
            | keys
        )

    first = run(spec("trial"))
    plan = preview.plan(spec("all"), Quiet())
    made = run(spec("all"))
    if plan.estimate is None:
        raise RuntimeError("a trial was run, and the plan has no estimate")
    cost = plan.estimate.cost_usd.scaled(3600.0)
    return Pair(
        model=model,
        seed=seed,
        rows_of_trial=trial,
        rows=rows,
        low=cost.low,
        expected=cost.mid,
        high=cost.high,
        took=_seconds(made),
        trial=first.seconds.model_dump(exclude={"in_flight"}),
        job=made.seconds.model_dump(exclude={"in_flight"}),
    )


def _seconds(made: Report) -> float:
    return made.cost_usd * 3600.0 / made.price_per_gpu_hour


def scripted_keys(chance: np.random.Generator, tokens: np.ndarray) -> dict[str, Any]:
    """A random engine that takes some seconds for all rows: part of them for tokens, part for calls."""
    most = int(chance.integers(4, 400))
    total = int(tokens.sum() + np.minimum(tokens, most).sum())
    seconds = math.exp(chance.uniform(*map(math.log, WORK_SECONDS)))
    of_calls = chance.uniform(0.0, 0.5)
    rows = int(chance.choice([50, 100, 300, 1000]))
    return {
        "model": {"source": "scripted"},
        "sampling": {"max_tokens": most},
        "shards": {"rows": rows if chance.random() < 0.5 else "auto"},
        "engine": {
            "max_num_seqs": int(chance.choice([16, 64, 256])),
            "scripted": {
                "load_seconds": float(chance.uniform(0.5, 4.0)),
                "seconds_per_token": seconds * (1 - of_calls) / total,
                "seconds_per_batch": seconds * of_calls / max(1, len(tokens) // rows),
            },
        },
    }


def demo_keys(chance: np.random.Generator) -> dict[str, Any]:
    """The model of `jobs/demo`, which vLLM runs."""
    return {
        "model": {"source": str(ROOT / "jobs" / "demo" / "model"), "dtype": "float32"},
        "sampling": {"max_tokens": int(chance.integers(4, 60)), "temperature": 0.0},
        "engine": {"max_model_len": 512},
    }


def row(pair: Pair) -> str:
    """A line of the table."""
    return (
        f"|{pair.model} {pair.seed}|{pair.rows_of_trial}|{pair.rows}|{pair.expected:.1f} ({pair.low:.1f} to "
        f"{pair.high:.1f})|{pair.took:.1f}|{'' if pair.inside else 'outside'}|"
    )


def shares(pairs: list[Pair]) -> str:
    """How many lie inside, and how wide the intervals are."""
    if not pairs:
        return "no pairs"
    inside = sum(pair.inside for pair in pairs)
    widths = sorted(pair.width for pair in pairs)
    below = sum(pair.took < pair.low for pair in pairs)
    return (
        f"{inside} of {len(pairs)} inside ({inside / len(pairs):.0%}); {below} faster, "
        f"{len(pairs) - inside - below} slower; high over low: {widths[len(widths) // 2]:.2f} in the median, "
        f"{widths[-1]:.2f} at most"
    )


if __name__ == "__main__":
    main()

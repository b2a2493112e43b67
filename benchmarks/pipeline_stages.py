"""Where the CPU time of the pipeline goes: each stage in this process, one after the other, without Ray.

    python benchmarks/pipeline_stages.py [ROWS_PER_SHARD [SHARDS]]        (default: 8192 20)

The rows are those of `pipeline_scale.py`. CPU microseconds a row of the thread that does the work, the median of the
shards, so that other load on the machine changes little.
"""

from __future__ import annotations

import gc
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline_scale import write_input

from batchinfer.accounting.records import MeterReading, ShardRecord
from batchinfer.engine.scripted import ScriptedEngine
from batchinfer.execution.replica import COLLECTED_AFTER
from batchinfer.execution.result_rows import counts, result_table
from batchinfer.execution.shard_block import Envelope, seal, unseal
from batchinfer.input import build_manifest, read_shards
from batchinfer.input.manifest import Fingerprint
from batchinfer.jobspec import JobSpec
from batchinfer.prompting.prompts import PromptMaker, needed_columns
from batchinfer.rundir.commit import commit
from batchinfer.rundir.paths import Layout


class Stages:
    """CPU microseconds a row, by stage."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self.spent: defaultdict[str, list[float]] = defaultdict(list)

    def run(self, name: str, work: Callable[..., Any], *arguments: Any) -> Any:
        """Do the work and note what it took."""
        began = time.thread_time()
        done = work(*arguments)
        self.spent[name].append((time.thread_time() - began) / self._rows * 1e6)
        return done


def record(spec: JobSpec, shard_id: int, rows: int, counted: dict[str, Any]) -> ShardRecord:
    """A record as the replica writes it, with times that nobody measured."""
    told = dict.fromkeys(("run_id", "job_name", "replica_id", "node", "accelerator", "model", "quantization"), "none")
    ones = dict.fromkeys(("attempt", "num_gpus", "tensor_parallel", "pipeline_parallel"), 1)
    zeros = dict.fromkeys(("generation", "started_at_us", "finished_at_us", "gpu_seconds", "price_per_gpu_hour"), 0)
    meter = MeterReading(at_us=0, load_seconds=0, busy_seconds=0, idle_seconds=0)
    known = {**told, **ones, **zeros, **counted, "revision": None, "evaluation": {}, "meter": meter}
    return ShardRecord(shard_id=shard_id, rows=rows, labels=spec.labels, **known)


def measure(folder: Path, rows_per_shard: int, shards: int) -> dict[str, list[float]]:
    """Take `shards` shards through all stages."""
    write_input(folder / "in", rows_per_shard * shards)
    spec = JobSpec.model_validate(
        {
            "name": "stages",
            "model": {"source": "scripted"},
            "input": {"uri": str(folder / "in"), "id_column": "id"},
            "prompt": {"template": "Summarize: {{ text }}"},
            "sampling": {"max_tokens": 16},
            "shards": {"rows": rows_per_shard},
            "output": {"uri": str(folder / "out")},
        }
    )
    manifest = build_manifest(spec, needed_columns(spec), Fingerprint(run_id="stages", spec={}))
    source = read_shards(manifest.shards, manifest.schema, (), spec.input)
    maker, engine, stages = PromptMaker(spec.prompt), ScriptedEngine(spec), Stages(rows_per_shard)
    layout = Layout(spec.output.uri)
    # As in a replica.
    gc.freeze()
    gc.set_threshold(COLLECTED_AFTER)
    for _ in range(shards):
        shard, rows = stages.run("read", next, source)
        envelope = Envelope(shard_id=shard.shard_id, generation=0, first_row=shard.first_row)
        block = stages.run("seal the rows", seal, rows, envelope)
        rows, envelope = stages.run("open them", unseal, block)
        prompts = stages.run("prompts", maker.prompts, rows)
        done = stages.run("engine (scripted)", engine.generate, prompts, lambda _: None, lambda _: None)
        results = stages.run("result table", result_table, spec, rows, envelope, done)
        counted = stages.run("counts", counts, results)
        block = stages.run("seal the results", seal, results, envelope)
        results, _ = stages.run("open them again", unseal, block)
        stages.run("commit", commit, layout, results, record(spec, shard.shard_id, shard.rows, counted))
    engine.close()
    return stages.spent


def main() -> None:
    """Measure and print a table."""
    rows, shards = (int(argument) for argument in (*sys.argv[1:], *("8192", "20")[len(sys.argv) - 1 :]))
    with tempfile.TemporaryDirectory(prefix="batchinfer-stages-") as folder:
        spent = {name: statistics.median(found) for name, found in measure(Path(folder), rows, shards).items()}
    print("|stage|CPU us/row|\n|---|---|")
    for name, each in (*spent.items(), ("all", sum(spent.values()))):
        print(f"|{name}|{each:.2f}|")


if __name__ == "__main__":
    main()

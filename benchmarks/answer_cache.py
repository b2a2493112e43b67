"""What `cache` asks of a store, and of a replica's memory and time: a million answers, written and then looked up.

The cache alone, without Ray and without an engine, in shards of 100 rows, over a local folder whose calls are counted.
`python benchmarks/answer_cache.py [ROWS]` from the root of the project.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections import Counter
from typing import Any

from batchinfer.engine import Completion
from batchinfer.execution import answer_cache
from batchinfer.execution.answer_cache import AnswerCache
from batchinfer.jobspec import parse
from batchinfer.planner import Plan
from batchinfer.prompting.prompts import Prompt
from batchinfer.storage import LocalStorage

SHARD_ROWS = 100
ANSWER = "a summary of some forty words, as a model writes it of a ticket, " * 4
calls: Counter[str] = Counter()


class Counted(LocalStorage):
    """Counts the calls that a store of objects would have as requests."""

    def list(self, uri: str) -> Any:
        found = [*super().list(uri)]
        calls["list"] += 1 + len(found) // 1000
        return iter(found)

    def read(self, uri: str) -> bytes:
        calls["read"] += 1
        return super().read(uri)

    def create(self, uri: str, data: bytes) -> bool:
        calls["create"] += 1
        return super().create(uri, data)


def opened(uri: str) -> AnswerCache:
    """The cache of a job, as a replica opens it."""
    spec = parse(
        f"{{name: j, model: {{source: scripted}}, input: {{uri: /in, id_column: id}}, output: {{uri: /out}}, "
        f"prompt: {{template: '{{{{ text }}}}'}}, cache: {{uri: {uri}}}}}",
        "benchmark",
        (),
    )
    plan = Plan(
        model="scripted", quantization="none", accelerator="cpu", tensor_parallel=1, pipeline_parallel=1,
        min_replicas=1, max_replicas=1, num_gpus=0, price_per_gpu_hour=1.0, price_source="", kv_cache_memory_bytes=None,
    )  # fmt: skip
    return AnswerCache(spec, plan, lambda spec, plan: (spec, plan))


def main() -> None:
    """Write, then look up."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    answer_cache.storage_for = lambda uri, stores: Counted()  # type: ignore[attr-defined]
    shards = range(0, rows, SHARD_ROWS)
    print("| | shards | requests | requests a shard | seconds | microseconds a row | peak RSS, MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for what in ("write", "look up"):
            cache = opened(folder)
            calls.clear()
            began = time.monotonic()
            for start in shards:
                prompts = [
                    Prompt(f"the text of row {i}, and some more of it") for i in range(start, start + SHARD_ROWS)
                ]
                found = cache.found(prompts)
                if what == "write":
                    assert not any(found)
                    made = [Completion([ANSWER + prompt.text], ["stop"], 60, 0, 60) for prompt in prompts]
                    cache.keep(prompts, made, 1.0)
                else:
                    assert [one.texts[0] for one in found if one] == [ANSWER + prompt.text for prompt in prompts]
            cache.close()
            seconds = time.monotonic() - began
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(
                f"| {what} | {len(shards):,} | {sum(calls.values()):,} | {sum(calls.values()) / len(shards):.2f} | "
                f"{seconds:.0f} | {seconds / rows * 1e6:.0f} | {memory:,.0f} |"
            )


if __name__ == "__main__":
    main()

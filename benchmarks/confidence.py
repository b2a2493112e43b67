"""The price of `output.confidence` on the demo model: `python benchmarks/confidence.py [--rows 1000] [--rounds 3]`.

Docstrings of the standard library with the demo's nine labels, on the real engine in this process. Engines with and
without confidence take turns, each round the other one first, so that other load of the machine meets both. A pass
that warms the engine is not counted. CPU seconds are of this process, which holds the engine: they say more than
seconds where other processes run. From the root of the project, which holds `tests`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "jobs" / "demo"))
os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}

from docstrings import AREAS, Docstring, extract

from batchinfer.engine import Completion, start_engine
from batchinfer.jobspec import JobSpec
from batchinfer.prompting.prompts import Prompt
from tests.support.builders import make_plan
from tests.support.engine_process import forget_groups, spec_values

DEMO = Path(__file__).parent.parent / "jobs" / "demo" / "model"
PASSES = 3
"""Of the rows through each engine; one more warms it."""

SURE = 0.9
"""The confidence that parts the rows of the second table."""


def measured(rows: list[Docstring], confidence: bool) -> tuple[float, float, list[Completion]]:
    """Seconds and CPU seconds of the quickest pass, and the answers."""
    model = {"source": str(DEMO)}
    output = {"choices": list(AREAS), "confidence": confidence}
    values = spec_values(model, {"max_tokens": 4, "temperature": 0}, output)
    # Without prefixes of the pass before, which would leave nothing but the answers to measure.
    values["engine"] |= {"max_model_len": 512, "kv_cache_memory_bytes": 2**27, "enable_prefix_caching": False}
    spec = JobSpec.model_validate(values)
    engine = start_engine(spec, make_plan(accelerator="cpu", tensor_parallel=1, num_gpus=0, price_per_gpu_hour=0.0))
    prompts = [Prompt(text=row.text) for row in rows]
    seconds, used, answers = [], [], []
    for _ in range(PASSES + 1):
        began, cpu = time.monotonic(), time.process_time()
        answers = engine.generate(prompts, lambda _: None, lambda _: None)
        seconds.append(time.monotonic() - began)
        used.append(time.process_time() - cpu)
    engine.close()
    del engine
    forget_groups()
    return min(seconds[1:]), min(used[1:]), answers


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rows = [row for row in extract() if row.split != "train"][: options.rows]
    names = ("round", "without (s)", "with (s)", "without (CPU s)", "with (CPU s)", "seconds more", "CPU more")
    print(f"|{'|'.join(names)}|\n{'|---' * len(names)}|", flush=True)
    more, slower, with_it = [], [], []
    for number in range(options.rounds):
        found = {}
        for confidence in (False, True) if number % 2 == 0 else (True, False):
            found[confidence] = measured(rows, confidence)
        (plain, plain_cpu, _), (sure, sure_cpu, with_it) = found[False], found[True]
        more.append(sure_cpu / plain_cpu - 1)
        slower.append(sure / plain - 1)
        print(
            f"|{number + 1}|{plain:.2f}|{sure:.2f}|{plain_cpu:.2f}|{sure_cpu:.2f}|{slower[-1]:+.1%}|{more[-1]:+.1%}|",
            flush=True,
        )
    print(
        f"\nmedian of {options.rounds} rounds, {len(rows):,} rows each: {statistics.median(slower):+.1%} seconds, "
        f"{statistics.median(more):+.1%} CPU seconds\n"
    )
    print("|confidence|rows|of them right|\n|---|---|---|")
    pairs = [(answer, row) for answer, row in zip(with_it, rows, strict=True) if answer.probabilities is not None]
    for name, sure_enough in ((f"{SURE} or more", True), (f"below {SURE}", False)):
        group = [(a, row) for a, row in pairs if (max((a.probabilities or {}).values()) >= SURE) is sure_enough]
        right = sum(answer.texts[0] == row.area for answer, row in group)
        print(f"|{name}|{len(group):,}|{right / len(group):.0%}|" if group else f"|{name}|0||")


if __name__ == "__main__":
    main()

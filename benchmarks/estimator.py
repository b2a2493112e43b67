"""The estimator's exam: its figures beside throughputs that others measured and published.

    python benchmarks/estimator.py            the table and the summary, as Markdown
    python benchmarks/estimator.py --json     the same as one JSON document

The rows are in published_throughput.yaml beside this file, each with its source and date. Those that say
"constants" were used to set the constants of planner/estimate.py; to the others, held out, no value was fitted, but
they were in view when its formula was chosen (RESULTS.md).
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter

from batchinfer.catalog.accelerators import accelerators
from batchinfer.catalog.models import models
from batchinfer.catalog.quantization import QUANTIZATIONS, QuantizationName
from batchinfer.planner.estimate import VLLM, replica_speed
from batchinfer.planner.memory import fit
from batchinfer.planner.values import EngineSettings, Interval, Workload

TENSORRT_LLM = replace(VLLM, sequence_seconds=3e-6, row_seconds=1e-4)
"""It overlaps its loop with the GPU; set on the rows marked so, as the other constants. What the
planner estimates is vLLM: this stands here, not there."""

Ratios = list[float]


class Group(BaseModel):
    """Rows of one model on one layout from one source; see the head of published_throughput.yaml."""

    model_config = ConfigDict(extra="forbid")

    model: str
    accelerator: str
    quantization: QuantizationName
    tensor: int
    expert_parallel: bool = False
    stack: Literal["vLLM", "TensorRT-LLM"]
    used: Literal["constants", "held out"]
    assumed_input: bool = False
    source: str
    date: datetime.date
    note: str | None = None
    kv_cache_dtype: str = "auto"
    points: list[tuple[int, int, int, int | None, float]]


class Row(BaseModel):
    """One published figure and the estimate for it, in output tokens a second of one replica."""

    group: Group
    input_tokens: int
    output_tokens: int
    in_flight: int | None
    published: float
    estimated: float
    bound: str

    @property
    def ratio(self) -> float:
        return self.estimated / self.published


def settings_of(group: Group, in_flight: int | None, length: int) -> EngineSettings:
    """As the source ran it: silybench's own arguments; else trtllm-bench's defaults (2,048 rows, 8,192 tokens a
    step) with the 0.95 of memory that perf-overview names, and the fp8 KV cache of NVIDIA's checkpoints
    (gpt-oss: on Blackwell alone) and of MLPerf's submissions."""
    if in_flight is not None:
        context = max(16384, length)
        return EngineSettings(max_model_len=context, max_num_seqs=in_flight, kv_cache_dtype=group.kv_cache_dtype)
    sixteen = group.quantization == "mxfp4" and group.accelerator in ("H100", "H200")
    return EngineSettings(
        max_model_len=length,
        gpu_memory_utilization=0.95,
        max_num_seqs=2048,
        kv_cache_dtype="auto" if sixteen else "fp8",
    )


def examine(group: Group) -> Iterator[Row]:
    """The estimate for each point of the group."""
    shape, quantization = models()[group.model].shape, QUANTIZATIONS[group.quantization]
    accelerator, layout = accelerators()[group.accelerator], (group.tensor, 1, group.expert_parallel)
    for prompt, output, rows, in_flight, published in group.points:
        settings = settings_of(group, in_flight, prompt + output)
        of = fit(shape, quantization, accelerator, *layout, settings, prompt + output)
        if group.stack == "TensorRT-LLM":
            # It admits a row when the cache holds the whole of it (GUARANTEED_NO_EVICT); vLLM when it holds
            # the prompt, so that there a row takes half its output on average.
            held = of.kv_cache_tokens * (prompt + output / 2) / (prompt + output)
            of = of.model_copy(update={"kv_cache_tokens": int(held)})
        workload = Workload(
            rows=rows,
            input_tokens=prompt,
            longest_input_tokens=prompt,
            output_tokens=Interval(low=output, mid=output, high=output),
            sampled_rows=rows,
            source=group.source,
        )
        efficiency = VLLM if group.stack == "vLLM" else TENSORRT_LLM
        speed = replica_speed(shape, quantization, accelerator, *layout[:2], of, settings, workload, efficiency)
        yield Row(
            group=group,
            input_tokens=prompt,
            output_tokens=output,
            in_flight=in_flight,
            published=published,
            estimated=speed.output_tokens_per_second,
            bound=speed.bound,
        )


def exam() -> list[Row]:
    """Every published row with its estimate."""
    text = Path(__file__).with_name("published_throughput.yaml").read_text(encoding="utf-8")
    groups = TypeAdapter(list[Group]).validate_python(yaml.safe_load(text))
    return [row for group in groups for row in examine(group)]


def calibrated(rows: list[Row]) -> Ratios:
    """Ratios where each row is calibrated by the others of its model, GPU, quantization, layout and stack."""
    alike: dict[tuple[object, ...], list[float]] = defaultdict(list)
    for row in rows:
        g = row.group
        alike[g.model, g.accelerator, g.quantization, g.tensor, g.expert_parallel, g.stack].append(math.log(row.ratio))
    made = []
    for logs in alike.values():
        if len(logs) > 2:
            made += [math.exp(log - (sum(logs) - log) / (len(logs) - 1)) for log in logs]
    return made


def summary(ratios: Ratios) -> dict[str, float]:
    """Of estimated over published: the median absolute error, the share within 20%, the ends, and where the
    published figure lies as a multiple of the estimate in all but a tenth of the rows on either side."""
    errors = [abs(ratio - 1) for ratio in ratios]
    tenths = statistics.quantiles([1 / ratio for ratio in ratios], n=10) if len(ratios) > 1 else [1.0] * 9
    return {
        "rows": len(ratios),
        "median_error": statistics.median(errors),
        "within_20_percent": sum(error <= 0.2 for error in errors) / len(errors),
        "lowest": min(ratios),
        "highest": max(ratios),
        "published_tenth": tenths[0],
        "published_ninetieth": tenths[8],
    }


CUTS: dict[str, Callable[[Row], bool]] = {
    "all": lambda row: True,
    "rows that set constants": lambda row: row.group.used == "constants",
    "held out": lambda row: row.group.used == "held out",
    "held out, dense": lambda row: row.group.used == "held out" and models()[row.group.model].shape.experts is None,
    "held out, mixtures": lambda row: row.group.used == "held out" and bool(models()[row.group.model].shape.experts),
    "vLLM": lambda row: row.group.stack == "vLLM",
    "vLLM, held out": lambda row: row.group.stack == "vLLM" and row.group.used == "held out",
    "TensorRT-LLM": lambda row: row.group.stack == "TensorRT-LLM",
    "input length assumed": lambda row: row.group.assumed_input,
}


def summaries(rows: list[Row]) -> dict[str, dict[str, float]]:
    """The summary of each cut, and of the rows calibrated by those like them."""
    made = {name: summary([row.ratio for row in rows if cut(row)]) for name, cut in CUTS.items()}
    return made | {"calibrated by the like": summary(calibrated(rows))}


def table(rows: list[Row]) -> Iterator[str]:
    """One line a row; a row that is off by more than twofold has its explanation in the last column."""
    yield "|model|GPU|weights|TP|stack|in/out|in flight|published|estimated|error|bound|used|note|"
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        g, far = row.group, not 0.5 <= row.ratio <= 2
        layout = f"{g.tensor} EP" if g.expert_parallel else f"{g.tensor}"
        weights = "16 bits" if g.quantization == "none" else g.quantization
        cells = [g.model, g.accelerator, weights, layout, g.stack, f"{row.input_tokens}/{row.output_tokens}"]
        cells += [str(row.in_flight or ""), f"{row.published:,.0f}", f"{row.estimated:,.0f}", f"{row.ratio - 1:+.0%}"]
        cells += [row.bound, g.used, (g.note or "not explained") if far else ""]
        yield f"|{'|'.join(cells)}|"


def main() -> None:
    """Print the exam."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    rows = exam()
    made = summaries(rows)
    if parser.parse_args().json:
        print(json.dumps({"summary": made, "rows": [row.model_dump(mode="json") for row in rows]}))
        return
    print("\n".join(table(rows)))
    print("\n|rows|number|median error|within 20%|lowest|highest|published / estimated, 10th to 90th|")
    print("|---|---|---|---|---|---|---|")
    for name, s in made.items():
        print(
            f"|{name}|{s['rows']}|{s['median_error']:.1%}|{s['within_20_percent']:.0%}|{s['lowest']:.2f}x"
            f"|{s['highest']:.2f}x|{s['published_tenth']:.2f} to {s['published_ninetieth']:.2f}|"
        )


if __name__ == "__main__":
    main()

"""Which models at which lengths gpu.py measures, and the published figures that it compares with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from dummy_models import ROPE

from batchinfer.catalog import models

GPU_MODELS = (
    *("llama-3.1-8b:fp8", "llama-3.1-8b", "mistral-7b", "mixtral-8x7b:fp8", "mixtral-8x7b", "llama-2-13b"),
    "llama-2-70b:fp8",
)
CPU_MODELS = ("llama-3.1-8b", "mixtral-8x7b")
GPU_CASES = ("128/128", "1000/1000", "2048/128", "mlperf")
CPU_CASES = ("32/32", "96/16")

MLPERF = {"llama-3.1-8b": (778, 128), "llama-2-70b": (294, 294), "mixtral-8x7b": (425, 144)}
"""Mean lengths of MLPerf Inference's offline data sets, the input's assumed (see published_throughput.yaml); a
model without one gets those of llama-2-70b's, OpenOrca."""

SAME_LAYERS = {"llama-2-70b": "llama-3.3-70b"}
"""Where a model has no record at a length: one of the same layers, which differs in vocabulary and rotation."""


@dataclass(frozen=True)
class Case:
    """A model of the catalog, in fp8 or 16 bits, at one length."""

    model: str
    fp8: bool
    input_tokens: int
    output_tokens: int

    @property
    def name(self) -> str:
        return f"{self.model}{'-fp8' if self.fp8 else ''}-{self.input_tokens}-{self.output_tokens}"


@dataclass(frozen=True)
class Record:
    """A published figure: output tokens/s of one replica."""

    tokens_per_second: float
    model: str
    stack: str
    source: str
    date: str


def cases_of(wanted_models: Sequence[str], lengths: Sequence[str]) -> list[Case]:
    """Every model at every length. Raises ValueError for one that cannot be, saying which."""
    made: list[Case] = []
    for wanted in wanted_models:
        name, _, weights = wanted.partition(":")
        if name not in ROPE or weights not in ("", "fp8"):
            raise ValueError(f"there is no {wanted}: give one of {', '.join(ROPE)}, with :fp8 or without")
        context = models()[name].shape.context
        for length in lengths:
            if length == "mlperf":
                at = MLPERF.get(name, MLPERF["llama-2-70b"])
            else:
                before, _, after = length.partition("/")
                at = (int(before), int(after)) if before.isdecimal() and after.isdecimal() else (0, 0)
            if min(at) < 1 or sum(at) > context:
                raise ValueError(f"{name} at {length!r}: give mlperf, or INPUT/OUTPUT tokens of {context} in all")
            made.append(Case(name, weights == "fp8", *at))
    return made


@cache
def _published() -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = yaml.safe_load(
        Path(__file__).with_name("published_throughput.yaml").read_text(encoding="utf-8")
    )
    return made


def record_of(case: Case, accelerator: str, tensor_parallel: int) -> Record | None:
    """The highest published figure for the same weights, GPU, layout and lengths."""
    for model in (case.model, SAME_LAYERS.get(case.model)):
        like = (model, accelerator, "fp8" if case.fp8 else "none", tensor_parallel)
        found = [
            Record(point[4], group["model"], group["stack"], group["source"], str(group["date"]))
            for group in _published()
            if (group["model"], group["accelerator"], group["quantization"], group["tensor"]) == like
            for point in group["points"]
            if point[:2] == [case.input_tokens, case.output_tokens]
        ]
        if found:
            return max(found, key=lambda record: record.tokens_per_second)
    return None

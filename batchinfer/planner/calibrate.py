"""What earlier runs say about the estimator: measured over estimated speed. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reading:
    """The measured speed of one replica in an earlier run, from its accounting, and the estimate for it.

    tokens: input and output together. work_seconds: wall seconds of work, without load and idle time.
    estimated_tokens_per_second: the replica's uncalibrated estimate, for the measured lengths of its rows.
    """

    model: str
    accelerator: str
    quantization: str
    tokens: int
    work_seconds: float
    estimated_tokens_per_second: float


def calibration_from(readings: Iterable[Reading], model: str, accelerator: str, quantization: str) -> float | None:
    """The geometric mean of measured over estimated tokens a second for the same model, accelerator and
    quantization; None if nothing was measured. In a geometric mean, a ratio of 2 and a ratio of 1/2 cancel."""
    logs = [
        math.log(reading.tokens / reading.work_seconds / reading.estimated_tokens_per_second)
        for reading in readings
        if (reading.model, reading.accelerator, reading.quantization) == (model, accelerator, quantization)
        and reading.tokens > 0
        and reading.work_seconds > 0
        and reading.estimated_tokens_per_second > 0
    ]
    return math.exp(sum(logs) / len(logs)) if logs else None

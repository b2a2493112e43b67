"""Intervals and tests of shares and scores, of one variant and of two on the same rows. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from batchinfer.accounting.evaluation import Z_95

MOST_EXACT = 20_000
"""Sum of all differences up to which the exact distribution is computed. Above, its normal limit is as good and takes
no minutes."""


def mcnemar(only_this: int, only_other: int) -> float:
    """The two-sided p-value of McNemar's exact test: the rows on which exactly one of two is right are coin flips if
    both are equally good. `only_this` and `only_other` count them by which one is right.
    """
    flips, fewer = only_this + only_other, min(only_this, only_other)
    tail: int = sum(math.comb(flips, heads) for heads in range(fewer + 1))
    return min(1.0, float(2 * tail / 2**flips))


def paired_interval(only_this: int, only_other: int, rows: int) -> tuple[float, float]:
    """The 95% interval of a difference between two shares of the same `rows` (Agresti and Min 2005, the adjusted Wald
    interval: half a row is added to each of the four cells)."""
    total = rows + 2
    middle = (only_this - only_other) / total
    spread = (only_this + only_other + 1) / total - middle**2
    half = Z_95 * math.sqrt(spread / total)
    return max(-1.0, middle - half), min(1.0, middle + half)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for their number by Holm's step-down method (1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def mean_interval(values: Sequence[float], least: float, most: float) -> tuple[float, float]:
    """The 95% interval of the mean of values between `least` and `most`: the adjusted Wald interval (Agresti and Coull
    1998), with two values added at each end, so that a few equal values are not taken for certain."""
    total = len(values) + 4
    middle = (math.fsum(values) + 2 * (least + most)) / total
    spread = (math.fsum(value * value for value in values) + 2 * (least**2 + most**2)) / total - middle**2
    half = Z_95 * math.sqrt(max(0.0, spread) / total)
    return max(least, middle - half), min(most, middle + half)


def difference_interval(differences: Sequence[float], size: float) -> tuple[float, float]:
    """The 95% interval of the mean of differences between -`size` and `size`. With size 1 and scores 0 and 1 it is
    `paired_interval`: half a row is added at each end, and one without a difference."""
    total = len(differences) + 2
    middle = math.fsum(differences) / total
    spread = (math.fsum(value * value for value in differences) + size**2) / total - middle**2
    half = Z_95 * math.sqrt(max(0.0, spread) / total)
    return max(-size, middle - half), min(size, middle + half)


def randomization_p(differences: Sequence[int]) -> float:
    """The two-sided p-value of Fisher's paired randomization test (1935): the share of all 2^n ways to swap the two
    scores of rows whose sum of differences lies as far from 0 as this one. With scores 0 and 1 it is McNemar's exact
    test.
    """
    sizes = Counter(abs(value) for value in differences if value)
    total, furthest = abs(sum(differences)), sum(size * count for size, count in sizes.items())
    if not furthest:
        return 1.0
    if furthest > MOST_EXACT:
        spread = math.sqrt(sum(size * size * count for size, count in sizes.items()))
        return math.erfc(total / spread / math.sqrt(2))
    # The sum of k signed differences of one size is size * (2 * heads - k), and heads is binomial.
    chances: npt.NDArray[np.floating[Any]] = np.ones(1)
    for size, count in sizes.items():
        one = np.zeros(2 * size * count + 1)
        logs = [math.lgamma(count + 1) - math.lgamma(h + 1) - math.lgamma(count - h + 1) for h in range(count + 1)]
        one[:: 2 * size] = np.exp(np.array(logs) - count * math.log(2))
        chances = np.convolve(chances, one)
    sums = np.arange(-furthest, furthest + 1)
    return float(min(1.0, chances[np.abs(sums) >= total].sum()))

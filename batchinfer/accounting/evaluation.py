"""How good answers are: accuracy with its interval, labels one by one, and what their confidence is worth. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from batchinfer.accounting.part import Part

Z_95 = 1.959963984540054
"""Standard deviations of a normal distribution that hold 95%, for intervals."""

BINS = 10
"""Bins of confidence, of equal width. More bins of a small run hold few rows each, and their error is noise."""

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Levels of `output.abstain_below` that an evaluation tries out."""

NO_LABEL = "(none)"
"""The predicted label of a row that failed, in the confusion matrix."""


def wilson(right: int, of: int) -> tuple[float, float]:
    """The interval that holds the true share with a probability of 95% (Wilson 1927); `of` is above 0."""
    share, z = right / of, Z_95**2 / of
    middle = (share + z / 2) / (1 + z)
    half = Z_95 / (1 + z) * math.sqrt(share * (1 - share) / of + z / (4 * of))
    return max(0.0, middle - half), min(1.0, middle + half)


class LabelQuality(Part):
    """One label. A share of no rows is null."""

    expected: int
    """Rows whose expected value has the label."""
    predicted: int
    """Rows whose answer has the label."""
    right: int
    """Rows where both have it."""
    precision: float | None
    """`right` over `predicted`."""
    recall: float | None
    """`right` over `expected`."""
    f1: float | None
    """The harmonic mean of precision and recall: 2 `right` over `expected` + `predicted`."""


class ConfidenceBin(Part):
    """The rows whose confidence lies between two bounds."""

    low: float
    """The lower bound, which belongs to the bin."""
    high: float
    """The upper bound."""
    rows: int
    """Compared rows with such a confidence."""
    confidence: float | None
    """Their mean confidence."""
    accuracy: float | None
    """The share of them whose label is right."""


class AbstentionLevel(Part):
    """What `output.abstain_below` of this level does."""

    below: float
    """The level."""
    answered: int
    """Compared rows that keep their label."""
    coverage: float
    """`answered` over the compared rows that have a confidence."""
    accuracy: float | None
    """The share of `answered` whose label is right. null: no row is answered."""


class Evaluation(Part):
    """The answers of a run compared with a column."""

    compared: int
    """Rows that have an expected value. A failed row counts as wrong."""
    right: int
    """Rows whose answer equals it; for lists of labels, as a set."""
    accuracy: float
    """`right` over `compared`."""
    low: float
    """The lower end of the accuracy's 95% interval (Wilson)."""
    high: float
    """The upper end of the accuracy's 95% interval (Wilson)."""
    labels: dict[str, LabelQuality]
    """Each label that is expected or predicted. Empty if there are more than a hundred different values."""
    micro_f1: float | None
    """F1 over all labels together. null: no labels."""
    macro_f1: float | None
    """The mean of the labels' F1. null: no labels."""
    confusion: dict[str, dict[str, int]]
    """Rows by expected and then by predicted label; `(none)` is a row without an answer. Empty for lists of labels."""
    calibration_error: float | None
    """The expected calibration error: |accuracy - confidence| of the bins, weighted by their rows. null: no confidence.
    """
    calibration: list[ConfidenceBin]
    """The bins, ten of equal width. Empty without confidence."""
    abstention: list[AbstentionLevel]
    """What would be answered, and how well, if labels below a level were withheld. Empty without confidence."""


class Compared(NamedTuple):
    """One row: the expected labels, the predicted ones (None for a row without an answer), and the confidence."""

    expected: frozenset[str]
    predicted: frozenset[str] | None
    confidence: float | None = None

    @property
    def right(self) -> bool:
        return self.expected == self.predicted


MOST_LABELS = 100
"""Different values beyond which answers are texts, not labels: a table of so many labels helps nobody."""


def evaluate(rows: Sequence[Compared], many: bool = False) -> Evaluation | None:
    """The evaluation of rows with an expected value; None if there are none. `many`: they are lists of labels."""
    if not rows:
        return None
    right = sum(row.right for row in rows)
    low, high = wilson(right, len(rows))
    names = {label for row in rows for label in (*row.expected, *(row.predicted or ()))}
    labels = _labels(rows, names) if len(names) <= MOST_LABELS else {}
    sure = [(row.confidence, row.right) for row in rows if row.confidence is not None]
    bins = _bins(sure)
    return Evaluation(
        compared=len(rows),
        right=right,
        accuracy=right / len(rows),
        low=low,
        high=high,
        labels=labels,
        micro_f1=_f1(labels.values()),
        macro_f1=_mean([label.f1 or 0.0 for label in labels.values()]),
        confusion={} if many or not labels else _confusion(rows),
        calibration_error=_calibration_error(bins, len(sure)),
        calibration=bins,
        abstention=[_level(level, sure) for level in LEVELS] if sure else [],
    )


def _labels(rows: Sequence[Compared], names: Collection[str]) -> dict[str, LabelQuality]:
    expected = Counter(label for row in rows for label in row.expected)
    predicted = Counter(label for row in rows for label in row.predicted or ())
    right = Counter(label for row in rows for label in row.expected & (row.predicted or frozenset()))
    return {
        name: LabelQuality(
            expected=expected[name],
            predicted=predicted[name],
            right=right[name],
            precision=right[name] / predicted[name] if predicted[name] else None,
            recall=right[name] / expected[name] if expected[name] else None,
            f1=2 * right[name] / (expected[name] + predicted[name]),
        )
        for name in sorted(names)
    }


def _f1(labels: Iterable[LabelQuality]) -> float | None:
    found = list(labels)
    of = sum(label.expected + label.predicted for label in found)
    return 2 * sum(label.right for label in found) / of if of else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _confusion(rows: Sequence[Compared]) -> dict[str, dict[str, int]]:
    counts = Counter(
        (min(row.expected, default=NO_LABEL), NO_LABEL if row.predicted is None else min(row.predicted)) for row in rows
    )
    matrix: dict[str, dict[str, int]] = {}
    for (expected, predicted), count in sorted(counts.items()):
        matrix.setdefault(expected, {})[predicted] = count
    return matrix


def _bins(sure: Sequence[tuple[float, bool]]) -> list[ConfidenceBin]:
    found: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for confidence, right in sure:
        found[min(BINS - 1, int(confidence * BINS))].append((confidence, right))
    return [
        ConfidenceBin(
            low=i / BINS,
            high=(i + 1) / BINS,
            rows=len(rows),
            confidence=_mean([confidence for confidence, _ in rows]),
            accuracy=_mean([float(right) for _, right in rows]),
        )
        for i, rows in enumerate(found)
        if sure
    ]


def _calibration_error(bins: Sequence[ConfidenceBin], rows: int) -> float | None:
    if not rows:
        return None
    return sum(
        b.rows / rows * abs(b.accuracy - b.confidence)
        for b in bins
        if b.accuracy is not None and b.confidence is not None
    )


def _level(below: float, sure: Sequence[tuple[float, bool]]) -> AbstentionLevel:
    kept = [right for confidence, right in sure if confidence >= below]
    return AbstentionLevel(
        below=below,
        answered=len(kept),
        coverage=len(kept) / len(sure),
        accuracy=sum(kept) / len(kept) if kept else None,
    )

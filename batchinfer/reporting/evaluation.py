"""An evaluation as text for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table

from batchinfer.accounting.evaluation import Evaluation


def render_evaluation(name: str, made: Evaluation) -> RenderableType:
    """The evaluation of one group of rows as rich text."""
    lines = [
        f"{name}: accuracy {made.accuracy:.1%} ({made.low:.1%} to {made.high:.1%}), "
        f"{made.right:,} of {made.compared:,} rows right"
    ]
    if made.micro_f1 is not None and made.macro_f1 is not None:
        lines.append(f"F1 {made.micro_f1:.3f} over all labels together, {made.macro_f1:.3f} the mean of the labels")
    if made.calibration_error is not None:
        lines.append(f"expected calibration error {made.calibration_error:.3f}")
    parts: list[RenderableType] = ["\n".join(lines)]
    if made.labels:
        parts.append(_labels(made))
    if made.confusion:
        parts.append(_confusion(made))
    if made.calibration:
        parts.append(_calibration(made))
        parts.append(_abstention(made))
    return Group(*parts, "")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", overflow="fold")
    return table


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _labels(made: Evaluation) -> Table:
    table = _table("\nlabels", "label", "expected", "predicted", "right", "precision", "recall", "F1")
    for name, label in made.labels.items():
        numbers = (f"{label.expected:,}", f"{label.predicted:,}", f"{label.right:,}")
        table.add_row(name, *numbers, _share(label.precision), _share(label.recall), _share(label.f1))
    return table


def _confusion(made: Evaluation) -> Table:
    predicted = sorted({name for row in made.confusion.values() for name in row})
    table = _table("\nexpected (rows) and predicted (columns)", "", *predicted)
    for name, row in made.confusion.items():
        table.add_row(name, *(f"{row[other]:,}" if other in row else "" for other in predicted))
    return table


def _calibration(made: Evaluation) -> Table:
    table = _table("\nconfidence", "between", "rows", "confidence", "accuracy")
    for one in made.calibration:
        table.add_row(
            f"{one.low:.1f} and {one.high:.1f}", f"{one.rows:,}", _share(one.confidence), _share(one.accuracy)
        )
    return table


def _abstention(made: Evaluation) -> Table:
    table = _table("\noutput.abstain_below", "below", "answered", "coverage", "accuracy")
    for one in made.abstention:
        table.add_row(f"{one.below:g}", f"{one.answered:,}", _share(one.coverage), _share(one.accuracy))
    return table

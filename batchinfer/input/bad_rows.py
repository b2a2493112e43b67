"""Rows of the input that cannot be read: with `input.on_bad_row: set_aside` each is a failed row of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BAD_ROW = "batchinfer.bad_row"
"""The column of a shard that says why a row cannot be read; null in the others. A manifest has it only if the input
has such rows."""


class BadRow(dict[str, Any]):
    """What can be read of a row, and the `problem` that the row has."""

    def __init__(self, problem: str, values: Mapping[str, Any] | None = None) -> None:
        super().__init__(values or {})
        self.problem = problem

    @classmethod
    def of(cls, row: Mapping[str, Any], column: str, problem: str) -> BadRow:
        """The row without the value of `column`; a problem that it has already stays."""
        values = {name: value for name, value in row.items() if name != column}
        return cls(row.problem if isinstance(row, BadRow) else f"column {column!r} {problem}", values)

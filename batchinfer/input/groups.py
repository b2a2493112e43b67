"""Where the groups of `input.group_by` begin. Keeps one bit for each row and no values, so inputs may be large."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd  # for its vectorised hash of texts
import pyarrow as pa
import pyarrow.compute as pc

from batchinfer.errors import InputError
from batchinfer.input.column_types import same_text

_KEPT = 4096
"""Smallest hashes kept. Fewer distinct groups are counted exactly, more with an error of about 1.6% (1/sqrt(4096)).
A larger number needs more memory, a smaller one makes a larger error."""

_SCATTERED = 2.0
"""Runs of rows for each group. From this ratio on `plan` and `validate` advise to sort; lower advises in vain."""


@dataclass(frozen=True, slots=True)
class Groups:
    """The groups of an input. Each row without a value is its own group; `runs` and `groups` do not count it.

    `begins` has a bit for each row, packed by np.packbits: 1 if a group begins at the row. `runs` counts the runs of
    neighbouring rows with one value, `groups` the distinct values (an estimate from 4096 on).
    """

    begins: npt.NDArray[np.uint8]
    runs: int
    groups: int

    def scattered(self, column: str) -> str | None:
        """One line for a person if sorting would bring rows together, otherwise None."""
        if self.runs < _SCATTERED * self.groups:
            return None
        return (
            f"input.group_by: the rows of {self.groups:,} groups lie in {self.runs:,} separate runs of rows; "
            f"an input sorted by {column!r} would let more rows share a prefix"
        )


def find_groups(column: str, chunks: Iterable[tuple[str, pa.Array]]) -> Groups:
    """The groups of the values of `column`. `chunks` are (file, values) in input order.

    Values with equal 64-bit hashes count as equal. Raises InputError for values that are neither texts nor numbers.
    """
    packed: list[npt.NDArray[np.uint8]] = []
    open_bits = np.zeros(0, dtype=np.uint8)
    before: np.uint64 | None = None
    runs, least = 0, np.zeros(0, dtype=np.uint64)
    for uri, values in chunks:
        if not len(values):
            continue
        hashes, null = _hashes(column, uri, values)
        differs = np.ones(len(values), dtype=bool)
        differs[1:] = (hashes[1:] != hashes[:-1]) | null[1:] | null[:-1]
        differs[0] = before is None or bool(null[0]) or hashes[0] != before
        before = None if null[-1] else hashes[-1]
        runs += int((differs & ~null).sum())
        # The smallest hashes are enough to estimate the number of distinct ones (`_distinct`).
        least = np.unique(np.concatenate([least, hashes[differs & ~null]]))[:_KEPT]
        bits = np.concatenate([open_bits, differs.astype(np.uint8)])
        whole = len(bits) // 8 * 8
        packed.append(np.packbits(bits[:whole]))
        open_bits = bits[whole:]
    packed.append(np.packbits(open_bits))
    return Groups(np.concatenate(packed), runs, _distinct(least))


def _distinct(least: npt.NDArray[np.uint64]) -> int:
    """The number of distinct hashes, estimated from the smallest ones (Bar-Yossef et al., RANDOM 2002)."""
    if len(least) < _KEPT:
        return len(least)
    return round((_KEPT - 1) / (float(least[-1]) / 2.0**64))


def _hashes(column: str, uri: str, values: pa.Array) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.bool_]]:
    """A hash for each value, and which are null."""
    try:
        text = same_text(values)
        text.validate(full=True)
    except pa.ArrowException:
        raise InputError(
            f"{uri}: input.group_by column {column!r} has type {values.type}",
            "rows are grouped by a text or a number: choose another column, or leave input.group_by out",
        ) from None
    null = np.asarray(values.is_null().to_numpy(zero_copy_only=False), dtype=bool)
    filled = pc.fill_null(text, "").to_numpy(zero_copy_only=False)
    return pd.util.hash_array(filled, categorize=False), null

"""How many rows a shard has, where it may end, and the order in which shards start. Pure.

The manifest is cut before the cluster is known, so these decisions use only the spec and the facts of the files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from batchinfer.input.manifest import Shard, read_together
from batchinfer.jobspec import ReplicaRange

MIN_AUTO_ROWS = 256
MAX_AUTO_ROWS = 8192
AUTO_SHARDS = 100
AUTO_OUTPUT_TOKENS = 2**18

TAPER = 8
"""Parts of a replica's share of the remaining rows; a shard has at most one part. Five or more shards are assigned to
a replica at once: with a lower value the rest would be assigned evenly, whatever a replica's speed."""

LEAST_WORK = 2**15
"""Tokens of the smallest shard at the end of the input: some seconds of a GPU. Lower, and the 40 ms that a shard costs
would show; higher, and replicas would end further apart."""

LEAST_ROWS = 64

FIRST_SHARDS = 8
"""With a budget, a shard has at most one part in so many of the rows before it. Lower, and a shard of unknown cost is
a larger part of the budget; higher, and there are more shards."""

PROMPT_TOKEN = 0.25
"""The cost of a prompt's token in tokens of an answer: prefill is bound by compute, decoding by memory bandwidth."""

CHARACTERS_PER_TOKEN = 4

ASSUMED_REPLICAS = 8
"""Replicas if the spec names no number: the GPUs of one machine. Too low a number makes the last shards too large,
too high a number makes more shards."""

FEWEST_HELD = 5
"""The fewest shards assigned to a replica, so that the next shard is queued when a large one ends. Fewer would let the
replica idle; more cannot move to another replica."""

SAME_WORK = 1.25
"""A factor: shards start largest first in classes of this width, and within a class in input order. Wider, and the
last shards may be large; narrower, and files are read out of order."""


def rows_per_shard(total_rows: int, asked: int | Literal["auto"], max_tokens: int) -> int:
    """`shards.rows`; `auto` aims at 100 shards of 256 to 8192 rows, with fewer rows if answers are long.

    Small shards show progress, and a crash loses little: at most 2**18 output tokens, about a minute of a GPU, unless
    256 rows have more. Large shards hide the cost of a shard: two Ray tasks and two files, about 40 ms.
    """
    if asked != "auto":
        return asked
    most = max(MIN_AUTO_ROWS, min(MAX_AUTO_ROWS, AUTO_OUTPUT_TOKENS // max_tokens))
    return max(MIN_AUTO_ROWS, min(most, -(-total_rows // AUTO_SHARDS)))


def row_work(max_tokens: int, row_bytes: float) -> float:
    """The highest cost of a row, in tokens of an answer; counts a prompt's token for every four bytes."""
    return max_tokens + PROMPT_TOKEN * row_bytes / CHARACTERS_PER_TOKEN


def least_rows(most: int, max_tokens: int, row_bytes: float) -> int:
    """Rows of the smallest shard at the end: worth LEAST_WORK tokens, at least LEAST_ROWS, at most `most`."""
    return min(most, max(LEAST_ROWS, int(LEAST_WORK / row_work(max_tokens, row_bytes))))


def tapered(total_rows: int, most: int, least: int, replicas: int) -> Callable[[int], int]:
    """A function from the first row of a shard to its rows: at most `most`, and less towards the end of the input.

    Guided self-scheduling (Polychronopoulos and Kuck, IEEE Trans. Computers C-36(12), 1987): a shard is a fixed part
    of the remaining rows, so that replicas of any speed end together. A shard has at least `least` rows.
    """

    def rows(first_row: int) -> int:
        left = total_rows - first_row
        return max(least, min(most, -(-left // (TAPER * replicas))))

    return rows


def shard_sizes(
    rows: int, size: int, asked: int | Literal["auto"], max_tokens: int, replicas: int | ReplicaRange | Literal["auto"]
) -> Callable[[int], int]:
    """A function from the first row of a shard to its rows, for an input of `rows` rows and `size` bytes.

    A number in `asked` holds for all shards. For `auto`, shards have `rows_per_shard` rows and fewer towards the end
    (`tapered`), for the highest number of replicas that the spec allows.
    """
    most = rows_per_shard(rows, asked, max_tokens)
    if asked != "auto":
        return lambda first_row: most
    if isinstance(replicas, ReplicaRange):
        replicas = replicas.max
    return tapered(
        rows,
        most,
        least_rows(most, max_tokens, size / max(1, rows)),
        ASSUMED_REPLICAS if replicas == "auto" else replicas,
    )


def small_at_first(sizes: Callable[[int], int]) -> Callable[[int], int]:
    """`sizes`, but with small shards at the beginning, which grow with the rows before them.

    A run with a budget needs them: the cost of a shard is unknown until the first shards have ended.
    """
    return lambda first_row: min(sizes(first_row), max(LEAST_ROWS, first_row // FIRST_SHARDS))


def at_groups(begins: npt.NDArray[np.uint8], total_rows: int) -> Callable[[int, int], int]:
    """A function that ends shards at ends of groups (`settle` of `manifest.cut`).

    `begins` has a bit for each of `total_rows` rows, packed by np.packbits: 1 if a group begins at the row. A shard at
    `first_row` with at most `rows` rows has as many whole groups as fit. If no group fits, it has `rows` rows.
    """

    def settled(first_row: int, rows: int) -> int:
        end = first_row + rows
        if end >= total_rows:
            return rows
        byte = (first_row + 1) // 8
        found = np.flatnonzero(np.unpackbits(begins[byte : end // 8 + 1])) + byte * 8
        found = found[(found > first_row) & (found <= end)]
        return int(found[-1]) - first_row if len(found) else rows

    return settled


def shards_held(in_flight: int) -> int:
    """How many shards are assigned to a replica that runs `in_flight` of them at a time."""
    return max(FEWEST_HELD, in_flight)


def readers(replicas: int) -> int:
    """How many lists of shards are read at a time: one for each replica up to 4, then 4, and from 32 on one for eight.

    A reader is much faster than any model, and more readers would mix the order in which shards start.
    """
    return min(replicas, max(4, -(-replicas // 8)))


def work_of(shard: Shard, max_tokens: int, rows: int | None = None) -> float:
    """The highest cost of a shard, in tokens of an answer; of `rows` of its rows, if given.

    Manifests of earlier versions have no bytes, so the prompts count nothing there.
    """
    whole = max(1, shard.rows)
    return (whole if rows is None else rows) * row_work(max_tokens, shard.size / whole)


def in_order(
    shards: Sequence[Shard], max_tokens: int, positions: Mapping[int, Sequence[int]] | None = None
) -> list[list[Shard]]:
    """The lists of shards that one reader should read (`manifest.read_together`), in the order to start them.

    Longest work first (Graham, SIAM J. Applied Math. 17(2), 1969), so that the last shards are short. The work of a
    list is that of its largest shard. Lists of similar work (SAME_WORK) stay in input order. `positions`: the rows to
    run of each shard; None runs all rows.
    """
    groups = list(read_together(shards))
    works = [
        max(work_of(s, max_tokens, None if positions is None else len(positions[s.shard_id])) for s in group)
        for group in groups
    ]
    largest = max(works, default=1.0)
    classes = [int(math.log(largest / max(1.0, work), SAME_WORK)) for work in works]
    return [groups[i] for i in sorted(range(len(groups)), key=lambda i: classes[i])]

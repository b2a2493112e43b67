"""How many rows each shard gets, where it may end, and in which order shards are begun.

Pure. The manifest is cut before anything is known of the cluster, so that what is decided here rests on the
spec and on what the files say of themselves.
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
"""A shard takes at most one part in so many of a replica's share of what is left. A replica holds five shards or
more: with fewer parts all that is left would be dealt out at once, the same to a slow replica as to a fast one."""

LEAST_WORK = 2**15
"""Tokens of the smallest shard of the tail: some seconds of a GPU, beside the 40 ms that a shard costs."""

LEAST_ROWS = 64

FIRST_SHARDS = 8
"""In a run with a budget a shard has at most one part in so many of the rows before it. Lower, and a shard of unknown
cost is a larger part of the budget; higher, and there are more shards."""

PROMPT_TOKEN = 0.25
"""What a token of the prompt costs, in tokens of an answer: prefill is bound by arithmetic, decoding by memory."""

CHARACTERS_PER_TOKEN = 4

ASSUMED_REPLICAS = 8
"""Where the spec does not say: the GPUs of one machine. Too few costs part of the taper's gain, too many
costs shards."""

FEWEST_HELD = 5
"""Shards that a replica holds at least, so that the next one is there when a large one ends."""

SAME_WORK = 1.25
"""Shards whose work differs by less keep the order of the input."""


def rows_per_shard(total_rows: int, asked: int | Literal["auto"], max_tokens: int) -> int:
    """`shards.rows`, where `auto` aims at 100 shards of 256 to 8192 rows, fewer where answers are long.

    Enough shards that progress shows and a crash loses little (at most 2**18 output tokens a shard, a
    minute or so of a GPU), rows enough that the price of a shard (two Ray tasks and two files, about
    40 ms) does not show.
    """
    if asked != "auto":
        return asked
    most = max(MIN_AUTO_ROWS, min(MAX_AUTO_ROWS, AUTO_OUTPUT_TOKENS // max_tokens))
    return max(MIN_AUTO_ROWS, min(most, -(-total_rows // AUTO_SHARDS)))


def row_work(max_tokens: int, row_bytes: float) -> float:
    """What a row costs at most, in tokens of an answer; a prompt has a token for every four of its bytes."""
    return max_tokens + PROMPT_TOKEN * row_bytes / CHARACTERS_PER_TOKEN


def least_rows(most: int, max_tokens: int, row_bytes: float) -> int:
    """Rows of the smallest shard of the tail: LEAST_WORK tokens, LEAST_ROWS at least, `most` at most."""
    return min(most, max(LEAST_ROWS, int(LEAST_WORK / row_work(max_tokens, row_bytes))))


def tapered(total_rows: int, most: int, least: int, replicas: int) -> Callable[[int], int]:
    """Rows of the shard that begins at a row: `most`, and from where that is too much for what is left, less.

    Guided self-scheduling (Polychronopoulos and Kuck, IEEE Trans. Computers C-36(12), 1987): each takes
    a fixed part of what is left, so that all end together whatever their speed. `least` rows at least.
    """

    def rows(first_row: int) -> int:
        left = total_rows - first_row
        return max(least, min(most, -(-left // (TAPER * replicas))))

    return rows


def shard_sizes(
    rows: int, size: int, asked: int | Literal["auto"], max_tokens: int, replicas: int | ReplicaRange | Literal["auto"]
) -> Callable[[int], int]:
    """Rows of the shard that begins at a row, for an input of `rows` rows and `size` bytes.

    What the spec asks for, or, where that is `auto`, `rows_per_shard` and towards the end fewer (`tapered`), for as
    many replicas as the spec says at most.
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
    """`sizes`, with small shards at the beginning that grow as the input goes on.

    For a run with a budget: until the first shards have ended nobody knows what one costs, and each is paid for whole.
    """
    return lambda first_row: min(sizes(first_row), max(LEAST_ROWS, first_row // FIRST_SHARDS))


def at_groups(begins: npt.NDArray[np.uint8], total_rows: int) -> Callable[[int, int], int]:
    """Ends a shard where a group ends. `begins` has a bit for each of `total_rows` rows, as np.packbits packs
    them: 1 where a group begins.

    The shard that begins at `first_row` and may have `rows` rows gets as many whole groups as fit; where
    not even one does, it gets what it may have of that group.
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
    """How many shards are handed to a replica that works on `in_flight` of them at a time."""
    return max(FEWEST_HELD, in_flight)


def readers(replicas: int) -> int:
    """How many lists of shards are read at a time: one for each replica up to four, one for eight from there on.

    What is read at the same time is begun in mixed order, and a reader is much faster than any model.
    """
    return min(replicas, max(4, -(-replicas // 8)))


def work_of(shard: Shard, max_tokens: int, rows: int | None = None) -> float:
    """What a shard costs at most, in tokens of an answer; `rows` of it where not all are to be run.

    Of manifests of earlier versions the bytes are not known: there it is the rows that count.
    """
    whole = max(1, shard.rows)
    return (whole if rows is None else rows) * row_work(max_tokens, shard.size / whole)


def in_order(
    shards: Sequence[Shard], max_tokens: int, positions: Mapping[int, Sequence[int]] | None = None
) -> list[list[Shard]]:
    """The shards in lists that one reader should read (`manifest.read_together`), in the order to begin them.

    Longest work first (Graham, SIAM J. Applied Math. 17(2), 1969), so that what is begun last is short; a
    list counts as its largest shard. Lists of about the same work stay in the order of the input.
    `positions`: the rows to run of each shard, None for all.
    """
    groups = list(read_together(shards))
    works = [
        max(work_of(s, max_tokens, None if positions is None else len(positions[s.shard_id])) for s in group)
        for group in groups
    ]
    largest = max(works, default=1.0)
    classes = [int(math.log(largest / max(1.0, work), SAME_WORK)) for work in works]
    return [groups[i] for i in sorted(range(len(groups)), key=lambda i: classes[i])]

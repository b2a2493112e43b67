"""The order of queued rows: rows that share a prefix enter the engine together.

vLLM keeps the KV cache of a prompt's blocks for later prompts with the same prefix, until it must evict them. Rows
that share a document but arrive far apart find no prefix match. The order covers all shards of a replica. The oldest
shard goes first, sorted by prompt, and each of its rows is followed by the rows of other shards with the same prefix.
Without shared prefixes, shards are served first come, first served, so no shard is delayed by another.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from typing import Generic, TypeVar

T = TypeVar("T")

FEWEST_CHARACTERS_PER_TOKEN = 2
"""A low estimate, used to find rows that share a KV block. Too low only groups rows that share less than a block; too
high misses rows that share one."""

SHARED_CHARACTERS = 256
"""Characters of a prefix that is worth a reordering: a few KV blocks of 16 tokens, or half a block on a CPU. Lower
reports sharing that the cache cannot use, higher misses short documents."""


def common_prefix(a: str, b: str) -> int:
    """The length of the common prefix of two texts, in characters."""
    if b.startswith(a):
        return len(a)
    # Bisection needs a few comparisons in C, where a loop in Python would visit thousands of characters.
    same, different = 0, min(len(a), len(b)) + 1
    while different - same > 1:
        middle = (same + different) // 2
        if a[same:middle] == b[same:middle]:
            same = middle
        else:
            different = middle
    return same


def scattered(parts: Sequence[Sequence[str]]) -> float:
    """The share (0 to 1) of texts that share a prefix with a text of another part.

    The prefix must be SHARED_CHARACTERS longer than the common prefix of all texts. `parts`: texts from different
    parts of the input.
    """
    texts = sorted((text, part) for part, found in enumerate(parts) for text in found)
    if not texts:
        return 0.0
    head = common_prefix(texts[0][0], texts[-1][0]) + SHARED_CHARACTERS
    found: dict[str, Counter[int]] = defaultdict(Counter)
    for text, part in texts:
        if len(text) >= head:
            found[text[:head]][part] += 1
    return sum(by_part.total() for by_part in found.values() if len(by_part) > 1) / len(texts)


class PrefixOrder(Generic[T]):
    """The queued rows, in batches (the rows of one call, named by a `T`), and the next row. Not thread-safe.

    `block_tokens`: the tokens of a KV cache block. A shared prefix counts if it is a block longer than the common
    prefix of all queued prompts.
    """

    def __init__(self, block_tokens: int) -> None:
        self._span = block_tokens * FEWEST_CHARACTERS_PER_TOKEN
        self._batches: dict[T, list[str]] = {}
        """The remaining prompts of each batch, sorted in reverse: the next one is the last element."""
        self._groups: dict[str, list[tuple[str, T, int]]] = {}
        """(prompt, batch, position) of the queued rows, by their prefix."""
        self._width = 0
        self._next: deque[tuple[str, T, int]] = deque()
        self._last = ""
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def add(self, name: T, keys: Sequence[str]) -> None:
        """Queue a new batch; `keys` are the prompts of its rows 0, 1, ..."""
        if not keys:
            return
        self._batches[name] = sorted(keys, reverse=True)
        self._waiting += len(keys)
        # The common prefix of all prompts (a system prompt) is always cached and does not distinguish rows.
        head = common_prefix(
            min(prompts[-1] for prompts in self._batches.values()),
            max(prompts[0] for prompts in self._batches.values()),
        )
        rows = [(key, name, place) for place, key in enumerate(keys)]
        if head + self._span != self._width:
            self._width = head + self._span
            rows = [row for group in self._groups.values() for row in group] + rows
            self._groups = {}
        for row in rows:
            self._groups.setdefault(row[0][: self._width], []).append(row)

    def pop(self) -> tuple[T, int, float]:
        """Remove the next row: its batch, its position there, and the share (0 to 1) of its prompt that is a common
        prefix with the previous row. Raises IndexError if no row is queued."""
        if not self._waiting:
            raise IndexError("no row waits")
        while not self._next:
            self._gather()
        key, name, place = self._next.popleft()
        self._waiting -= 1
        shared = common_prefix(self._last, key) / max(1, len(key))
        self._last = key
        return name, place, shared

    def rest(self) -> list[T]:
        """The batches that still have queued rows."""
        waiting = [*self._next, *(row for group in self._groups.values() for row in group)]
        return [*dict.fromkeys(name for _, name, _ in waiting)]

    def _gather(self) -> None:
        """Queue the oldest batch's next row and all rows with its prefix; nothing if they went with an earlier row."""
        oldest = next(iter(self._batches))
        prompts = self._batches[oldest]
        rows = self._groups.pop(prompts.pop()[: self._width], [])
        if not prompts:
            del self._batches[oldest]
        # Sorted by prompt. The sort is stable, so among equal prompts the older batch is first.
        rows.sort(key=lambda row: row[0])
        self._next.extend(rows)

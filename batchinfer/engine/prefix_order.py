"""Prompts that begin alike: which rows share a prefix, and the order that feeds these to the engine together.

vLLM keeps the KV cache of a prompt's blocks for later prompts that begin the same, as long as there is room. Rows
that share a document but arrive far apart find it gone. Here the rows of all shards that a replica holds are
looked at: the oldest shard goes first, in the order of its prompts, and each of its rows brings along the rows of
the other shards whose prompts begin as its own does. Where nothing is shared, this is first come, first
served by shards, so that no shard waits for another's sake; the oldest one gets on with every row it has.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from typing import Generic, TypeVar

T = TypeVar("T")

FEWEST_CHARACTERS_PER_TOKEN = 2
"""Low on purpose: rows taken for sharing a KV block that share a little less are only neighbours for nothing."""

SHARED_CHARACTERS = 256
"""A beginning this long is worth keeping in the KV cache: a few blocks of 16 tokens, or half of one of a CPU's."""


def common_prefix(a: str, b: str) -> int:
    """How many characters two texts begin with alike."""
    if b.startswith(a):
        return len(a)
    # Halving finds it with a few comparisons in C, where a loop in Python would go through thousands of characters.
    same, different = 0, min(len(a), len(b)) + 1
    while different - same > 1:
        middle = (same + different) // 2
        if a[same:middle] == b[same:middle]:
            same = middle
        else:
            different = middle
    return same


def scattered(parts: Sequence[Sequence[str]]) -> float:
    """The share of texts that begin as one of another part does, SHARED_CHARACTERS and more beyond what all
    begin with. `parts`: texts from different parts of the input."""
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
    """Rows that wait, in batches (a shard's rows each, known by `T`), and which of them is next.

    `block_tokens`: the tokens of a KV cache block, the smallest beginning that is worth sharing beyond what all
    the prompts that wait begin with. Not thread-safe.
    """

    def __init__(self, block_tokens: int) -> None:
        self._span = block_tokens * FEWEST_CHARACTERS_PER_TOKEN
        self._batches: dict[T, list[str]] = {}
        """The prompts of each batch in the order of the alphabet, those still to be looked at last."""
        self._groups: dict[str, list[tuple[str, T, int]]] = {}
        """(prompt, batch, place) of the rows that wait, by what they begin with."""
        self._width = 0
        self._next: deque[tuple[str, T, int]] = deque()
        self._last = ""
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def add(self, name: T, keys: Sequence[str]) -> None:
        """Rows 0, 1, ... of a new batch, each with its prompt."""
        if not keys:
            return
        self._batches[name] = sorted(keys, reverse=True)
        self._waiting += len(keys)
        # What all of them begin with (a system prompt) is in the cache in any case and tells no two rows apart.
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
        """The next row waits no longer: its batch, its place there, and which share of its prompt (0 to 1) the row
        before it began with too. Raises IndexError when none waits."""
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
        """The batches that still have rows here."""
        waiting = [*self._next, *(row for group in self._groups.values() for row in group)]
        return [*dict.fromkeys(name for _, name, _ in waiting)]

    def _gather(self) -> None:
        """Take the oldest batch's next row with all rows that share its beginning, if it has not gone with others."""
        oldest = next(iter(self._batches))
        prompts = self._batches[oldest]
        rows = self._groups.pop(prompts.pop()[: self._width], [])
        if not prompts:
            del self._batches[oldest]
        # By prompt; among equal prompts the older batch first, as the sort is stable.
        rows.sort(key=lambda row: row[0])
        self._next.extend(rows)

"""Cuts a long text into chunks of so many tokens, at the ends of paragraphs or sentences where there are some."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

_ENDS = (
    re.compile(r"\n[ \t]*\n\s*"),
    re.compile(r"[.!?][\"'”’)\]]*\s+|[。！？][」』”]*\s*"),
    re.compile(r"\n"),
    re.compile(r"\s+"),
)
"""Where a text is cut, from the best place to the worst: after a paragraph, a sentence, a line, a word."""

_LEAST = 0.5
"""Share of a chunk that is filled at least before a better place to cut counts. Lower makes more chunks; at 1 every cut
is in the middle of a sentence."""


def chunks(text: str, tokens: Sequence[tuple[int, int]], most: int, overlap: int = 0) -> list[tuple[int, int]]:
    """The first and the last character of each chunk of a text.

    `tokens`: the first and the last character of each token. A chunk has at most `most` tokens, `overlap` of which it
    shares with the chunk before; so less than half of `most`. Together the chunks are the whole text.
    """
    starts = [start for start, _ in tokens]
    made: list[tuple[int, int]] = []
    begin = 0
    while True:
        first = bisect_left(starts, begin)
        if first + most >= len(tokens):
            return [*made, (begin, len(text))]
        limit = starts[first + most]
        # Several tokens may be parts of one character; a chunk has one character at least.
        end = _end(text, max(begin + 1, starts[first + round(most * _LEAST)]), max(begin + 1, limit))
        made.append((begin, end))
        begin = _begin(text, starts, begin, end, overlap)


def _end(text: str, least: int, limit: int) -> int:
    """Where a chunk ends, that ends between two characters."""
    for ends in _ENDS:
        found = [match.end() for match in ends.finditer(text, least - 1, limit)]
        found = [end for end in found if end >= least]
        if found:
            return found[-1]
    return limit


def _begin(text: str, starts: Sequence[int], begin: int, end: int, overlap: int) -> int:
    """Where the chunk after one from `begin` to `end` begins: at a word of the last `overlap` tokens."""
    if not overlap:
        return end
    earliest = starts[max(0, bisect_right(starts, end - 1) - overlap)]
    for ends in _ENDS[1:]:
        found = next((match.end() for match in ends.finditer(text, max(0, earliest - 1), end)), None)
        if found is not None and begin < found < end:
            return found
    return max(begin + 1, earliest) if earliest < end else end

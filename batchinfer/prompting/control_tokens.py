"""No row speaks as another role: control tokens in a row's text are text.

A chat template writes who speaks with control tokens such as `<|im_start|>`. A tokenizer reads these wherever they
stand. Here each one in a row's text is broken in two, and the parts become tokens apart from one another.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from typing import Any

from batchinfer.jobspec.printed import Map
from batchinfer.prompting.prompts import Prompt

_BREAKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
"""Unicode's noncharacters: no text has a use for them."""

_FEW_BEGINNINGS = 16
"""So many searches for two characters are faster than one for all control tokens."""


class ControlTokens:
    """The control tokens `tokens`, found in texts and broken. One serves any number of threads."""

    def __init__(self, tokens: Collection[str]) -> None:
        # A token of one character cannot be broken: it is not one that people take for text.
        known = sorted({token for token in tokens if len(token) > 1}, key=len, reverse=True)
        self._any = re.compile("|".join(map(re.escape, known))) if known else None
        beginnings = {token[:2] for token in known}
        self._beginnings = tuple(beginnings) if len(beginnings) <= _FEW_BEGINNINGS else None
        self._heads = tuple({token[:end] for token in known for end in range(1, len(token))})
        self._tails = tuple({token[start:] for token in known for start in range(1, len(token))})

    def stand_in(self, text: str) -> bool:
        """Whether the text holds a control token."""
        if self._any is None:
            return False
        if self._beginnings is not None and not any(beginning in text for beginning in self._beginnings):
            return False
        return self._any.search(text) is not None

    def broken(self, text: str, mark: str) -> str:
        """The text with `mark` within each control token, and at an end that may be part of one with its neighbour."""
        if self._any is None:
            return text
        # Again until none is left: what comes after a broken token may begin another one.
        while self._any.search(text):
            text = self._any.sub(lambda found: f"{found[0][:1]}{mark}{found[0][1:]}", text)
        before = mark if text.startswith(self._tails) else ""
        after = mark if text.endswith(self._heads) else ""
        return f"{before}{text}{after}"


def is_control(token: str, special: bool) -> bool:
    """Whether an added token of a tokenizer is a control token."""
    return special or re.fullmatch(r"<[|｜].*[|｜]>", token) is not None


def unused_mark(prompt: Prompt) -> str | None:
    """A character that stands nowhere in the prompt."""
    texts = [*strings_in(prompt.as_messages()), prompt.prefill or "", *strings_in(dict(prompt.row or {}))]
    return next((mark for mark in _BREAKS if not any(mark in text for text in texts)), None)


def strings_in(value: Any) -> Iterable[str]:
    """All texts of a value of the data, at any depth, without the keys of objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from strings_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from strings_in(inner)


def with_strings(value: Any, change: Callable[[str], str]) -> Any:
    """The value with each text in it changed, but for the keys of objects."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: with_strings(inner, change) for key, inner in value.items()}
    if isinstance(value, Map):
        return Map((with_strings(key, change), with_strings(inner, change)) for key, inner in value)
    if isinstance(value, list | tuple):
        return [with_strings(inner, change) for inner in value]
    return value

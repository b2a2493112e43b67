r"""Regular expressions with one meaning for Python, for the engine's grammar and for the check of an answer.

The engine turns an expression into a grammar. The grammar reads some of Python's syntax differently (`\A` as the
letter A, `.` as any character), and some not at all (`\b`, look-around, back-references). This module parses an
expression once. A part without an equal in the grammar is refused; the rest is written for the engine in unambiguous
syntax. `\d`, `\w` and `\s` are ASCII, as with `re.ASCII`.

Matching takes time proportional to the text, for any expression. Python's `re` backtracks: `(\w+\s?)+\.` would block a
worker for hours on forty characters of a cut answer.
"""

from __future__ import annotations

import functools
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

MAX_STATES = 20_000
"""States of one expression, with its counted repetitions expanded. More would cost the engine's grammar minutes; fewer
refuses expressions that work."""

MAX_STEPS = 500_000
"""Steps of one match that are not cached, about half a second of Python. Beyond it the match fails with TooManySteps.
Lower fails valid answers, higher delays the rows behind one answer."""

_KEPT_TRANSITIONS = 100_000
"""Steps that are cached for later texts, about 20 MB for each expression. Fewer makes matching slower, more needs
memory."""

_LAST = 0x10FFFF
Ranges = tuple[tuple[int, int], ...]
"""A set of characters, as sorted ranges of code points (both ends included) that neither touch nor overlap."""


class TooManySteps(Exception):
    """A match needs more than MAX_STEPS."""


def _ranges(pairs: Sequence[tuple[int, int]]) -> Ranges:
    merged: list[tuple[int, int]] = []
    for low, high in sorted(pairs):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def _others(ranges: Ranges) -> Ranges:
    found, at = [], 0
    for low, high in ranges:
        if at < low:
            found.append((at, low - 1))
        at = high + 1
    return (*found, (at, _LAST)) if at <= _LAST else tuple(found)


_DIGITS = _ranges([(48, 57)])
_WORD = _ranges([(48, 57), (65, 90), (95, 95), (97, 122)])
_SPACE = _ranges([(9, 13), (32, 32)])
_CLASSES = {
    "d": _DIGITS, "D": _others(_DIGITS), "w": _WORD, "W": _others(_WORD), "s": _SPACE, "S": _others(_SPACE),
}  # fmt: skip
_ANY = _others(_ranges([(10, 10)]))
_CONTROLS = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11}


@dataclass(frozen=True, slots=True)
class _Chars:
    ranges: Ranges


@dataclass(frozen=True, slots=True)
class _Anchor:
    begin: bool
    at: int


@dataclass(frozen=True, slots=True)
class _Sequence:
    items: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Either:
    branches: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Repeat:
    item: _Node
    least: int
    most: int | None


_Node = _Chars | _Anchor | _Sequence | _Either | _Repeat


class _Parser:
    """Parses an expression that `re.compile` accepts. Raises ValueError with the part that no grammar can express."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0

    def parse(self) -> _Node:
        return self._either()

    def _refuse(self, begin: int, why: str, end: int | None = None) -> ValueError:
        part = self._source[begin : end or self._at]
        return ValueError(f"holds {part!r:.60} at character {begin}, {why}")

    def _peek(self, text: str) -> bool:
        return self._source.startswith(text, self._at)

    def _either(self) -> _Node:
        branches = [self._sequence()]
        while self._peek("|"):
            self._at += 1
            branches.append(self._sequence())
        return branches[0] if len(branches) == 1 else _Either(tuple(branches))

    def _sequence(self) -> _Node:
        items: list[_Node] = []
        while self._at < len(self._source) and self._source[self._at] not in "|)":
            items.append(self._repeated(self._atom()))
        return items[0] if len(items) == 1 else _Sequence(tuple(items))

    def _repeated(self, item: _Node) -> _Node:
        begin = self._at
        counted = re.compile(r"\{(\d*)(,?)(\d*)\}").match(self._source, self._at)
        sign = self._source[self._at : self._at + 1]
        if sign and sign in "*+?":
            self._at += 1
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
        elif counted and any(counted.groups()):
            self._at = counted.end()
            least = int(counted[1] or 0)
            most = (int(counted[3]) if counted[3] else None) if counted[2] else least
        else:
            return item
        if self._peek("+"):
            self._at += 1
            raise self._refuse(begin, "a repetition that gives nothing back, which the engine cannot generate from")
        if self._peek("?"):
            # The whole answer is matched, so lazy and greedy repetitions match the same texts.
            self._at += 1
        if isinstance(item, _Anchor):
            raise self._refuse(item.at, "an anchor that is repeated: leave it out")
        return _Repeat(item, least, most)

    def _atom(self) -> _Node:
        begin = self._at
        sign = self._source[begin]
        self._at += 1
        if sign == ".":
            return _Chars(_ANY)
        if sign in "^$":
            return _Anchor(sign == "^", begin)
        if sign == "[":
            return _Chars(self._class())
        if sign == "(":
            return self._group(begin)
        if sign == "\\":
            return _Chars(self._escape(begin, inside=False))
        return _Chars(((ord(sign), ord(sign)),))

    def _group(self, begin: int) -> _Node:
        if self._peek("?"):
            named = re.compile(r"\?(?::|P<\w+>)").match(self._source, self._at)
            if named is None:
                kinds = {"?=": "look-ahead", "?!": "look-ahead", "?<": "look-behind", "?P=": "a back-reference",
                         "?(": "a condition", "?>": "a group that gives nothing back", "?#": "a comment"}  # fmt: skip
                kind = next((kind for mark, kind in kinds.items() if self._peek(mark)), "a flag")
                end = self._source.find(")", self._at) + 1
                raise self._refuse(begin, f"{kind}, which the engine cannot generate from", end)
            self._at = named.end()
        inner = self._either()
        self._at += 1
        return inner

    def _escape(self, begin: int, inside: bool) -> Ranges:
        sign = self._source[self._at]
        self._at += 1
        if sign in _CLASSES:
            return _CLASSES[sign]
        if not inside and sign in "AZz":
            raise self._refuse(begin, "which the engine reads as a letter: leave it out, the whole answer is matched")
        if not inside and sign in "bB":
            raise self._refuse(begin, "a word boundary, which the engine cannot generate from")
        if sign in _CONTROLS:
            code = _CONTROLS[sign]
        elif sign in "xuU":
            length = {"x": 2, "u": 4, "U": 8}[sign]
            code = int(self._source[self._at : self._at + length], 16)
            self._at += length
        elif sign == "N":
            end = self._source.index("}", self._at)
            code = ord(unicodedata.lookup(self._source[self._at + 1 : end]))
            self._at = end + 1
        elif sign.isdigit():
            octal = re.compile(r"0[0-7]{0,2}|[0-3][0-7]{2}").match(self._source, self._at - 1)
            if octal is None:
                raise self._refuse(begin, "a back-reference, which the engine cannot generate from")
            self._at = octal.end()
            code = int(octal[0], 8)
        else:
            code = ord(sign)
        if code == 0 or 0xD800 <= code <= 0xDFFF:
            raise self._refuse(begin, "a character that no answer can hold")
        return ((code, code),)

    def _class(self) -> Ranges:
        begin = self._at - 1
        others = self._peek("^")
        self._at += others
        found: list[tuple[int, int]] = []
        first = True
        while first or not self._peek("]"):
            first = False
            low = self._member()
            if self._peek("-") and self._source[self._at + 1 : self._at + 2] != "]" and len(low) == 1:
                self._at += 1
                found.append((low[0][0], self._member()[0][1]))
            else:
                found += low
        self._at += 1
        ranges = _others(_ranges(found)) if others else _ranges(found)
        if not ranges:
            raise self._refuse(begin, "a class without characters")
        return ranges

    def _member(self) -> Ranges:
        begin = self._at
        self._at += 1
        if self._source[begin] == "\\":
            return self._escape(begin, inside=True)
        code = ord(self._source[begin])
        return ((code, code),)


def _states(node: _Node) -> int:
    if isinstance(node, _Chars | _Anchor):
        return 1
    if isinstance(node, _Repeat):
        return 1 + _states(node.item) * max(1, node.least + 1 if node.most is None else node.most)
    inner = node.items if isinstance(node, _Sequence) else node.branches
    return 1 + sum(map(_states, inner))


def _longest(node: _Node) -> int | None:
    """The most characters that the node matches; None if there is no limit."""
    if isinstance(node, _Chars):
        return 1
    if isinstance(node, _Anchor):
        return 0
    if isinstance(node, _Repeat):
        inner = _longest(node.item)
        if inner == 0 or node.most == 0:
            return 0
        return None if inner is None or node.most is None else inner * node.most
    lengths = [_longest(item) for item in (node.items if isinstance(node, _Sequence) else node.branches)]
    known = [length for length in lengths if length is not None]
    if len(known) < len(lengths):
        return None
    return sum(known) if isinstance(node, _Sequence) else max(known, default=0)


def _misplaced(node: _Node, first: bool, last: bool) -> Iterator[_Anchor]:
    """The anchors that no whole answer can match: a `^` after, or a `$` before, another part of the expression."""
    if isinstance(node, _Anchor):
        if not (first if node.begin else last):
            yield node
    elif isinstance(node, _Either):
        for branch in node.branches:
            yield from _misplaced(branch, first, last)
    elif isinstance(node, _Repeat):
        once = node.most == 1
        yield from _misplaced(node.item, first and once, last and once)
    elif isinstance(node, _Sequence):
        taking = [i for i, item in enumerate(node.items) if _longest(item) != 0]
        for i, item in enumerate(node.items):
            before, after = taking and taking[0] < i, taking and taking[-1] > i
            yield from _misplaced(item, first and not before, last and not after)


def _written(node: _Node) -> str:
    """The expression without its anchors, in syntax that Python and the grammar read alike."""
    if isinstance(node, _Chars):
        return _class_written(node.ranges)
    if isinstance(node, _Anchor):
        return ""
    if isinstance(node, _Repeat):
        most = "" if node.most is None else str(node.most)
        count = {(0, None): "*", (1, None): "+", (0, 1): "?"}.get((node.least, node.most), f"{{{node.least},{most}}}")
        return f"(?:{_written(node.item)}){count}"
    if isinstance(node, _Sequence):
        return "".join(map(_written, node.items))
    return f"(?:{'|'.join(map(_written, node.branches))})"


def _class_written(ranges: Ranges) -> str:
    if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
        return _sign(ranges[0][0])
    if ranges == ((0, _LAST),):
        return r"[\s\S]"
    if ranges[-1][1] == _LAST:
        # The grammar can express ranges up to the last code point only as a negated class.
        return f"[^{_members(_others(ranges))}]"
    return f"[{_members(ranges)}]"


def _members(ranges: Ranges) -> str:
    # xgrammar 0.2.8 reads an escaped ^ at the beginning of a class as its negation, so ^ is written last.
    caret = ord("^")
    parts = [(low + (low == caret < high), high) for low, high in ranges]
    parts += [(caret, caret) for low, high in ranges if low == caret < high]
    parts.sort(key=lambda ends: ends[0] == caret)
    return "".join(_sign(low) if low == high else f"{_sign(low)}-{_sign(high)}" for low, high in parts)


def _sign(code: int) -> str:
    # No `\\x2d`: xgrammar 0.2.8 reads it as the sign of a range in a class, and reads another number of digits.
    escapes = {10: "n", 9: "t", 13: "r", 12: "f", 11: "v"}
    sign = escapes.get(code, chr(code))
    return f"\\{sign}" if code in escapes or sign in r"\^$.|?*+()[]{}-" else sign


@dataclass(slots=True)
class _Machine:
    """States by number. A state either consumes one of `chars` and leads to one state, or leads to states without."""

    chars: list[Ranges | None] = field(default_factory=list)
    leads: list[list[int]] = field(default_factory=list)
    anchors: dict[int, bool] = field(default_factory=dict)
    """States that are passed only at the beginning of a text (True) or only at its end (False)."""

    def add(self, chars: Ranges | None, *leads: int) -> int:
        self.chars.append(chars)
        self.leads.append(list(leads))
        return len(self.chars) - 1

    def build(self, node: _Node, then: int) -> int:
        """Add the states of `node`, which lead to the state `then`; returns the first of them."""
        if isinstance(node, _Chars):
            return self.add(node.ranges, then)
        if isinstance(node, _Anchor):
            state = self.add(None, then)
            self.anchors[state] = node.begin
            return state
        if isinstance(node, _Sequence):
            for item in reversed(node.items):
                then = self.build(item, then)
            return then
        if isinstance(node, _Either):
            return self.add(None, *[self.build(branch, then) for branch in node.branches])
        if node.most is None:
            again = self.add(None, then)
            self.leads[again].append(self.build(node.item, again))
            then = again
        else:
            out = then
            for _ in range(node.most - node.least):
                then = self.add(None, self.build(node.item, then), out)
        for _ in range(node.least):
            then = self.build(node.item, then)
        return then


_END = 0


class Regex:
    """A compiled expression, safe to use from several threads. Raises ValueError with a message for a person.

    `answer`: the expression must match whole answers, so a misplaced anchor is refused.
    """

    def __init__(self, source: str, answer: bool = True) -> None:
        if "\0" in source:
            raise ValueError("holds a NUL, which no answer can hold")
        try:
            with warnings.catch_warnings():
                # "Possible nested set": Python has no nested sets.
                warnings.simplefilter("ignore", FutureWarning)
                re.compile(source)
            tree = _Parser(source).parse()
            size = _states(tree)
            misplaced = next(_misplaced(tree, True, True), None) if answer else None
            self.longest = _longest(tree)
            """The most characters of a matching text; None if there is no limit."""
            self.grammar = _written(tree)
            """The expression for the engine, in unambiguous syntax."""
        except (re.error, OverflowError) as error:
            raise ValueError(f"is not a valid regular expression: {error}") from None
        except RecursionError:
            raise ValueError("is not a valid regular expression: it is nested too deeply") from None
        if size > MAX_STATES:
            raise ValueError(
                f"stands for {size:,} steps with its repetitions written out, more than {MAX_STATES:,}: make it smaller"
            )
        if misplaced is not None:
            sign = "^" if misplaced.begin else "$"
            raise ValueError(f"holds {sign!r} at character {misplaced.at}, where no answer can match it: leave it out")
        self._machine = machine = _Machine()
        machine.add(None)
        self._start = machine.build(tree, _END)
        self._reset()

    def fullmatch(self, text: str) -> bool:
        """Does the whole text match? Raises TooManySteps."""
        state = self._run(text, search=False)
        return state is not None and self._accepts(state)

    def search(self, text: str) -> bool:
        """Does any part of the text match? Raises TooManySteps."""
        state = self._run(text, search=True)
        return state is None or self._accepts(state)

    def _run(self, text: str, search: bool) -> frozenset[int] | None:
        """The states after the text. None: without `search` no state is left, with `search` a match was found."""
        known = self._known[search]
        state = self._closure([self._start], begin=True)
        allowed = MAX_STEPS
        for letter in text:
            if search and _END in state:
                return None
            step = known.get((state, letter))
            if step is None:
                step, cost = self._step(state, ord(letter), search)
                allowed -= cost
                if allowed < 0:
                    raise TooManySteps
                if len(known) >= _KEPT_TRANSITIONS:
                    self._reset()
                    known = self._known[search]
                known[(state, letter)] = step
            state = step
            if not state:
                return None
        return None if search and _END in state else state

    def _reset(self) -> None:
        self._known: tuple[dict[tuple[frozenset[int], str], frozenset[int]], ...] = ({}, {})

    def _step(self, state: frozenset[int], code: int, search: bool) -> tuple[frozenset[int], int]:
        machine = self._machine
        reached = [
            machine.leads[one][0]
            for one in state
            if (ranges := machine.chars[one]) is not None and any(low <= code <= high for low, high in ranges)
        ]
        if search:
            reached.append(self._start)
        after = self._closure(reached)
        return after, 1 + len(state) + len(after)

    def _closure(self, states: Sequence[int], begin: bool = False, end: bool = False) -> frozenset[int]:
        machine = self._machine
        seen, waiting = set(states), list(states)
        while waiting:
            state = waiting.pop()
            anchor = machine.anchors.get(state)
            if machine.chars[state] is not None or (anchor is not None and not (begin if anchor else end)):
                continue
            for lead in machine.leads[state]:
                if lead not in seen:
                    seen.add(lead)
                    waiting.append(lead)
        return frozenset(seen)

    def _accepts(self, state: frozenset[int]) -> bool:
        # Only `$` can match here: `_run` passed every `^` at the beginning of the text.
        return _END in self._closure(list(state), end=True)

    def may_contain(self, part: str, before_the_end: bool = False) -> bool:
        """Is there a text that matches as a whole and contains `part`? `before_the_end`: with more text after it."""
        return self._reaches(part, lambda done, ended: done and (ended or not before_the_end))

    def must_contain(self, part: str) -> bool:
        """Does every text that matches as a whole contain `part`?"""
        return not self._reaches(part, lambda done, _: not done)

    def _reaches(self, part: str, wanted: Callable[[bool, bool], bool]) -> bool:
        """Is there a matching text for which `wanted(contains the part, has more after the part)` is true?"""
        machine, length = self._machine, len(part)
        letters = set(part)
        longer = length + 1
        begin = (self._start, 0)
        seen, waiting = {begin}, [begin]
        while waiting:
            state, held = waiting.pop()
            if state == _END:
                if wanted(held >= length, held == longer):
                    return True
                continue
            ranges = machine.chars[state]
            if ranges is None:
                moves = [(lead, held) for lead in machine.leads[state]]
            else:
                lead = machine.leads[state][0]
                within = [c for c in letters if any(low <= ord(c) <= high for low, high in ranges)]
                moves = [(lead, longer if held >= length else _overlap(part, held, c)) for c in within]
                if sum(high - low + 1 for low, high in ranges) > len(within):
                    moves.append((lead, longer if held >= length else 0))
            for move in moves:
                if move not in seen:
                    seen.add(move)
                    waiting.append(move)
        return False


def _overlap(part: str, held: int, letter: str) -> int:
    """How many first characters of `part` a text ends with, after `letter` follows `held` first characters of it."""
    text = part[:held] + letter
    return next(size for size in range(min(len(text), len(part)), -1, -1) if text.endswith(part[:size]))


@functools.lru_cache(maxsize=64)
def compile_regex(source: str, answer: bool = True) -> Regex:
    """A cached `Regex`, whose steps stay cached too."""
    return Regex(source, answer)

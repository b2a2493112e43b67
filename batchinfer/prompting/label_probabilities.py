"""The probability of each label, from the probabilities of the tokens along one constrained answer. Pure.

A grammar allows at each step only tokens that lead to a label, so the probabilities of the allowed tokens sum to one.
A token after which only one label is possible gives its probability to that label. A token that was not chosen, and
after which several labels are possible, leaves open how they share its probability: they share it in proportion to
what is known of them, or equally if nothing is.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple


class _Node(NamedTuple):
    """What is possible after a beginning: `after` has the labels that each token leads to; `open` has those that
    tokens lead to whose probability was not asked for."""

    labels: tuple[int, ...]
    after: dict[int, tuple[int, ...]]
    open: tuple[int, ...]


class LabelTree:
    """The labels of a job as sequences of tokens, in every way that the vocabulary can write them.

    Safe to use from several threads.
    """

    def __init__(
        self,
        labels: Sequence[str],
        vocabulary: Sequence[bytes],
        ends: Collection[int],
        usual: Sequence[Sequence[int]],
        most: int,
    ) -> None:
        """`vocabulary`: the bytes of each token. `ends`: the tokens that end an answer. `usual`: each label as the
        tokenizer writes it; these tokens come first if more than `most` tokens lead to a label."""
        self.names = tuple(labels)
        self._labels = [label.encode() for label in labels]
        self._vocabulary = vocabulary
        self._ends = frozenset(ends)
        longest = max(map(len, self._labels))
        self._tokens: dict[bytes, list[int]] = {}
        for token, text in enumerate(vocabulary):
            if text and len(text) <= longest and token not in self._ends:
                self._tokens.setdefault(text, []).append(token)
        self._nodes: dict[bytes, _Node] = {}
        asked = dict.fromkeys(self._ends if self._is_prefix_of_another() else ())
        asked |= dict.fromkeys(self._usual(usual))
        asked |= dict.fromkeys(token for token in self._branching())
        self.tokens = tuple(asked)[:most]
        """The tokens whose probabilities are needed at every step."""
        self._asked = frozenset(self.tokens)

    def text(self, tokens: Sequence[int]) -> str:
        """The text of an answer."""
        return b"".join(self._vocabulary[token] for token in tokens if token not in self._ends).decode(errors="replace")

    def probabilities(self, tokens: Sequence[int], steps: Sequence[Mapping[int, float]]) -> list[float]:
        """The probability of each label, in order; they sum to one.

        `tokens` are those of the answer. `steps` has for each the log probabilities of `self.tokens` and of itself.
        """
        known = [0.0] * len(self._labels)
        shared: list[tuple[float, tuple[int, ...]]] = []
        begun, left, taken = b"", 1.0, 0.0
        for chosen, step in zip(tokens, steps, strict=False):
            node = self._node(begun)
            if len(node.labels) == 1:
                break
            seen = 0.0
            for token, logprob in step.items():
                labels = node.after.get(token)
                if labels is None and token == chosen:
                    labels = self._after(begun, node.labels, token)
                if not labels or logprob == -math.inf:
                    continue
                probability = math.exp(logprob)
                seen += probability
                if token == chosen:
                    taken = probability
                elif len(labels) == 1:
                    known[labels[0]] += left * probability
                else:
                    shared.append((left * probability, labels))
            if chosen not in step or not self._after(begun, node.labels, chosen):
                # The answer is none of the labels: the check of answers says so.
                break
            if node.open and seen < 1:
                shared.append((left * (1 - seen), node.open))
            left *= taken
            if chosen in self._ends or not self._vocabulary[chosen]:
                known[self._labels.index(begun)] += left
                left = 0.0
                break
            begun += self._vocabulary[chosen]
        if left:
            shared.append((left, self._node(begun).labels or tuple(range(len(self._labels)))))
        return _summed(known, shared)

    def _node(self, begun: bytes) -> _Node:
        node = self._nodes.get(begun)
        if node is None:
            labels = tuple(i for i, label in enumerate(self._labels) if label.startswith(begun))
            after: dict[int, tuple[int, ...]] = {}
            unasked: set[int] = set()
            for token in self._next(begun, labels):
                found = self._after(begun, labels, token)
                if token in self._asked:
                    after[token] = found
                else:
                    unasked.update(found)
            node = self._nodes[begun] = _Node(labels, after, tuple(sorted(unasked)))
        return node

    def _next(self, begun: bytes, labels: Sequence[int]) -> Iterator[int]:
        """The tokens that the grammar allows after `begun`."""
        texts: dict[bytes, None] = {}
        for i in labels:
            rest = self._labels[i][len(begun) :]
            texts |= dict.fromkeys(rest[:length] for length in range(len(rest), 0, -1))
            if not rest:
                yield from self._ends
        for text in texts:
            yield from self._tokens.get(text, ())

    def _after(self, begun: bytes, labels: Sequence[int], token: int) -> tuple[int, ...]:
        if token in self._ends:
            return tuple(i for i in labels if self._labels[i] == begun)
        text = begun + self._vocabulary[token]
        return tuple(i for i in labels if self._labels[i].startswith(text))

    def _is_prefix_of_another(self) -> bool:
        return any(a != b and b.startswith(a) for a in self._labels for b in self._labels)

    def _usual(self, usual: Sequence[Sequence[int]]) -> Iterator[int]:
        """The tokens of the usual spellings that decide between labels; those of all first steps come first."""
        depth = max(map(len, usual), default=0)
        for step in range(depth):
            for label, tokens in zip(self._labels, usual, strict=True):
                begun = b"".join(self._vocabulary[token] for token in tokens[:step])
                if step < len(tokens) and label.startswith(begun) and self._decides(begun):
                    yield tokens[step]

    def _decides(self, begun: bytes) -> bool:
        return sum(label.startswith(begun) for label in self._labels) > 1

    def _branching(self) -> Iterator[int]:
        """Every token that decides between labels, after any beginning; longer tokens of shorter beginnings first."""
        beginnings = {label[:length]: None for label in self._labels for length in range(len(label) + 1)}
        for begun in sorted(beginnings, key=len):
            labels = [i for i, label in enumerate(self._labels) if label.startswith(begun)]
            if len(labels) > 1:
                yield from self._next(begun, labels)


def _summed(known: list[float], shared: Sequence[tuple[float, tuple[int, ...]]]) -> list[float]:
    total = list(known)
    for mass, labels in shared:
        weights = [known[i] for i in labels]
        of = sum(weights)
        for i, weight in zip(labels, weights, strict=True):
            total[i] += mass * (weight / of if of > 0 else 1 / len(labels))
    whole = sum(total)
    return [value / whole for value in total]

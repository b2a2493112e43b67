"""The probability of each label, against the sum over every way to write it."""

from __future__ import annotations

import math
from random import Random

import pytest

from batchinfer.prompting.label_probabilities import LabelTree

END = 0
CASES = [
    ["billing", "outage", "other"],
    ["a", "ab", "abc", "b"],
    ["class A", "class B", " class A", "none"],
    ["größe", "grün", "日本", "日曜", "🙂"],
    ["yes"],
]


def vocabulary_of(labels: list[str], random: Random) -> list[bytes]:
    """The end, all single bytes of the labels, and random pieces of them."""
    texts = [label.encode() for label in labels]
    found = {text[i : i + 1] for text in texts for i in range(len(text))}
    for text in texts:
        for _ in range(4):
            start = random.randrange(len(text))
            found.add(text[start : random.randrange(start, len(text)) + 1])
    return [b"", *sorted(found), b"zzz"]


def draw(found: dict[int, float], random: Random) -> int:
    return random.choices(list(found), list(found.values()))[0]


class Model:
    """A model with random preferences, constrained to the labels."""

    def __init__(self, labels: list[str], vocabulary: list[bytes], random: Random) -> None:
        self._labels = [label.encode() for label in labels]
        self._vocabulary = vocabulary
        self._weights = {token: random.uniform(0.05, 1) ** 2 for token in range(len(vocabulary))}

    def next(self, begun: bytes) -> dict[int, float]:
        """The allowed tokens with their probabilities."""
        allowed = {}
        for token, text in enumerate(self._vocabulary):
            fits = begun in self._labels if token == END else any(t.startswith(begun + text) for t in self._labels)
            if fits:
                allowed[token] = self._weights[token] * (1 + len(begun) % 3 * token % 2)
        whole = sum(allowed.values())
        return {token: weight / whole for token, weight in allowed.items()}

    def truth(self) -> list[float]:
        """The probability of each label: the sum over all sequences of tokens that write it."""
        found = dict.fromkeys(self._labels, 0.0)
        waiting = [(b"", 1.0)]
        while waiting:
            begun, mass = waiting.pop()
            for token, probability in self.next(begun).items():
                if token == END:
                    found[begun] += mass * probability
                else:
                    waiting.append((begun + self._vocabulary[token], mass * probability))
        return list(found.values())

    def answer(self, random: Random | None, tree: LabelTree) -> tuple[list[int], list[dict[int, float]]]:
        """The tokens of an answer, and at each step what the engine reports; `random` None: always the likeliest."""
        tokens: list[int] = []
        steps = []
        begun = b""
        while not tokens or tokens[-1] != END:
            found = self.next(begun)
            token = max(found, key=lambda t: found[t]) if random is None else draw(found, random)
            told = {t: math.log(found[t]) if t in found else -math.inf for t in (token, *tree.tokens)}
            tokens.append(token)
            steps.append(told)
            begun += self._vocabulary[token]
        return tokens, steps


@pytest.mark.parametrize("labels", CASES, ids=lambda labels: labels[0])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("most", [128, 3])
def test_probabilities_sum_to_one_whatever_is_drawn(labels: list[str], seed: int, most: int) -> None:
    random = Random(seed)
    vocabulary = vocabulary_of(labels, random)
    model = Model(labels, vocabulary, random)
    tree = LabelTree(labels, vocabulary, [END], [[] for _ in labels], most)
    assert len(tree.tokens) <= most
    for _ in range(20):
        tokens, steps = model.answer(random, tree)
        found = tree.probabilities(tokens, steps)
        assert sum(found) == pytest.approx(1)
        assert min(found) >= 0
        assert found[labels.index(tree.text(tokens))] > 0


@pytest.mark.parametrize("seed", range(10))
def test_labels_that_part_at_the_first_token_have_their_exact_probabilities(seed: int) -> None:
    labels = ["billing", "outage", "technical", "größe"]
    random = Random(seed)
    vocabulary = vocabulary_of(labels, random)
    model = Model(labels, vocabulary, random)
    tree = LabelTree(labels, vocabulary, [END], [[] for _ in labels], 128)
    assert tree.probabilities(*model.answer(None, tree)) == pytest.approx(model.truth())


def test_a_label_that_begins_another_is_told_from_it_by_the_end() -> None:
    labels = ["bill", "billing"]
    vocabulary = [b"", b"bill", b"ing"]
    tree = LabelTree(labels, vocabulary, [END], [[1], [1, 2]], 128)
    steps = [{1: 0.0}, {END: math.log(0.3), 2: math.log(0.7)}]
    assert tree.probabilities([1, END], steps) == pytest.approx([0.3, 0.7])
    assert tree.probabilities([1, 2, END], [*steps, {END: 0.0}]) == pytest.approx([0.3, 0.7])


def test_labels_behind_a_branch_not_taken_share_it_equally() -> None:
    labels = ["other", "class A", "class B"]
    vocabulary = [b"", b"other", b"class", b" A", b" B"]
    tree = LabelTree(labels, vocabulary, [END], [[1], [2, 3], [2, 4]], 128)
    found = tree.probabilities([1, END], [{1: math.log(0.6), 2: math.log(0.4)}, {END: 0.0}])
    assert found == pytest.approx([0.6, 0.2, 0.2])


def test_an_answer_that_was_cut_leaves_its_labels_open() -> None:
    labels = ["class A", "class B", "other"]
    vocabulary = [b"", b"other", b"class", b" A", b" B"]
    tree = LabelTree(labels, vocabulary, [END], [[2, 3], [2, 4], [1]], 128)
    found = tree.probabilities([2], [{2: math.log(0.8), 1: math.log(0.2)}])
    assert found == pytest.approx([0.4, 0.4, 0.2])


def test_the_usual_spelling_comes_first_if_not_all_tokens_may_be_asked_for() -> None:
    labels = ["billing", "outage"]
    vocabulary = [b"", b"b", b"bi", b"billing", b"o", b"out", b"outage"]
    assert LabelTree(labels, vocabulary, [END], [[3], [6]], 2).tokens == (3, 6)

"""Where a long text is cut."""

from __future__ import annotations

import itertools
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer.prompting.chunks import chunks

WORDS = st.text("ab .\n。é", min_size=0, max_size=400)


def tokens_of(text: str) -> list[tuple[int, int]]:
    """Words and spaces, at most three characters each."""
    return [match.span() for match in re.finditer(r"\w{1,3}|\W", text)]


@settings(max_examples=300)
@given(WORDS, st.integers(4, 60), st.data())
def test_chunks_are_the_whole_text_and_none_is_too_long(text, most, data):
    overlap = data.draw(st.integers(0, most // 2 - 1))
    tokens = tokens_of(text)
    made = chunks(text, tokens, most, overlap)
    assert (made[0][0], made[-1][1]) == (0, len(text))
    for (begin, end), (following, after) in itertools.pairwise(made):
        assert begin < following <= end < after or following <= end <= after
        assert following > begin
        assert sum(following <= start < end for start, _ in tokens) <= overlap
    for begin, end in made:
        assert sum(begin <= start < end for start, _ in tokens) <= most


def test_a_text_that_fits_is_one_chunk():
    assert chunks("short", tokens_of("short"), 50) == [(0, 5)]
    assert chunks("", [], 50) == [(0, 0)]


def test_a_cut_is_at_the_end_of_a_paragraph_or_else_of_a_sentence():
    text = "One is here. Two is here.\n\nThree is here. " * 20
    made = [text[begin:end] for begin, end in chunks(text, tokens_of(text), 60)]
    assert all(chunk.endswith((". ", "\n\n")) for chunk in made)
    lines = "no end of a sentence, but lines\n" * 30
    assert all(lines[begin:end].endswith("\n") for begin, end in chunks(lines, tokens_of(lines), 40))


def test_a_text_without_spaces_is_cut_between_characters():
    text = "x" * 1000
    made = chunks(text, [(i, i + 3) for i in range(0, 999, 3)] + [(999, 1000)], 50)
    assert "".join(text[begin:end] for begin, end in made) == text
    assert len(made) == 7


def test_what_two_chunks_share_begins_at_a_word():
    text = "alpha beta gamma delta. " * 100
    made = chunks(text, tokens_of(text), 80, overlap=20)
    for begin, _ in made[1:]:
        assert text[begin - 1] == " "
    assert all(following < end for (_, end), (following, _) in itertools.pairwise(made))

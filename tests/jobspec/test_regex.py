"""An expression has one reading: Python's, the engine's grammar's and the check's; matching it takes bounded time."""

from __future__ import annotations

import re
import time
from random import Random

import pytest

from batchinfer.jobspec.regex import MAX_STATES, Regex, TooManySteps

ATOMS = ["a", "b", ".", "[ab]", "[^a]", r"\d", r"\w", "c", r"\.", "[a-c]", r"\n", r"[\w-]", r"[\s\S]", r"\x61", "[]a]"]
COUNTS = ["*", "+", "?", "{2}", "{1,3}", "{,2}", "{2,}", "*?", "??", "{0}"]


def expression(random: Random, atoms: list[str] = ATOMS, depth: int = 0) -> str:
    def part() -> str:
        return expression(random, atoms, depth + 1)

    kind = random.random()
    if depth > 3 or kind < 0.35:
        return random.choice(atoms)
    if kind < 0.55:
        return part() + part()
    if kind < 0.7:
        return f"({part()}|{part()})"
    if kind < 0.75:
        return f"(?P<n{random.randrange(10**9)}>|{part()})"
    return f"(?:{part()}){random.choice(COUNTS)}"


@pytest.mark.parametrize("seed", range(10))
def test_it_matches_as_python_does_and_so_does_what_the_engine_is_given(seed):
    random = Random(seed)
    for _ in range(100):
        source = random.choice(["", "^"]) + expression(random) + random.choice(["", "$"])
        ours, python = Regex(source), re.compile(source, re.ASCII)
        for _ in range(10):
            text = "".join(random.choice("aabbc1.\n -é") for _ in range(random.randint(0, 7)))
            assert ours.fullmatch(text) == bool(python.fullmatch(text)), (source, text)
            assert ours.fullmatch(text) == bool(re.fullmatch(ours.grammar, text)), (source, ours.grammar, text)
            # Python's `$` also matches before a last line feed.
            if not text.endswith("\n"):
                assert ours.search(text) == bool(python.search(text)), (source, text)
            if ours.longest is not None and ours.fullmatch(text):
                assert len(text) <= ours.longest


@pytest.mark.parametrize("seed", range(5))
def test_whether_a_part_may_or_must_be_in_a_match_is_what_all_its_matches_say(seed):
    random = Random(seed)
    texts = [""]
    for _ in range(5):
        texts += [text + letter for text in texts for letter in "ab" if len(text) < 5]
    texts = sorted(set(texts))
    for _ in range(60):
        source = expression(random, ["a", "b", "[ab]"], depth=1)
        ours = Regex(source)
        if ours.longest is None or ours.longest > 5:
            continue
        matches = [text for text in texts if re.fullmatch(source, text)]
        for part in ("a", "ab", "aa", "aba", "bb"):
            assert ours.may_contain(part) == any(part in text for text in matches), (source, part)
            assert ours.may_contain(part, True) == any(part in text[:-1] for text in matches), (source, part)
            assert ours.must_contain(part) == all(part in text for text in matches), (source, part)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (r"\A(yes|no)\Z", r"holds '\\A' at character 0, which the engine reads as a letter"),
        (r"(yes|no)\Z", r"holds '\\Z' at character 8"),
        (r"\byes\b", "a word boundary"),
        (r"a\Bb", "a word boundary"),
        ("(?=a)a", r"holds '(?=a)' at character 0, look-ahead"),
        ("a(?!b)", "look-ahead"),
        ("(?<=a)b", "look-behind"),
        ("(?<!a)b", "look-behind"),
        (r"(a)\1", r"holds '\\1' at character 3, a back-reference"),
        ("(?P<x>a)(?P=x)", "a back-reference"),
        ("(a)?(?(1)b|c)", "a condition"),
        ("(?i)yes", "a flag"),
        ("(?s:.)", "a flag"),
        ("(?#why)a", "a comment"),
        ("(?>a)", "gives nothing back"),
        ("a++", "gives nothing back"),
        ("a^b", "holds '^' at character 1, where no answer can match it"),
        ("(a$|b)c", "holds '$' at character 2"),
        ("(^a)*b", "holds '^' at character 1"),
        (r"\0", "no answer can hold"),
        (r"\ud800", "no answer can hold"),
        ("a\0", "NUL"),
        (r"[^\s\S]", "a class without characters"),
        ("(a", "is not a valid regular expression"),
        ("((a{999}){999}){99}", f"more than {MAX_STATES:,}"),
        ("(" * 3000 + "a" + ")" * 3000, "is not a valid regular expression"),
    ],
)
def test_what_the_engine_reads_otherwise_or_not_at_all_is_refused_with_its_part(source, words):
    with pytest.raises(ValueError, match=re.escape(words).replace(r"\\\\", r"\\+")):
        Regex(source)


@pytest.mark.parametrize("source", ["^(yes|no)$", "(^a|b$)", "(?:^a)", "^^a$$", "(^|b)?a"])
def test_an_anchor_where_an_answer_begins_or_ends_is_fine(source):
    assert "^" not in Regex(source).grammar.replace("[^", "")


@pytest.mark.parametrize(
    ("source", "longest"), [("a{2,40}", 40), ("(yes|never)?", 5), ("a.*?b", None), ("(|.*)", None), ("(a*){0}", 0)]
)
def test_the_most_characters_of_a_match_are_known(source, longest):
    assert Regex(source).longest == longest


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (r"(\w+\s?)+\.", "word " * 2000),
        ("(a+)+$", "a" * 10_000 + "!"),
        ("(a|aa)+b", "a" * 10_000),
        ("(.*)*x", "ab" * 5000),
        ("((a{0,100}){0,10})*b", "a" * 10_000),
        ("(a|b)*a(a|b){3000}", "ab" * 5000),
    ],
)
def test_a_match_takes_bounded_time_or_is_given_up(source, text):
    regex = Regex(source)
    began = time.process_time()
    try:
        assert not regex.fullmatch(text)
    except TooManySteps:
        assert "3000" in source
    assert time.process_time() - began < 4, "a second on a quiet machine"

"""Which rows share a prefix, and the order that brings them together."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer.engine.prefix_order import SHARED_CHARACTERS, PrefixOrder, common_prefix, scattered

texts = st.text(st.sampled_from("ab"), max_size=12)


def drained(order):
    found = []
    while order:
        name, place, _ = order.pop()
        found.append((name, place))
    return found


@given(texts, texts)
def test_the_common_prefix_is_the_longest(a, b):
    n = common_prefix(a, b)
    assert a[:n] == b[:n]
    assert a[n : n + 1] != b[n : n + 1] or n in (len(a), len(b))


@settings(deadline=None)
@given(st.lists(st.lists(texts, max_size=8), max_size=5), st.integers(0, 40))
def test_every_row_comes_out_once_whenever_its_batch_comes_in(batches, early):
    order = PrefixOrder(block_tokens=1)
    found = []
    for number, keys in enumerate(batches):
        order.add(number, keys)
        assert set(order.rest()) <= set(range(number + 1))
        found += [order.pop()[:2] for _ in range(min(early, len(order)))]
    found += drained(order)
    assert order.rest() == []
    assert sorted(found) == [(n, i) for n, keys in enumerate(batches) for i in range(len(keys))]


@given(st.lists(st.lists(st.sampled_from(["cat", "dog", "owl"]), min_size=1, max_size=9), min_size=1, max_size=4))
def test_rows_of_one_document_are_fed_one_after_another_across_shards(batches):
    order = PrefixOrder(block_tokens=2)
    named = [[document * 3 + str(i) for i, document in enumerate(keys)] for keys in batches]
    for number, keys in enumerate(named):
        order.add(number, keys)
    fed = [named[n][i][:9] for n, i in drained(order)]
    changes = sum(a != b for a, b in itertools.pairwise(fed))
    assert changes == len(set(fed)) - 1


def test_where_nothing_is_shared_the_older_shard_goes_first():
    order = PrefixOrder(block_tokens=1)
    order.add("old", ["system: m", "system: c"])
    order.add("young", ["system: b", "system: z"])
    assert drained(order) == [("old", 1), ("old", 0), ("young", 0), ("young", 1)]


def test_what_all_begin_with_keeps_no_shard_waiting():
    head = "the same long instructions " * 50
    order = PrefixOrder(block_tokens=16)
    order.add("old", [head + c * 100 for c in "ace"])
    order.add("young", [head + c * 100 for c in "bdf"])
    assert [name for name, _ in drained(order)] == ["old"] * 3 + ["young"] * 3


def test_a_row_says_how_much_of_it_the_row_before_began_with():
    order = PrefixOrder(block_tokens=1)
    order.add("a", ["aaaabbbb", "aaaacccc"])
    assert [order.pop()[2] for _ in range(2)] == [0.0, 0.5]


def test_the_oldest_shard_gets_on_whatever_arrives():
    order = PrefixOrder(block_tokens=1)
    order.add("first", [f"{i:03d}" for i in range(0, 1000, 100)])
    left, seen = 10, 0
    while left:
        order.add(seen, [f"{999 - seen:03d}"])
        left -= order.pop()[0] == "first"
        seen += 1
    assert seen <= 20, "rows that came later went before it only where they begin alike"


def test_scattered_is_what_other_parts_of_the_input_share():
    document = ["x" * SHARED_CHARACTERS + "1", "y" * SHARED_CHARACTERS + "2"]
    assert scattered([document, document]) == 1.0
    assert scattered([document, [document[0]]]) == 2 / 3
    assert scattered([[*document, *document], ["z"]]) == 0.0, "neighbours meet in the cache anyway"
    assert scattered([["short"], ["short"]]) == 0.0
    assert scattered([]) == 0.0


def test_a_common_head_is_no_sharing_of_its_own():
    head = "instructions " * 100
    assert scattered([[head + "a", head + "b"], [head + "c"]]) == 0.0

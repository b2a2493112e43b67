"""How many rows a shard gets, where it ends, and which is begun first: laws over any input."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer.input.cutting import cut
from batchinfer.input.manifest import InputFile, RowGroup, Segment, Shard, read_together
from batchinfer.input.shard_sizes import (
    ASSUMED_REPLICAS,
    LEAST_ROWS,
    SAME_WORK,
    TAPER,
    at_groups,
    in_order,
    least_rows,
    rows_per_shard,
    shard_sizes,
    small_at_first,
    tapered,
    work_of,
)
from batchinfer.jobspec import ReplicaRange
from batchinfer.storage import Entry
from tests.support.manifests import all_rows, input_files, positions

relaxed = settings(deadline=None, max_examples=100)


@st.composite
def grouped_files(draw):
    """Files, and for each row the group that it is in: neighbours only."""
    files = draw(input_files())
    total = sum(file.rows for file in files)
    begins = [True, *draw(st.lists(st.booleans(), min_size=total, max_size=total))][:total]
    return files, np.cumsum(begins) if total else np.zeros(0, dtype=int)


def packed(groups):
    return np.packbits(np.diff(groups, prepend=0).astype(np.uint8)) if len(groups) else np.zeros(0, dtype=np.uint8)


@relaxed
@given(
    grouped=grouped_files(),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    max_bytes=st.integers(1, 4000),
)
def test_every_row_is_in_one_shard_in_order_whatever_the_sizes_and_groups(grouped, sizes, max_bytes):
    files, groups = grouped
    shards = cut(files, lambda row: sizes[row % len(sizes)], max_bytes, at_groups(packed(groups), len(groups)))
    assert [row for shard in shards for row in positions(shard)] == [(uri, row) for uri, row, _ in all_rows(files)]
    assert [shard.first_row for shard in shards] == [sum(s.rows for s in shards[:i]) for i in range(len(shards))]
    assert all(0 < shard.rows <= sizes[shard.first_row % len(sizes)] for shard in shards)


@relaxed
@given(grouped=grouped_files(), rows=st.integers(1, 40), max_bytes=st.integers(1, 10_000))
def test_a_group_goes_over_two_shards_only_where_one_could_not_hold_it(grouped, rows, max_bytes):
    files, groups = grouped
    plain = cut(files, lambda _: rows, max_bytes)
    shards = cut(files, lambda _: rows, max_bytes, at_groups(packed(groups), len(groups)))
    sizes = [size for _, _, size in all_rows(files)]
    for one, other in pairwise(shards):
        if groups[other.first_row - 1] == groups[other.first_row]:
            # Cut within a group: all of the shard is of this one group, and it is as full as it may be.
            assert len(set(groups[one.first_row : other.first_row])) == 1
            inside = sizes[one.first_row : other.first_row]
            assert one.rows == rows or sum(inside) + sizes[other.first_row] > max_bytes
    assert len(shards) >= len(plain)


@relaxed
@given(total=st.integers(1, 3000), most=st.integers(1, 300), least=st.integers(1, 300), replicas=st.integers(1, 64))
def test_shards_never_grow_towards_the_end(total, most, least, replicas):
    least = min(least, most)
    file = InputFile(Entry("/in", total, "t"), (RowGroup(total, total),))
    sizes = [shard.rows for shard in cut([file], tapered(total, most, least, replicas), total)]
    assert all(one >= other for one, other in pairwise(sizes))
    assert sum(sizes) == total
    assert sizes[0] <= most
    # None is more than its part of what is left, but where that would be too small to be worth a shard.
    left = total
    for size in sizes:
        assert size <= max(least, -(-left // (TAPER * replicas)))
        left -= size


def test_more_replicas_make_a_longer_tail():
    def smallest(replicas):
        sizes = shard_sizes(1_000_000, 1_000_000_000, "auto", 256, replicas)
        return [sizes(row) for row in (0, 500_000, 900_000, 990_000, 999_999)]

    one, many = smallest(1), smallest(64)
    assert one[0] == many[0] == 1024
    assert all(a >= b for a, b in zip(one, many, strict=True))
    assert many[2] < one[2] == 1024
    assert smallest("auto") == smallest(ASSUMED_REPLICAS)
    assert smallest(ReplicaRange(min=1, max=64)) == many


def test_a_number_in_the_spec_is_the_size_of_every_shard():
    sizes = shard_sizes(10**9, 10**12, 3, 100_000, 64)
    assert [sizes(0), sizes(10**9 - 1)] == [3, 3]
    assert rows_per_shard(10**9, 3, 100_000) == 3


def test_the_smallest_shard_is_worth_its_price():
    assert least_rows(8192, 16, 100) > 1000
    assert least_rows(8192, 256, 0) == 128
    assert least_rows(8192, 1024, 4000) == LEAST_ROWS
    assert least_rows(8192, 10**6, 0) == LEAST_ROWS
    assert least_rows(256, 1, 0) == 256


def shard(shard_id, rows, size, group):
    return Shard(shard_id, 0, (Segment(Entry("/in", 1, "t"), group, 0, 0, rows, 0, 0, size),))


@st.composite
def work(draw):
    groups = sorted(draw(st.lists(st.integers(0, 6), max_size=12)))
    return [shard(i, draw(st.integers(1, 300)), draw(st.integers(0, 10**6)), group) for i, group in enumerate(groups)]


@relaxed
@given(shards=work(), max_tokens=st.integers(1, 2000), retried=st.booleans(), data=st.data())
def test_the_order_is_a_permutation_that_keeps_what_is_read_together(shards, max_tokens, retried, data):
    positions = None
    if retried:
        positions = {s.shard_id: list(range(data.draw(st.integers(1, s.rows)))) for s in shards}
    order = in_order(shards, max_tokens, positions)
    assert sorted(order, key=lambda group: group[0].shard_id) == list(read_together(shards))
    largest = [
        max(work_of(s, max_tokens, None if positions is None else len(positions[s.shard_id])) for s in group)
        for group in order
    ]
    # Longest first, but what differs by less than a quarter may stay as it was.
    assert all(later <= earlier * SAME_WORK * 1.000001 for earlier, later in pairwise(largest))


def test_equal_work_keeps_the_order_of_the_input():
    shards = [shard(i, 100, 1000 + i % 3, group=i) for i in range(20)]
    assert [group[0].shard_id for group in in_order(shards, 256)] == list(range(20))


def test_long_rows_are_begun_first_wherever_they_lie():
    shards = [shard(i, 100, 900_000 if i in (3, 7) else 1000, group=i) for i in range(9)]
    assert [group[0].shard_id for group in in_order(shards, 16)] == [3, 7, 0, 1, 2, 4, 5, 6, 8]


def test_a_shard_whose_bytes_are_not_known_counts_by_its_rows():
    shards = [shard(i, rows, 0, group=i) for i, rows in enumerate((10, 100, 50))]
    assert [group[0].shard_id for group in in_order(shards, 16)] == [1, 2, 0]


@pytest.mark.parametrize(
    ("total", "max_tokens", "rows"),
    [
        (0, 1, 256),
        (25_600, 1, 256),
        (25_601, 1, 257),
        (100_000, 1, 1000),
        (10**9, 1, 8192),
        (100_000, 256, 1000),
        (10**9, 256, 1024),
        (10**9, 100_000, 256),
    ],
)
def test_auto_aims_at_a_hundred_shards_that_are_neither_small_nor_long(total, max_tokens, rows):
    assert rows_per_shard(total, "auto", max_tokens) == rows


def test_in_a_run_with_a_budget_shards_begin_small_and_grow():
    sizes = small_at_first(lambda first_row: 8192)
    assert sizes(0) == sizes(100) == 64
    assert sizes(8 * 1000) == 1000
    assert sizes(10**6) == 8192
    assert small_at_first(lambda first_row: 5)(0) == 5

from __future__ import annotations

from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer.input.cutting import cut
from batchinfer.input.manifest import InputFile, Manifest, RowGroup, Segment, from_parquet, read_together, to_parquet
from batchinfer.storage import Entry
from tests.support.builders import make_fingerprint
from tests.support.manifests import all_rows, input_files, positions

relaxed = settings(deadline=None, max_examples=100)


limits = {"rows": st.integers(1, 40), "max_bytes": st.integers(1, 4000)}


@relaxed
@given(files=input_files(), **limits)
def test_every_row_is_in_exactly_one_shard_in_order(files, rows, max_bytes):
    shards = cut(files, lambda _: rows, max_bytes)
    assert [row for shard in shards for row in positions(shard)] == [(uri, row) for uri, row, _ in all_rows(files)]
    assert [shard.shard_id for shard in shards] == list(range(len(shards)))
    assert [shard.first_row for shard in shards] == [sum(s.rows for s in shards[:i]) for i in range(len(shards))]
    assert all(shard.rows > 0 for shard in shards)


@relaxed
@given(files=input_files(), **limits)
def test_a_shard_is_as_large_as_the_limits_allow_and_no_larger(files, rows, max_bytes):
    sizes = [size for _, _, size in all_rows(files)]
    shards = cut(files, lambda _: rows, max_bytes)
    for shard in shards:
        inside = sizes[shard.first_row : shard.first_row + shard.rows]
        following = sizes[shard.first_row + shard.rows :][:1]
        assert shard.rows <= rows
        assert sum(inside) <= max_bytes or shard.rows == 1
        if following:
            assert shard.rows == rows or sum(inside) + following[0] > max_bytes


@relaxed
@given(files=input_files(), **limits)
def test_a_segment_says_where_its_rows_begin(files, rows, max_bytes):
    groups = {file.entry.uri: file.groups for file in files}
    for shard in cut(files, lambda _: rows, max_bytes):
        for segment in shard.segments:
            inside = groups[segment.entry.uri]
            assert segment.start == sum(g.rows for g in inside[: segment.group]) + segment.skip
            assert segment.skip < inside[segment.group].rows
            assert segment.offset == inside[segment.group].offset
            last = next(
                number
                for number in range(len(inside))
                if sum(g.rows for g in inside[: number + 1]) >= segment.start + segment.rows
            )
            assert segment.end == inside[last].offset + inside[last].size


@relaxed
@given(files=input_files(), **limits)
def test_reading_together_keeps_the_order_and_parts_at_row_groups(files, rows, max_bytes):
    shards = cut(files, lambda _: rows, max_bytes)
    groups = list(read_together(shards))
    assert [shard for group in groups for shard in group] == shards
    begins = [{(s.segments[0].entry.uri, s.segments[0].group) for s in group} for group in groups]
    assert all(len(begin) == 1 for begin in begins)
    assert all(a != b for a, b in pairwise(begins))


@relaxed
@given(files=input_files(), **limits)
def test_a_manifest_comes_back_from_its_file_as_it_was(files, rows, max_bytes):
    messages = pa.list_(pa.struct([("role", pa.string())]))
    schema = pa.schema([("id", pa.int64()), ("messages", messages), ("when", pa.timestamp("us"))])
    manifest = Manifest(
        shards=tuple(cut(files, lambda _: rows, max_bytes)),
        schema=schema,
        partitions=("year",),
        empty_files=tuple(file.entry.uri for file in files if not file.rows),
        fingerprint=make_fingerprint(spec={"a": {"b": [1, None, "é"]}}),
    )
    back = from_parquet(to_parquet(manifest))
    assert back == manifest
    assert back.rows == sum(file.rows for file in files)
    assert back.files == {file.entry.uri: file.entry.tag for file in files if file.rows}


def test_a_row_that_is_larger_than_the_limit_is_a_shard_of_its_own():
    group = RowGroup(3, 3000)
    shards = cut([InputFile(Entry("/in", 3000, "t"), (group,))], lambda _: 100, 10)
    assert [shard.rows for shard in shards] == [1, 1, 1]


def test_small_files_share_a_shard_and_large_ones_are_split():
    files = [InputFile(Entry(f"/{n}", 1, "t"), (RowGroup(rows, rows),)) for n, rows in enumerate((2, 2, 7))]
    shards = cut(files, lambda _: 5, 1000)
    assert [[(s.entry.uri, s.start, s.rows) for s in shard.segments] for shard in shards] == [
        [("/0", 0, 2), ("/1", 0, 2), ("/2", 0, 1)],
        [("/2", 1, 5)],
        [("/2", 6, 1)],
    ]


def test_rows_that_follow_each_other_across_row_groups_are_one_segment():
    file = InputFile(Entry("/in", 60, "t"), (RowGroup(2, 20, 0), RowGroup(2, 20, 20), RowGroup(2, 20, 40)))
    assert cut([file], lambda _: 5, 1000)[0].segments == (Segment(file.entry, 0, 0, 0, 5, 0, 60, 50),)


def test_a_manifest_of_an_earlier_version_is_read_without_the_bytes_of_its_shards():
    file = InputFile(Entry("/in", 60, "t"), (RowGroup(4, 40, 0), RowGroup(2, 20, 40)))
    manifest = Manifest(
        tuple(cut([file], lambda _: 4, 1000)), pa.schema([("id", pa.int64())]), (), (), make_fingerprint()
    )
    written = pq.read_table(pa.BufferReader(to_parquet(manifest)))
    earlier = pa.BufferOutputStream()
    pq.write_table(written.drop_columns(["bytes"]), earlier)
    back = from_parquet(earlier.getvalue().to_pybytes())
    assert [(s.rows, s.size) for s in manifest.shards] == [(4, 40), (2, 20)]
    assert [(s.rows, s.size) for s in back.shards] == [(4, 0), (2, 0)]


@relaxed
@given(files=input_files(), **limits)
def test_the_bytes_of_the_rows_are_shared_out_to_the_shards(files, rows, max_bytes):
    shards = cut(files, lambda _: rows, max_bytes)
    # Shares are rounded down, one at a time: a shard's part of a row group loses less than a byte.
    parts = sum(len(file.groups) for file in files) + len(shards)
    assert 0 <= sum(g.size for file in files for g in file.groups if g.rows) - sum(s.size for s in shards) <= parts

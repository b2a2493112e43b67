"""A few rows of an input: which ones, and that they are read as they stand there."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinfer.errors import InputError
from batchinfer.input import build_manifest, read_shards
from batchinfer.input.few_rows import few_rows, positions_of, spread_rows
from batchinfer.input.manifest import from_parquet, to_parquet
from batchinfer.prompting.prompts import needed_columns
from tests.support.builders import make_fingerprint, make_spec

ROWS = 700


@pytest.fixture(params=["parquet", "jsonl"])
def manifest_and_spec(request, tmp_path):
    texts = [f"text {i}" for i in range(ROWS)]
    for start in (0, 300):
        ids = [f"t-{i}" for i in range(start, start + 400 if start else 300)]
        rows = texts[start : start + len(ids)]
        if request.param == "parquet":
            pq.write_table(pa.table({"id": ids, "text": rows}), tmp_path / f"{start}.parquet", row_group_size=70)
        else:
            lines = [json.dumps({"id": i, "text": t}) + "\n" for i, t in zip(ids, rows, strict=True)]
            (tmp_path / f"{start}.jsonl").write_text("".join(lines))
    spec = make_spec(
        input={"uri": str(tmp_path), "id_column": "id", "format": request.param},
        prompt={"column": "text"},
        shards={"rows": 90},
    )
    return build_manifest(spec, needed_columns(spec), make_fingerprint()), spec


@given(rows=st.integers(1, 10**9), wanted=st.integers(1, 200))
def test_one_row_is_drawn_from_each_part_of_the_input(rows, wanted):
    found = spread_rows(rows, wanted)
    assert len(found) == len(set(found)) == min(rows, wanted)
    assert all(0 <= position < rows for position in found)
    assert found == sorted(found)
    assert all(place * rows // len(found) <= position for place, position in enumerate(found))
    assert all(position < (place + 1) * rows // len(found) for place, position in enumerate(found))
    assert found == spread_rows(rows, wanted)


@pytest.mark.parametrize("kinds", [2, 4, 5, 10])
def test_kinds_of_rows_that_take_turns_are_all_among_those_that_are_tried(kinds):
    assert {position % kinds for position in spread_rows(10_000, 40)} == set(range(kinds))


@pytest.mark.parametrize("positions", [[0], [ROWS - 1], [5, 6, 7, 299, 300, 301, 650], spread_rows(ROWS, 20),
                                       list(range(ROWS))])  # fmt: skip
def test_the_rows_that_are_read_are_those_that_were_meant(positions, manifest_and_spec):
    manifest, spec = manifest_and_spec
    few = few_rows(manifest, positions, make_fingerprint())
    # As a resume reads it.
    few = from_parquet(to_parquet(few))
    tables = read_shards(few.shards, few.schema, few.partitions, spec.input)
    assert [text for _, rows in tables for text in rows.column("text").to_pylist()] == [f"text {i}" for i in positions]
    assert few.rows == len(positions)


def test_rows_are_found_by_their_ids(manifest_and_spec):
    manifest, spec = manifest_and_spec
    assert positions_of(spec, manifest, ["t-650", "t-3"]) == [3, 650]


def test_an_id_that_no_row_has_is_named(manifest_and_spec):
    manifest, spec = manifest_and_spec
    with pytest.raises(InputError, match="no row has the id 't-9999'"):
        positions_of(spec, manifest, ["t-3", "t-9999"])


def test_without_ids_rows_are_numbered(manifest_and_spec):
    manifest, spec = manifest_and_spec
    numbered = spec.model_copy(update={"input": spec.input.model_copy(update={"id_column": None})})
    assert positions_of(numbered, manifest, ["7", "0"]) == [0, 7]
    with pytest.raises(InputError, match="700"):
        positions_of(numbered, manifest, ["700"])


def test_rows_of_a_selection_are_tried_and_keep_their_numbers(tmp_path):
    pq.write_table(pa.table({"text": [f"text {i}" for i in range(ROWS)]}), tmp_path / "a.parquet", row_group_size=70)
    spec = make_spec(input={"uri": str(tmp_path), "where": "text LIKE '%7'"}, prompt={"column": "text"})
    manifest = build_manifest(spec, needed_columns(spec), make_fingerprint())
    few = from_parquet(to_parquet(few_rows(manifest, spread_rows(manifest.rows, 5), make_fingerprint())))
    numbers = [int(number) for shard in few.shards for number in shard.numbers]
    tables = read_shards(few.shards, few.schema, few.partitions, spec.input)
    assert [text for _, rows in tables for text in rows.column("text").to_pylist()] == [f"text {n}" for n in numbers]
    assert len(numbers) == 5
    assert all(number % 10 == 7 for number in numbers)
    assert positions_of(spec, manifest, ["17", "7"]) == [0, 1]

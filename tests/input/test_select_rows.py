"""`where`, `limit` and `sample`: the rows that run are those that SQL says, in input order, each once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer.errors import InputError, OutputError
from batchinfer.execution.same_job import require_same_spec, shaping
from batchinfer.input import build_manifest
from batchinfer.input.cutting import cut
from batchinfer.input.manifest import Manifest, claimed_files, from_parquet, to_parquet
from batchinfer.input.row_bits import BitsWriter, RowBits, limited, sampled
from batchinfer.prompting.prompts import needed_columns
from batchinfer.rundir.paths import Layout
from tests.support.builders import make_fingerprint, make_spec, rows_of, write_lines, write_parquet
from tests.support.manifests import input_files


def chosen(folder: Path, file_format: str = "parquet", rows: int = 7, **keys: Any) -> Manifest:
    """The manifest of a job whose prompt is the column `body`, as it comes back from its file."""
    given = {"uri": str(folder), "format": file_format, "id_column": "id", **keys}
    spec = make_spec(input=given, prompt={"column": "body"}, shards={"rows": rows})
    return from_parquet(to_parquet(build_manifest(spec, needed_columns(spec), make_fingerprint())))


def ids(manifest: Manifest, folder: Path, file_format: str = "parquet") -> list[Any]:
    return [row["id"] for row in rows_of(manifest, folder, file_format)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """160 rows in three files, the second of which has no German row."""
    corpus = tmp_path / "in"
    body = [None if i % 10 == 0 else "x" * i for i in range(100)]
    write_parquet(
        corpus / "1.parquet", {"id": list(range(100)), "lang": ["de", "en"] * 50, "body": body}, row_group_size=10
    )
    write_parquet(corpus / "2.parquet", {"id": list(range(100, 150)), "lang": ["fr"] * 50, "body": ["y"] * 50})
    write_parquet(corpus / "3.parquet", {"id": list(range(150, 160)), "lang": ["de"] * 10, "body": ["y" * 40] * 10})
    return corpus


def test_rows_are_selected_by_columns_that_the_job_does_not_read_otherwise(folder):
    manifest = chosen(folder, where="lang = 'de' AND length(body) > 90")
    assert ids(manifest, folder) == [92, 94, 96, 98]
    assert manifest.schema.names == ["id", "body"]
    assert (manifest.rows, manifest.total_rows, manifest.rows_of_all) == (4, 160, "4 of 160 rows")


def test_shards_are_full_and_rows_keep_their_numbers_in_the_input(folder):
    manifest = chosen(folder, where="lang = 'de'")
    assert [shard.rows for shard in manifest.shards] == [7] * 8 + [4]
    assert [int(n) for shard in manifest.shards for n in shard.numbers] == ids(manifest, folder)


def test_null_selects_no_row(folder):
    assert chosen(folder, where="length(body) >= 0").rows == 150


def test_the_limit_counts_selected_rows_in_input_order(folder):
    assert ids(chosen(folder, where="lang = 'de'", limit=3), folder) == [0, 2, 4]
    assert ids(chosen(folder, limit=102), folder) == list(range(102))
    assert chosen(folder, limit=1000).rows == 160


def test_a_sample_is_the_same_for_one_seed_and_holds_that_of_fewer_rows(folder):
    def sample(rows: int, seed: int) -> list[int]:
        return ids(chosen(folder, where="lang = 'de'", sample={"rows": rows, "seed": seed}), folder)

    german = ids(chosen(folder, where="lang = 'de'"), folder)
    assert sample(9, 3) == sample(9, 3) == sorted(sample(9, 3))
    assert len(sample(9, 3)) == 9
    assert set(sample(9, 3)) < set(sample(20, 3)) < set(german)
    assert sample(9, 3) != sample(9, 4)
    assert sample(1000, 3) == german


def test_every_row_is_as_likely_in_a_sample():
    writer = BitsWriter()
    writer.add(np.ones(50, dtype=bool))
    bits = [writer.done(50)]
    times = np.sum([sampled(bits, 10, seed)[0].mask(0, 50) for seed in range(2000)], axis=0)
    # 400 expected, with a standard deviation of 18.
    assert times.min() > 300
    assert times.max() < 500


def test_files_without_a_selected_row_belong_to_the_input_of_the_run(folder):
    manifest = chosen(folder, where="lang = 'de'")
    assert [entry.uri for entry in manifest.unselected] == [str(folder / "2.parquet")]
    assert set(manifest.files) == {str(folder / f"{i}.parquet") for i in (1, 2, 3)}
    assert manifest.empty_files == ()
    # So a later run of an incremental job does not read them again.
    assert set(claimed_files(to_parquet(manifest)).files) == set(manifest.files)


def test_a_selection_of_no_row_says_so(folder):
    spec = make_spec(input={"uri": str(folder), "where": "lang = 'xx'"}, prompt={"column": "body"})
    manifest = build_manifest(spec, needed_columns(spec), make_fingerprint())
    assert (manifest.shards, manifest.rows_of_all) == ((), "0 of 160 rows")
    assert manifest.hint == "input.where selects no row: lang = 'xx'"


@pytest.mark.parametrize(
    ("where", "message", "remedy"),
    [
        ("lnag = 'de'", "input.where names the column 'lnag', which the input does not have; did you mean 'lang'?", ""),
        ("lang", "input.where is varchar, neither true nor false", "compare it"),
        ("body > 3", "line 1, character ", "cast them in SQL"),
        ("CAST(body AS INT) > 1", "fails on row 1 of ", "TRY_CAST"),
        ("id < 150 OR CAST(lang AS INT) > 1", "fails on row 0 of ", "TRY_CAST"),
        ("sum(id) > 3", "an aggregate", "columns of a row"),
        ("lenght(body) > 3", "Scalar Function with name lenght does not exist", ""),
        ("length(id) > 3", "No function matches", "id (int64)"),
    ],
)
def test_an_expression_that_does_not_fit_the_input_is_refused(folder, where, message, remedy):
    with pytest.raises(InputError) as caught:
        chosen(folder, where=where)
    assert message in caught.value.message
    assert remedy in caught.value.remedy


def test_two_columns_that_sql_takes_for_one_are_refused(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"id": [1], "Body": ["a"], "body": ["b"]})
    with pytest.raises(InputError, match="'Body' and 'body' are one name in SQL"):
        chosen(tmp_path, where="\"Body\" = 'a' OR body = 'b'")


def test_ids_are_unique_among_the_rows_that_run(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"id": [1, 1, 2, 2], "lang": ["de", "en", "de", "de"], "body": ["x"] * 4})
    assert ids(chosen(tmp_path, where="lang = 'en' OR id = 1 AND lang = 'en'"), tmp_path) == [1]
    with pytest.raises(InputError, match=r"'2' twice: row 2 of .* and row 3 of "):
        chosen(tmp_path, where="lang = 'de'")


def test_partitions_and_json_lines_are_selected_alike(tmp_path):
    for day in (1, 2):
        lines = [{"id": day * 100 + i, "body": "x", "meta": {"n": i}} for i in range(200)]
        write_lines(tmp_path / f"day={day}" / "a.jsonl", *lines)
    manifest = chosen(tmp_path, "jsonl", where="day = 2 AND meta.n % 50 = 7")
    assert ids(manifest, tmp_path, "jsonl") == [207, 257, 307, 357]


def test_a_changed_selection_is_another_spec(folder):
    def spec(**keys: Any) -> Any:
        return make_spec(input={"uri": str(folder), **keys}, prompt={"column": "body"})

    before = spec(where="lang = 'de'", limit=5)
    manifest = build_manifest(before, needed_columns(before), make_fingerprint(spec=shaping(before)))
    require_same_spec(manifest, before, Layout("/out"))
    with pytest.raises(OutputError, match=r"input.limit: 5 then, 6 now"):
        require_same_spec(manifest, spec(where="lang = 'de'", limit=6), Layout("/out"))
    with pytest.raises(OutputError, match=r"input.where: .*de.* then, .*fr.* now"):
        require_same_spec(manifest, spec(where="lang = 'fr'", limit=5), Layout("/out"))


def test_a_run_of_a_version_without_these_keys_goes_on_unless_one_is_set(folder):
    def spec(**keys: Any) -> Any:
        return make_spec(input={"uri": str(folder), **keys}, prompt={"column": "body"})

    values = shaping(spec())
    for name in ("where", "limit", "sample", "csv", "cast"):
        values["input"].pop(name)
    manifest = build_manifest(spec(), needed_columns(spec()), make_fingerprint(spec=values))
    require_same_spec(manifest, spec(limit=None), Layout("/out"))
    with pytest.raises(OutputError, match=r"input.limit: None then, 6 now"):
        require_same_spec(manifest, spec(limit=6), Layout("/out"))


@given(
    files=input_files(),
    seed=st.integers(0, 2**32),
    share=st.floats(0, 1),
    most=st.integers(1, 40),
    max_bytes=st.integers(1, 5000),
)
@settings(max_examples=60, deadline=None)
def test_every_selected_row_is_in_one_shard_in_order(files, seed, share, most, max_bytes):
    random = np.random.default_rng(seed)
    masks = [random.random(file.rows) < share for file in files]
    shards = cut(files, lambda first: most, max_bytes, selected=[_bits(mask) for mask in masks])
    place = np.cumsum([0, *(file.rows for file in files)])
    wanted = [int(place[i] + row) for i, mask in enumerate(masks) for row in np.flatnonzero(mask)]
    assert [int(n) for shard in shards for n in shard.numbers] == wanted
    assert [shard.first_row for shard in shards] == [sum(s.rows for s in shards[:i]) for i in range(len(shards))]
    found = [(s.entry.uri, s.start + int(n) - s.place) for shard in shards for s in shard.segments for n in s.numbers]
    assert found == [(files[i].entry.uri, int(row)) for i, mask in enumerate(masks) for row in np.flatnonzero(mask)]
    manifest = Manifest(tuple(shards), pa.schema([]), (), (), make_fingerprint(), total_rows=int(place[-1]))
    assert from_parquet(to_parquet(manifest)) == manifest


def _bits(mask: np.ndarray) -> RowBits:
    writer = BitsWriter()
    writer.add(mask)
    return writer.done(len(mask))


@given(mask=st.lists(st.booleans(), max_size=300), at=st.integers(0, 300), rows=st.integers(0, 300))
@settings(max_examples=60, deadline=None)
def test_counts_and_places_of_selected_rows(mask, at, rows):
    found = np.array(mask, dtype=bool)
    bits = _bits(found)
    at = min(at, len(mask))
    places = np.flatnonzero(found)
    assert (bits.count, bits.before(at)) == (len(places), int(found[:at].sum()))
    assert [bits.nth(i) for i in range(len(places))] == places.tolist()
    assert bits.counts(np.array([0, at, len(mask)])).tolist() == [int(found[:at].sum()), int(found[at:].sum())]
    assert np.flatnonzero(limited([bits], rows)[0].mask(0, len(mask))).tolist() == places[:rows].tolist()


_WHERES = ("n > 3", "n IS NULL", "t LIKE 'a%'", "n % 3 = 1 AND t <> 'b'", "TRY_CAST(t AS INT) = n", "n > 3 OR t = 'a'")


@given(
    data=st.data(),
    rows=st.lists(
        st.tuples(
            st.one_of(st.none(), st.integers(-5, 9)), st.one_of(st.none(), st.sampled_from(["a", "ab", "b", "7", "é"]))
        ),
        min_size=1,
        max_size=60,
    ),
    where=st.sampled_from(_WHERES),
    shard=st.integers(1, 20),
    file_format=st.sampled_from(["parquet", "jsonl"]),
)
@settings(max_examples=25, deadline=None)
def test_the_rows_that_run_are_those_that_sql_answers(tmp_path_factory, data, rows, where, shard, file_format):
    table = pa.table(
        {
            "id": list(range(len(rows))),
            "n": pa.array([n for n, _ in rows], pa.int64()),
            "t": pa.array([t for _, t in rows], pa.string()),
            "body": ["x"] * len(rows),
        }
    )
    folder = tmp_path_factory.mktemp("in")
    ends = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=3)))
    for number, (start, end) in enumerate(zip([0, *ends], [*ends, len(rows)], strict=True)):
        part = table.slice(start, end - start)
        if file_format == "parquet":
            write_parquet(folder / f"{number}.parquet", part, row_group_size=5)
        else:
            # Every column in the first file, so that each has a type.
            write_lines(folder / f"{number}.jsonl", *part.to_pylist())
    if file_format == "jsonl" and (table["n"].null_count == len(rows) or table["t"].null_count == len(rows)):
        return
    limit = data.draw(st.one_of(st.none(), st.integers(1, 30)))
    with duckdb.connect() as connection:
        connection.register("rows", table)
        wanted = [i for (i,) in connection.execute(f"SELECT id FROM rows WHERE {where} ORDER BY id").fetchall()]
    keys = {} if limit is None else {"limit": limit}
    manifest = chosen(folder, file_format, rows=shard, where=where, **keys)
    assert ids(manifest, folder, file_format) == wanted[:limit]
    assert all(s.rows == shard for s in manifest.shards[:-1])

"""Arrow files and the splits of Hugging Face's datasets: which files are read, and which rows they give."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer.errors import InputError, SpecError
from batchinfer.execution.same_job import require_same_input
from batchinfer.input import build_manifest, read_shards
from batchinfer.input.manifest import Fingerprint, from_parquet, to_parquet
from batchinfer.input.splits import split_of
from tests.support.builders import make_spec

ROWS = pa.table({"id": range(25), "text": [f"text {i}" for i in range(25)], "label": [i % 2 for i in range(25)]})


def write_stream(place: Path, table: pa.Table, rows: int = 10) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(place), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


def save(folder: Path, files: list[pa.Table]) -> None:
    """One split as `save_to_disk` writes it, with a cache that a later `map` left there."""
    names = [f"data-{number:05d}-of-{len(files):05d}.arrow" for number in range(len(files))]
    for name, table in zip(names, files, strict=True):
        write_stream(folder / name, table)
    write_stream(folder / "cache-0123.arrow", ROWS)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")


def cut(uri: Path, columns: list[str], rows: int = 4, **values):
    spec = make_spec(input={"uri": str(uri), "columns": columns, **values}, shards={"rows": rows})
    made = build_manifest(spec, dict.fromkeys(columns, "input.columns"), Fingerprint(run_id="r", spec={}))
    return from_parquet(to_parquet(made)), spec


def rows_of(uri: Path, columns: list[str], rows: int = 4, **values) -> list[dict]:
    made, spec = cut(uri, columns, rows, **values)
    read = read_shards(made.shards, made.schema, made.partitions, spec.input)
    return [row for _, table in read for row in table.select(columns).to_pylist()]


# Each example cuts and reads three files several times.
@settings(max_examples=25)
@given(
    st.lists(st.lists(st.integers(1, 7), max_size=4), min_size=1, max_size=3),
    st.integers(1, 9),
    st.sampled_from(["stream", "file", "compressed"]),
)
def test_rows_come_once_in_order_whatever_the_batches_and_shards(tmp_path_factory, files, shard, kind):
    folder, first = tmp_path_factory.mktemp("arrow"), 0
    for number, batches in enumerate(files):
        buffer, schema = io.BytesIO(), pa.schema([("id", pa.int64()), ("text", pa.string())])
        options = pa.ipc.IpcWriteOptions(compression="zstd" if kind == "compressed" else None)
        make = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
        with make(buffer, schema, options=options) as writer:
            for size in batches:
                ids = range(first, first + size)
                writer.write_batch(pa.record_batch([pa.array(ids), pa.array(map(str, ids))], schema=schema))
                writer.write_batch(pa.record_batch([[], []], schema=schema))
                first += size
        (folder / f"{number}.arrow").write_bytes(buffer.getvalue())
    expected = [{"id": i, "text": str(i)} for i in range(first)]
    assert rows_of(folder, ["id", "text"], shard, format="arrow") == expected
    if first:
        chosen = rows_of(folder, ["id", "text"], shard, format="arrow", where="id % 3 = 1")
        assert chosen == [row for row in expected if row["id"] % 3 == 1]


def test_a_saved_dataset_is_read_as_its_state_says(tmp_path):
    save(tmp_path / "one", [ROWS.slice(0, 13), ROWS.slice(13)])
    assert rows_of(tmp_path / "one", ["id", "text"], format="arrow") == ROWS.select(["id", "text"]).to_pylist()
    made, spec = cut(tmp_path / "one", ["id"], format="arrow")
    require_same_input(made, spec)
    with pytest.raises(InputError, match="holds one split"):
        cut(tmp_path / "one", ["id"], format="arrow", split="train")
    (tmp_path / "one" / "state.json").write_text("[]")
    with pytest.raises(InputError, match="is no JSON object"):
        cut(tmp_path / "one", ["id"], format="arrow")


def test_a_split_is_chosen_by_name_or_the_names_are_told(tmp_path):
    for name, table in (("train", ROWS), ("test", ROWS.slice(20))):
        save(tmp_path / "saved" / name, [table])
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    hub = tmp_path / "hub"
    (hub / "data").mkdir(parents=True)
    for name, table in (
        ("train-00000-of-00002", ROWS.slice(0, 20)),
        ("train-00001-of-00002", ROWS.slice(20)),
        ("test-00000-of-00001-0a1b2c", ROWS.slice(20)),
    ):
        pq.write_table(table, hub / "data" / f"{name}.parquet")
    (hub / "README.md").write_text("# Tickets")
    for folder, form in ((tmp_path / "saved", "arrow"), (hub, "parquet")):
        train = rows_of(folder, ["id"], format=form, split="train")
        assert [row["id"] for row in train] == list(range(25))
        assert len(rows_of(folder, ["id"], format=form, split="test")) == 5
        made, spec = cut(folder, ["id"], format=form, split="test")
        require_same_input(made, spec)
        with pytest.raises(InputError, match="several splits; its splits: test, train") as refused:
            cut(folder, ["id"], format=form)
        assert refused.value.exit_code == 2
        assert "input.split" in refused.value.remedy
        with pytest.raises(InputError, match="no split 'dev'; its splits: test, train"):
            cut(folder, ["id"], format=form, split="dev")
    (hub / "de").mkdir()
    pq.write_table(ROWS, hub / "de" / "train.parquet")
    with pytest.raises(InputError, match="in 2 folders: data, de"):
        cut(hub, ["id"], split="train")


def test_a_folder_without_splits_is_a_plain_folder(tmp_path):
    for name in ("part-00000-of-00002", "part-00001-of-00002", "mine-00000-of-00001"):
        pq.write_table(ROWS, tmp_path / f"{name}.parquet")
    assert len(rows_of(tmp_path, ["id"])) == 75
    assert len(rows_of(tmp_path, ["id"], split="mine")) == 25


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00002.parquet", "train"),
        ("data/test-00000-of-00001-0a1b.parquet", "test"),
        ("default/validation/0000.parquet", "validation"),
        ("de/dev.parquet", "dev"),
        ("imdb-train-00000-of-00002.arrow", "imdb-train"),
        ("train/data-00000-of-00001.arrow", "train"),
        ("part-00000-of-00002.parquet", None),
        ("tickets.parquet", None),
    ],
)
def test_a_split_is_told_by_the_name_of_file_or_folder(name, split):
    assert split_of(name) == split


@pytest.mark.parametrize(
    "damage", ["cut in a batch", "cut between batches", "text", "offsets", "bytes that are no text"]
)
def test_a_damaged_file_is_refused_with_its_name(damage, tmp_path):
    place = tmp_path / "in" / "a.arrow"
    write_stream(place, ROWS)
    data = place.read_bytes()
    if damage == "cut in a batch":
        data = data[: len(data) // 2]
    elif damage == "cut between batches":
        data = data[:-8]
    elif damage == "text":
        data = b'{"id": 1}\n'
    else:
        write_stream(place, pa.table({"text": ["abcdefg"]}))
        begin, wrong = (b"\0\0\0\0\7", b"\0\0\0\0\7\0\0\x7f") if damage == "offsets" else (b"abcdefg", b"abc\xffefg")
        at = place.read_bytes().rindex(begin)
        data = place.read_bytes()[:at] + wrong + place.read_bytes()[at + len(wrong) :]
    place.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.arrow is not a readable Arrow file"):
        cut(tmp_path / "in", ["text"], format="arrow")


def test_polars_and_pandas_write_files_that_are_read(tmp_path):
    import pandas as pd
    import polars as pl

    frame = pl.DataFrame({"id": [1, 2], "text": ["a", "b"], "kind": pl.Series(["x", "y"], dtype=pl.Categorical)})
    (tmp_path / "in").mkdir()
    frame.write_ipc(tmp_path / "in" / "0.arrow")
    pd.DataFrame({"id": [3], "text": ["c"], "kind": pd.Categorical(["x"])}).to_feather(tmp_path / "in" / "1.feather")
    found = rows_of(tmp_path / "in", ["id", "text", "kind"], format="arrow")
    assert found == [{"id": i, "text": t, "kind": k} for i, t, k in ((1, "a", "x"), (2, "b", "y"), (3, "c", "x"))]


@pytest.mark.soak
@pytest.mark.integration
def test_what_hugging_face_saves_is_read(tmp_path):
    import datasets

    features = datasets.Features({
        "id": datasets.Value("int64"),
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["neg", "pos"]),
        "tags": datasets.List(datasets.Value("string")),
    })  # fmt: skip
    values = {**ROWS.to_pydict(), "tags": [["a"] * (i % 3) for i in range(25)]}
    whole = datasets.Dataset.from_dict(values, features=features)
    splits = datasets.DatasetDict({"train": whole, "test": whole.filter(lambda row: row["id"] > 20)})
    splits.save_to_disk(str(tmp_path / "saved"), num_shards={"train": 3, "test": 1})
    for name, split in splits.items():
        found = rows_of(tmp_path / "saved", list(features), format="arrow", split=name)
        assert found == split.to_list()


def test_a_split_of_a_table_is_refused():
    with pytest.raises(SpecError, match="split is for folders"):
        make_spec(input={"uri": "/t", "format": "delta", "split": "train"})

"""`reduce`: the rows of a group come together, each row in one group, in the order of the input."""

from __future__ import annotations

import csv
import datetime
import os
import uuid
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchinfer.errors import InputError, SpecError
from batchinfer.input import build_manifest, gather, read_shards
from batchinfer.input.manifest import Manifest, claimed_files, from_parquet, to_parquet
from batchinfer.jobspec import JobSpec
from batchinfer.prompting.job_prompts import JobPrompts
from batchinfer.prompting.prompts import needed_columns
from tests.support.builders import make_fingerprint, make_spec, write_lines, write_parquet


def job(folder: Path, key: str = "who", template: str = "{{ body }}", **sections: Any) -> JobSpec:
    values: dict[str, Any] = {
        "input": {"uri": str(folder)} | sections.pop("input", {}),
        "reduce": {"key": key} | sections.pop("reduce", {}),
        "prompt": {"template": template},
    }
    return make_spec(**(values | sections))


def manifest_of_groups(spec: JobSpec) -> Manifest:
    return build_manifest(spec, needed_columns(spec), make_fingerprint())


def groups(spec: JobSpec, manifest: Manifest | None = None) -> list[dict[str, Any]]:
    manifest = manifest or manifest_of_groups(spec)
    shards = read_shards(manifest.shards, manifest.schema, manifest.partitions, spec.rows_input)
    return [row for _, table in shards for row in table.to_pylist()]


def write_files(folder: Path, file_format: str, files: list[list[dict[str, Any]]], rows: int) -> None:
    """The rows of each file, in row groups of `rows`."""
    for number, found in enumerate(files):
        path = folder / f"{number}.{file_format}"
        if file_format == "parquet":
            schema = pa.schema([("id", pa.int64()), ("who", pa.string()), ("body", pa.string())])
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(found, schema), path, row_group_size=rows)
        elif file_format == "jsonl":
            write_lines(path, *found)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, ["id", "who", "body"])
                writer.writeheader()
                writer.writerows(found)


KEYS = st.sampled_from(["a", "b", "c", "ab", "A", " a", "é", None])
ROWS = st.lists(st.tuples(KEYS, st.text("xyz", min_size=1, max_size=8)), max_size=40)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    of_files=st.lists(ROWS, min_size=1, max_size=4).filter(any),
    file_format=st.sampled_from(["parquet", "jsonl", "csv"]),
    rows_of_group=st.integers(1, 9),
    rows_of_shard=st.integers(1, 9),
    in_memory=st.sampled_from([40, 200, 2**26]),
    limit=st.none() | st.integers(1, 50),
)
def test_groups_are_those_of_a_dictionary_with_every_row_in_one_of_them_and_in_input_order(
    tmp_path_factory, of_files, file_format, rows_of_group, rows_of_shard, in_memory, limit
):
    folder = tmp_path_factory.mktemp("in")
    number = iter(range(1000))
    files = [[{"id": next(number), "who": who, "body": body} for who, body in rows] for rows in of_files]
    write_files(folder, file_format, files, rows_of_group)
    spec = job(
        folder,
        input={"format": file_format, "id_column": "id", "limit": limit},
        reduce={"members": True},
        shards={"rows": rows_of_shard},
    )
    expected: dict[str | None, list[dict[str, Any]]] = {}
    for row in [row for rows in files for row in rows][:limit]:
        expected.setdefault(row["who"], []).append(row)
    with mock.patch.object(gather, "_IN_MEMORY", in_memory):
        manifest = manifest_of_groups(spec)
    found = groups(spec, manifest)
    written = str if file_format == "csv" else int
    assert {row["who"]: row for row in found} == {
        who: {
            "who": who,
            "count": len(rows),
            "members": [written(row["id"]) for row in rows],
            "body": [row["body"] for row in rows],
        }
        for who, rows in expected.items()
    }
    assert len(found) == len(expected)
    assert max(shard.rows for shard in manifest.shards) <= rows_of_shard
    assert manifest.rows_of_all == f"{len(expected)} groups of {sum(map(len, expected.values()))} rows"
    if in_memory == 2**26:
        assert [row["who"] for row in found] == list(expected)


def test_a_manifest_of_groups_names_the_files_of_the_input_and_comes_back_from_its_file(tmp_path):
    write_parquet(tmp_path / "in" / "1.parquet", {"who": ["a", "b"], "body": ["x", "y"]})
    write_parquet(tmp_path / "in" / "2.parquet", {"who": ["a"], "body": ["z"]})
    spec = job(tmp_path / "in", input={"where": "body <> 'z'"})
    manifest = manifest_of_groups(spec)
    again = from_parquet(to_parquet(manifest))
    assert again == manifest
    uris = {str(tmp_path / "in" / name) for name in ("1.parquet", "2.parquet")}
    assert set(again.files) == uris
    assert set(claimed_files(to_parquet(manifest)).files) == uris
    assert {entry.uri for entry in again.read_files}.isdisjoint(uris)
    assert again.schema.names == ["who", "count", "body"]
    assert again.rows_of_all == "2 groups of 2 rows"


def test_the_files_of_groups_go_when_nobody_holds_their_manifest(tmp_path):
    write_parquet(tmp_path / "1.parquet", {"who": ["a"], "body": ["x"]})
    manifest = manifest_of_groups(job(tmp_path))
    (entry,) = manifest.read_files
    assert os.path.exists(entry.uri)
    del manifest
    assert not os.path.exists(os.path.dirname(entry.uri))


def test_a_group_much_larger_than_the_others_is_dealt_out_until_it_is_alone(tmp_path):
    who = ["large"] * 500 + [f"small-{i}" for i in range(300)]
    write_parquet(tmp_path / "1.parquet", {"who": who, "body": [f"text {i}" for i in range(800)]})
    spec = job(tmp_path)
    with mock.patch.object(gather, "_IN_MEMORY", 500):
        found = groups(spec)
    assert {row["who"]: row["count"] for row in found} == {"large": 500, **{f"small-{i}": 1 for i in range(300)}}
    with (
        mock.patch.object(gather, "_IN_MEMORY", 500),
        mock.patch.object(gather, "_LARGEST_GROUP", 5000),
        pytest.raises(InputError, match=r"the rows with who = 'large' have more than .* a group is one row"),
    ):
        manifest_of_groups(spec)


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1.5, 0.0, -0.0, float("nan"), float("nan"), None]),
        pa.array([True, False, None, True, False, True]),
        pa.array([datetime.date(2026, 1, 1), None, datetime.date(2026, 1, 1)] * 2),
        pa.array(["a", "b", "a", None, "b", "a"]).dictionary_encode(),
        pa.array([uuid.UUID(int=i % 2).bytes for i in range(6)], pa.uuid()),
        pa.array([b"x", b"y", b"x", None, b"", b"x"]),
        pa.nulls(6),
    ],
    ids=["doubles", "booleans", "dates", "dictionary", "uuids", "bytes", "nulls"],
)
def test_keys_of_every_type_that_has_a_text_make_groups(tmp_path, values):
    pq.write_table(pa.table({"who": values, "body": [str(i) for i in range(6)]}), tmp_path / "1.parquet")
    expected: dict[str, list[str]] = {}
    for place, value in enumerate(values.to_pylist()):
        expected.setdefault(str(value + 0.0 if isinstance(value, float) else value), []).append(str(place))
    assert [row["body"] for row in groups(job(tmp_path))] == list(expected.values())


def test_a_key_that_is_not_compared_is_refused(tmp_path):
    pq.write_table(pa.table({"who": [[1], [2]], "body": ["x", "y"]}), tmp_path / "1.parquet")
    with pytest.raises(InputError, match=r"reduce\.key 'who' has type list"):
        manifest_of_groups(job(tmp_path))
    pq.write_table(pa.table({"who": [b"\xff", b"a"], "body": ["x", "y"]}), tmp_path / "1.parquet")
    with pytest.raises(InputError, match=r"reduce\.key 'who' .* not UTF-8"):
        manifest_of_groups(job(tmp_path))


def test_a_missing_key_is_refused_with_the_nearest_name(tmp_path):
    write_parquet(tmp_path / "1.parquet", {"customer": ["a"], "body": ["x"]})
    with pytest.raises(InputError, match=r"reduce\.key names the column 'costumer'.*did you mean 'customer'"):
        manifest_of_groups(job(tmp_path, key="costumer"))


def test_a_template_has_lists_of_the_columns_and_single_values_of_the_group(tmp_path):
    rows = [
        {"who": who, "body": body, "facts": facts}
        for who, body, facts in [("a", "x", {"n": 1}), ("b", "y", {"m": [2]}), ("a", None, None), ("a", "z", {"n": 4})]
    ]
    write_lines(tmp_path / "1.jsonl", *rows)
    template = (
        "{{ who }} {{ count }} {{ members }}:{% for text in body if text %} {{ text }}{% endfor %} {{ facts[0].n }}"
    )
    spec = job(tmp_path, template=template, input={"format": "jsonl", "id_column": None}, reduce={"members": True})
    manifest = manifest_of_groups(spec)
    ((_, table),) = read_shards(manifest.shards, manifest.schema, manifest.partitions, spec.rows_input)
    texts = [getattr(prompt, "text", prompt) for prompt in JobPrompts(spec).prompts(table)]
    assert texts[0] == "a 3 [0, 2, 3]: x z 1"


def test_a_partition_may_be_the_key(tmp_path):
    for who in ("a", "b"):
        write_parquet(tmp_path / f"who={who}" / "1.parquet", {"body": [who] * 3})
    assert {row["who"]: row["body"] for row in groups(job(tmp_path))} == {"a": ["a"] * 3, "b": ["b"] * 3}


@pytest.mark.parametrize(
    ("sections", "why"),
    [
        ({"input": {"uri": "/in", "columns": ["x"]}}, "input.columns copies values of a row"),
        ({"input": {"uri": "/in", "group_by": "x"}}, "leave input.group_by out"),
        ({"evaluate": {"expected": "x"}}, "evaluate compares"),
        ({"prompt": {"messages_column": "x"}}, "use a template"),
        ({"input": {"uri": "/in", "format": "jsonl", "on_bad_row": "set_aside"}}, "on_bad_row"),
        ({"reduce": {"key": "count"}}, "rename the column"),
        ({"output": {"uri": "/out", "column": "count"}}, "set output.column to another name"),
    ],
)
def test_keys_that_are_of_single_rows_are_refused_beside_reduce(sections, why):
    with pytest.raises(SpecError, match=why):
        make_spec(**({"reduce": {"key": "who"}} | sections))

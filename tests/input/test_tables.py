"""The rows of a table's version, as the library itself reads them: with deletes, renamed columns, partitions."""

from __future__ import annotations

import base64
import json
import struct
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer.errors import InputError, SpecError, UserError
from batchinfer.input import build_manifest, read_shards
from batchinfer.input.manifest import Fingerprint, from_parquet, to_parquet
from batchinfer.jobspec import InputSpec
from tests.support.builders import make_spec


class Increment:
    """What an incremental job hands to the cutting of its input."""

    def __init__(self, *versions: str) -> None:
        self.versions = versions

    def __call__(self, entries):
        return entries

    def since(self):
        return self.versions


def cut(columns: list[str], choose: Increment | None = None, storage: dict | None = None, **given):
    """The manifest of a job that reads these columns, after a way through its file; and its input's keys."""
    if choose is not None:
        given["incremental"] = {"changed": given.pop("changed", "rerun")}
    spec = make_spec(input={"columns": columns, **given}, shards={"rows": 2}, storage=storage or {})
    names = dict.fromkeys(columns, "input.columns")
    if spec.input.where is not None:
        names.setdefault("n", "input.where")
    made = build_manifest(spec, names, Fingerprint(run_id="r", spec={}), choose)
    read = from_parquet(to_parquet(made))
    assert read.files == made.files
    return read, spec


def rows(columns: list[str], choose: Increment | None = None, storage: dict | None = None, **given) -> list[dict]:
    made, spec = cut(columns, choose, storage, **given)
    read = read_shards(made.shards, made.schema, made.partitions, spec.input, spec.storage)
    return [row for _, table in read for row in table.select(columns).to_pylist()]


def same(one: list[dict], other: list[dict]) -> bool:
    return Counter(json.dumps(row, default=str) for row in one) == Counter(
        json.dumps(row, default=str) for row in other
    )


def delta_rows(place: Path, columns: list[str], version: int | None = None) -> list[dict]:
    from deltalake import DeltaTable

    return pa.table(DeltaTable(str(place), version=version).to_pyarrow_table(columns=columns)).to_pylist()


def write_delta(place: Path, values: dict, **options) -> None:
    from deltalake import write_deltalake

    write_deltalake(str(place), pa.table(values), **{"mode": "append", **options})


def test_delta_rows_are_those_of_the_version(tmp_path):
    from deltalake import DeltaTable

    write_delta(tmp_path / "t", {"id": ["a", "b", "c"], "n": [1, 2, 3]})
    write_delta(tmp_path / "t", {"id": ["d"], "n": [4]})
    DeltaTable(str(tmp_path / "t")).delete("n = 2")
    given = {"uri": str(tmp_path / "t"), "format": "delta"}
    assert sorted(row["id"] for row in rows(["id"], **given)) == ["a", "c", "d"]
    assert sorted(row["id"] for row in rows(["id"], version=0, **given)) == ["a", "b", "c"]
    assert cut(["id"], **given)[0].fingerprint.table_version == "2"
    assert [row["n"] for row in rows(["id", "n"], where="n > 3", **given)] == [4]
    with pytest.raises(InputError, match="at version 99"):
        rows(["id"], version=99, **given)
    with pytest.raises(InputError, match="there is no Delta table"):
        rows(["id"], uri=str(tmp_path / "none"), format="delta")
    with pytest.raises(InputError, match="is a Delta table") as refused:
        rows(["id"], uri=str(tmp_path / "t"))
    assert "input.format: delta" in refused.value.remedy


def test_delta_partitions_have_the_values_and_types_of_the_log(tmp_path):
    import datetime

    day = datetime.date(2026, 1, 2)
    values = {"d": [day, None, day], "team": ["a b/c", "x=y", None], "k": pa.array([7, 8, None], pa.int32())}
    write_delta(tmp_path / "t", {"x": [1, 2, 3], **values}, partition_by=["d", "team", "k"])
    columns = ["x", "d", "team", "k"]
    found = rows(columns, uri=str(tmp_path / "t"), format="delta")
    assert same(found, delta_rows(tmp_path / "t", columns))
    assert found[0]["d"] in (day, None)


def deletion_vector(*deleted: int) -> dict:
    """An inline deletion vector, as Delta's protocol describes it."""
    from pyroaring import BitMap

    data = struct.pack("<IQI", 1681511377, 1, 0) + BitMap(deleted).serialize()
    padded = data + b"\0" * (-len(data) % 4)
    z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
    own = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
    text = base64.b85encode(padded).decode().translate(str.maketrans(own, z85))
    return {"storageType": "i", "pathOrInlineDv": text, "sizeInBytes": len(data), "cardinality": len(deleted)}


def write_mapped_delta(place: Path, deleted: tuple[int, ...]) -> None:
    """A table with mapped names, one of them that of another column, and with deleted rows, as Spark writes it."""
    (place / "_delta_log").mkdir(parents=True)
    pq.write_table(
        pa.table({"col-1": list("abcdef"), "n": [10, 20, 30, 40, 50, 60], "old": [0] * 6}), place / "f.parquet"
    )

    def field(name: str, kind: str, physical: str, number: int) -> dict:
        told = {"delta.columnMapping.id": number, "delta.columnMapping.physicalName": physical}
        return {"name": name, "type": kind, "nullable": True, "metadata": told}

    fields = [field("n", "string", "col-1", 1), field("amount", "long", "n", 2), field("late", "long", "col-9", 9)]
    features = ["columnMapping", "deletionVectors"]
    actions = [
        {
            "protocol": {
                "minReaderVersion": 3,
                "minWriterVersion": 7,
                "readerFeatures": features,
                "writerFeatures": features,
            }
        },
        {
            "metaData": {
                "id": "t",
                "format": {"provider": "parquet", "options": {}},
                "schemaString": json.dumps({"type": "struct", "fields": fields}),
                "partitionColumns": [],
                "configuration": {"delta.columnMapping.mode": "name", "delta.columnMapping.maxColumnId": "9"},
                "createdTime": 0,
            }
        },
        {
            "add": {
                "path": "f.parquet",
                "partitionValues": {},
                "size": (place / "f.parquet").stat().st_size,
                "modificationTime": 0,
                "dataChange": True,
                "stats": json.dumps({"numRecords": 6}),
                "deletionVector": deletion_vector(*deleted),
            }
        },
    ]
    (place / "_delta_log" / f"{0:020d}.json").write_text("\n".join(map(json.dumps, actions)))


def test_delta_deletion_vectors_and_mapped_names_are_applied(tmp_path):
    write_mapped_delta(tmp_path / "t", (0, 4))
    given = {"uri": str(tmp_path / "t"), "format": "delta"}
    expected = [{"n": n, "amount": a, "late": None} for n, a in zip("bcdf", (20, 30, 40, 60), strict=True)]
    assert rows(["n", "amount", "late"], **given) == expected
    assert rows(["n", "amount"], where="n > 'c'", **given) == [{"n": "d", "amount": 40}, {"n": "f", "amount": 60}]
    assert rows(["n"], limit=2, **given) == [{"n": "b"}, {"n": "c"}]
    made, _ = cut(["n"], **given)
    assert (made.rows, made.total_rows) == (4, 6)
    with pytest.raises(InputError, match="old"):
        rows(["old"], **given)


def test_delta_increments_are_what_was_appended(tmp_path):
    from deltalake import DeltaTable

    place = tmp_path / "t"
    given = {"uri": str(place), "format": "delta"}
    write_delta(place, {"n": [1, 2]})
    write_delta(place, {"n": [3]})
    # The small files become one, without a change of rows.
    DeltaTable(str(place)).optimize.compact()
    write_delta(place, {"n": [4]})
    assert [row["n"] for row in rows(["n"], Increment("0"), **given)] == [3, 4]
    assert [row["n"] for row in rows(["n"], Increment("0", "2"), **given)] == [4]
    assert rows(["n"], Increment("3"), **given) == []
    DeltaTable(str(place)).delete("n = 4")
    with pytest.raises(InputError, match="updated or deleted in version 4"):
        rows(["n"], Increment("0"), changed="fail", **given)
    assert [row["n"] for row in rows(["n"], Increment("3"), changed="ignore", **given)] == []
    DeltaTable(str(place)).create_checkpoint()
    for version in range(4):
        (place / "_delta_log" / f"{version:020d}.json").unlink()
    with pytest.raises(InputError, match="is gone"):
        rows(["n"], Increment("0"), **given)


@pytest.fixture
def lake(tmp_path):
    """The keys of a catalog in a file, and the catalog."""
    from pyiceberg.catalog import load_catalog

    properties = {"type": "sql", "uri": f"sqlite:///{tmp_path}/c.db", "warehouse": f"file://{tmp_path}/lake"}
    catalog = load_catalog("lake", **properties)
    catalog.create_namespace("db")
    return {"format": "iceberg", "uri": "db.t", "catalog": {"name": "lake", "properties": properties}}, catalog


def test_iceberg_rows_are_those_of_the_snapshot_with_renamed_columns(lake):
    from pyiceberg.types import LongType, StringType

    given, catalog = lake
    table = catalog.create_table(
        "db.t", schema=pa.schema([("id", pa.string()), ("n", pa.int32()), ("gone", pa.int64())])
    )
    table.append(pa.table({"id": ["a", "b"], "n": pa.array([1, 2], pa.int32()), "gone": [0, 0]}))
    first = table.current_snapshot().snapshot_id
    with table.update_schema() as change:
        change.rename_column("id", "key")
        change.delete_column("gone")
        change.update_column("n", LongType())
    with table.update_schema() as change:
        change.add_column("id", StringType())
    table.append(pa.table({"key": ["c"], "n": [2**40], "id": ["new"]}))
    table.manage_snapshots().create_tag(first, "friday").commit()
    columns = ["key", "n", "id"]
    found = rows(columns, **given)
    assert same(found, table.scan(selected_fields=tuple(columns)).to_arrow().to_pylist())
    assert {"key": "a", "n": 1, "id": None} in found
    assert len(rows(["key"], version=first, **given)) == len(rows(["key"], version="friday", **given)) == 2
    assert rows(["key", "n"], where="n > 100", **given) == [{"key": "c", "n": 2**40}]
    with pytest.raises(InputError, match="gone"):
        rows(["gone"], **given)
    with pytest.raises(InputError, match="no snapshot monday"):
        rows(["key"], version="monday", **given)


def test_iceberg_increments_are_what_was_appended(lake):
    given, catalog = lake
    table = catalog.create_table("db.t", schema=pa.schema([("n", pa.int64())]))
    seen = []
    for n in range(3):
        table.append(pa.table({"n": [2 * n, 2 * n + 1]}))
        seen.append(str(table.current_snapshot().snapshot_id))
    assert sorted(row["n"] for row in rows(["n"], Increment(seen[0]), **given)) == [2, 3, 4, 5]
    assert sorted(row["n"] for row in rows(["n"], Increment(*seen[:2]), **given)) == [4, 5]
    assert rows(["n"], Increment(*seen), **given) == []
    table.delete("n = 2")
    with pytest.raises(InputError, match="updated or deleted in snapshot"):
        rows(["n"], Increment(seen[0]), changed="fail", **given)
    assert sorted(row["n"] for row in rows(["n"], Increment(seen[0]), **given)) == [3, 4, 5]
    with pytest.raises(InputError, match="are gone"):
        rows(["n"], Increment("1"), **given)


def test_what_is_no_table_is_told(lake, tmp_path):
    given, catalog = lake
    with pytest.raises(InputError, match=r"no table db\.t"):
        rows(["n"], **given)
    with pytest.raises(UserError, match="no namespace nowhere"):
        rows(["n"], **{**given, "uri": "nowhere.t"})
    with pytest.raises(UserError, match="cannot be reached"):
        rows(["n"], **{**given, "catalog": "not-described"})
    catalog.create_table("db.t", schema=pa.schema([("n", pa.int64())]))
    assert rows(["n"], **given) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"uri": "tickets", "format": "iceberg"}, "namespace and name"),
        ({"uri": "/t", "version": 3}, "version is for tables"),
        ({"uri": "/t", "catalog": "lake"}, "catalog is for format: iceberg"),
        ({"uri": "/t", "format": "delta", "ignore": ["x"]}, "ignore is for folders"),
        ({"uri": "/t", "format": "delta", "incremental": {"by": "partition"}}, "by: partition is for folders"),
        ({"uri": "/t", "format": "delta", "version": 3, "incremental": {}}, "leave version out"),
    ],
)
def test_a_wrong_key_is_told_with_the_spec(values, message):
    with pytest.raises(SpecError, match=message):
        make_spec(input=values)


def test_a_spec_reads_versions_as_numbers_and_as_texts():
    assert InputSpec(uri="/t", format="delta", version=3).version == 3
    assert InputSpec(uri="/t", format="delta", version="2026-11-20T00:00:00Z").version == "2026-11-20T00:00:00Z"


@pytest.mark.integration
@pytest.mark.parametrize("form", ["delta", "iceberg"])
def test_tables_in_a_bucket_are_read(form, bucket, s3_url, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_url)
    storage = {bucket: {"endpoint_url": s3_url}}
    values = pa.table({"n": [1, 2, 3]})
    if form == "delta":
        from deltalake import write_deltalake

        options = {"AWS_ALLOW_HTTP": "true", "AWS_ENDPOINT_URL": s3_url, "AWS_REGION": "us-east-1"}
        write_deltalake(f"{bucket}/t", values, storage_options=options)
        given = {"uri": f"{bucket}/t", "format": "delta"}
    else:
        from pyiceberg.catalog import load_catalog

        properties = {"type": "sql", "uri": f"sqlite:///{tmp_path}/c.db", "warehouse": bucket}
        catalog = load_catalog("lake", **properties, **{"s3.endpoint": s3_url})
        catalog.create_namespace("db")
        catalog.create_table("db.t", schema=values.schema).append(values)
        given = {"uri": "db.t", "format": "iceberg", "catalog": {"name": "lake", "properties": properties}}
    assert [row["n"] for row in rows(["n"], None, storage, **given)] == [1, 2, 3]

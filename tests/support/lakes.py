"""Tables of Delta and of Iceberg, in a folder or in a bucket, and runs to publish into them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from batchinfer.execution.checks import Checked
from tests.support.mixed_runs import PastReplica, PastSession, write_run

if TYPE_CHECKING:
    from deltalake import DeltaTable
    from pyiceberg.catalog import Catalog


class Lake:
    """Tables of one format in a folder, or below a place of a `bucket` in the store at `endpoint`.

    The catalog is in the folder.
    """

    def __init__(self, to: str, folder: Path, bucket: str | None = None, endpoint: str = "") -> None:
        self.to = to
        folder.mkdir(exist_ok=True)
        self.table = f"{bucket}/t" if bucket else str(folder / "t")
        self.storage: dict[str, Any] = {_root(bucket): {"endpoint_url": endpoint}} if bucket else {}
        """The section of the spec with which a job reaches the tables."""
        self.catalog: dict[str, Any] = {
            "name": "lake",
            "properties": {
                "type": "sql",
                "uri": f"sqlite:///{folder}/catalog.db",
                "warehouse": f"{bucket}/warehouse" if bucket else f"file://{folder}",
            },
        }
        self._options = {"AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true"} if bucket else {}
        self._reach = {"s3.endpoint": endpoint} if bucket else {}
        if to == "iceberg":
            self.open().create_namespace_if_not_exists("db")

    def open(self) -> Catalog:
        from pyiceberg.catalog import load_catalog

        return load_catalog("lake", **self.catalog["properties"], **self._reach)

    def delta(self) -> DeltaTable:
        from deltalake import DeltaTable

        return DeltaTable(self.table, storage_options=self._options)

    def keys(self, **values: Any) -> dict[str, Any]:
        where = {"table": self.table} if self.to == "delta" else {"table": "db.t", "catalog": self.catalog}
        return {"to": self.to, **where, **values}

    def write(self, table: pa.Table) -> None:
        """Append rows as another tool would."""
        if self.to == "delta":
            from deltalake import write_deltalake

            write_deltalake(self.table, table, mode="append", storage_options=self._options)
        else:
            self.open().create_table_if_not_exists("db.t", schema=table.schema).append(table)

    def read(self) -> pa.Table:
        if self.to == "delta":
            return pa.table(self.delta().to_pyarrow_table())
        return self.open().load_table("db.t").scan().to_arrow()

    def commits(self) -> list[str]:
        """The run of each commit that wrote rows, in order."""
        if self.to == "delta":
            history = self.delta().history()
            return [str(one.get("batchinfer.run-id")) for one in reversed(history) if "batchinfer.run-id" in one]
        snapshots = self.open().load_table("db.t").metadata.snapshots
        return [str(one.summary.additional_properties.get("batchinfer.run-id")) for one in snapshots if one.summary]


def _root(uri: str) -> str:
    """The bucket of a place in it."""
    return "/".join(uri.split("/")[:3])


def past_run(folder: Path, shards: int = 3, name: str = "job", **sections: Any) -> Checked:
    return write_run(folder, [PastSession(1.0, [PastReplica(1_000, work=[1.0] * shards)])], name, **sections)

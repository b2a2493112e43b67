"""Tables of Delta and of Iceberg in a folder, and runs to publish into them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from batchinfer.execution.checks import Checked
from tests.support.mixed_runs import PastReplica, PastSession, write_run

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog


class Lake:
    """Tables of one format in a folder."""

    def __init__(self, to: str, folder: Path) -> None:
        self.to, self.folder = to, folder
        folder.mkdir(exist_ok=True)
        self.catalog: dict[str, Any] = {
            "name": "lake",
            "properties": {"type": "sql", "uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"file://{folder}"},
        }
        if to == "iceberg":
            self.open().create_namespace_if_not_exists("db")

    def open(self) -> Catalog:
        from pyiceberg.catalog import load_catalog

        return load_catalog("lake", **self.catalog["properties"])

    def keys(self, **values: Any) -> dict[str, Any]:
        where = {"table": str(self.folder / "t")} if self.to == "delta" else {"table": "db.t", "catalog": self.catalog}
        return {"to": self.to, **where, **values}

    def write(self, table: pa.Table) -> None:
        """Append rows as another tool would."""
        if self.to == "delta":
            from deltalake import write_deltalake

            write_deltalake(str(self.folder / "t"), table, mode="append")
        else:
            self.open().create_table_if_not_exists("db.t", schema=table.schema).append(table)

    def read(self) -> pa.Table:
        if self.to == "delta":
            from deltalake import DeltaTable

            return pa.table(DeltaTable(str(self.folder / "t")).to_pyarrow_table())
        return self.open().load_table("db.t").scan().to_arrow()

    def commits(self) -> list[str]:
        """The run of each commit that wrote rows, in order."""
        if self.to == "delta":
            from deltalake import DeltaTable

            history = DeltaTable(str(self.folder / "t")).history()
            return [str(one.get("batchinfer.run-id")) for one in reversed(history) if "batchinfer.run-id" in one]
        snapshots = self.open().load_table("db.t").metadata.snapshots
        return [str(one.summary.additional_properties.get("batchinfer.run-id")) for one in snapshots if one.summary]


def past_run(folder: Path, shards: int = 3, name: str = "job") -> Checked:
    return write_run(folder, [PastSession(1.0, [PastReplica(1_000, work=[1.0] * shards)])], name)

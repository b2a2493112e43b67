"""Iceberg, by way of pyiceberg."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa

from batchinfer.errors import BatchinferError, OutputError, StorageError, UserError
from batchinfer.jobspec.table_keys import CatalogSpec
from batchinfer.storage import Stores, access_of
from batchinfer.tables.base import Batches, Conflict, Mark, Way, library
from batchinfer.tables.column_types import Fitted

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table, Transaction

_RUN, _REVISION, _JOB = "batchinfer.run-id", "batchinfer.revision", "batchinfer.job"
"""Properties in the summary of each snapshot of a commit."""

_NO_RETRIES = {"commit.retry.num-retries": "0"}
"""pyiceberg would try a failed commit again on top of the one that came first, which may be of the same run."""

_CHUNK_BYTES = 2**26
"""Bytes (64 MiB) of rows that are handed over at a time where pyiceberg takes no stream, each as a snapshot of its own
in the same commit. Smaller chunks make many small files, larger ones take more memory."""

_KEYS_AT_ONCE = 10_000
"""Rows whose keys of several columns make one filter. Such a filter is a tree of conditions, which grows slow."""


@contextlib.contextmanager
def told(name: str) -> Iterator[None]:
    """Turn the errors of pyiceberg into StorageError, but for conflicts, which become Conflict."""
    errors = library("pyiceberg.exceptions", "iceberg")
    conflicts = (errors.CommitFailedException, errors.TableAlreadyExistsError, errors.ValidationException)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (BatchinferError, Conflict):
        raise
    except conflicts as error:
        raise Conflict(str(error)) from error
    except Exception as error:
        raise StorageError(
            f"the Iceberg table {name}: {_line(error)}",
            "check the catalog, the table and the credentials, then run the same again",
        ) from error


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]


def open_catalog(given: CatalogSpec, stores: Stores) -> Catalog:
    """The catalog. Raises UserError if the library is missing, or the catalog is not described or not reached."""
    load = library("pyiceberg.catalog", "iceberg").load_catalog
    try:
        catalog: Catalog = load(given.name, **given.properties)
        warehouse = catalog.properties.get("warehouse", "")
        if warehouse.startswith("s3://"):
            catalog = load(given.name, **{**_s3_properties(warehouse, stores), **given.properties})
        catalog.list_namespaces()
        return catalog
    except BatchinferError:
        raise
    except Exception as error:
        raise UserError(
            f"the Iceberg catalog {given.name!r} cannot be reached: {_line(error)}",
            "describe it in `catalog` (properties: {type: sql, uri: ...}), in .pyiceberg.yaml or in the environment",
        ) from error


def _s3_properties(uri: str, stores: Stores) -> dict[str, str]:
    access = access_of(uri, stores)
    given = {
        "s3.endpoint": access.endpoint,
        "s3.region": access.region,
        "s3.access-key-id": access.key,
        "s3.secret-access-key": access.secret,
        "s3.session-token": access.token,
        "s3.anonymous": "true" if access.anonymous else None,
        "s3.force-virtual-addressing": "true" if access.virtual else None,
    }
    return {name: value for name, value in given.items() if value is not None}


def load_table(catalog: Catalog, name: str) -> Table | None:
    """The table; None if its namespace has no such table. Raises UserError without the namespace."""
    errors = library("pyiceberg.exceptions", "iceberg")
    with told(name):
        try:
            return catalog.load_table(name)
        except errors.NoSuchTableError:
            namespace = tuple(name.split(".")[:-1])
            if namespace in catalog.list_namespaces(namespace[:-1]):
                return None
            raise UserError(
                f"there is no namespace {'.'.join(namespace)} in the Iceberg catalog {catalog.name!r}",
                f"create it there, or correct the name {name}",
            ) from None


class IcebergDestination:
    """An Iceberg table to write to."""

    def __init__(self, name: str, catalog: CatalogSpec, stores: Stores) -> None:
        self._name = name
        self._catalog = open_catalog(catalog, stores)
        self._table = load_table(self._catalog, name)

    @property
    def schema(self) -> pa.Schema | None:
        """See `Destination`."""
        return None if self._table is None else self._table.schema().as_arrow().remove_metadata()

    @property
    def version(self) -> str | None:
        """See `Destination`."""
        snapshot = None if self._table is None else self._table.current_snapshot()
        return None if snapshot is None else str(snapshot.snapshot_id)

    def revision_of(self, run_id: str) -> int | None:
        """See `Destination`."""
        found = []
        for snapshot in () if self._table is None else self._table.metadata.snapshots:
            told_by = snapshot.summary.additional_properties if snapshot.summary is not None else {}
            if told_by.get(_RUN) == run_id:
                found.append(int(told_by.get(_REVISION, "0")))
        return max(found, default=None)

    def commit(
        self, fitted: Fitted, batches: Batches, way: Way, keys: tuple[str, ...], mark: Mark, run_column: str | None
    ) -> str:
        """See `Destination`."""
        with told(self._name):
            if self._table is None:
                self._table = self._catalog.create_table(self._name, schema=fitted.written)
            metadata = self._table.metadata
            self._table.metadata = metadata.model_copy(update={"properties": {**metadata.properties, **_NO_RETRIES}})
            carried = {_RUN: mark.run_id, _JOB: mark.job, _REVISION: str(mark.revision)}
            with self._table.transaction() as transaction:
                if fitted.added:
                    with transaction.update_schema() as change:
                        change.union_by_name(pa.schema([fitted.written.field(name) for name in fitted.added]))
                _delete(transaction, batches, way, keys, mark, run_column, carried)
                _append(transaction, fitted.written, batches, carried)
            return self.version or ""


def _delete(
    transaction: Transaction,
    batches: Batches,
    way: Way,
    keys: tuple[str, ...],
    mark: Mark,
    run_column: str | None,
    carried: dict[str, str],
) -> None:
    """Delete the rows that the commit replaces."""
    from pyiceberg.expressions import AlwaysTrue
    from pyiceberg.table.upsert_util import create_match_filter

    if transaction.table_metadata.current_snapshot() is None:
        return
    if way == "overwrite":
        transaction.delete(AlwaysTrue(), snapshot_properties=carried)
    elif way == "replace":
        ours = pa.table({str(run_column): [mark.run_id]})
        transaction.delete(create_match_filter(ours, [str(run_column)]), snapshot_properties=carried)
    elif way == "upsert":
        of_rows = [pa.Table.from_batches([batch]).select(list(keys)) for batch in batches()]
        found = pa.concat_tables(of_rows) if of_rows else None
        if found is None or not found.num_rows:
            return
        step = found.num_rows if len(keys) == 1 else _KEYS_AT_ONCE
        for start in range(0, found.num_rows, step):
            some = found.slice(start, step).drop_null()
            if some.num_rows:
                transaction.delete(create_match_filter(some, list(keys)), snapshot_properties=carried)


def _append(transaction: Transaction, schema: pa.Schema, batches: Batches, carried: dict[str, str]) -> None:
    if transaction.table_metadata.spec().is_unpartitioned():
        transaction.append(pa.RecordBatchReader.from_batches(schema, batches()), snapshot_properties=carried)
        return
    for chunk in _chunks(schema, batches):
        transaction.append(chunk, snapshot_properties=carried)


def _chunks(schema: pa.Schema, batches: Batches) -> Iterator[pa.Table]:
    """The rows in tables of about `_CHUNK_BYTES`; one table at least."""
    held: list[pa.RecordBatch] = []
    size, made = 0, False
    for batch in batches():
        held.append(batch)
        size += batch.nbytes
        if size >= _CHUNK_BYTES:
            yield pa.Table.from_batches(held, schema)
            held, size, made = [], 0, True
    if held or not made:
        yield pa.Table.from_batches(held, schema)


def require_whole_rows(table: pa.Schema | None, written: pa.Schema, name: str) -> None:
    """Raise OutputError for an upsert that would lose values: Iceberg's replaces whole rows."""
    lost = [field for field in (table.names if table is not None else ()) if field not in written.names]
    if lost:
        raise OutputError(
            f"output.publish: mode: upsert replaces whole rows of an Iceberg table, and {name} has the columns "
            f"{', '.join(lost[:20])}, which the results lack",
            "copy them from the input with input.columns, or publish into a table of its own",
        )

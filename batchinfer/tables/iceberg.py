"""Iceberg, by way of pyiceberg."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer.errors import BatchinferError, InputError, OutputError, StorageError, UserError
from batchinfer.jobspec.table_keys import CatalogSpec
from batchinfer.storage import REQUESTS_AT_ONCE, Stores, access_of, storage_for
from batchinfer.tables.base import Batches, Conflict, DataFile, Mark, Snapshot, Way, first_line, library
from batchinfer.tables.column_types import Fitted

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table, Transaction

_RUN, _REVISION, _JOB = "batchinfer.run-id", "batchinfer.revision", "batchinfer.job"
"""Properties in the summary of each snapshot of a commit."""

_NO_RETRIES = {"commit.retry.num-retries": "0"}
"""pyiceberg would try a failed commit again on top of the one that came first, which may be of the same run."""

_FILE_BYTES, _PARTITIONED_BYTES = 2**27, 2**26
"""Bytes (128 and 64 MiB in memory) of rows that are handed over at a time, each as a snapshot of its own in the same
commit; the second for tables with partitions, whose rows are copied. pyiceberg 0.12 reads a stream to its end before
its first file is written. Smaller chunks make many small files, larger ones take more memory."""

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
        # pyiceberg passes on what SQLAlchemy, requests, the stores and Arrow raise.
        raise StorageError(
            f"the Iceberg table {name}: {first_line(error)}",
            "check the catalog, the table and the credentials, then run the same again",
        ) from error


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
        # As in `told`.
        raise UserError(
            f"the Iceberg catalog {given.name!r} cannot be reached: {first_line(error)}",
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


def iceberg_snapshot(
    name: str,
    given: CatalogSpec,
    stores: Stores,
    version: int | str | None,
    since: Sequence[str] | None,
    changed: str,
) -> Snapshot:
    """The files of the Iceberg table at a snapshot: its id, or the name of a branch or a tag; None is the latest.

    `since` and `changed`: see `delta_snapshot`. Raises InputError.
    """
    catalog = open_catalog(given, stores)
    table = load_table(catalog, name)
    if table is None:
        raise InputError(
            f"there is no table {name} in the Iceberg catalog {given.name!r}", "check input.uri, as sales.tickets"
        )
    with told(name):
        at = table.current_snapshot() if version is None else _named(table, version)
        if at is None and version is not None:
            raise InputError(
                f"{name} has no snapshot {version}, and no branch or tag of that name",
                f"its snapshots: {', '.join(str(s.snapshot_id) for s in table.metadata.snapshots[-5:])}; branches and "
                f"tags: {', '.join(table.metadata.refs)}",
            )
        columns = tuple(field.name for field in table.schema().fields)
        if at is None:
            return Snapshot("", (), columns)
        if since:
            found = _appended(table, at, since, changed)
        else:
            tasks = list(table.scan(snapshot_id=at.snapshot_id).plan_files())
            deleted = next((task for task in tasks if task.delete_files), None)
            if deleted is not None:
                raise _deletes(name, deleted.file.file_path)
            found = [(task.file.file_path, str(task.file.file_format)) for task in tasks]
        other = next((path for path, form in found if "PARQUET" not in form.upper()), None)
        if other is not None:
            raise InputError(f"{name}: {other} is not a Parquet file", "rewrite the table with Parquet files")
        places = sorted(_place(path) for path, _ in found)
        return Snapshot(str(at.snapshot_id), tuple(_mapped(table, places, stores)), columns)


def _named(table: Table, version: int | str) -> Any:
    if isinstance(version, str) and version in table.metadata.refs:
        return table.snapshot_by_name(version)
    return table.snapshot_by_id(int(version)) if str(version).isdecimal() else None


def _deletes(name: str, path: str) -> InputError:
    return InputError(
        f"{name} has deletes beside its data file {path}, which are not applied here",
        "rewrite its data files first: CALL system.rewrite_data_files(table => ..., options => "
        "map('delete-file-threshold', '1'))",
    )


def _place(path: str) -> str:
    """The URI of a data file: other tools write file:/data and s3a:// too."""
    if path.startswith("file:"):
        return "/" + path.removeprefix("file:").lstrip("/")
    scheme, separator, rest = path.partition("://")
    return f"s3://{rest}" if separator and scheme in ("s3a", "s3n") else path


def _appended(table: Table, at: Any, since: Sequence[str], changed: str) -> list[tuple[str, str]]:
    """(path, format) of the files that came after the last of the snapshots `since`."""
    found: list[tuple[str, str]] = []
    name = ".".join(table.name())
    step = at
    while str(step.snapshot_id) not in since:
        operation = step.summary.operation.value if step.summary is not None else "append"
        rewrites = operation in ("overwrite", "delete")
        if rewrites and changed == "fail":
            raise InputError(
                f"rows of {name} that were read before were updated or deleted in snapshot {step.snapshot_id}",
                "set input.incremental.changed to rerun (the files that hold them now) or ignore",
            )
        if operation == "append" or (rewrites and changed == "rerun"):
            for manifest in step.manifests(table.io):
                if manifest.added_snapshot_id != step.snapshot_id:
                    continue
                for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=True):
                    if int(entry.data_file.content) != 0:
                        raise _deletes(name, entry.data_file.file_path)
                    if entry.status == _ADDED:
                        found.append((entry.data_file.file_path, str(entry.data_file.file_format)))
        parent = None if step.parent_snapshot_id is None else table.snapshot_by_id(step.parent_snapshot_id)
        if parent is None:
            raise InputError(
                f"the snapshots of {name} that earlier runs read are gone, so what came since is not known",
                "keep snapshots longer than a run is apart, or run the table whole once",
            )
        step = parent
    if changed != "rerun":
        return found
    # A file that a later snapshot replaced is no longer one of the table's: its rows are in the newer file.
    live = {task.file.file_path for task in table.scan(snapshot_id=at.snapshot_id).plan_files()}
    return [(path, form) for path, form in found if path in live]


_ADDED = 1
"""The status of a file in the manifest of the snapshot that brought it."""


def _mapped(table: Table, places: Sequence[str], stores: Stores) -> Iterator[DataFile]:
    """The files with the names of the table's columns in them, by field id; read only if the schema ever changed."""
    if len(table.metadata.schemas) == 1:
        for place in places:
            yield DataFile(place)
        return
    fields = table.schema().fields

    def look(place: str) -> DataFile:
        with storage_for(place, stores).open(place) as file:
            schema = pq.read_schema(file)
        ids = {int((f.metadata or {}).get(_FIELD_ID, b"-1")): f for f in schema}
        stored: list[tuple[str, str | None]] = []
        for field in fields:
            there = ids.get(field.field_id)
            if (
                there is not None
                and pa.types.is_nested(there.type)
                and _names(there.type) != _names(table.schema().as_arrow().field(field.name).type)
            ):
                raise InputError(
                    f"{place}: the parts of column {field.name!r} were renamed or changed since this file was written",
                    "rewrite the table's data files, or leave the column out by reading a copy without it",
                )
            if there is None and field.initial_default is not None:
                raise InputError(
                    f"{place} was written before the column {field.name!r}, which has a default for older rows",
                    "rewrite the table's data files",
                )
            stored.append((field.name, None if there is None else there.name))
        return DataFile(place, tuple(stored))

    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        yield from pool.map(look, places)


_FIELD_ID = b"PARQUET:field_id"


def _names(kind: pa.DataType) -> list[Any]:
    """The names inside a nested type."""
    return (
        [(kind.field(i).name, _names(kind.field(i).type)) for i in range(kind.num_fields)]
        if (pa.types.is_struct(kind))
        else [_names(kind.field(i).type) for i in range(kind.num_fields)]
    )


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
    whole = transaction.table_metadata.spec().is_unpartitioned()
    for chunk in _chunks(schema, batches, _FILE_BYTES if whole else _PARTITIONED_BYTES):
        transaction.append(chunk, snapshot_properties=carried)


def _chunks(schema: pa.Schema, batches: Batches, most: int) -> Iterator[pa.Table]:
    """The rows in tables of about `most` bytes; one table at least."""
    held: list[pa.RecordBatch] = []
    size, made = 0, False
    for batch in batches():
        held.append(batch)
        size += batch.nbytes
        if size >= most:
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

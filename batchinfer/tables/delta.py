"""Delta Lake, by way of delta-rs."""

from __future__ import annotations

import contextlib
import json
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from batchinfer.errors import BatchinferError, InputError, StorageError
from batchinfer.storage import Stores, access_of, join, normal_uri, storage_for
from batchinfer.tables.base import Batches, Conflict, DataFile, Mark, Snapshot, Way, first_line, library
from batchinfer.tables.column_types import Fitted

if TYPE_CHECKING:
    from deltalake import DeltaTable

_APPLICATION = "batchinfer/"
"""What the ids of Delta's application transactions begin with; the run's id follows. Delta keeps the last version of
each, and refuses a commit whose application another commit has written since."""


def deltalake() -> Any:
    """The library. Raises UserError without it."""
    return library("deltalake", "delta")


def options(uri: str, stores: Stores) -> dict[str, str]:
    """How delta-rs reaches the store of `uri`, as the spec's `storage` says."""
    if not uri.startswith("s3://"):
        return {}
    access = access_of(uri, stores)
    given = {
        "AWS_ENDPOINT_URL": access.endpoint,
        "AWS_REGION": access.region,
        "AWS_ACCESS_KEY_ID": access.key,
        "AWS_SECRET_ACCESS_KEY": access.secret,
        "AWS_SESSION_TOKEN": access.token,
        "AWS_SKIP_SIGNATURE": "true" if access.anonymous else None,
        "AWS_ALLOW_HTTP": "true" if (access.endpoint or "").startswith("http://") else None,
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true" if access.virtual else None,
        # Without conditional writes only one writer at a time is safe, as the spec's key says.
        "AWS_S3_ALLOW_UNSAFE_RENAME": None if access.conditional_writes else "true",
    }
    return {name: value for name, value in given.items() if value is not None}


@contextlib.contextmanager
def told(uri: str) -> Iterator[None]:
    """Turn the errors of delta-rs into StorageError, but for conflicts, which become Conflict."""
    try:
        yield
    except BatchinferError:
        raise
    except deltalake().exceptions.CommitFailedError as error:
        raise Conflict(str(error)) from error
    except BaseException as error:
        # A panic of Rust is no Exception.
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | Conflict):
            raise
        if "already exists" in str(error) or "version 0" in str(error).lower():
            raise Conflict(str(error)) from error
        raise StorageError(
            f"the Delta table {uri}: {first_line(error)}",
            "check the table and the credentials, then run again",
        ) from error


_TYPES = {"string": "string", "date": "date", "timestamp": "timestamp", "boolean": "boolean"} | dict.fromkeys(
    ("long", "integer", "short", "byte"), "int64"
)
"""By Delta's type of a partition column: the type of its values, as in `input.cast`. Others are read as text."""


def delta_snapshot(
    uri: str, stores: Stores, version: int | str | None, since: Sequence[str] | None, changed: str
) -> Snapshot:
    """The files of the Delta table at a version, or at an instant in ISO 8601; None is the latest.

    `since`: the versions that earlier runs read; then only what came after the last of them. `changed`: what to do with
    rows that were updated or deleted since, as in `input.incremental`. Raises InputError.
    """
    place = normal_uri(uri)
    module = deltalake()
    with told(place):
        try:
            table = module.DeltaTable(place, storage_options=options(place, stores))
            if version is not None:
                table.load_as_version(version)
        except module.exceptions.TableNotFoundError:
            raise InputError(
                f"there is no Delta table at {place}", "check input.uri: the folder of the table"
            ) from None
        except Exception as error:
            # delta-rs has errors of many types, some of them plain Exception.
            raise InputError(
                f"the Delta table {place} cannot be read at version {version or 'latest'}: {first_line(error)}",
                "check input.uri, input.version and the credentials",
            ) from error
        columns = _Columns(place, table)
        at = str(table.version())
        if since:
            new = _appended(place, stores, columns, max(map(int, since)), int(at), changed)
            return Snapshot(at, tuple(new), tuple(columns.physical))
        kept = {
            normal_uri(row["filepath"]): np.array(row["selection_vector"], dtype=bool)
            for row in pa.table(table.deletion_vectors()).to_pylist()
        }
        actions = sorted(
            pa.table(table.get_add_actions()).to_pylist(), key=lambda a: (str(a["modification_time"]), a["path"])
        )
        files = []
        for action in actions:
            where = _place(place, action["path"])
            values = {name: action["partition"][name] for name in columns.partitions}
            files.append(DataFile(where, columns.stored, columns.values(values), kept.pop(where, None)))
        if kept:
            raise InputError(
                f"{place} has deleted rows in {next(iter(kept))}, which is not one of its files",
                "rewrite the table without deletion vectors: REORG TABLE ... APPLY (PURGE)",
            )
        return Snapshot(at, tuple(files), tuple(columns.physical))


class _Columns:
    """How the columns of a table stand in its files."""

    def __init__(self, place: str, table: DeltaTable) -> None:
        fields = json.loads(table.schema().to_json())["fields"]
        self.partitions = tuple(table.metadata().partition_columns)
        self._types = {f["name"]: _TYPES.get(str(f["type"]), "string") for f in fields if f["name"] in self.partitions}
        self.physical = {f["name"]: f["metadata"].get("delta.columnMapping.physicalName", f["name"]) for f in fields}
        self.stored: tuple[tuple[str, str | None], ...] | None = None
        if any(name != stored for name, stored in self.physical.items()):
            nested = next((f["name"] for f in fields if "delta.columnMapping" in json.dumps(f["type"])), None)
            if nested is not None:
                raise InputError(
                    f"{place} maps the names of columns, also inside the column {nested!r}, which is not read here",
                    "write its rows to a table without column mapping",
                )
            self.stored = tuple((n, p) for n, p in self.physical.items() if n not in self.partitions)

    def values(self, given: Mapping[str, Any]) -> tuple[tuple[str, str | None, str], ...]:
        """The partition columns of a file."""
        return tuple((name, _text(given[name]), self._types[name]) for name in self.partitions)


def _text(value: Any) -> str | None:
    if isinstance(value, bool):
        return str(value).lower()
    return None if value is None or value == "" else str(value)


def _place(table: str, path: str) -> str:
    """The URI of a data file: Delta writes paths percent-encoded, below the table or absolute."""
    name = urllib.parse.unquote(path)
    return normal_uri(name) if "://" in name or name.startswith("/") else join(table, name)


def _appended(
    place: str, stores: Stores, columns: _Columns, since: int, until: int, changed: str
) -> Iterator[DataFile]:
    """The files with the rows that came after the version `since`, from the commits of Delta's log."""
    storage = storage_for(place, stores)
    new: dict[str, Any] = {}
    for version in range(since + 1, until + 1):
        uri = join(place, "_delta_log", f"{version:020d}.json")
        if storage.stat(uri) is None:
            raise InputError(
                f"{uri} is gone, so what came since version {since} is not known",
                "keep the log longer than a run is apart (delta.logRetentionDuration), or run the table whole once",
            )
        actions = [json.loads(line) for line in storage.read(uri).decode().splitlines() if line.strip()]
        adds = [action["add"] for action in actions if "add" in action and action["add"].get("dataChange", True)]
        gone = [a["remove"] for a in actions if "remove" in a and a["remove"].get("dataChange", True)]
        if gone and changed == "fail":
            raise InputError(
                f"rows of {place} that were read before were updated or deleted in version {version}",
                "set input.incremental.changed to rerun (the files that hold them now) or ignore",
            )
        if gone and changed == "ignore":
            continue
        for one in gone:
            new.pop(one["path"], None)
        for one in adds:
            new[one["path"]] = one
    for path, one in new.items():
        if one.get("deletionVector"):
            raise InputError(
                f"{place}: rows of {path} were deleted since they came, by a deletion vector",
                "set input.incremental.changed: ignore, or rewrite the table: REORG TABLE ... APPLY (PURGE)",
            )
        values = {name: one["partitionValues"].get(columns.physical[name]) for name in columns.partitions}
        yield DataFile(_place(place, path), columns.stored, columns.values(values))


class DeltaDestination:
    """A Delta table to write to."""

    def __init__(self, uri: str, stores: Stores) -> None:
        self._uri = normal_uri(uri)
        self._options = options(self._uri, stores)
        self._table: DeltaTable | None = None
        library = deltalake()
        with told(self._uri):
            try:
                self._table = library.DeltaTable(self._uri, storage_options=self._options)
            except library.exceptions.TableNotFoundError:
                self._table = None

    @property
    def schema(self) -> pa.Schema | None:
        """See `Destination`."""
        return None if self._table is None else pa.schema(self._table.schema().to_arrow())

    @property
    def version(self) -> str | None:
        """See `Destination`."""
        return None if self._table is None else str(self._table.version())

    def revision_of(self, run_id: str) -> int | None:
        """See `Destination`."""
        if self._table is None:
            return None
        with told(self._uri):
            return self._table.transaction_version(_APPLICATION + run_id)

    def commit(
        self, fitted: Fitted, batches: Batches, way: Way, keys: tuple[str, ...], mark: Mark, run_column: str | None
    ) -> str:
        """See `Destination`."""
        library = deltalake()
        with told(self._uri):
            if self._table is None:
                # Two commits that create a table may both succeed, one after the other. So the table comes first, and
                # the rows are a commit of their own, in which a second publisher sees the first.
                self._table = library.DeltaTable.create(
                    self._uri, fitted.written, mode="error", storage_options=self._options
                )
            carried = library.CommitProperties(
                custom_metadata={
                    "batchinfer.run-id": mark.run_id,
                    "batchinfer.job": mark.job,
                    "batchinfer.revision": str(mark.revision),
                },
                app_transactions=[library.Transaction(_APPLICATION + mark.run_id, mark.revision)],
            )
            if way == "upsert":
                self._merge(fitted, batches, keys, carried)
            else:
                self._write(fitted, batches, way, mark, run_column, carried)
            return self._committed(mark)

    def _write(
        self, fitted: Fitted, batches: Batches, way: Way, mark: Mark, run_column: str | None, carried: Any
    ) -> None:
        assert self._table is not None
        table = self.schema or fitted.written
        # The columns that the results lack are null.
        whole = pa.schema([*table, *(fitted.written.field(name) for name in fitted.added)])
        deltalake().write_deltalake(
            self._table,
            pa.RecordBatchReader.from_batches(whole, (_widened(batch, whole) for batch in batches())),
            mode="append" if way == "append" else "overwrite",
            predicate=f"{_quoted(str(run_column))} = '{mark.run_id}'" if way == "replace" else None,
            schema_mode="merge" if fitted.added else None,
            commit_properties=carried,
        )

    def _merge(self, fitted: Fitted, batches: Batches, keys: tuple[str, ...], carried: Any) -> None:
        assert self._table is not None
        values = {_quoted(name): f"s.{_quoted(name)}" for name in fitted.written.names}
        merger = self._table.merge(
            pa.RecordBatchReader.from_batches(fitted.written, batches()),
            " AND ".join(f"t.{_quoted(name)} = s.{_quoted(name)}" for name in keys),
            source_alias="s",
            target_alias="t",
            merge_schema=bool(fitted.added),
            commit_properties=carried,
        )
        changed = {name: value for name, value in values.items() if name not in map(_quoted, keys)}
        if changed:
            merger = merger.when_matched_update(changed)
        merger.when_not_matched_insert(values).execute()

    def _committed(self, mark: Mark) -> str:
        """The version of the commit: others may have come since."""
        assert self._table is not None
        self._table.update_incremental()
        for commit in self._table.history(50):
            if commit.get("batchinfer.run-id") == mark.run_id:
                return str(commit["version"])
        return str(self._table.version())


def _widened(batch: pa.RecordBatch, whole: pa.Schema) -> pa.RecordBatch:
    columns = [
        batch.column(field.name) if field.name in batch.schema.names else pa.nulls(batch.num_rows, field.type)
        for field in whole
    ]
    return pa.record_batch(columns, schema=whole)


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"

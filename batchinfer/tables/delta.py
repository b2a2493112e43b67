"""Delta Lake, by way of delta-rs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from batchinfer.errors import BatchinferError, StorageError
from batchinfer.storage import Stores, access_of, normal_uri
from batchinfer.tables.base import Batches, Conflict, Mark, Way, library
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
            f"the Delta table {uri}: {_line(error)}", "check the table and the credentials, then run the same again"
        ) from error


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]


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

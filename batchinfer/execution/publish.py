"""`output.publish`: the results of a complete run in a table, in one commit.

The run's id and revision ride in the commit, so that the table itself says whether it has them: a command that was
killed after the commit finds its mark. The revision grows with each retry of the run.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchinfer import events
from batchinfer.accounting.records import ShardRecord
from batchinfer.accounting.report import Published, Report
from batchinfer.errors import OutputError, StorageError, TooManyFailedRows, UserError
from batchinfer.execution.result_rows import results_schema
from batchinfer.input.manifest import Manifest
from batchinfer.jobspec import JobSpec, PublishSpec
from batchinfer.jobspec.table_keys import catalog_of
from batchinfer.rundir.commit import opened_results
from batchinfer.rundir.paths import Layout
from batchinfer.rundir.published import Publication, note_publication, published, read_publications
from batchinfer.storage import Stores, normal_uri
from batchinfer.tables import delta, iceberg
from batchinfer.tables.base import Conflict, Destination, Mark, Way
from batchinfer.tables.column_types import Fitted, fit

TRIES = 8
"""Commits that are tried while other writers come first. Each reads the table anew; with a busy table more are needed,
and each may write the files of a whole run in vain."""

_BATCH_ROWS = 8192
"""Rows that are read and converted at a time. More take more memory; far fewer make small row groups."""


def destination(publish: PublishSpec, stores: Stores) -> Destination:
    """The table as it is now. Raises UserError or StorageError."""
    if publish.to == "delta":
        return delta.DeltaDestination(publish.table, stores)
    return iceberg.IcebergDestination(publish.table, catalog_of(publish.catalog), stores)


def table_name(publish: PublishSpec) -> str:
    """What the table is called in notes and reports: its place, or the catalog and the name in it."""
    if publish.to == "delta":
        return normal_uri(publish.table)
    catalog = catalog_of(publish.catalog)
    return f"{catalog.properties.get('uri', catalog.name)}#{publish.table}"


def require_publishable(spec: JobSpec, manifest: Manifest) -> str | None:
    """Check the table before a run: whether it is there, can be reached and takes the results. Writes nothing.

    Returns a line for a person. Raises UserError.
    """
    publish = spec.output.publish
    if publish is None:
        return None
    try:
        table = destination(publish, spec.storage)
        fitted = _fitted(publish, results_schema(spec, manifest.schema), table.schema)
    except StorageError as error:
        raise OutputError(f"output.publish: {error.message}", error.remedy) from error
    new = "creates" if table.schema is None else "writes to"
    adds = f", and adds {', '.join(fitted.added)}" if fitted.added else ""
    return f"at its end it {new} the {publish.to} table {publish.table} ({publish.mode}){adds}"


def _fitted(publish: PublishSpec, results: pa.Schema, table: pa.Schema | None) -> Fitted:
    if table is None and not publish.create:
        raise OutputError(
            f"output.publish: there is no {publish.to} table {publish.table}",
            "correct the name, or set output.publish.create: true",
        )
    missing = [name for name in (*(publish.columns or ()), *publish.join_cols) if name not in results.names]
    if missing:
        key = "join_cols" if missing[0] in publish.join_cols else "columns"
        raise OutputError(
            f"output.publish.{key} names {missing[0]!r}, which is not a column of the results",
            f"the columns are: {', '.join(results.names)}; input.columns copies further ones",
        )
    if publish.run_column in results.names:
        raise OutputError(
            f"output.publish.run_column: the results have a column {publish.run_column!r}", "choose another name"
        )
    fields = [results.field(name) for name in publish.columns or results.names]
    if publish.run_column is not None:
        fields.append(pa.field(publish.run_column, pa.string()))
    additive = publish.schema_evolution == "additive"
    fitted = fit(pa.schema(fields), table, publish.to, publish.table, additive)
    if publish.to == "iceberg" and publish.mode == "upsert":
        iceberg.require_whole_rows(table, fitted.written, publish.table)
    return fitted


@dataclass(frozen=True, slots=True)
class Results:
    """The results of a complete run, and where they go."""

    layout: Layout
    spec: JobSpec
    publish: PublishSpec
    manifest: Manifest
    generations: Mapping[int, int]
    """By shard: how often a retry replaced rows of it."""

    @property
    def run_id(self) -> str:
        return self.manifest.fingerprint.run_id

    @property
    def revision(self) -> int:
        """0 for what the run itself made; grows with each shard of each retry."""
        return sum(self.generations.values())


def publish_results(
    layout: Layout, spec: JobSpec, manifest: Manifest, records: Sequence[ShardRecord], made: Report
) -> Published | None:
    """Write the results of a complete run into the table of the spec, unless the table has them. Idempotent.

    The caller holds the run's lock. None if more rows failed than the spec allows: nothing is written then. Raises
    StorageError if the table cannot be written, and UserError if it no longer takes the results.
    """
    publish = spec.output.publish
    assert publish is not None
    if made.error_rate > made.max_error_rate:
        events.tell("not published", table=publish.table, reason=_too_many(made))
        return None
    generations = {record.shard_id: 0 for record in records}
    for record in records:
        generations[record.shard_id] = max(generations[record.shard_id], record.generation)
    return _publish(Results(layout, spec, publish, manifest, generations))


def _too_many(made: Report) -> str:
    return f"{made.error_rate:.1%} of the rows failed, more than limits.max_error_rate ({made.max_error_rate:.1%})"


def require_enough_rows(made: Report) -> None:
    """Raise UserError for a run that is not complete, and TooManyFailedRows if it is not to be published."""
    if not made.complete:
        raise UserError(
            f"{made.output} is not complete: {made.rows:,} of {made.rows_in_input:,} rows are there",
            "run the job again: it goes on where it stopped, and publishes at its end",
        )
    if made.error_rate > made.max_error_rate:
        raise TooManyFailedRows(
            f"nothing was published: {_too_many(made)}",
            f"`batchinfer retry {made.output}` runs the failed rows again; or say --set limits.max_error_rate=1",
        )


def _publish(results: Results) -> Published | None:
    layout, publish, name = results.layout, results.publish, table_name(results.publish)
    for attempt in range(TRIES):
        noted = read_publications(layout, results.run_id).of(name)
        if noted is not None and noted.revision >= results.revision:
            return published(layout, results.run_id)
        table = destination(publish, results.spec.storage)
        there = table.revision_of(results.run_id)
        if there is not None and there >= results.revision:
            # A command was killed between the commit and the note.
            return _noted(results, table.version or "", 0)
        before = there if there is not None or noted is None else noted.revision
        way, shards = _way(results, table, noted, before)
        written = _Written(results, shards)
        fitted = _fitted(publish, written.schema, table.schema)
        written.target = fitted.written
        _require_unique(publish, results)
        mark = Mark(results.run_id, results.spec.name, results.revision)
        try:
            version = table.commit(fitted, written.batches, way, publish.join_cols, mark, publish.run_column)
        except Conflict as error:
            events.tell("publish again", table=publish.table, attempt=attempt + 1, reason=str(error)[:300])
            # Two publishers that met once would otherwise meet again.
            time.sleep(random.uniform(0.1, 0.5) * 2 ** min(attempt, 5))
            continue
        return _noted(results, version, written.rows)
    raise StorageError(
        f"the table {publish.table} changed {TRIES} times while the results were written",
        f"the results are in {layout.root}: `batchinfer publish {layout.root}` tries again",
    )


def _noted(results: Results, version: str, rows: int) -> Published | None:
    publish = results.publish
    made = Publication(
        to=publish.to,
        table=table_name(publish),
        mode=publish.mode,
        version=version,
        revision=results.revision,
        rows=rows,
        generations={shard: count for shard, count in results.generations.items() if count},
    )
    note_publication(results.layout, results.run_id, made)
    events.tell("published", table=publish.table, mode=publish.mode, version=version, rows=rows)
    return published(results.layout, results.run_id)


def _way(
    results: Results, table: Destination, noted: Publication | None, before: int | None
) -> tuple[Way, Collection[int] | None]:
    """What the commit does with the table's rows, and the shards that it writes; None for all. Raises UserError.

    `before`: the revision of the run that the table has.
    """
    publish = results.publish
    if before is None:
        return publish.mode, None
    if publish.mode == "append":
        require_replaceable(publish)
        return "replace", None
    if publish.mode == "overwrite":
        if noted is None or noted.version != table.version:
            raise OutputError(
                f"{publish.table} was written since this run published its rows: to overwrite it would lose that",
                f"say `batchinfer publish {results.layout.root} --set output.publish.mode=upsert --set "
                f"output.publish.join_cols=[{results.spec.id_column}]`",
            )
        return "overwrite", None
    # Rows of other shards may have newer values of other runs in the table.
    old = noted.generations if noted is not None and noted.revision == before else None
    changed = None if old is None else {s for s, count in results.generations.items() if count > old.get(s, 0)}
    return "upsert", changed


def require_replaceable(publish: PublishSpec) -> None:
    """Raise UserError if rows that are in the table could not be replaced by those of a retry."""
    if publish.mode == "append" and publish.run_column is None:
        raise UserError(
            f"the rows of this run are in {publish.table} already, and nothing tells them apart from others there: "
            "what a retry changes could only be added a second time",
            "publish with a run_column or with mode: upsert; or leave the table as it is with "
            "--set output.publish=null",
        )


def require_room_for_retry(layout: Layout, spec: JobSpec, run_id: str) -> None:
    """Refuse a retry whose results could not replace those in the table. Raises UserError."""
    publish = spec.output.publish
    if publish is None:
        return
    if read_publications(layout, run_id).of(table_name(publish)) is not None:
        require_replaceable(publish)


class _Written:
    """The rows of a commit as record batches with the types of the table."""

    def __init__(self, results: Results, shards: Collection[int] | None) -> None:
        self._results = results
        self._shards = [s for s in results.manifest.shards if shards is None or s.shard_id in shards]
        self.schema: pa.Schema = (
            self._schema_of(results.manifest.shards[0].shard_id)
            if results.manifest.shards
            else results_schema(results.spec, results.manifest.schema)
        )
        self.target = self.schema
        self.rows = 0

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows, shard by shard; `rows` counts them."""
        self.rows = 0
        layout = self._results.layout
        names = [name for name in self.target.names if name != self._results.publish.run_column]
        for shard in self._shards:
            with opened_results(layout, shard.shard_id) as file:
                read = list(dict.fromkeys([*names, "error_code"]))
                for batch in pq.ParquetFile(file).iter_batches(_BATCH_ROWS, columns=read, use_threads=False):
                    made = self._fitted(batch)
                    self.rows += made.num_rows
                    yield made

    def _fitted(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        publish = self._results.publish
        if not publish.failed_rows:
            batch = batch.filter(pc.is_null(batch.column("error_code")))
        columns = []
        for field in self.target:
            if field.name == publish.run_column:
                columns.append(pa.array([self._results.run_id] * batch.num_rows, field.type))
            else:
                columns.append(_cast(batch.column(field.name), field.type))
        return pa.record_batch(columns, schema=self.target)

    def _schema_of(self, shard_id: int) -> pa.Schema:
        with opened_results(self._results.layout, shard_id) as file:
            return pq.read_schema(file).remove_metadata()


def _cast(values: pa.Array, kind: pa.DataType) -> pa.Array:
    if values.type == kind:
        return values
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    return values.cast(kind)


def _require_unique(publish: PublishSpec, results: Results) -> None:
    """Refuse an upsert of two rows with one key, of which the table would keep either."""
    if publish.mode != "upsert" or results.spec.id_column in publish.join_cols or not results.manifest.shards:
        return
    keys = list(publish.join_cols)
    tables = []
    for shard in results.manifest.shards:
        with opened_results(results.layout, shard.shard_id) as file:
            tables.append(pq.read_table(file, columns=keys))
    counted = pa.concat_tables(tables).group_by(keys).aggregate([([], "count_all")])
    twice = counted.filter(pc.greater(counted.column("count_all"), 1))
    if twice.num_rows:
        shown = ", ".join(f"{name} {twice.column(name)[0].as_py()!r}" for name in keys)
        raise OutputError(
            f"output.publish.join_cols: {twice.column('count_all')[0].as_py()} results have {shown}, and a table keeps "
            "one of them",
            f"add a column that tells them apart, as {results.spec.id_column}; the results are in "
            f"{results.layout.root}",
        )


def publisher(
    layout: Layout, spec: JobSpec, manifest: Manifest
) -> Callable[[Sequence[ShardRecord], Report], Published | None] | None:
    """What publishes the run at its end; None if the spec names no table."""
    if spec.output.publish is None:
        return None
    return lambda records, made: publish_results(layout, spec, manifest, records, made)

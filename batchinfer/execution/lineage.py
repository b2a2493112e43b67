"""`lineage`: tell OpenLineage's receivers what a command reads and writes, and how it ended. Never fatal."""

from __future__ import annotations

import importlib.util
import os
import queue
import threading
import urllib.parse
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

import batchinfer
from batchinfer import events
from batchinfer.accounting.report import Report
from batchinfer.errors import BatchinferError, Stopped, UserError
from batchinfer.execution.publish import table_name
from batchinfer.execution.result_rows import results_schema
from batchinfer.input.files import fixed_part, is_glob
from batchinfer.input.manifest import Manifest
from batchinfer.jobspec import JobSpec, PublishSpec
from batchinfer.jobspec.lineage_keys import CONFIGURED
from batchinfer.jobspec.table_keys import CatalogName, catalog_of
from batchinfer.rundir.paths import Layout
from batchinfer.storage import local_path

if TYPE_CHECKING:
    from openlineage.client import OpenLineageClient
    from openlineage.client.event_v2 import InputDataset, OutputDataset, RunEvent

ANSWER_SECONDS = 5.0
"""Seconds that a receiver may take to answer one request."""

RETRIES = {"total": 2, "connect": 2, "read": 2, "status": 2, "backoff_factor": 0.3}
"""What urllib3 does after no connection or a 5xx. More of them hold up a command for a receiver that is gone."""

END_SECONDS = 15.0
"""Seconds that a command waits at its end until its events are sent: three tries of ANSWER_SECONDS. A lookup of a name
has no time limit of its own."""

PARENT = "OPENLINEAGE_PARENT_ID"
"""The environment variable in which orchestrators hand their run on, as namespace/job/run."""

API_KEY = "OPENLINEAGE_API_KEY"

_PRODUCER = f"pkg:pypi/batchinfer@{batchinfer.__version__}"


def require_client(spec: JobSpec) -> None:
    """Raise UserError if the spec asks for events and the client is not installed."""
    if spec.lineage is not None and importlib.util.find_spec("openlineage") is None:
        raise UserError(
            "lineage needs the package openlineage-python, which is not installed", "pip install 'batchinfer[lineage]'"
        )


def traced(spec: JobSpec, layout: Layout, manifest: Manifest, work: Callable[[], Report]) -> Report:
    """Do the work of a command, with an event of lineage before and one after it. Raises what `work` raises.

    Each command is a run of its own for OpenLineage, where a run that has ended cannot go on; a resume has the same
    `runId` in the facet `batchinfer_run`.
    """
    if spec.lineage is None:
        return work()
    told = _Told(spec, layout, manifest)
    told.send("START")
    try:
        made = work()
    except BaseException as error:
        message = error.message if isinstance(error, BatchinferError) else f"{type(error).__name__}: {error}"
        told.send("ABORT" if isinstance(error, Stopped) else "FAIL", error=message)
        told.close()
        raise
    if made.error_rate > made.max_error_rate:
        told.send("FAIL", made, f"{made.error_rate:.1%} of the rows failed")
    else:
        told.send("COMPLETE", made)
    told.close()
    return made


class _Told:
    """The events of one command, sent by a thread, so that no receiver holds up the run."""

    def __init__(self, spec: JobSpec, layout: Layout, manifest: Manifest) -> None:
        self._spec, self._layout, self._manifest = spec, layout, manifest
        self._id = str(uuid.uuid4())
        self._waiting: queue.SimpleQueue[tuple[str, Callable[[], RunEvent]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="batchinfer lineage", daemon=True)
        self._thread.start()

    def send(self, state: str, made: Report | None = None, error: str | None = None) -> None:
        at = datetime.now(UTC).isoformat()

        def event() -> RunEvent:
            return _event(self._spec, self._layout, self._manifest, self._id, state, at, made, error)

        self._waiting.put((state, event))

    def close(self) -> None:
        """Wait until the events are sent, but not longer than END_SECONDS."""
        self._waiting.put(None)
        self._thread.join(END_SECONDS)
        if self._thread.is_alive():
            events.tell("lineage not sent", state="the last", reason=f"no answer within {END_SECONDS:g} s")

    def _work(self) -> None:
        client: OpenLineageClient | None = None
        while (waiting := self._waiting.get()) is not None:
            state, event = waiting
            try:
                client = client or _client(str(self._spec.lineage and self._spec.lineage.openlineage))
                client.emit(event())
            except Exception as error:
                events.tell("lineage not sent", state=state, reason=_reason(error))


def _reason(error: Exception) -> str:
    """The error in one line, without the address, which may be a secret and which the messages of requests hold."""
    answer = getattr(getattr(error, "response", None), "status_code", None)
    if answer is not None:
        return f"the receiver answered {answer}"
    if type(error).__module__.startswith("requests."):
        return f"the receiver cannot be reached: {type(error).__name__}"
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"[:300]


def _client(target: str) -> OpenLineageClient:
    from openlineage.client import OpenLineageClient
    from openlineage.client.transport.file import FileConfig, FileTransport
    from openlineage.client.transport.http import ApiKeyTokenProvider, HttpConfig, HttpTransport, TokenProvider

    if target == CONFIGURED:
        return OpenLineageClient()
    if target.startswith("env:"):
        name = target.removeprefix("env:")
        target = os.environ.get(name, "")
        if not target:
            raise ValueError(f"the environment variable {name} holds no address")
    if not target.startswith(("http://", "https://")):
        place = Path(local_path(target))
        place.parent.mkdir(parents=True, exist_ok=True)
        return OpenLineageClient(transport=FileTransport(FileConfig(log_file_path=str(place), append=True)))
    address = urllib.parse.urlsplit(target)
    path = urllib.parse.urlunsplit(("", "", address.path.strip("/"), address.query, ""))
    key = os.environ.get(API_KEY)
    config = HttpConfig(
        url=f"{address.scheme}://{address.netloc}/",
        endpoint=path or "api/v1/lineage",
        timeout=ANSWER_SECONDS,
        retry={**RETRIES, "status_forcelist": [500, 502, 503, 504], "allowed_methods": ["POST"]},
        auth=ApiKeyTokenProvider({"api_key": key}) if key else TokenProvider({}),
    )
    return OpenLineageClient(transport=HttpTransport(config))


def _event(
    spec: JobSpec,
    layout: Layout,
    manifest: Manifest,
    run: str,
    state: str,
    at: str,
    made: Report | None,
    error: str | None,
) -> RunEvent:
    from openlineage.client.event_v2 import Job, Run, RunEvent, RunState
    from openlineage.client.facet_v2 import job_type_job

    job_type = job_type_job.JobTypeJobFacet("BATCH", "BATCHINFER", "JOB", producer=_PRODUCER)
    namespace = "" if spec.lineage is None else spec.lineage.namespace
    return RunEvent(
        eventTime=at,
        producer=_PRODUCER,
        eventType=RunState(state),
        run=Run(run, facets=_run_facets(spec, layout, manifest, made, error)),
        job=Job(namespace, spec.name, facets={"jobType": job_type}),
        inputs=[_read(spec, manifest)],
        outputs=_written(spec, layout, manifest, made),
    )


def _run_facets(
    spec: JobSpec, layout: Layout, manifest: Manifest, made: Report | None, error: str | None
) -> dict[str, Any]:
    from openlineage.client.facet_v2 import (
        RunFacet,
        error_message_run,
        nominal_time_run,
        parent_run,
        processing_engine_run,
    )

    def own(values: Mapping[str, Any]) -> Any:
        return RunFacet(producer=_PRODUCER).with_additional_properties(**values)

    facets: dict[str, Any] = {
        "processing_engine": processing_engine_run.ProcessingEngineRunFacet(
            batchinfer.__version__, "batchinfer", producer=_PRODUCER
        ),
        "batchinfer_run": own({
            "runId": manifest.fingerprint.run_id,
            "output": layout.root,
            "model": spec.model.source,
            "labels": dict(spec.labels),
        }),
    }  # fmt: skip
    tick = made.tick if made is not None else manifest.fingerprint.tick
    if tick is not None and "T" in tick:
        facets["nominalTime"] = nominal_time_run.NominalTimeRunFacet(tick, producer=_PRODUCER)
    parent = os.environ.get(PARENT, "").rsplit("/", 2)
    if len(parent) == 3:
        facets["parent"] = parent_run.ParentRunFacet(
            parent_run.Run(parent[2]), parent_run.Job(parent[0], parent[1]), producer=_PRODUCER
        )
    if error is not None:
        facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(error, "PYTHON", producer=_PRODUCER)
    if made is not None:
        facets["batchinfer_cost"] = own({
            "costUsd": made.cost_usd,
            "commandCostUsd": made.sessions[-1].cost_usd if made.sessions else made.cost_usd,
            "costPerThousandRows": made.cost_per_thousand_rows,
            "rows": made.rows,
            "rowsFailed": made.rows_failed,
            "inputTokens": made.input_tokens,
            "outputTokens": made.output_tokens,
            "hours": made.hours,
            "accelerator": made.accelerator,
            "replicas": made.replicas,
        })  # fmt: skip
    return facets


def _read(spec: JobSpec, manifest: Manifest) -> InputDataset:
    from openlineage.client.event_v2 import InputDataset
    from openlineage.client.facet_v2 import dataset_version_dataset, input_statistics_input_dataset

    given = spec.input
    facets: dict[str, Any] = {"schema": _schema(manifest.schema)}
    if given.format == "iceberg":
        namespace, name = _of_catalog(given.catalog), given.uri
        facets["catalog"] = _catalog(given.catalog)
    else:
        pattern = is_glob(given.uri, spec.storage)
        namespace, name = dataset_of(fixed_part(given.uri) if pattern else given.uri)
    if manifest.fingerprint.table_version is not None:
        facets["version"] = dataset_version_dataset.DatasetVersionDatasetFacet(
            manifest.fingerprint.table_version, producer=_PRODUCER
        )
    rows = manifest.sources.rows if manifest.sources is not None else manifest.rows
    read = input_statistics_input_dataset.InputStatisticsInputDatasetFacet(
        rowCount=rows, fileCount=len(manifest.files), producer=_PRODUCER
    )
    return InputDataset(namespace, name, facets=facets, inputFacets={"inputStatistics": read})


def _written(spec: JobSpec, layout: Layout, manifest: Manifest, made: Report | None) -> list[OutputDataset]:
    from openlineage.client.event_v2 import OutputDataset
    from openlineage.client.facet_v2 import dataset_version_dataset, output_statistics_output_dataset

    def rows(count: int) -> dict[str, Any]:
        return {
            "outputStatistics": output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
                rowCount=count, producer=_PRODUCER
            )
        }

    schema = {"schema": _schema(results_schema(spec, manifest.schema))}
    found = [
        OutputDataset(
            *dataset_of(f"{layout.root}/data"), facets=schema, outputFacets=rows(made.rows) if made is not None else {}
        )
    ]
    publish = spec.output.publish
    there = made.published if made is not None else None
    if publish is not None and there is not None and there.table == table_name(publish):
        facets: dict[str, Any] = {
            "version": dataset_version_dataset.DatasetVersionDatasetFacet(there.version, producer=_PRODUCER)
        }
        if publish.to == "iceberg":
            facets["catalog"] = _catalog(publish.catalog)
        found.append(OutputDataset(*_table(publish), facets=facets, outputFacets=rows(there.rows)))
    return found


def dataset_of(uri: str) -> tuple[str, str]:
    """The namespace and the name of a place, as OpenLineage's naming conventions say for files and for S3."""
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme == "file":
        return "file", local_path(uri).rstrip("/") or "/"
    authority, _, path = rest.partition("/")
    return f"{scheme}://{authority}", path.strip("/") or "/"


def _table(publish: PublishSpec) -> tuple[str, str]:
    if publish.to == "iceberg":
        return _of_catalog(publish.catalog), publish.table
    return dataset_of(publish.table)


def _of_catalog(given: CatalogName | None) -> str:
    catalog = catalog_of(given)
    return catalog.properties.get("uri", catalog.name)


def _catalog(given: CatalogName | None) -> Any:
    from openlineage.client.facet_v2 import catalog_dataset

    catalog = catalog_of(given)
    return catalog_dataset.CatalogDatasetFacet(
        framework="iceberg",
        type=catalog.properties.get("type", "configured"),
        name=catalog.name,
        metadataUri=catalog.properties.get("uri"),
        warehouseUri=catalog.properties.get("warehouse"),
        source="pyiceberg",
        producer=_PRODUCER,
    )


def _schema(schema: pa.Schema) -> Any:
    from openlineage.client.facet_v2 import schema_dataset

    fields = [schema_dataset.SchemaDatasetFacetFields(name=field.name, type=str(field.type)) for field in schema]
    return schema_dataset.SchemaDatasetFacet(fields=fields, producer=_PRODUCER)

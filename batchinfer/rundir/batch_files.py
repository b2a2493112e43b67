"""The results of a batch file as files of its own kind: JSON lines in OpenAI's shapes, or in those of vLLM's command.

They are made of the committed results alone, in the order of the input, and a second writing has the same bytes.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from batchinfer.input import read_shards
from batchinfer.input.manifest import Manifest
from batchinfer.jobspec import InputSpec
from batchinfer.rundir.commit import committed_shards, opened_results
from batchinfer.rundir.ownership import BATCH_LINE, overwrite_parts, remove
from batchinfer.rundir.paths import Layout
from batchinfer.storage import Stores, normal_uri, storage_for

_ROWS = 256
"""Rows that are read at a time: with vectors of 4,096 numbers some 20 MB. More would take memory, fewer time."""

_STATUS = {"model_not_found": 404, "engine_killed": 500}
"""The HTTP status of a request that failed; that of all others is 400, which says that the request is at fault."""

_TYPES = {400: "invalid_request_error", 404: "invalid_request_error", 500: "server_error"}
_TYPES_OF_VLLM = {400: "BadRequestError", 404: "NotFoundError", 500: "InternalServerError"}


class Unanswered(NamedTuple):
    """Why requests of shards that never ran have no answer: the error of each, and the input that has them."""

    code: str
    message: str
    source: InputSpec


class _ResponseRow(NamedTuple):
    """A row of the results. `number`: its place among them."""

    number: int
    custom_id: str | None
    response: str | None
    code: str | None
    message: str | None

    @property
    def status(self) -> int:
        return 200 if self.code is None else _STATUS.get(self.code, 400)


def write_batch_files(layout: Layout, manifest: Manifest, unanswered: Unanswered | None = None) -> None:
    """Write the responses to `Layout.batch_output`, and the failed requests to `Layout.batch_errors`.

    `unanswered`: requests that never ran fail so; None: they have no line. A file without lines is not there
    afterwards, as OpenAI's API has none. Raises OutputError for a file in their place that batchinfer did not write.
    """
    run_id = manifest.fingerprint.run_id
    for uri, failed in ((layout.batch_output, False), (layout.batch_errors, True)):
        lines = _openai_lines(layout, manifest, run_id, failed, unanswered if failed else None)
        first = next(lines, None)
        if first is None:
            remove(layout, uri)
        else:
            overwrite_parts(layout, uri, itertools.chain([first], lines))


def write_vllm_file(layout: Layout, manifest: Manifest, uri: str, stores: Stores) -> None:
    """Write one file with a line for each request, as `vllm run-batch` does; replaces a file there."""
    run_id = manifest.fingerprint.run_id
    lines = (_vllm_line(run_id, row) for row in _rows(layout, manifest))
    storage_for(uri, stores).put_parts(normal_uri(uri), lines)


def _openai_lines(
    layout: Layout, manifest: Manifest, run_id: str, failed: bool, unanswered: Unanswered | None
) -> Iterator[bytes]:
    for row in _rows(layout, manifest, unanswered):
        if unanswered is not None and row.code is None and row.response is None:
            yield _unanswered_line(run_id, row, unanswered)
        elif (row.code is not None) is failed:
            yield _openai_line(run_id, row)


def _rows(layout: Layout, manifest: Manifest, unanswered: Unanswered | None = None) -> Iterator[_ResponseRow]:
    """Every row of the results, in the order of the input. `unanswered`: also those of shards that have no results."""
    names = ["custom_id", "response", "error_code", "error_message"]
    committed = committed_shards(layout)
    number = 0
    for shard in manifest.shards:
        if shard.shard_id in committed:
            with opened_results(layout, shard.shard_id) as file:
                for batch in pq.ParquetFile(file).iter_batches(_ROWS, columns=names):
                    for values in zip(*(batch.column(name).to_pylist() for name in names), strict=True):
                        yield _ResponseRow(number, *values)
                        number += 1
            continue
        if unanswered is not None:
            source = unanswered.source
            for _, rows in read_shards([shard], manifest.schema, manifest.partitions, source, layout.stores):
                for place, custom_id in enumerate(rows.column("custom_id").to_pylist()):
                    yield _ResponseRow(number + place, custom_id, None, None, None)
        number += shard.rows


def _line(row: _ResponseRow, name: str, request: str, body: str, error: str) -> bytes:
    """The response is JSON already, and is copied as it is."""
    head = f'{{"id":"{name}","custom_id":{json.dumps(row.custom_id, ensure_ascii=False)}'
    response = f'{{"status_code":{row.status},"request_id":"{request}","body":{body}}}'
    return f'{head},"response":{response},"error":{error}}}\n'.encode()


def _openai_line(run_id: str, row: _ResponseRow) -> bytes:
    name = f"{BATCH_LINE}{run_id}_{row.number:09d}"
    body = row.response if row.code is None else _error(row, _TYPES, row.code)
    return _line(row, name, f"req_{run_id}_{row.number:09d}", body or "null", "null")


def _unanswered_line(run_id: str, row: _ResponseRow, why: Unanswered) -> bytes:
    line = {
        "id": f"{BATCH_LINE}{run_id}_{row.number:09d}",
        "custom_id": row.custom_id,
        "response": None,
        "error": {"code": why.code, "message": why.message},
    }
    return f"{json.dumps(line, ensure_ascii=False, separators=(',', ':'))}\n".encode()


def _vllm_line(run_id: str, row: _ResponseRow) -> bytes:
    name = f"{run_id}-{row.number:09d}"
    error = "null" if row.code is None else _error(row, _TYPES_OF_VLLM, row.status)
    return _line(row, f"vllm-{name}", f"vllm-batch-{name}", row.response or "null", error)


def _error(row: _ResponseRow, types: dict[int, str], code: Any) -> str:
    told = {"message": row.message, "type": types[row.status], "param": None, "code": code}
    return json.dumps({"error": told}, ensure_ascii=False, separators=(",", ":"))

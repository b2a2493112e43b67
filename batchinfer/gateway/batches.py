"""A batch is created and cancelled: what is checked, and what is written."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from batchinfer.errors import InputError
from batchinfer.gateway.engines import Engines
from batchinfer.gateway.keys import Caller
from batchinfer.gateway.names import is_file_id, new_batch_id
from batchinfer.gateway.problems import ApiProblem
from batchinfer.gateway.quotas import require_quota
from batchinfer.gateway.records import (
    ENDPOINTS,
    BatchEnd,
    BatchProblem,
    BatchProgress,
    BatchRecord,
    FileRecord,
    window_seconds,
)
from batchinfer.gateway.root import GatewayRoot
from batchinfer.input.packed import LONGEST_ROW, unpacked, unpacking

_MOST_METADATA, _LONGEST_KEY, _LONGEST_VALUE = 16, 64, 512
"""Pairs of metadata and their characters, as OpenAI's API has them."""


def create_batch(root: GatewayRoot, engines: Engines, caller: Caller, body: Mapping[str, Any]) -> BatchRecord:
    """Create the batch that the body asks for. Raises ApiProblem for a body or a quota that refuses it.

    A file whose first request no engine can answer makes a batch that has failed, as OpenAI's API does.
    """
    file_id = _text(body, "input_file_id")
    endpoint = _text(body, "endpoint")
    if endpoint not in ENDPOINTS:
        raise ApiProblem(400, f"endpoint must be one of {', '.join(ENDPOINTS)}", param="endpoint")
    window = _text(body, "completion_window")
    seconds = window_seconds(window)
    if seconds is None:
        raise ApiProblem(
            400, "completion_window must be a duration as 24h, 90m or 30s, of at most a year", param="completion_window"
        )
    metadata = _metadata(body.get("metadata"))
    file = root.file(caller.owner, file_id) if is_file_id(file_id) else None
    if file is None:
        raise ApiProblem(400, f"there is no file {file_id!r:.100}", param="input_file_id", code="file_not_found")
    if file.purpose != "batch":
        raise ApiProblem(400, "the purpose of that file is not batch", param="input_file_id")
    require_quota(root, caller, file.lines)
    model, problem = _model(root, engines, caller, file, endpoint)
    now = time.time()
    record = BatchRecord(
        id=new_batch_id(now),
        owner=caller.owner,
        input_file_id=file_id,
        endpoint=endpoint,
        completion_window=window,
        created_at=int(now),
        expires_at=int(now) + seconds,
        model=model,
        engine={} if problem is not None else engines.engines[model].keys,
        labels=dict(caller.labels),
        metadata=metadata,
        lines=file.lines,
        monthly_usd=caller.limits.usd_per_month,
    )
    root.add_batch(record)
    if problem is not None:
        root.end(record, BatchEnd(status="failed", at=int(now), progress=BatchProgress(), problems=(problem,)))
    return record


def cancel_batch(root: GatewayRoot, record: BatchRecord) -> None:
    """Ask for the end of the batch. Raises ApiProblem if it has ended otherwise."""
    marks = root.marks(record.owner, record.id)
    if marks.end is not None and marks.end.status != "cancelled":
        raise ApiProblem(409, f"the batch has ended already: {marks.end.status}", code="batch_ended")
    if marks.end is None:
        root.mark_cancelling(record, time.time())


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value or len(value) > 200:
        raise ApiProblem(400, f"{name} must be a text", param=name)
    return value


def _metadata(value: object) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or len(value) > _MOST_METADATA:
        raise ApiProblem(400, f"metadata must be an object of at most {_MOST_METADATA} pairs", param="metadata")
    for key, text in value.items():
        if not isinstance(text, str) or len(key) > _LONGEST_KEY or len(text) > _LONGEST_VALUE:
            raise ApiProblem(
                400,
                f"metadata must be texts of at most {_LONGEST_VALUE} characters, with keys of {_LONGEST_KEY}",
                param="metadata",
            )
        if any("\ud800" <= letter <= "\udfff" for letter in key + text):
            raise ApiProblem(400, "metadata holds half of a surrogate pair", param="metadata")
    return dict(value)


def _model(
    root: GatewayRoot, engines: Engines, caller: Caller, file: FileRecord, endpoint: str
) -> tuple[str, BatchProblem | None]:
    """The model of the file's first request, and why the batch fails, if it does. Requests for another model fail
    one by one."""
    try:
        uri = root.file_content(caller.owner, file.id)
        with root.storage.open(uri) as opened, unpacking(file.filename):
            line = unpacked(opened).readline(LONGEST_ROW)
        request = json.loads(line)
        body = request["body"]
        model, url = body["model"], request["url"]
    except InputError:
        return "", BatchProblem(code="invalid_file", message="the file is neither text nor packed text", line=1)
    except (ValueError, KeyError, TypeError, RecursionError, OSError):
        return "", BatchProblem(
            code="invalid_json_line",
            message="the first line is no request: an object with custom_id, method, url and body, which has a model",
            line=1,
        )
    entry = engines.engines.get(model) if isinstance(model, str) else None
    if entry is None or not entry.is_for(caller.owner):
        known = ", ".join(name for name, one in engines.engines.items() if one.is_for(caller.owner))
        message = f"there is no model {model!r:.100} here; there are {known:.500}"
        return "", BatchProblem(code="model_not_found", message=message, line=1, param="body.model")
    if url != endpoint:
        message = f"the url of the request is {url!r:.100}, and the endpoint of the batch is {endpoint}"
        return "", BatchProblem(code="mismatched_endpoint", message=message, line=1, param="url")
    if ENDPOINTS[endpoint] != entry.task:
        message = f"the model {model} does not answer {endpoint}: its task is {entry.task}"
        return "", BatchProblem(code="mismatched_endpoint", message=message, line=1, param="endpoint")
    return model, None

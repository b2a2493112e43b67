"""What the gateway keeps of a file and of a batch, and what OpenAI's API says of them. Pure."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]

EndStatus = Literal["failed", "completed", "expired", "cancelled"]

ENDPOINTS = {
    "/v1/chat/completions": "generate",
    "/v1/completions": "generate",
    "/v1/embeddings": "embed",
}
"""The endpoints of batches, and the task of the engine that answers each."""

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

LONGEST_WINDOW = 365 * 86_400
"""Seconds. Dates beyond what clients can hold would follow from more."""


class _GatewayRecord(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class FileRecord(_GatewayRecord):
    """A file: uploaded, or written by a batch. `created_at`: seconds since 1970. `lines`: 0 if they are not counted."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    lines: int = 0

    def document(self) -> dict[str, Any]:
        """The file as OpenAI's API shows it."""
        shown = self.model_dump(exclude={"lines"})
        return {**shown, "object": "file", "status": "processed", "status_details": None, "expires_at": None}


class BatchRecord(_GatewayRecord):
    """What a client asked for, with all that the run needs: written once, when the batch is created.

    Times are seconds since 1970. `engine`: the keys of the job spec that the model had in engines.yaml at that time.
    `lines`: lines of the input file. `monthly_usd`: what the owner's runs may cost in a month.
    """

    id: str
    owner: str
    input_file_id: str
    endpoint: str
    completion_window: str
    created_at: int
    expires_at: int
    model: str
    engine: dict[str, Any]
    labels: dict[str, str] = {}
    metadata: dict[str, str] | None = None
    lines: int = 0
    monthly_usd: float | None = None


class BatchProblem(_GatewayRecord):
    """Why a batch failed. `line`: from 1, None for the batch as a whole."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchUsage(_GatewayRecord):
    """The tokens of a batch."""

    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int

    def document(self) -> dict[str, Any]:
        return {
            "input_tokens": self.input_tokens,
            "input_tokens_details": {"cached_tokens": self.cached_tokens},
            "output_tokens": self.output_tokens,
            "output_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
            "total_tokens": self.input_tokens + self.output_tokens,
        }


class BatchProgress(_GatewayRecord):
    """Requests of a batch so far. `cost_usd`: dollars."""

    total: int = 0
    completed: int = 0
    failed: int = 0
    cost_usd: float = 0.0


class BatchEnd(_GatewayRecord):
    """How a batch ended: written once, after all of its files."""

    status: EndStatus
    at: int
    progress: BatchProgress
    output_file_id: str | None = None
    error_file_id: str | None = None
    problems: tuple[BatchProblem, ...] = ()
    usage: BatchUsage | None = None


class BatchMarks(_GatewayRecord):
    """What has become of a batch so far. Times are seconds since 1970; None: not yet."""

    in_progress_at: int | None = None
    finalizing_at: int | None = None
    cancelling_at: int | None = None
    progress: BatchProgress | None = None
    end: BatchEnd | None = None

    @property
    def status(self) -> BatchStatus:
        if self.end is not None:
            return self.end.status
        if self.cancelling_at is not None:
            return "cancelling"
        if self.finalizing_at is not None:
            return "finalizing"
        return "validating" if self.in_progress_at is None else "in_progress"


def batch_document(record: BatchRecord, marks: BatchMarks) -> dict[str, Any]:
    """The batch as OpenAI's API shows it."""
    end = marks.end
    counts = (end.progress if end is not None else marks.progress) or BatchProgress(total=record.lines)
    ended_at: dict[str, int | None] = {f"{one}_at": None for one in ("failed", "completed", "expired", "cancelled")}
    if end is not None:
        ended_at[f"{end.status}_at"] = end.at
    problems = [problem.model_dump() for problem in end.problems] if end is not None else []
    return {
        "id": record.id,
        "object": "batch",
        "endpoint": record.endpoint,
        "model": record.model or None,
        "errors": {"object": "list", "data": problems} if problems else None,
        "input_file_id": record.input_file_id,
        "completion_window": record.completion_window,
        "status": marks.status,
        "output_file_id": end.output_file_id if end is not None else None,
        "error_file_id": end.error_file_id if end is not None else None,
        "created_at": record.created_at,
        "in_progress_at": marks.in_progress_at,
        "expires_at": record.expires_at,
        "finalizing_at": marks.finalizing_at,
        "cancelling_at": marks.cancelling_at,
        **ended_at,
        "request_counts": counts.model_dump(include={"total", "completed", "failed"}),
        "usage": end.usage.document() if end is not None and end.usage is not None else None,
        "metadata": record.metadata,
    }


def window_seconds(text: str) -> int | None:
    """The seconds of a completion window such as 24h, 90m or 30s; None for a text that is none."""
    found = re.fullmatch(r"([1-9]\d{0,8})([smhd])", text)
    seconds = int(found[1]) * _SECONDS[found[2]] if found is not None else LONGEST_WINDOW + 1
    return seconds if seconds <= LONGEST_WINDOW else None

"""The id of a submission, the local paths of its spec, and the state of a job on the cluster. Pure, except for the
check whether a model is a local folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

from batchinfer.errors import Stopped, TooManyFailedRows, UserError
from batchinfer.execution.same_job import shaping
from batchinfer.jobspec import SCRIPTED, JobSpec

ENDED = ("succeeded", "failed", "stopped")
"""The final states of a job."""

NOT_ENDED = 75
"""The exit code for a job that has not ended, which `run` never has. EX_TEMPFAIL of sysexits.h: try again later."""

OURS = "batchinfer_version"
"""The metadata key that only jobs of batchinfer have."""

_OUTPUT, _NAME, _LABEL = "batchinfer_output", "batchinfer_job", "label."

_MEANINGS = {
    UserError.exit_code: "the spec, the input or the call is wrong: nothing was started",
    TooManyFailedRows.exit_code: "ended, with more failed rows than limits.max_error_rate",
    Stopped.exit_code: "stopped by a signal or a budget: submit it again to go on",
}


@dataclass(frozen=True, slots=True)
class SubmittedJob:
    """A job on the cluster. `state` is pending, running, succeeded, failed or stopped. Times are
    seconds since 1970, None before the event. `exit_code` is None until the job ends by itself."""

    id: str
    state: str
    name: str
    output: str
    version: str
    labels: dict[str, str]
    started_at: float | None
    ended_at: float | None
    exit_code: int | None
    message: str

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def exit_status(self) -> int:
        """The exit code of a command that followed the job: the job's own, or one for its state."""
        if self.exit_code is not None and 0 <= self.exit_code <= 255:
            return self.exit_code
        # The job has no exit code, or a signal's, if it was killed, lost with its machine, or stopped before it began.
        return {"succeeded": 0, "stopped": 4}.get(self.state, 1 if self.ended else NOT_ENDED)


def metadata_of(spec: JobSpec, version: str) -> dict[str, str]:
    """The metadata that the cluster stores with a job; `submitted_job` reads them."""
    labels = {f"{_LABEL}{key}": value for key, value in spec.labels.items()}
    return {OURS: version, _NAME: spec.name, _OUTPUT: spec.output.uri, **labels}


def submitted_job(
    job_id: str,
    status: str,
    metadata: dict[str, str] | None,
    started_at: float | None = None,
    ended_at: float | None = None,
    exit_code: int | None = None,
    message: str | None = None,
) -> SubmittedJob:
    """The job from Ray's values. A run that a budget or a signal stopped is stopped, not failed."""
    known = metadata or {}
    state = "stopped" if exit_code == Stopped.exit_code else status.lower()
    said = _MEANINGS.get(exit_code or 0) or (message or "").splitlines()[:1] or ""
    return SubmittedJob(
        id=job_id,
        state=state,
        name=known.get(_NAME, ""),
        output=known.get(_OUTPUT, ""),
        version=known.get(OURS, ""),
        labels={key.removeprefix(_LABEL): value for key, value in known.items() if key.startswith(_LABEL)},
        started_at=started_at,
        ended_at=ended_at,
        exit_code=exit_code,
        message=said if isinstance(said, str) else said[0],
    )


def run_name(spec: JobSpec) -> str:
    """The submission id of the run's first attempt: the job's name, and a digest of the output and of the keys that
    shape the results. So a run has one id on any hardware. `spec` has absolute paths."""
    text = json.dumps([spec.output.uri, shaping(spec)], sort_keys=True)
    return f"{spec.name}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def attempts(run: str, jobs: Iterable[SubmittedJob]) -> dict[int, SubmittedJob]:
    """The run's submissions by number, from 1: `run`, `run-2`, `run-3`, ..."""
    found = {}
    for job in jobs:
        match = re.fullmatch(rf"{re.escape(run)}(?:-([0-9]+))?", job.id)
        if match is not None:
            found[int(match.group(1) or 1)] = job
    return found


def attempt_id(run: str, number: int) -> str:
    """The id of the run's submission `number`, from 1."""
    return run if number == 1 else f"{run}-{number}"


def local_places(spec: JobSpec) -> dict[str, str]:
    """The spec's keys that name a path on this machine, with the path."""
    places = {"input.uri": spec.input.uri, "output.uri": spec.output.uri}
    if spec.cache is not None:
        places["cache.uri"] = spec.cache.uri
    found = {key: uri for key, uri in places.items() if _is_path(uri)}
    model = spec.model
    names = {
        "model.source": model.source,
        "model.lora.path": model.lora.path if model.lora is not None else None,
        "model.speculative.model": model.speculative.model if model.speculative is not None else None,
        "engine.tokenizer": spec.engine.tokenizer,
    }
    for key, name in names.items():
        # The same name may be a local folder or a repository. The folder comes first, as in `run`.
        if name is not None and name != SCRIPTED and _is_path(name):
            plainly = name.startswith(("/", "./", "../", "~", "file://"))
            if plainly or os.path.isdir(name):
                found[key] = name
    return found


def _is_path(uri: str) -> bool:
    return "://" not in uri or uri.startswith("file://")


def submitted_progress(logs: str) -> dict[str, int | float] | None:
    """Rows done, total rows, tokens/s, cost so far and seconds left, from the newest log line that has the rows; None
    before the first such line. `selected_from` is among them if not all rows of the input run."""
    for line in reversed(logs.splitlines()):
        if '"rows_total"' in line and line.startswith("{"):
            try:
                told = json.loads(line)
            except json.JSONDecodeError:
                continue
            keys = ("rows_done", "rows_total", "selected_from", "tokens_per_second", "cost_usd", "seconds_left")
            return {key: told[key] for key in keys if told.get(key) is not None}
    return None


def told_error(logs: str) -> tuple[str, str] | None:
    """The message and the remedy of the error that batchinfer ended with; None if it ended without one."""
    match = re.search(r"^error: (.+?)(?:\n  -> (.+?))?\s*\Z", logs, re.MULTILINE | re.DOTALL)
    return (match.group(1), match.group(2) or "") if match is not None else None

"""What a trial is: a few rows of a job, run as the whole job is, in a folder of their own.

The folder is kept: what it measured serves later plans of the same job.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer.accounting.report import Report
from batchinfer.errors import BatchinferError, OutputError, RowError, StorageError, UserError
from batchinfer.execution.checks import Checked, find_manifest
from batchinfer.execution.progress import Listener
from batchinfer.execution.result_rows import SECONDS
from batchinfer.execution.row_chunks import ChunkedRows
from batchinfer.execution.row_steps import kept_answers
from batchinfer.execution.same_job import changed_keys
from batchinfer.execution.token_counter import UNLIMITED, counter, longest_sequence
from batchinfer.input import read_shards
from batchinfer.input.manifest import Manifest
from batchinfer.jobspec import JobSpec
from batchinfer.jobspec.output_keys import RESULT_COLUMNS
from batchinfer.jobspec.printed import as_json, printed
from batchinfer.planner import Plan
from batchinfer.prompting.job_prompts import JobPrompts
from batchinfer.prompting.openai_requests import BatchRequests
from batchinfer.prompting.prompts import Prompt
from batchinfer.rundir.commit import committed_shards
from batchinfer.rundir.paths import Layout
from batchinfer.storage import join

FOLDER = "_try"
"""The name of a trial's folder in the output folder: tools that read folders of data leave names with `_` out."""


@dataclass(frozen=True, slots=True)
class TriedRow:
    """One row of a trial. `answer` is a text, a list of `sampling.n` texts, a typed value, or a vector."""

    id: Any
    prompt: str | None
    """As the model sees it, with its control tokens; None for a row without a prompt."""
    answer: Any
    finish_reason: Any
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    truncated_tokens: int
    seconds: float
    """From when the engine took the row to its answer; rows run side by side."""
    error_code: str | None
    error_message: str | None


@dataclass(frozen=True, slots=True)
class Trial:
    """The rows that were tried, their report, and the plan of all rows by what they measured."""

    rows: tuple[TriedRow, ...]
    report: Report
    plan: Plan
    rows_in_input: int
    chosen: str
    """Which rows were tried, for a person."""
    output: str

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            # Ids and typed answers may be of types that JSON does not have.
            "rows": [
                {**dataclasses.asdict(row), "id": _json_id(row.id), "answer": as_json(row.answer)} for row in self.rows
            ],
            "rows_in_input": self.rows_in_input,
            "chosen": self.chosen,
            "output": self.output,
            "report": self.report.model_dump(mode="json"),
            "plan": self.plan.document(),
        }


def _json_id(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else printed(value)


def trial_layouts(spec: JobSpec) -> tuple[Layout, Layout]:
    """Where trials of a job with absolute places may lie: in its output folder, or in this user's cache."""
    output = spec.output.uri
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    key = hashlib.sha256(output.encode()).hexdigest()[:12]
    away = os.path.join(os.path.abspath(cache), "batchinfer", "try", f"{spec.name}-{key}")
    return Layout(join(output, FOLDER), spec.storage), Layout(away)


def trial_layout(spec: JobSpec, here: bool) -> Layout:
    """Where the next trial lies: in the user's cache if nothing can be written to the output, and the job runs `here`.

    Raises OutputError or StorageError.
    """
    beside, away = trial_layouts(spec)
    try:
        beside.storage.require_writable(beside.root)
    except (OutputError, StorageError):
        if not here:
            raise
        return away
    return beside


def trial_report(spec: JobSpec, reports: Sequence[tuple[Layout, Report]], listener: Listener | None) -> list[Report]:
    """The reports of trials that ran as the job would now. `listener` is told of each one, used or not."""
    used: list[Report] = []
    for layout, report in reports:
        changed: str | None
        try:
            manifest = find_manifest(layout)
            changed = "its manifest is gone" if manifest is None else _change(manifest, spec)
        except BatchinferError as error:
            changed = error.message
        if changed is None and report.rows_ran:
            used.append(report)
        if listener is not None and changed is None:
            listener.event("trial used", rows=report.rows_ran, report=layout.report)
        elif listener is not None:
            listener.event("trial ignored", report=layout.report, reason=changed)
    return used


def _change(manifest: Manifest, spec: JobSpec) -> str | None:
    """The first key that shapes results and differs from the trial's; a trial has another output."""
    changed = next((key for key in changed_keys(manifest, spec) if key != "output.uri"), None)
    return None if changed is None else f"{changed} has changed since the trial"


def tried_rows(checked: Checked, plan: Plan) -> tuple[TriedRow, ...]:
    """The rows of a trial that ended, in the order of the input."""
    spec, manifest = checked.spec, checked.manifest
    tables = read_shards(manifest.shards, manifest.schema, manifest.partitions, spec.rows_input, spec.storage)
    results = _results(checked.layout)
    shown = _prompts_shown(checked, plan, [rows for _, rows in tables], results)
    return tuple(
        TriedRow(
            id=row[spec.id_column],
            prompt=shown[place],
            answer=answer_of(spec, row),
            seconds=row[SECONDS],
            truncated_tokens=_truncated(spec, row),
            **{name: row[name] for name in RESULT_COLUMNS},
        )
        for place, row in enumerate(results.to_pylist())
    )


def _truncated(spec: JobSpec, row: dict[str, Any]) -> int:
    names = ("truncated_tokens",) if spec.steps is None else [f"{step.name}_truncated_tokens" for step in spec.steps]
    return sum(row.get(name) or 0 for name in names)


def answer_of(spec: JobSpec, row: dict[str, Any]) -> Any:
    """The answer of a row of the results. With `output.as: columns` an object of its columns, None for a failed row;
    with `steps` an object of their answers.
    """
    if spec.steps is not None:
        return {step.name: row[step.name] for step in spec.steps}
    if spec.output.as_ != "columns":
        return row[spec.output.column]
    return None if row["error_code"] is not None else {name: row[name] for name in spec.output.columns}


def _results(layout: Layout) -> pa.Table:
    found = []
    for shard_id in sorted(committed_shards(layout)):
        with layout.storage.open(layout.data(shard_id)) as file:
            found.append(pq.read_table(file))
    return pa.concat_tables(found)


def _prompts_shown(checked: Checked, plan: Plan, tables: Sequence[pa.Table], results: pa.Table) -> list[str | None]:
    """The prompts of each row as the model saw them, one after the other where a row has several."""
    spec = checked.spec
    rows = pa.concat_tables(tables)
    if spec.takes_requests:
        return _first_texts(checked, plan, rows)
    if spec.chunk is not None:
        return _first_chunks(checked, plan, rows)
    if spec.steps is None:
        return _shown(checked, plan, spec, JobPrompts(spec).prompts(rows))
    answers = kept_answers(spec.step_jobs, results)
    of_steps = []
    for place, (step, job) in enumerate(zip(spec.steps, spec.step_jobs, strict=True)):
        shown = _shown(checked, plan, job, JobPrompts(job, place).prompts(rows, answers))
        asked = results.column(f"{step.name}_finish_reason").is_valid().to_pylist()
        of_steps.append(
            [f"[{step.name}] {text}" if text and ran else None for text, ran in zip(shown, asked, strict=True)]
        )
    return ["\n".join(filter(None, of_row)) or None for of_row in zip(*of_steps, strict=True)]


def _first_texts(checked: Checked, plan: Plan, rows: pa.Table) -> list[str | None]:
    """The first prompt of each request, and how many follow."""
    jobs = checked.spec.step_jobs
    shown: list[str | None] = []
    for request in BatchRequests(checked.spec).read(rows):
        if isinstance(request, RowError):
            shown.append(None)
            continue
        first = request.prompts[0]
        (text,) = _shown(checked, plan, jobs[first.step], [first])
        more = len(request.prompts) - 1
        shown.append(f"{text}\n[and {more:,} more texts]" if text and more else text)
    return shown


def _first_chunks(checked: Checked, plan: Plan, rows: pa.Table) -> list[str | None]:
    """The prompt of each row's first chunk, and how many follow."""
    spec = checked.spec
    counters = [counter(checked.facts.folder, job) for job in spec.step_jobs]
    parts = ChunkedRows(spec, counters, longest_sequence(spec, checked.facts.context, plan) or UNLIMITED).parts(rows)
    firsts: list[Prompt | RowError] = [part if isinstance(part, RowError) else part[0] for part in parts]
    more = [0 if isinstance(part, RowError) else len(part) - 1 for part in parts]
    return [
        f"{text}\n[and {count:,} more chunks]" if text and count else text
        for text, count in zip(_shown(checked, plan, spec, firsts), more, strict=True)
    ]


def _shown(checked: Checked, plan: Plan, spec: JobSpec, prompts: Sequence[Prompt | RowError]) -> list[str | None]:
    """Each prompt of a step as the model sees it; None for a row without one."""
    counting = counter(checked.facts.folder, spec, longest_sequence(spec, checked.facts.context, plan))
    whole = [prompt for prompt in prompts if not isinstance(prompt, RowError)]
    made = iter(counting.tokens(whole) if whole else [])
    shown: list[str | None] = []
    for prompt in prompts:
        if isinstance(prompt, RowError):
            shown.append(None)
            continue
        tokens = next(made)
        if isinstance(tokens, RowError):
            shown.append(None)
        elif counting.exact:
            shown.append(counting.decode(tokens))
        elif prompt.messages is None:
            shown.append(prompt.as_text())
        else:
            shown.append("\n".join(f"{message['role']}: {message['content']}" for message in prompt.messages))
    return shown


def require_rows(manifest: Manifest) -> None:
    """Raise UserError if there is no row to try."""
    if not manifest.rows:
        raise UserError("there is no row to try: the input has none for this run", "see input.uri")

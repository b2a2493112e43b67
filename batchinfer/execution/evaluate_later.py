"""The answers of a run that has ended, compared with a column of its results: `evaluate` shapes no result."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq

from batchinfer.accounting.report import Accuracy
from batchinfer.errors import UserError
from batchinfer.execution.checks import absolute
from batchinfer.execution.result_rows import compared, part_of
from batchinfer.jobspec import EvaluateSpec, JobSpec, parse
from batchinfer.jobspec.templates import printed
from batchinfer.rundir.commit import committed_shards
from batchinfer.rundir.paths import Layout, reading


def evaluation(layout: Layout, spec: JobSpec, overrides: Sequence[str]) -> EvaluateSpec:
    """The run's `evaluate` with `overrides`, KEY=VALUE each, applied. Raises UserError if they set anything else."""
    changed = absolute(parse(layout.storage.read(layout.spec).decode(), layout.spec, overrides))
    if changed.model_copy(update={"evaluate": spec.evaluate}) != spec or changed.evaluate is None:
        raise UserError(
            "only evaluate may be set for a report: anything else would need another run",
            "as in --set evaluate.expected=COLUMN",
        )
    return changed.evaluate


def accuracy_of_results(layout: Layout, spec: JobSpec, wanted: EvaluateSpec) -> dict[str, Accuracy]:
    """The accuracy of the answers in the results, by group."""
    named = [name for name in (wanted.expected, wanted.by) if name is not None]
    found: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for shard_id in sorted(committed_shards(layout)):
        uri = layout.data(shard_id)
        with layout.storage.open(uri) as file, reading(uri, "move it away and run the job again: it is made anew"):
            have = pq.ParquetFile(file)
            _require_passed_through(spec, named, have.schema_arrow.names)
            column = wanted.part if spec.output.as_ == "columns" and wanted.part else spec.output.column
            table = have.read(columns=list({*named, column, "error_code"}))
        outcomes = zip(table.column("error_code").to_pylist(), table.column(column).to_pylist(), strict=True)
        answers = [_compared(answer, spec, wanted) if code is None else None for code, answer in outcomes]
        for group, (good, of) in compared(wanted, table, answers).items():
            right[group] += good
            found[group] += of
    return {g: Accuracy(right=right[g], compared=n, accuracy=right[g] / n) for g, n in sorted(found.items())}


def _require_passed_through(spec: JobSpec, named: Sequence[str], have: Sequence[str]) -> None:
    missing = [name for name in named if name not in have]
    if missing:
        raise UserError(
            f"the results have no column {missing[0]!r} to compare with",
            f"name one that the job passed through (input.columns): {', '.join(spec.input.columns) or 'there is none'}",
        )


def _compared(answer: Any, spec: JobSpec, wanted: EvaluateSpec) -> str | None:
    """What is compared of a value of the results: text, one part of JSON text, of a struct, or a column of its own."""
    if wanted.part is None:
        return _first(answer)
    if spec.output.as_ == "columns":
        return None if answer is None else printed(answer)
    whole = _first(answer) if spec.output.as_ == "json" else answer
    return part_of(json.loads(whole) if isinstance(whole, str) else whole, wanted.part)


def _first(answer: str | list[str] | None) -> str | None:
    return (answer[0] if answer else None) if isinstance(answer, list) else answer

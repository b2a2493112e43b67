"""The answers of a run that has ended, compared with a column of its results: `evaluate` shapes no result."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer.accounting.evaluation import Compared, Evaluation, evaluate
from batchinfer.accounting.report import Accuracy
from batchinfer.errors import UserError
from batchinfer.execution.checks import open_run
from batchinfer.execution.result_rows import compared, labels_of, part_of
from batchinfer.jobspec import EvaluateSpec, JobSpec
from batchinfer.jobspec.printed import printed
from batchinfer.prompting.answers import label_list
from batchinfer.prompting.prompts import column_values
from batchinfer.rundir.commit import committed_shards, opened_results
from batchinfer.rundir.paths import Layout


def evaluation(uri: str, spec: JobSpec, overrides: Sequence[str]) -> EvaluateSpec:
    """The `evaluate` of the run at `uri` with `overrides`, KEY=VALUE each, which may set nothing else (UserError)."""
    _, _, changed = open_run(uri, overrides)
    if changed.model_copy(update={"evaluate": spec.evaluate}) != spec or changed.evaluate is None:
        raise UserError(
            "only evaluate may be set for a report: anything else would need another run",
            "as in --set evaluate.expected=COLUMN",
        )
    return changed.evaluate


def accuracy_of_results(layout: Layout, spec: JobSpec, wanted: EvaluateSpec) -> dict[str, Accuracy]:
    """The accuracy of the answers in the results, by group."""
    found: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for table, answers in answers_of_results(layout, spec, wanted):
        for group, (good, of) in compared(wanted, table, answers, spec.output.multi_label).items():
            right[group] += good
            found[group] += of
    return {group: Accuracy.of(right[group], n) for group, n in sorted(found.items())}


def evaluate_results(layout: Layout, spec: JobSpec, wanted: EvaluateSpec) -> dict[str, Evaluation]:
    """What the answers in the results are worth, by group; `all` has the rows of all groups."""
    many = spec.output.multi_label
    groups: dict[str, list[Compared]] = {"all": []}
    for table, answers in answers_of_results(layout, spec, wanted):
        nothing = [None] * table.num_rows
        sure = table.column(f"{spec.output.column}_confidence").to_pylist() if spec.tells_confidence else nothing
        names = column_values(table, wanted.by) if wanted.by is not None else nothing
        for value, answer, confidence, name in zip(
            column_values(table, wanted.expected), answers, sure, names, strict=True
        ):
            expected = labels_of(value, many)
            if expected is not None:
                row = Compared(expected, labels_of(answer, many), None if answer is None else confidence)
                groups["all"].append(row)
                if wanted.by is not None:
                    groups.setdefault(str(name) if name is None else printed(name), []).append(row)
    made = {name: evaluate(rows, many) for name, rows in sorted(groups.items())}
    return {name: one for name, one in made.items() if one is not None}


def answers_of_results(
    layout: Layout, spec: JobSpec, wanted: EvaluateSpec, more: Sequence[str] = ()
) -> Iterator[tuple[pa.Table, list[str | None]]]:
    """For each shard its results, and the answers as texts: the guess of a label that was withheld, and None for a
    row that failed. `more`: further columns of the results to read."""
    named = [name for name in (wanted.expected, wanted.by) if name is not None]
    column = spec.output.column + ("_guess" if spec.output.abstain_below is not None else "")
    if spec.output.as_ == "columns" and wanted.part is not None:
        column = wanted.part
    beside = [f"{spec.output.column}_confidence"] if spec.tells_confidence else []
    for shard_id in sorted(committed_shards(layout)):
        with opened_results(layout, shard_id) as file:
            have = pq.ParquetFile(file)
            _require_passed_through(spec, named, have.schema_arrow.names)
            table = have.read(columns=list({*named, column, *beside, *more, "error_code"}))
        outcomes = zip(table.column("error_code").to_pylist(), table.column(column).to_pylist(), strict=True)
        yield table, [_to_compare(answer, spec, wanted) if code is None else None for code, answer in outcomes]


def _require_passed_through(spec: JobSpec, named: Sequence[str], have: Sequence[str]) -> None:
    missing = [name for name in named if name not in have]
    if missing:
        raise UserError(
            f"the results have no column {missing[0]!r} to compare with",
            f"name one that the job passed through (input.columns): {', '.join(spec.input.columns) or 'there is none'}",
        )


def _to_compare(answer: Any, spec: JobSpec, wanted: EvaluateSpec) -> str | None:
    """What is compared of a value of the results: text, one part of JSON text, of a struct, or a column of its own."""
    if spec.output.multi_label and spec.sampling.n == 1:
        return None if answer is None else label_list(answer)
    if wanted.part is None:
        return _first_answer(answer)
    if spec.output.as_ == "columns":
        return None if answer is None else printed(answer)
    whole = _first_answer(answer) if spec.output.as_ == "json" else answer
    return part_of(json.loads(whole) if isinstance(whole, str) else whole, wanted.part)


def _first_answer(answer: str | list[str] | None) -> str | None:
    return (answer[0] if answer else None) if isinstance(answer, list) else answer

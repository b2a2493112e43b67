"""The accounts and the report of a run: written at its end, and computed anew from its records at any time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer.accounting.ledger import replica_accounts, replicas_table, totals
from batchinfer.accounting.records import ShardRecord
from batchinfer.accounting.report import Accuracy, Report, make_report, overall_accuracy
from batchinfer.errors import Stopped, TooManyFailedRows, UserError
from batchinfer.execution.checks import absolute, open_run
from batchinfer.execution.result_rows import compared, part_of
from batchinfer.input.manifest import Manifest
from batchinfer.jobspec import EvaluateSpec, JobSpec, parse
from batchinfer.jobspec.printed import printed
from batchinfer.planner import Plan
from batchinfer.rundir.commit import committed_shards, read_accounting, read_records, repair
from batchinfer.rundir.failed_rows import noted_retry
from batchinfer.rundir.journals import living_replicas, read_journals, require_of_run
from batchinfer.rundir.ownership import overwrite
from batchinfer.rundir.paths import Layout, reading


def report(uri: str, overrides: Sequence[str] = ()) -> Report:
    """The report of the run at `uri`, computed from its accounting; writes nothing.

    `overrides` may set `evaluate`, which shapes no result: the answers are compared again. Raises UserError.
    """
    layout, manifest, spec = open_run(uri)
    if overrides:
        made = report(uri)
        groups = _accuracy_of_results(layout, spec, _evaluation(layout, spec, overrides))
        return made.model_copy(update={"accuracy": groups, "overall_accuracy": overall_accuracy(groups.values())})
    records = read_records(layout, manifest, noted_retry(layout))
    return _report(layout, spec, manifest, records, living_replicas(layout, read_journals(layout)))


def require_limits(made: Report) -> None:
    """Raise TooManyFailedRows if more rows failed than the spec allows, Stopped if the run exceeded its budget."""
    if made.error_rate > made.max_error_rate:
        raise TooManyFailedRows(
            f"{made.rows_failed:,} of {made.rows:,} rows failed ({made.error_rate:.1%}), "
            f"more than limits.max_error_rate allows ({made.max_error_rate:.1%})",
            f"see error_code in {made.output}/data; `batchinfer retry {made.output}` runs the failed rows again",
        )
    if made.max_cost_usd is not None and made.cost_usd > made.max_cost_usd:
        raise Stopped(
            f"the run cost ${made.cost_usd:.4g}, more than limits.max_cost_usd of ${made.max_cost_usd:g}; "
            "every row is in the output",
            "what was in flight when the budget ended was paid for; set a higher limit, or take smaller shards: "
            "shards.rows",
        )


def _evaluation(layout: Layout, spec: JobSpec, overrides: Sequence[str]) -> EvaluateSpec:
    """The run's `evaluate` with `overrides`, KEY=VALUE each, applied. Raises UserError if they set anything else."""
    changed = absolute(parse(layout.storage.read(layout.spec).decode(), layout.spec, overrides))
    if changed.model_copy(update={"evaluate": spec.evaluate}) != spec or changed.evaluate is None:
        raise UserError(
            "only evaluate may be set for a report: anything else would need another run",
            "as in --set evaluate.expected=COLUMN",
        )
    return changed.evaluate


def _accuracy_of_results(layout: Layout, spec: JobSpec, wanted: EvaluateSpec) -> dict[str, Accuracy]:
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
        answers = [_to_compare(answer, spec, wanted) if code is None else None for code, answer in outcomes]
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


def _to_compare(answer: Any, spec: JobSpec, wanted: EvaluateSpec) -> str | None:
    """What is compared of a value of the results: text, one part of JSON text, of a struct, or a column of its own."""
    if wanted.part is None:
        return _first_answer(answer)
    if spec.output.as_ == "columns":
        return None if answer is None else printed(answer)
    whole = _first_answer(answer) if spec.output.as_ == "json" else answer
    return part_of(json.loads(whole) if isinstance(whole, str) else whole, wanted.part)


def _first_answer(answer: str | list[str] | None) -> str | None:
    return (answer[0] if answer else None) if isinstance(answer, list) else answer


def conclude(layout: Layout, spec: JobSpec, manifest: Manifest) -> Report:
    """Write the accounts and the report."""
    made = _report(layout, spec, manifest, account_for(layout, manifest))
    overwrite(layout, layout.report, made.model_dump_json(indent=2).encode())
    return made


def account_for(layout: Layout, manifest: Manifest) -> list[ShardRecord]:
    """Complete the accounting and write the replicas' accounts."""
    retried = noted_retry(layout)
    repair(layout, committed_shards(layout), read_accounting(layout), retried)
    records = read_records(layout, manifest, retried)
    sink = pa.BufferOutputStream()
    pq.write_table(replicas_table(replica_accounts(records, read_journals(layout))), sink)
    overwrite(layout, layout.replicas, sink.getvalue().to_pybytes())
    return records


def _report(
    layout: Layout, spec: JobSpec, manifest: Manifest, records: list[ShardRecord], alive: Collection[str] = ()
) -> Report:
    journals = read_journals(layout)
    require_of_run(layout, journals, manifest.fingerprint.run_id)
    replicas = replica_accounts(records, journals, alive)
    return make_report(
        job_name=spec.name,
        run_id=manifest.fingerprint.run_id,
        output=layout.root,
        plan=read_plan(layout),
        totals=totals(records, replicas),
        replicas=replicas,
        rows_in_input=manifest.rows,
        shards_in_input=len(manifest.shards),
        max_error_rate=spec.limits.max_error_rate,
        max_cost_usd=spec.limits.max_cost_usd,
        tick=manifest.fingerprint.tick,
        labels=spec.labels,
        model=spec.model.source,
        dtype=spec.model.dtype,
        task=spec.task,
        files_skipped=dict(manifest.skipped),
    )


def read_plan(layout: Layout) -> Plan | None:
    """The plan of the run, None if the file is missing: the report does without the plan."""
    if layout.storage.stat(layout.plan) is None:
        return None
    with reading(layout.plan, "move it away: the report is made without it"):
        return Plan.model_validate_json(layout.storage.read(layout.plan))

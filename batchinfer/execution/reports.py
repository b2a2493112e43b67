"""The accounts and the report of a run: written at its end, and computed anew from its records at any time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from batchinfer import events
from batchinfer.accounting.evaluation import Evaluation
from batchinfer.accounting.ledger import replica_accounts, totals
from batchinfer.accounting.records import ShardRecord
from batchinfer.accounting.report import Published, Report, make_report, overall_accuracy
from batchinfer.errors import Stopped, TooManyFailedRows, UserError
from batchinfer.execution.checks import open_run
from batchinfer.execution.evaluate_later import accuracy_of_results, evaluate_results, evaluation
from batchinfer.input.manifest import Manifest
from batchinfer.jobspec import EvaluateSpec, JobSpec, to_yaml
from batchinfer.pages import RunStory, run_page
from batchinfer.pages.samples import failed_rows, lengths
from batchinfer.planner import Plan
from batchinfer.rundir.accounts import journals_state, write_accounts
from batchinfer.rundir.batch_files import Unanswered, write_batch_files, write_vllm_file
from batchinfer.rundir.commit import committed_shards, read_accounting, read_records, repair
from batchinfer.rundir.failed_rows import noted_retry
from batchinfer.rundir.journals import living_replicas, read_journals, require_of_run
from batchinfer.rundir.ownership import overwrite
from batchinfer.rundir.paths import Layout, reading
from batchinfer.rundir.published import published
from batchinfer.rundir.sessions import read_sessions
from batchinfer.storage import normal_uri, storage_for

MOST_COMPARED = 1_000_000
"""Rows up to which the page at the end of a run has the quality of the answers, for which all results are read again:
some seconds a million. `report --html` has it for any run."""


def report(uri: str, overrides: Sequence[str] = ()) -> Report:
    """The report of the run at `uri`, computed from its accounting; writes nothing.

    `overrides` may set `evaluate`, which shapes no result: the answers are compared again. Raises UserError.
    """
    layout, manifest, spec = open_run(uri)
    made = current_report(layout, spec, manifest)
    return _compared(made, layout, spec, evaluation(uri, spec, overrides)) if overrides else made


def current_report(layout: Layout, spec: JobSpec, manifest: Manifest) -> Report:
    """The report of a run as it is now; writes nothing."""
    records = read_records(layout, manifest, noted_retry(layout))
    return _report(layout, spec, manifest, records, living_replicas(layout, read_journals(layout)))


def _compared(made: Report, layout: Layout, spec: JobSpec, wanted: EvaluateSpec) -> Report:
    """The report with the accuracy that `wanted` asks for."""
    groups = accuracy_of_results(layout, spec, wanted)
    return made.model_copy(update={"accuracy": groups, "overall_accuracy": overall_accuracy(groups.values())})


def evaluate(uri: str, overrides: Sequence[str] = ()) -> dict[str, Evaluation]:
    """What the answers of the run at `uri` are worth, by group, `all` among them; writes nothing.

    `overrides` may set `evaluate`. Raises UserError without a column to compare with.
    """
    layout, _, spec = open_run(uri)
    wanted = evaluation(uri, spec, overrides) if overrides else spec.evaluate
    if wanted is None:
        raise UserError(f"the spec of {uri} names no column with right answers", "say --expected COLUMN")
    found = evaluate_results(layout, spec, wanted)
    if not found:
        raise UserError(f"no row of {uri} has a value in {wanted.expected!r}", "name a column with right answers")
    return found


def write_page(uri: str, file: str, texts: bool = False, overrides: Sequence[str] = ()) -> None:
    """Write the report of the run at `uri` for a browser to `file`, a path or a URI.

    `texts`: with messages and answers of failed rows. `overrides` may set `evaluate`. Raises UserError.
    """
    layout, manifest, spec = open_run(uri)
    wanted = evaluation(uri, spec, overrides) if overrides else spec.evaluate
    records = read_records(layout, manifest, noted_retry(layout))
    alive = living_replicas(layout, read_journals(layout))
    made = _report(layout, spec, manifest, records, alive)
    if overrides and wanted is not None:
        made = _compared(made, layout, spec, wanted)
    html = run_page(_story(layout, spec, made, records, alive, wanted, texts))
    storage_for(file, layout.stores).put(normal_uri(file), html)


def write_responses(uri: str, file: str) -> None:
    """Write the responses of the run at `uri`, a run of a batch file that is complete, as `vllm run-batch` does."""
    layout, manifest, _ = open_run(uri)
    write_vllm_file(layout, manifest, file, layout.stores)


def require_limits(made: Report, trial: bool = False) -> None:
    """Raise TooManyFailedRows if more rows failed than the spec allows, Stopped if the run exceeded its budget."""
    if made.error_rate > made.max_error_rate:
        raise TooManyFailedRows(
            f"{made.rows_failed:,} of {made.rows:,} rows failed ({made.error_rate:.1%}), "
            f"more than limits.max_error_rate allows ({made.max_error_rate:.1%})",
            "the errors of the rows say what to mend; then try again"
            if trial
            else f"see error_code in {made.output}/data; `batchinfer retry {made.output}` runs the failed rows again",
        )
    if made.max_cost_usd is not None and made.cost_usd > made.max_cost_usd:
        raise Stopped(
            f"the run cost ${made.cost_usd:.4g}, more than limits.max_cost_usd of ${made.max_cost_usd:g}; "
            "every row is in the output",
            "shards in flight when the budget ended were still paid for; set a higher limit, or take smaller shards: "
            "shards.rows",
        )


def conclude(
    layout: Layout,
    spec: JobSpec,
    manifest: Manifest,
    page: bool = True,
    publisher: Callable[[list[ShardRecord], Report], Published | None] | None = None,
    unanswered: Unanswered | None = None,
) -> Report:
    """Write the accounts and the report, with `page` also for a browser, and the files of `output.format`.

    `publisher` writes the results into a table, before the report says that the run is over. `unanswered`: what the
    files of a batch say of requests that never ran.
    """
    records = account_for(layout, manifest)
    made = _report(layout, spec, manifest, records)
    if page and spec.output.format == "openai_batch":
        write_batch_files(layout, manifest, unanswered)
    if publisher is not None:
        made = made.model_copy(update={"published": publisher(records, made)})
    overwrite(layout, layout.report, made.model_dump_json(indent=2).encode())
    if page:
        _write_page(layout, spec, made, records)
    return made


def _write_page(layout: Layout, spec: JobSpec, made: Report, records: list[ShardRecord]) -> None:
    """Write the report for a browser. A run does not fail because of its picture."""
    wanted = spec.evaluate if made.rows <= MOST_COMPARED else None
    try:
        overwrite(layout, layout.page, run_page(_story(layout, spec, made, records, (), wanted, texts=False)))
    except Exception as error:
        events.tell("page not written", reason=str(error))


def _story(
    layout: Layout,
    spec: JobSpec,
    made: Report,
    records: list[ShardRecord],
    alive: Collection[str],
    wanted: EvaluateSpec | None,
    texts: bool,
) -> RunStory:
    plans = [session.plan for session in read_sessions(layout) if session.plan.estimate is not None]
    return RunStory(
        report=made,
        spec_text=to_yaml(spec),
        replicas=replica_accounts(records, read_journals(layout), alive),
        records=records,
        plan=plans[0] if plans else read_plan(layout),
        lengths=lengths(layout, records) if spec.generates else None,
        failed=failed_rows(layout, spec, records, texts),
        texts=texts,
        evaluations=evaluate_results(layout, spec, wanted) if wanted is not None else {},
    )


def account_for(layout: Layout, manifest: Manifest) -> list[ShardRecord]:
    """Complete the accounting and write the replicas' accounts."""
    retried = noted_retry(layout)
    repair(layout, committed_shards(layout), read_accounting(layout), retried)
    records = read_records(layout, manifest, retried)
    # Read before the journals: a journal that changes meanwhile makes the accounts count as older than it.
    of = journals_state(layout)
    write_accounts(layout, replica_accounts(records, read_journals(layout)), of)
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
        sessions=read_sessions(layout),
        totals=totals(records, replicas),
        replicas=replicas,
        rows_in_input=manifest.rows,
        selected_from=manifest.total_rows,
        shards_in_input=len(manifest.shards),
        max_error_rate=spec.limits.max_error_rate,
        max_cost_usd=spec.limits.max_cost_usd,
        tick=manifest.fingerprint.tick,
        labels=spec.labels,
        model=spec.model.source,
        dtype=spec.model.dtype,
        task=spec.task,
        files_skipped=dict(manifest.skipped),
        published=published(layout, manifest.fingerprint.run_id),
    )


def read_plan(layout: Layout) -> Plan | None:
    """The plan of the run, None if the file is missing: the report does without the plan."""
    if layout.storage.stat(layout.plan) is None:
        return None
    with reading(layout.plan, "move it away: the report is made without it"):
        return Plan.model_validate_json(layout.storage.read(layout.plan))

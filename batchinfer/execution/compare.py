"""The variants of a job beside each other: planned, or each run over the same sample of the rows in its own folder.

A variant's run is a run as any other: it resumes, and `report`, `evaluate`, `retry` and `costs` take its folder.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import combinations
from typing import Any

import pyarrow.parquet as pq

from batchinfer.accounting.break_even import apis_beside_plan
from batchinfer.accounting.comparison import (
    Comparison,
    Facts,
    Planned,
    Sampled,
    VariantResult,
    against_best,
    concluded,
)
from batchinfer.accounting.report import Accuracy, Report
from batchinfer.accounting.scores import Judging, judged, scores_against_best
from batchinfer.errors import BatchinferError, EngineError, ModelError, ResourceError, UserError, WorkersLost
from batchinfer.execution import ray_pipeline, runner
from batchinfer.execution.checks import Checked, absolute, check, new_run_id, require_apart, resolved
from batchinfer.execution.evaluate_later import answers_of_results
from batchinfer.execution.judge import JudgedVariant, Scores, judge_answers, planned_judge, require_judge
from batchinfer.execution.plan_job import plan_job
from batchinfer.execution.preview import plan_checked
from batchinfer.execution.progress import Listener
from batchinfer.execution.result_rows import SECONDS, labels_of
from batchinfer.execution.trial import answer_of
from batchinfer.jobspec import JobSpec, SampleSpec
from batchinfer.jobspec.judge_keys import JudgeSpec
from batchinfer.jobspec.printed import printed
from batchinfer.jobspec.variants import Variant
from batchinfer.model.resolve import ModelFacts
from batchinfer.planner import Plan
from batchinfer.prompting.prompts import column_values
from batchinfer.rundir.commit import committed_shards, opened_results
from batchinfer.rundir.paths import Layout
from batchinfer.storage import join

FOLDER = "_compare"
"""The name of the comparisons' folder in the output folder: tools that read folders of data leave names with `_` out.
"""

ROWS = 500
"""Rows of a sample. At 90% right the accuracy's 95% interval is 2.6% wide to either side."""

MARGIN = 0.02
"""How much less accurate than the best the chosen variant may be: a share of the rows."""

_OF_ONE_VARIANT = (ModelError, ResourceError, EngineError, WorkersLost)
"""Errors that end one variant. Any other would end them all."""


@dataclass(slots=True)
class _SampledRow:
    """One row of a variant's sample. `right`: None without a right answer to compare with."""

    answer: frozenset[str] | None
    right: bool | None
    seconds: float | None


@dataclass(slots=True)
class _Prepared:
    """A variant on its way. `whole`: the whole job as it would run with it; None if it cannot."""

    variant: Variant
    spec: JobSpec
    whole: Checked | None = None
    error: BatchinferError | None = None
    plan: Plan | None = None
    report: Report | None = None
    output: str = ""
    rows: dict[Any, _SampledRow] = field(default_factory=dict)


def compare(
    spec: JobSpec,
    variants: Sequence[Variant],
    listener: Listener,
    *,
    rows: int = ROWS,
    seed: int = 0,
    margin: float = MARGIN,
    dry_run: bool = False,
    cluster: str | None = None,
    at: datetime | None = None,
    fresh: bool = False,
    judge: JudgeSpec | None = None,
) -> Comparison:
    """Plan the variants of the job, and unless `dry_run` run each over the same `rows` random rows, one by one.
    `judge`: a model that scores their answers then.

    The same call again goes on where an earlier one ended. A variant that cannot run is told in its place. Raises what
    `run` raises, and UserError if no variant can run.
    """
    job = _once(resolved(spec, at)[0])
    found = [_prepare(one, job, dry_run) for one in variants]
    _require_one(found)
    if judge is not None:
        for prepared in found:
            require_judge(prepared.spec, judge, access=not dry_run)
    judging: Judging | None = None
    scores: dict[str, Scores] = {}
    left = [(one, one.whole) for one in found if one.whole is not None]
    if dry_run:
        for one, whole in left:
            with _noted(one):
                one.plan = plan_checked(whole, listener, cluster)
        if judge is not None:
            judging = _planned_judging(job, judge, found, rows)
    else:
        sample = SampleSpec(rows=rows, seed=seed)
        with ray_pipeline.announced(cluster, listener):
            described = ray_pipeline.describe_cluster()
            for one, whole in left:
                with _noted(one):
                    _run(one, listener, cluster, sample, fresh)
                    if one.report is not None and one.report.rows_ran:
                        one.plan = plan_job(whole, described, measured=[one.report])
            _require_one(found)
            if judge is not None:
                ran = [_ran(one) for one in found if one.error is None and one.rows]
                place = _place(job, sample)
                judging, scores = judge_answers(job, judge, ran, place, listener, cluster=cluster, fresh=fresh)
    _require_one(found)
    made = _compared(job, found, rows, margin, dry_run)
    return concluded(made if judging is None else _with_scores(made, judging, scores))


def _planned_judging(job: JobSpec, judge: JudgeSpec, found: Sequence[_Prepared], rows: int) -> Judging:
    works = [one.plan.workload for one in found if one.plan is not None and one.plan.workload is not None]
    tokens = sum(work.input_tokens + work.output_tokens.mid for work in works) / max(1, len(works))
    return planned_judge(job, judge, sum(min(rows, work.answered) for work in works), tokens)


def _ran(one: _Prepared) -> JudgedVariant:
    return JudgedVariant(one.variant.name, one.variant.folder, one.spec, Layout(one.output, one.spec.storage))


def _place(job: JobSpec, sample: SampleSpec) -> str:
    return join(join(job.output.uri, FOLDER), f"{sample.rows}-rows-{sample.seed}")


def _with_scores(made: Comparison, judging: Judging, scores: Mapping[str, Scores]) -> Comparison:
    """The comparison with what the judge said."""
    scale = (judging.low, judging.high)
    found = {name: judged(one.by_row, one.failed, one.unscored, *scale) for name, one in scores.items()}
    told = {name: one.mean for name, one in found.items() if one.mean is not None}
    best = max(told, key=lambda name: told[name], default="")
    beside = scores_against_best(best, {name: scores[name].by_row for name in told}, scale) if told else {}
    variants = tuple(
        one.model_copy(update={"judged": found.get(one.name), "judged_against_best": beside.get(one.name)})
        for one in made.variants
    )
    return made.model_copy(update={"variants": variants, "judge": judging})


def _once(spec: JobSpec) -> JobSpec:
    """The job as it runs once, and tells nobody: a comparison takes no file and no tick of it."""
    apart = absolute(spec)
    once = {
        "schedule": None,
        "notify": None,
        "lineage": None,
        "input": apart.input.model_copy(update={"incremental": None}),
    }
    return apart.model_copy(update={key: value for key, value in once.items() if getattr(apart, key) != value})


def _prepare(variant: Variant, job: JobSpec, dry_run: bool) -> _Prepared:
    spec = variant.of(job)
    made = _Prepared(variant, spec)
    require_apart(spec)

    # The folder of the comparison, because the output may hold a run of another variant.
    apart = _writing_to(spec, join(spec.output.uri, FOLDER))
    with _noted(made):
        found = check(apart, new_run_id(), access=not dry_run, trial=True)
        made.whole = replace(found, spec=absolute(spec), layout=Layout(spec.output.uri, spec.storage))
    return made


def _writing_to(spec: JobSpec, uri: str, **update: Any) -> JobSpec:
    # A variant is looked at, and is no row of a table.
    return spec.model_copy(update={"output": spec.output.model_copy(update={"uri": uri, "publish": None}), **update})


@contextlib.contextmanager
def _noted(one: _Prepared) -> Iterator[None]:
    """A context in which an error of one variant ends this variant only."""
    try:
        yield
    except _OF_ONE_VARIANT as error:
        one.error = error


def _require_one(found: Sequence[_Prepared]) -> None:
    """Raise UserError if no variant is left."""
    errors = [one.error for one in found if one.error is not None]
    if len(errors) == len(found):
        lines = "\n".join(f"  {one.variant.name}: {one.error.message}" for one in found if one.error is not None)
        raise UserError(f"no variant can run:\n{lines}", errors[0].remedy)


def _run(one: _Prepared, listener: Listener, cluster: str | None, sample: SampleSpec, fresh: bool) -> None:
    spec = one.spec
    one.output = join(_place(spec, sample), one.variant.folder)
    sampled = _writing_to(
        spec,
        one.output,
        input=spec.input.model_copy(update={"sample": sample, "limit": None}),
        # More replicas would load the model to wait.
        resources=spec.resources.model_copy(update={"replicas": 1}),
    )
    listener.event("comparing", variant=one.variant.name, output=one.output)
    one.report = runner.run(sampled, listener, cluster, fresh, timed=True)
    one.rows = _rows(Layout(one.output, spec.storage), sampled)


def _rows(layout: Layout, spec: JobSpec) -> dict[Any, _SampledRow]:
    """The rows of a sample by their ids."""
    made: dict[Any, _SampledRow] = {}
    wanted = spec.evaluate
    if wanted is not None:
        many = spec.output.multi_label
        for table, answers in answers_of_results(layout, spec, wanted, [spec.id_column, SECONDS]):
            columns = (column_values(table, name) for name in (spec.id_column, wanted.expected, "error_code", SECONDS))
            for (name, value, code, seconds), text in zip(zip(*columns, strict=True), answers, strict=True):
                expected, answer = labels_of(value, many), labels_of(text, many)
                right = None if expected is None else expected == answer
                made[name] = _SampledRow(answer, right, None if code is not None else seconds)
        return made
    for shard in sorted(committed_shards(layout)):
        with opened_results(layout, shard) as file:
            found = pq.read_table(file).to_pylist()
        for row in found:
            failed = row["error_code"] is not None
            # Vectors and scores differ in their last digits between any two models.
            told = None if failed or not _comparable(spec) else frozenset([printed(answer_of(spec, row))])
            made[row[spec.id_column]] = _SampledRow(told, None, None if failed else row[SECONDS])
    return made


def _comparable(spec: JobSpec) -> bool:
    return spec.task in ("generate", "classify")


def _compared(job: JobSpec, found: Sequence[_Prepared], rows: int, margin: float, dry_run: bool) -> Comparison:
    results = {one.variant.name: _result(one) for one in found}
    ran = {one.variant.name: one.rows for one in found if one.error is None and one.rows}
    _add_accuracy(results, ran)
    agreement = _agreement(results, ran) if _comparable(job) else {}
    return Comparison(
        job_name=job.name,
        dry_run=dry_run,
        sample_rows=rows,
        margin=margin,
        variants=tuple(results.values()),
        agreement=agreement,
    )


def _result(one: _Prepared) -> VariantResult:
    planned = _planned(one.plan, one.spec.generates) if one.plan is not None and one.error is None else None
    return VariantResult(
        name=one.variant.name,
        settings=dict(one.variant.shown),
        model=one.spec.model.source,
        facts=_facts(one.whole.facts) if one.whole is not None else Facts(),
        problem=None if one.error is None else one.error.message,
        remedy="" if one.error is None else one.error.remedy or "",
        planned=planned,
        sampled=_sampled(one),
        usd_per_thousand_rows=planned.usd_per_thousand_rows if planned is not None else None,
    )


def _facts(facts: ModelFacts) -> Facts:
    entry, shape = facts.entry, facts.shape
    return Facts(
        parameters=shape.parameters().total if shape is not None else None,
        context=facts.context,
        licence=entry.licence.title if entry is not None else None,
        commercial_use=entry.licence.commercial_use if entry is not None else None,
        scores=tuple(entry.scores) if entry is not None else (),
    )


def _planned(plan: Plan, generates: bool) -> Planned:
    made, work = plan.estimate, plan.workload
    return Planned(
        accelerator=plan.accelerator,
        quantization=plan.quantization,
        replicas=plan.max_replicas,
        gpus_per_replica=plan.num_gpus,
        rows=work.answered if work is not None else None,
        hours=made.hours if made is not None else None,
        cost_usd=made.cost_usd if made is not None else None,
        tokens_per_second=made.tokens_per_second if made is not None else None,
        input_tokens=work.input_tokens if work is not None else None,
        output_tokens=work.output_tokens.mid if work is not None else None,
        price_per_gpu_hour=plan.price_per_gpu_hour,
        price_source=plan.price_source,
        apis=apis_beside_plan(plan) if generates else None,
    )


def _sampled(one: _Prepared) -> Sampled | None:
    report = one.report
    if report is None:
        return None
    seconds = sorted(row.seconds for row in one.rows.values() if row.seconds is not None)
    return Sampled(
        output=one.output,
        rows=report.rows,
        rows_failed=report.rows_failed,
        errors=report.errors,
        cost_usd=report.cost_usd,
        load_seconds=report.seconds.load,
        rows_per_second=report.rows_per_second,
        tokens_per_second=report.tokens_per_second,
        input_tokens=report.input_tokens,
        output_tokens=report.output_tokens,
        latency_median=seconds[len(seconds) // 2] if seconds else None,
        latency_95=seconds[int(len(seconds) * 0.95)] if seconds else None,
    )


def _add_accuracy(results: dict[str, VariantResult], ran: Mapping[str, Mapping[Any, _SampledRow]]) -> None:
    """Set the accuracy of each variant, and its difference to the most accurate, on the rows that all of them have."""
    common = set.intersection(*(set(rows) for rows in ran.values())) if ran else set()
    order = [name for name in next(iter(ran.values()), {}) if name in common]
    right = {name: [row for i in order if (row := rows[i].right) is not None] for name, rows in ran.items()}
    if not any(right.values()):
        return

    def worth(name: str) -> tuple[float, float]:
        return sum(right[name]), -(results[name].usd_per_thousand_rows or 0.0)

    best = max(right, key=worth)
    beside = against_best(best, right)
    for name, seen in right.items():
        accuracy, planned = Accuracy.of(sum(seen), len(seen)), results[name].planned
        each = None
        if planned is not None and planned.cost_usd is not None and planned.rows and accuracy.right:
            each = planned.cost_usd.mid / (planned.rows * accuracy.accuracy)
        update = {"accuracy": accuracy, "against_best": beside.get(name), "usd_per_right_answer": each}
        results[name] = results[name].model_copy(update=update)


def _agreement(
    results: dict[str, VariantResult], ran: Mapping[str, Mapping[Any, _SampledRow]]
) -> dict[str, dict[str, float]]:
    """Set how often each variant gives the first one's answer. Returns the share of equal answers of each two."""
    shares: dict[str, dict[str, float]] = {name: {name: 1.0} for name in ran}
    first = next(iter(results))
    for a, b in combinations(ran, 2):
        both = ran[a].keys() & ran[b].keys()
        if both:
            # Two rows that failed agree in nothing.
            same = sum((answer := ran[a][row].answer) is not None and answer == ran[b][row].answer for row in both)
            shares[a][b] = shares[b][a] = same / len(both)
            if a == first:
                results[b] = results[b].model_copy(update={"agreement": Accuracy.of(same, len(both))})
    if first in ran:
        alike = Accuracy.of(len(ran[first]), len(ran[first]))
        results[first] = results[first].model_copy(update={"agreement": alike})
    return shares

"""The page of one run: `_run/report.html`, and what `batchinfer report --html` writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from batchinfer.accounting.break_even import apis_beside_report, volume
from batchinfer.accounting.evaluation import Evaluation
from batchinfer.accounting.ledger import ReplicaAccount
from batchinfer.accounting.money import in_words, money
from batchinfer.accounting.records import ShardRecord
from batchinfer.accounting.report import Report
from batchinfer.accounting.savings import KINDS, reasons, savings, spent_by_kind
from batchinfer.catalog.accelerators import device_cost
from batchinfer.pages import pictures
from batchinfer.pages.document import page
from batchinfer.pages.pictures import Bar, Expected, Life, Picture
from batchinfer.pages.samples import FailedRow, Lengths
from batchinfer.planner import Plan

_CALLED = {
    "work": "work: rows that were committed",
    "load": "load: replicas that started",
    "idle": "idle: ready, without a row",
    "waste": "waste: attempts that were lost",
    "in_flight": "in flight: not committed yet",
}

MOST_LABELS = 20
"""Labels in the picture of a confusion matrix. With more, its cells are too small to read."""


@dataclass(frozen=True, slots=True)
class RunStory:
    """Everything that the page of a run tells. `plan`: the first one that has an estimate, or the last."""

    report: Report
    spec_text: str
    replicas: Sequence[ReplicaAccount]
    records: Sequence[ShardRecord]
    plan: Plan | None
    lengths: Lengths | None = None
    failed: Sequence[FailedRow] = ()
    texts: bool = False
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)


def run_page(story: RunStory) -> bytes:
    """The page, as one file that needs no other."""
    report = story.report
    factors = reasons(report, story.plan) if story.plan is not None else []
    ratio = 1.0
    for factor in factors:
        ratio *= factor.ratio
    apis = apis_beside_report(report)
    return page(
        "run.html",
        f"{report.job_name}: report of a run",
        report=report,
        state=_state(report),
        period=_period(story.replicas),
        cards=list(_cards(report)),
        spent=list(_spent(report)),
        total_hours=_hours(report.seconds.paid),
        by_replica=_by_replica(story),
        timeline=_timeline(story),
        throughput=_throughput(story),
        lengths=list(_lengths(story)),
        planned=_planned(report),
        reasons=factors,
        ratio=ratio,
        quality=[_quality(name, one) for name, one in story.evaluations.items()],
        failed=story.failed,
        texts=story.texts,
        savings=savings(report, story.plan),
        steps=report.steps,
        apis=apis,
        volume=volume,
        spec_text=story.spec_text,
    )


@dataclass(frozen=True, slots=True)
class _Card:
    name: str
    text: str
    below: str
    usd: float | None = None


def _state(report: Report) -> str:
    if report.replicas_running:
        return "running"
    return "complete" if report.complete else f"{report.rows_in_input - report.rows:,} rows still to do"


def _period(replicas: Sequence[ReplicaAccount]) -> str:
    if not replicas:
        return ""
    first, last = min(r.started_at_us for r in replicas), max(r.finished_at_us for r in replicas)
    return f"{_moment(first)} to {_moment(last)} UTC"


def _moment(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M")


def _cards(report: Report) -> Iterator[_Card]:
    per_million = report.cost_per_million_tokens
    yield _Card("cost", "", "" if per_million is None else f"{money(per_million)} per million tokens", report.cost_usd)
    yield _Card("rows", f"{report.rows:,}", f"of {report.rows_in_input:,}")
    yield _Card("failed", f"{report.rows_failed:,}", f"{report.error_rate:.2%}")
    if report.cost_per_thousand_rows is not None:
        yield _Card("per 1,000 rows", "", "", report.cost_per_thousand_rows)
    hours = report.hours
    yield _Card("time", f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min", f"{report.replicas} replicas")
    cached = f", {report.cached_tokens / report.input_tokens:.0%} of the input cached" if report.cached_tokens else ""
    tokens = report.input_tokens + report.output_tokens
    yield _Card("tokens a second", f"{report.tokens_per_second:,.0f}", f"{in_words(tokens)} tokens{cached}")
    if report.overall_accuracy is not None:
        seen = report.overall_accuracy
        yield _Card("accuracy", f"{seen.accuracy:.1%}", f"{seen.low:.1%} to {seen.high:.1%}, of {seen.compared:,}")


def _hours(device_seconds: float) -> str:
    return f"{device_seconds / 3600:,.4g}"


def _spent(report: Report) -> Iterator[dict[str, Any]]:
    dollars, paid = spent_by_kind(report), report.seconds.paid
    for kind in ("work", "load", "idle", "waste", "in_flight"):
        seconds = getattr(report.seconds, kind)
        if kind != "in_flight" or seconds:
            share = seconds / paid if paid else 0.0
            yield {
                "kind": kind, "name": _CALLED[kind], "hours": _hours(seconds), "share": f"{share:.1%}",
                "usd": dollars[kind],
            }  # fmt: skip


def _named(replica: ReplicaAccount) -> str:
    return f"{replica.replica_id[:6]} on {replica.node}"


def _by_replica(story: RunStory) -> Picture | None:
    bars = [
        Bar(
            _named(one),
            {
                kind: device_cost(getattr(one, name), one.price_per_gpu_hour)
                for kind, name in zip(
                    KINDS[:4], ("load_seconds", "work_seconds", "idle_seconds", "wasted_seconds"), strict=True
                )
            },
        )
        for one in story.replicas
    ]
    if not bars:
        return None
    bars.sort(key=lambda bar: -sum(bar.values.values()))
    most = max(bars, key=lambda bar: sum(bar.values.values()))
    says = f"{len(bars):,} replicas; the dearest cost ${sum(most.values.values()):.4g}."
    return pictures.stacked("Cost of each replica", bars, "$", says)


def _timeline(story: RunStory) -> Picture | None:
    shards: dict[str, list[tuple[float, float]]] = {}
    for record in story.records:
        span = (record.started_at_us / 1e6, record.finished_at_us / 1e6)
        shards.setdefault(record.replica_id, []).append(span)
    lives = [
        Life(
            name=_named(one),
            started=one.started_at_us / 1e6,
            ready=None if one.ready_at_us is None else one.ready_at_us / 1e6,
            ended=one.finished_at_us / 1e6,
            shards=sorted(shards.get(one.replica_id, ())),
            killed=one.killed,
        )
        for one in story.replicas
        if one.finished_at_us > one.started_at_us
    ]
    if not lives:
        return None
    dearest = sorted(lives, key=lambda life: life.started - life.ended)[: pictures.MOST_BARS]
    more = f" The {len(dearest)} longest are shown." if len(dearest) < len(lives) else ""
    killed = sum(life.killed for life in lives)
    lost = f" {killed} of them {'was' if killed == 1 else 'were'} lost before the end." if killed else ""
    says = f"What {len(lives):,} replicas did, from start to end, with the shards that they committed.{lost}{more}"
    return pictures.gantt("Replicas and shards over time", dearest, says)


def _throughput(story: RunStory) -> Picture | None:
    spans = [
        (one.started_at_us / 1e6, one.finished_at_us / 1e6, float(one.input_tokens + one.output_tokens))
        for one in story.records
        if one.finished_at_us > one.started_at_us
    ]
    if not spans or not any(tokens for _, _, tokens in spans):
        return None
    says = f"Prompt and answer tokens; {story.report.tokens_per_second:,.0f} a second while a replica was ready."
    return pictures.over_time("Tokens per second", spans, "tokens/s", says)


def _lengths(story: RunStory) -> Iterator[Picture]:
    found = story.lengths
    if found is None:
        return
    of = "" if found.shards == found.of_shards else f", from {found.shards:,} of {found.of_shards:,} shards"
    for title, values in (("Tokens of a prompt", found.prompts), ("Tokens of an answer", found.answers)):
        if any(values):
            ordered = sorted(values)
            middle, high = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]
            says = f"Half of the rows have up to {middle:,}, 99% up to {high:,}{of}."
            yield pictures.histogram(title, values, "tokens, up to", says)
    if any(found.cached_shares):
        mean = sum(found.cached_shares) / len(found.cached_shares)
        says = f"The share of a prompt's tokens that were in the KV cache: {mean:.0%} on average{of}."
        yield pictures.histogram("Cached share of a prompt", found.cached_shares, "share", says, share=True)


def _planned(report: Report) -> Picture | None:
    made = report.planned
    if made is None:
        return None
    figures = [
        Expected(name, one.low, one.mid, one.high, actual)
        for name, one, actual in (
            ("cost", made.cost_usd, report.cost_usd),
            ("hours", made.hours, report.hours),
            ("tokens/s", made.tokens_per_second, report.tokens_per_second),
        )
    ]
    cost = made.cost_usd
    inside = "inside" if cost.low <= report.cost_usd <= cost.high else "outside"
    says = (
        f"The plan said ${cost.mid:.4g} (${cost.low:.4g} to ${cost.high:.4g}); the run cost ${report.cost_usd:.4g}, "
        f"which is {inside} that range."
    )
    return pictures.planned_and_actual("Planned figures, and what they became", figures, says)


def _quality(name: str, made: Evaluation) -> dict[str, Any]:
    of = "" if name == "all" else f" of {name}"
    text = (
        f"Accuracy{of}: {made.accuracy:.1%} ({made.low:.1%} to {made.high:.1%}), "
        f"{made.right:,} of {made.compared:,} rows right."
    )
    shown: list[Picture] = []
    if name == "all":
        if made.confusion and len(made.confusion) <= MOST_LABELS:
            names = list(made.confusion)
            seen = {label for row in made.confusion.values() for label in row}
            columns = [*(label for label in names if label in seen), *sorted(seen - set(names))]
            rows = [[made.confusion[label].get(column, 0) for column in columns] for label in names]
            shown.append(pictures.matrix("Expected and predicted", names, rows, columns, "Rows by both labels."))
        if made.calibration:
            points = [
                (one.confidence, one.accuracy)
                for one in made.calibration
                if one.confidence is not None and one.accuracy is not None
            ]
            error = made.calibration_error or 0.0
            says = f"On the straight line confidence is accuracy; the mean distance is {error:.3f}."
            shown.append(pictures.curve("Calibration", points, "confidence", "accuracy", says, diagonal=True))
        answered = [(one.coverage, one.accuracy) for one in made.abstention if one.accuracy is not None]
        if answered:
            says = "If labels of low confidence were withheld, from right to left: fewer answers, and better ones."
            shown.append(pictures.curve("Accuracy against coverage", sorted(answered), "coverage", "accuracy", says))
    return {"text": text, "pictures": shown}

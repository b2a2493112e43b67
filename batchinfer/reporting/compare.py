"""Variants beside each other, for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from batchinfer.accounting.comparison import Comparison, VariantResult
from batchinfer.accounting.money import money
from batchinfer.accounting.scores import judge_line
from batchinfer.planner import Interval
from batchinfer.reporting.apis import render_apis

MOST_AGREEING = 8
"""Variants up to which a terminal shows how often each two agree; `--json` and `--html` have all."""


def render_comparison(made: Comparison) -> RenderableType:
    """The table, what cannot run, and which variant to take."""
    parts: list[RenderableType] = [_planned(made) if made.dry_run else _measured(made)]
    parts += [Text(f"{one.name}: {one.problem}", "red") for one in made.variants if one.problem is not None]
    if made.judge is not None:
        parts += ["", *([] if made.dry_run else [_scores_of_judge(made)]), Text(judge_line(made.judge))]
    if len(made.variants) > 1 and 1 < len(made.agreement) <= MOST_AGREEING:
        parts += ["", _agreement(made)]
    if any(one.facts.scores for one in made.variants):
        parts += ["", _scores(made)]
    apis = next(
        (one.planned.apis for one in made.variants if one.planned is not None and one.name == made.chosen), None
    )
    if apis is not None:
        parts += ["", render_apis(apis)]
    parts += ["", *map(Text, choice_lines(made))]
    return Group(*parts)


def choice_lines(made: Comparison) -> list[str]:
    """Which variant to take for all rows, at what price, and the rule."""
    taken = next((one for one in made.variants if one.name == made.chosen), None)
    if taken is None or taken.planned is None or taken.planned.cost_usd is None:
        return [made.rule]
    planned = taken.planned
    assert planned.cost_usd is not None
    hours = f" in {_hours(planned.hours)}" if planned.hours is not None else ""
    return [
        f"take {taken.name}: all {planned.rows or 0:,} rows for {money(planned.cost_usd.mid)} "
        f"({money(planned.cost_usd.low)} to {money(planned.cost_usd.high)}){hours}, "
        f"on {planned.replicas} x {planned.accelerator}",
        made.rule,
        "it is set by: " + " ".join(f"--set {key}={value}" for key, value in taken.settings.items() if key != "prompt"),
    ]


def _measured(made: Comparison) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("variant", overflow="fold")
    names = (
        "accuracy",
        "against the best",
        "agrees",
        "$/1,000 rows",
        "$/right answer",
        "rows/s",
        "seconds a row",
        "failed",
    )
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for one in made.variants:
        if one.sampled is None:
            continue
        sample = one.sampled
        seconds = "" if sample.latency_median is None else f"{sample.latency_median:.2f} (95%: {sample.latency_95:.2f})"
        table.add_row(
            one.name,
            "" if one.accuracy is None else _share(one.accuracy.accuracy, one.accuracy.low, one.accuracy.high),
            against(one),
            "" if one.agreement is None or one is made.variants[0] else f"{one.agreement.accuracy:.1%}",
            _usd(one.usd_per_thousand_rows),
            _usd(one.usd_per_right_answer),
            f"{sample.rows_per_second:,.1f}",
            seconds,
            f"{sample.rows_failed:,} of {sample.rows:,}",
            mark(one, made),
        )
    return table


def _scores_of_judge(made: Comparison) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", title="scores of the judge", title_justify="left")
    table.add_column("variant", overflow="fold")
    for name in ("mean score", "against the best", "scored", "without an answer", "no score"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in made.variants:
        seen, pair = one.judged, one.judged_against_best
        if seen is None:
            continue
        mean = "" if seen.mean is None else f"{seen.mean:.2f} ({seen.low:.2f} to {seen.high:.2f})"
        beside = (
            "the best"
            if pair is None
            else (f"{pair.difference:+.2f} ({pair.low:+.2f} to {pair.high:+.2f}), p {pair.p_adjusted:.2g}")
        )
        unscored = ", ".join(f"{code} {count:,}" for code, count in seen.unscored.items())
        table.add_row(
            one.name,
            mean,
            beside if seen.mean is not None else "",
            f"{seen.scored:,} of {seen.rows:,}",
            f"{seen.without_answer:,}",
            unscored or "0",
        )
    return table


def mark(one: VariantResult, made: Comparison) -> str:
    """What a variant is beside the others."""
    return "taken" if one.name == made.chosen else "on the front" if one.on_front else ""


def against(one: VariantResult) -> str:
    """A variant's difference to the most accurate one, with its significance."""
    pair = one.against_best
    if pair is None:
        return "" if one.accuracy is None else "the best"
    return f"{pair.difference:+.1%} ({pair.low:+.1%} to {pair.high:+.1%}), p {pair.p_adjusted:.2g}"


def _planned(made: Comparison) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("variant", overflow="fold")
    for name in ("fits", "layout", "time", "cost", "$/1,000 rows", "tokens/s", "parameters", "context"):
        table.add_column(name, justify="left" if name == "layout" else "right", no_wrap=True)
    table.add_column("licence", overflow="fold")
    for one in made.variants:
        plan, facts = one.planned, one.facts
        weights = "" if plan is None or plan.quantization in ("none", "auto") else f", {plan.quantization}"
        each = "" if plan is None or plan.gpus_per_replica <= 1 else f" of {plan.gpus_per_replica}"
        table.add_row(
            one.name,
            "yes" if plan is not None else "no",
            "" if plan is None else f"{plan.replicas}{each} x {plan.accelerator}{weights}",
            "" if plan is None or plan.hours is None else _hours(plan.hours),
            "" if plan is None or plan.cost_usd is None else money(plan.cost_usd.mid),
            _usd(one.usd_per_thousand_rows),
            "" if plan is None or plan.tokens_per_second is None else f"{plan.tokens_per_second.mid:,.0f}",
            "" if facts.parameters is None else _billions(facts.parameters),
            "" if facts.context is None else f"{facts.context:,}",
            licence(one),
        )
    return table


def licence(one: VariantResult) -> str:
    """A model's licence, and whether it allows commercial use."""
    facts = one.facts
    if facts.licence is None:
        return ""
    allowed = {True: "commercial", False: "not commercial", None: "commercial: it depends"}[facts.commercial_use]
    return f"{facts.licence} ({allowed})"


def _agreement(made: Comparison) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", title="equal answers", title_justify="left")
    table.add_column("")
    for name in made.agreement:
        table.add_column(name, justify="right")
    for name, shares in made.agreement.items():
        table.add_row(name, *(f"{shares[other]:.1%}" if other in shares else "" for other in made.agreement))
    return table


def _scores(made: Comparison) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", title="published scores", title_justify="left")
    for name in ("variant", "benchmark", "score", "source"):
        table.add_column(name, justify="right" if name == "score" else "left", overflow="fold")
    for one in made.variants:
        for score in one.facts.scores:
            marked = "" if score.verified else " (unverified)"
            table.add_row(one.name, score.benchmark, f"{score.value:g}", score.source + marked)
    return table


def _share(value: float, low: float, high: float) -> str:
    return f"{value:.1%} ({low:.1%} to {high:.1%})"


def _usd(value: float | None) -> str:
    return "" if value is None else money(value)


def _hours(value: Interval) -> str:
    unit, factor = ("h", 1.0) if value.mid >= 1 else ("min", 60.0) if value.mid >= 1 / 60 else ("s", 3600.0)
    return f"{value.mid * factor:.3g} {unit}"


def _billions(count: int) -> str:
    return f"{count / 1e9:,.1f}B" if count >= 1e8 else f"{count / 1e6:,.1f}M"

"""A report as text for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from batchinfer.accounting.ledger import StepTotals
from batchinfer.accounting.money import money
from batchinfer.accounting.report import Accuracy, Report, ReportPart, ReportSession


def render(report: Report) -> RenderableType:
    """The report as rich text."""
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column()
    for name, value in _lines(report):
        table.add_row(name, value)
    state = "complete" if report.complete else f"{report.rows_in_input - report.rows:,} rows still to do"
    if report.replicas_running:
        state = f"running, {state}"
    title = Text.assemble((report.job_name, "bold"), f": {report.model}, {_layout(report)}, {state}")
    return Group(title, table)


def _layout(report: Report) -> str:
    parallel = report.tensor_parallel * report.pipeline_parallel
    each = f", {report.tensor_parallel} x {report.pipeline_parallel} (TP x PP) each" if parallel > 1 else ""
    return f"{report.replicas} replica{'s' if report.replicas != 1 else ''} on {report.accelerator}{each}"


def _lines(report: Report) -> list[tuple[str, str]]:
    shards = f"{report.shards:,} shard{'' if report.shards == 1 else 's'}"
    lines = [("rows", f"{report.rows:,} of {report.rows_in_input:,}, in {shards}")]
    if report.selected_from is not None:
        lines.append(("selected", f"{report.rows_in_input:,} of {report.selected_from:,} rows"))
    failed = f"{report.rows_failed:,} ({report.error_rate:.2%})"
    if report.errors:
        failed += ": " + ", ".join(f"{code} {count:,}" for code, count in report.errors.items())
    lines.append(("failed rows", failed))
    if report.finish_reasons:
        lines.append(("finish reasons", ", ".join(f"{r} {n:,}" for r, n in report.finish_reasons.items())))
    if report.overall_accuracy is not None:
        lines.append(("accuracy", _share(report.overall_accuracy)))
    if set(report.accuracy) != {"all"}:
        lines += [(f"accuracy, {group}", _share(seen)) for group, seen in report.accuracy.items()]
    cached = f" ({report.cached_tokens:,} cached)" if report.cached_tokens else ""
    rejected = f"; {report.rejected_tokens:,} in prompts that never ran" if report.rejected_tokens else ""
    thought = f" ({report.reasoning_tokens:,} of thinking)" if report.reasoning_tokens else ""
    lines.append(("tokens", f"{report.input_tokens:,} in{cached}, {report.output_tokens:,} out{thought}{rejected}"))
    if report.tokens_reused:
        lines.append(("reused", _reused(report)))
    lines += [(f"step {name}", _step(step)) for name, step in report.steps.items()]
    lines.append(("speed", f"{report.tokens_per_second:,.0f} tokens/s, {report.rows_per_second:,.1f} rows/s"))
    lines.append(("device time", _seconds(report)))
    lines.append(("cost", _cost(report)))
    if report.planned is not None:
        lines.append(("planned", _planned(report)))
    if len(report.parts) > 1:
        lines += [(_session(session), _part(session)) for session in report.sessions]
    else:
        lines.append(("price", f"${report.price_per_gpu_hour:.6g} per device-hour ({report.price_source})"))
    lines.append(("weights", f"{report.dtype} dtype, {report.quantization} quantization"))
    if report.labels:
        lines.append(("labels", ", ".join(f"{key}={value}" for key, value in sorted(report.labels.items()))))
    for uri, reason in report.files_skipped.items():
        lines.append(("skipped", reason if uri in reason else f"{uri}: {reason}"))
    lines.append(("results", f"{report.output}/data"))
    if report.published is not None:
        lines.append(("table", f"{report.published.table}, version {report.published.version}"))
    return lines


def _reused(report: Report) -> str:
    share = report.rows_reused / report.rows if report.rows else 0.0
    cached = (
        f"; of these from the cache {report.rows_from_cache:,} rows, {report.tokens_from_cache:,} tokens, "
        f"{money(report.saved_by_cache_usd)}"
        if report.tokens_from_cache
        else ""
    )
    return (
        f"{report.rows_reused:,} rows ({share:.1%}), {report.tokens_reused:,} tokens that did not run again, "
        f"about {money(report.saved_usd)} saved{cached}"
    )


def _step(step: StepTotals) -> str:
    cached = f" ({step.cached_tokens:,} cached)" if step.cached_tokens else ""
    reused = f", {step.rows_reused:,} answers reused" if step.rows_reused else ""
    failed = ", ".join(f"{code} {count:,}" for code, count in step.errors.items())
    return (
        f"{step.rows:,} rows, {step.input_tokens:,} tokens in{cached}, {step.output_tokens:,} out{reused}, "
        f"{step.work_seconds:,.1f} s, {money(step.cost_usd)}" + (f"; failed: {failed}" if failed else "")
    )


def _share(seen: Accuracy) -> str:
    return f"{seen.accuracy:.1%} of {seen.compared:,} ({seen.low:.1%} to {seen.high:.1%})"


def _session(session: ReportSession) -> str:
    """The name of a session, for a run whose sessions differ."""
    if not session.session:
        return "earlier"
    return f"session {session.session}" + (f", {session.command}" if session.command == "retry" else "")


def _part(part: ReportPart) -> str:
    parallel = part.tensor_parallel * part.pipeline_parallel
    layout = f", {part.tensor_parallel} x {part.pipeline_parallel} (TP x PP) each" if parallel > 1 else ""
    return (
        f"${part.price_per_gpu_hour:g} per device-hour ({part.price_source}): {part.replicas} on {part.accelerator}"
        f"{layout}, {part.dtype} dtype, {part.quantization} quantization, {money(part.cost_usd)}"
    )


def _seconds(report: Report) -> str:
    seconds = report.seconds
    total = seconds.paid
    parts = [("work", seconds.work), ("load", seconds.load), ("idle", seconds.idle), ("waste", seconds.waste)]
    if report.replicas_running:
        parts.append(("in flight", seconds.in_flight))
    shown = ", ".join(f"{name} {value:,.1f} s ({value / total if total else 0:.0%})" for name, value in parts)
    killed = f"; {report.replicas_killed} of {report.replicas} replicas were lost" if report.replicas_killed else ""
    return shown + killed


def _planned(report: Report) -> str:
    """The estimate of the plan beside the measured cost and time."""
    made = report.planned
    assert made is not None
    cost, hours, speed = made.cost_usd, made.hours, made.tokens_per_second
    return (
        f"{money(cost.mid)} ({money(cost.low)} to {money(cost.high)}) in {_time(hours.mid)}, "
        f"{speed.mid:,.0f} tokens/s; it took {money(report.cost_usd)} and {_time(report.hours)}"
    )


def _time(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:,.1f} min"


def _cost(report: Report) -> str:
    parts = [money(report.cost_usd)]
    if report.cost_per_million_tokens is not None:
        parts.append(f"{money(report.cost_per_million_tokens)} per million tokens")
    if report.cost_per_thousand_rows is not None:
        parts.append(f"{money(report.cost_per_thousand_rows)} per thousand rows")
    return ", ".join(parts)

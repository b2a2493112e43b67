"""A plan as tables for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from batchinfer.accounting.money import money
from batchinfer.catalog import GIB, MIB
from batchinfer.jobspec import LimitsSpec
from batchinfer.planner import Candidate, Interval, Plan, PromptSample, TooLong

_SHOWN = 16
"""Candidates shown on a terminal; `--json` has all."""

FEW_ROWS = 16
"""Rows that run at a time, below which the plan warns of slowness: a step then mostly reads weights from memory."""


def render_plan(plan: Plan, limits: LimitsSpec | None = None) -> RenderableType:
    """The chosen layout, its estimated time and cost, and why other candidates lost. `limits`: the spec's, to compare
    the cost with the budget."""
    where = f"{plan.accelerator}{' (assumed: there is none here)' if plan.assumed else ''}"
    title = Text.assemble((plan.model, "bold"), f", {_weights(plan)}, on {where}")
    limits = limits or LimitsSpec()
    parts: list[RenderableType] = [title, _summary(plan, limits)]
    if plan.sample is not None:
        parts += [Text(line) for line in sample_lines(plan.sample, limits.max_error_rate)]
    if plan.candidates:
        parts += ["", _candidates(plan)]
        if len(plan.candidates) > _SHOWN:
            parts.append(f"and {len(plan.candidates) - _SHOWN} more: see --json")
    return Group(*parts)


def _weights(plan: Plan) -> str:
    if plan.quantization in ("none", "auto"):
        return "weights as they are"
    return f"{plan.quantization} weights{' (quantized while loading)' if plan.online else ''}"


def sample_lines(sample: PromptSample, max_error_rate: float) -> list[str]:
    """The prompts' lengths, a line for each kind of failure in the sample, and a warning if too many rows will fail."""
    lines = []
    if sample.lengths:
        shown = ", ".join(f"up to {bound:,}: {count:,}" for bound, count in sample.lengths)
        lines.append(f"prompts of the sample by tokens: {shown}")
    for code, count in sample.failed.items():
        share = count / sample.rows
        lines.append(f"{share:.0%} of the {sample.rows:,} rows sampled will fail with {code}: {sample.messages[code]}")
    if sample.too_long is not None:
        lines += _remedies(sample.too_long, sample.rows)
    if sample.failed_share > max_error_rate:
        lines.append(
            f"warning: {sample.failed_share:.0%} is more than limits.max_error_rate allows ({max_error_rate:.0%}): "
            "the run would end with exit code 3"
        )
    return lines


def _remedies(found: TooLong, rows: int) -> list[str]:
    """What becomes of prompts that are too long, and what would."""
    lost = f"{found.cut_tokens:,} tokens, {found.cut_tokens / found.prompt_tokens:.1%} of the sample's"
    count = f"{found.rows:,} of the {rows:,} prompts sampled"
    longest = f"the longest has {found.longest:,} tokens, and there is room for {found.room:,}"
    if found.cut:
        lines = [f"{count} are too long and are cut by {lost}: {longest}"]
    else:
        lines = [f"{count} are too long: {longest}", f"  prompt.too_long: truncate would cut {lost}"]
    if found.model_context is None or found.context <= found.model_context:
        lines.append(f"  engine.max_model_len: {found.context} would hold each of them whole")
    else:
        lines.append(
            f"  no context of this model holds them whole: it has {found.model_context:,} tokens, and "
            f"{found.context:,} are needed"
        )
    return lines


def _verdict(cost: Interval, budget: float) -> str:
    if cost.high <= budget:
        return f"covers the estimate: ${budget:g}"
    if cost.low > budget:
        return f"does not cover the estimate: ${budget:g}; the run would stop before its end"
    return f"may not cover the estimate: ${budget:g}"


def _summary(plan: Plan, limits: LimitsSpec) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column()
    table.add_row("layout", _layout(plan))
    if plan.weight_bytes_per_gpu is not None:
        cache = f", KV cache for {plan.kv_cache_tokens:,} tokens" if plan.kv_cache_tokens else ""
        each = "GPU" if plan.num_gpus else "replica"
        table.add_row("memory", f"{_size(plan.weight_bytes_per_gpu)} of weights a {each}{cache}")
        if (rows := _rows_at_a_time(plan)) is not None and rows < FEW_ROWS:
            what = "rows" if plan.workload is None or plan.workload.sequences == 1 else "requests"
            table.add_row("", f"room for about {rows:,.0f} {what} at a time: slow; more GPUs or fewer bits make room")
    if plan.workload is not None:
        work = plan.workload
        table.add_row(
            "work",
            f"{work.rows:,} rows of {work.input_tokens:,.0f} tokens in and {_range(work.output_tokens, ',.0f')} out",
        )
        if work.sequences != 1:
            table.add_row("", f"{work.sequences:,.3g} requests a row, each a sequence of its own")
        if work.repeated is not None and work.repeated.mid:
            low, mid, high = (f"{share:.0%}" for share in (work.repeated.low, work.repeated.mid, work.repeated.high))
            told = f"without the {mid} of the rows ({low} to {high}) that repeat another one of the sample"
            table.add_row("", f"{told}: they take no tokens; repeats further apart make it less")
        table.add_row("", work.source)
    if plan.estimate is not None:
        made = plan.estimate
        unit, factor = ("hours", 1) if made.hours.mid >= 1 else ("minutes", 60)
        table.add_row("time", f"{_range(made.hours.scaled(factor), '.3g')} {unit}")
        table.add_row("cost", f"{_money(made.cost_usd)}; {_money(made.usd_per_million_tokens)} per million tokens")
        a_day = made.tokens_per_second.scaled(86_400)
        table.add_row("speed", f"{_range(made.tokens_per_second, ',.0f')} tokens/s, {_range(a_day, ',.3g')} a day")
        if plan.workload is not None and (of_a_row := plan.workload.input_tokens + plan.workload.output_tokens.mid):
            table.add_row("", f"{_range(a_day.scaled(1 / of_a_row), ',.3g')} rows a day")
        if limits.max_cost_usd is not None:
            table.add_row("budget", _verdict(made.cost_usd, limits.max_cost_usd))
    else:
        table.add_row("time, cost", "not known before a run: no earlier run of this model on this device says more")
    table.add_row("price", f"${plan.price_per_gpu_hour:.6g} per device-hour ({plan.price_source})")
    if plan.idle_gpus:
        table.add_row("", _idle(plan))
    return table


def _rows_at_a_time(plan: Plan) -> float | None:
    if plan.workload is None or not plan.kv_cache_tokens:
        return None
    request = plan.workload.of_sequences
    return plan.kv_cache_tokens / max(1.0, request.input_tokens + request.output_tokens.mid)


def _layout(plan: Plan) -> str:
    count = (
        f"{plan.max_replicas}"
        if plan.min_replicas == plan.max_replicas
        else f"{plan.min_replicas} to {plan.max_replicas}"
    )
    replicas = f"{count} replica{'s' if plan.max_replicas != 1 else ''}"
    if not plan.num_gpus:
        return f"{replicas} on the CPU" + (
            f", tensor parallel {plan.tensor_parallel}" if plan.tensor_parallel > 1 else ""
        )
    text = f"{replicas} of {plan.num_gpus} GPU{'s' if plan.num_gpus > 1 else ''}"
    if plan.num_gpus > 1:
        text += f": tensor parallel {plan.tensor_parallel}, pipeline parallel {plan.pipeline_parallel}"
    if plan.expert_parallel:
        text += ", experts spread"
    return text + (f", over {plan.nodes_per_replica} nodes each" if plan.nodes_per_replica > 1 else "")


def _idle(plan: Plan) -> str:
    """What a layout says that leaves GPUs of its machines idle."""
    count = f"{plan.idle_gpus} of the {plan.machine_gpus} GPUs of the machines"
    if plan.bill == "machine":
        return f"{count} are idle, and paid for (resources.bill: machine)"
    return f"{count} are not used, and not in this cost: with resources.bill: machine they are"


def _size(amount: int) -> str:
    return f"{amount / GIB:,.1f} GiB" if amount >= 0.1 * GIB else f"{amount / MIB:,.1f} MiB"


def _candidates(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("layout", "weights", "fits", "KV tokens", "tokens/s", "hours", "$", "$ per M tokens", "verdict"):
        left = name in ("layout", "weights", "verdict")
        table.add_column(name, justify="left" if left else "right", no_wrap=name != "verdict")
    for candidate in plan.candidates[:_SHOWN]:
        table.add_row(*_row(candidate))
    return table


def _row(candidate: Candidate) -> list[str]:
    made = candidate.estimate
    parallel = f"TP {candidate.tensor_parallel} x PP {candidate.pipeline_parallel}"
    figures = ["", "", "", ""]
    if made is not None:
        figures = [
            f"{made.tokens_per_second.mid:,.0f}",
            f"{made.hours.mid:.3g}",
            f"{made.cost_usd.mid:,.2f}",
            f"{made.usd_per_million_tokens.mid:.3g}",
        ]
    return [
        f"{candidate.replicas} x {parallel}" + (" EP" if candidate.expert_parallel else ""),
        candidate.quantization,
        "yes" if candidate.fit.fits else f"{candidate.fit.shortfall / GIB:,.1f} GiB short",
        f"{candidate.fit.kv_cache_tokens:,}" if candidate.fit.fits else "",
        *figures,
        candidate.verdict,
    ]


def _range(value: Interval, form: str) -> str:
    if f"{value.low:{form}}" == f"{value.high:{form}}":
        return f"{value.mid:{form}}"
    return f"{value.mid:{form}} ({value.low:{form}} to {value.high:{form}})"


def _money(value: Interval) -> str:
    return f"{money(value.mid)} ({money(value.low)} to {money(value.high)})"

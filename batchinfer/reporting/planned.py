"""A plan for a person: what it assumes, what to take, and what else was compared."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from batchinfer.accounting.money import in_words, money
from batchinfer.catalog import GIB, MIB
from batchinfer.jobspec import LimitsSpec
from batchinfer.planner import Candidate, Interval, Plan, PromptSample, TooLong

_SHOWN = 16
"""Candidates shown on a terminal; `--json` has all."""

_CHOSEN = "chosen: "
"""What the verdict of the chosen candidate begins with; the reason follows."""

FEW_ROWS = 16
"""Rows that run at a time, below which the plan warns of slowness: a step then mostly reads weights from memory."""


def render_plan(plan: Plan, limits: LimitsSpec | None = None) -> RenderableType:
    """What the plan assumes, the layout to take with its time and cost, and each layout that was compared. `limits`:
    the spec's, to compare the cost with the budget."""
    limits = limits or LimitsSpec()
    parts: list[RenderableType] = [
        Text.assemble("Plan for ", (plan.model, "bold"), f", {_weights(plan)}, on {_device(plan)}"),
        "",
        Text("It assumes:", "bold"),
        *(Text(f"- {line}") for line in assumption_lines(plan)),
    ]
    if plan.sample is not None and (seen := sample_lines(plan.sample, limits.max_error_rate)):
        parts += ["", *(Text(line) for line in seen)]
    parts += ["", Text(recommendation(plan), "bold")]
    if (details := _details(plan, limits)).row_count:
        parts.append(details)
    if plan.candidates and plan.num_gpus:
        parts += ["", Text("Each layout that was compared (a replica is one copy of the model):"), _candidates(plan)]
        if len(plan.candidates) > _SHOWN:
            parts.append(f"and {len(plan.candidates) - _SHOWN} more: see --json")
        parts += [Text(line) for line in _legend(plan)]
    return Group(*parts)


def _device(plan: Plan) -> str:
    return "the CPU" if plan.accelerator == "cpu" else f"{plan.accelerator} GPUs"


def _weights(plan: Plan) -> str:
    if plan.quantization in ("none", "auto"):
        return "weights as they are"
    return f"{plan.quantization} weights{' (quantized while loading)' if plan.online else ''}"


def assumption_lines(plan: Plan) -> list[str]:
    """What time and cost rest on, a sentence a line: the work, the devices, their price and their speed."""
    lines = []
    work = plan.workload
    if work is not None:
        lengths = f"{work.input_tokens:,.0f} tokens in and {_range(work.output_tokens, ',.0f')} out"
        repeated = work.repeated if work.repeated is not None and work.repeated.mid else None
        some = "" if repeated is None else f", of which {work.rows:,} run,"
        lines += [f"{work.answered:,} row{'' if work.answered == 1 else 's'}{some} of {lengths}", work.source]
        if repeated is not None:
            low, mid, high = (f"{share:.0%}" for share in (repeated.low, repeated.mid, repeated.high))
            lines.append(
                f"{mid} of the rows ({low} to {high}) repeat another one of the sample and take no tokens; less "
                "if repeats lie further apart"
            )
        if work.sequences != 1:
            lines.append(f"{work.sequences:,.3g} requests a row, each a sequence of its own")
    if plan.assumed:
        lines.append(f"the {plan.accelerator} are rented for the run: there is none here")
    what = "replica" if plan.accelerator == "cpu" else "GPU"
    price = f"${plan.price_per_gpu_hour:.6g}"
    lines.append(f"{price} an hour for each {what} ({plan.price_source.removeprefix(f'{price}/h, ')})")
    if plan.idle_gpus:
        lines.append(_idle(plan))
    if plan.estimate is not None:
        lines.append(_speed_source(plan))
    return lines


def _speed_source(plan: Plan) -> str:
    if not plan.num_gpus:
        return "the speed of earlier runs of this model here"
    if plan.calibration is None:
        return (
            "a speed computed from the data sheets of model and GPU: 8 of 10 published throughputs lie in its range; a "
            "first run on some of the rows makes it surer"
        )
    return f"{plan.calibration:.2f} times the computed speed, as earlier runs of this model on this GPU had"


def recommendation(plan: Plan) -> str:
    """The layout to take, its time and cost, and why this one, as one sentence."""
    text = f"Recommended: {_replicas(plan)}"
    made = plan.estimate
    if made is None:
        return f"{text}. Time and cost are not known before a run: `batchinfer try` measures them on some rows."
    text += f", {_hours(made.hours)}, {_money(made.cost_usd)}"
    if plan.candidates and plan.candidates[0].verdict.startswith(_CHOSEN):
        text += f": {plan.candidates[0].verdict.removeprefix(_CHOSEN)}"
    return text + "."


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


def _details(plan: Plan, limits: LimitsSpec) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column()
    made, work = plan.estimate, plan.workload
    if made is not None:
        if limits.max_cost_usd is not None:
            table.add_row("budget", _verdict(made.cost_usd, limits.max_cost_usd))
        a_day = made.tokens_per_second.scaled(86_400)
        if work is not None and (of_a_row := work.input_tokens + work.output_tokens.mid):
            table.add_row("speed", f"{_counts(a_day.scaled(1 / of_a_row))} rows a day")
        table.add_row("", f"{_range(made.tokens_per_second, ',.0f')} tokens/s, {_counts(a_day)} a day")
        table.add_row("tokens", f"{_money(made.usd_per_million_tokens)} per million, in and out")
    if plan.weight_bytes_per_gpu is not None:
        cache = f", KV cache for {plan.kv_cache_tokens:,} tokens" if plan.kv_cache_tokens else ""
        each = "GPU" if plan.num_gpus else "replica"
        table.add_row("memory", f"{_size(plan.weight_bytes_per_gpu)} of weights a {each}{cache}")
        if (rows := _rows_at_a_time(plan)) is not None and rows < FEW_ROWS:
            what = "rows" if work is None or work.sequences == 1 else "requests"
            table.add_row("", f"room for about {rows:,.0f} {what} at a time: slow; more GPUs or fewer bits make room")
    return table


def _rows_at_a_time(plan: Plan) -> float | None:
    if plan.workload is None or not plan.kv_cache_tokens:
        return None
    request = plan.workload.of_sequences
    return plan.kv_cache_tokens / max(1.0, request.input_tokens + request.output_tokens.mid)


def _replicas(plan: Plan) -> str:
    count = (
        f"{plan.max_replicas}"
        if plan.min_replicas == plan.max_replicas
        else f"{plan.min_replicas} to {plan.max_replicas}"
    )
    replicas = f"{count} replica{'s' if plan.max_replicas != 1 else ''}"
    if not plan.num_gpus:
        return f"{replicas} on the CPU" + (
            f" (tensor parallel {plan.tensor_parallel})" if plan.tensor_parallel > 1 else ""
        )
    text = f"{replicas} of {plan.num_gpus} {plan.accelerator}{' each' if plan.max_replicas > 1 else ''}"
    if plan.num_gpus > 1:
        ways = (("tensor parallel", plan.tensor_parallel), ("pipeline parallel", plan.pipeline_parallel))
        cuts = [f"{name} {size}" for name, size in ways if size > 1]
        text += f" ({', '.join(cuts + (['experts spread'] if plan.expert_parallel else []))})"
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
    for name in ("replicas", "GPUs each", "weights", "fits", "KV tokens", "tokens/s", "hours", "$", "$ per M tokens"):
        table.add_column(name, justify="left" if name in ("GPUs each", "weights") else "right", no_wrap=True)
    table.add_column("verdict")
    for candidate in plan.candidates[:_SHOWN]:
        table.add_row(*_row(candidate))
    return table


def _row(candidate: Candidate) -> list[str]:
    made = candidate.estimate
    figures = ["", "", "", ""]
    if made is not None:
        figures = [
            f"{made.tokens_per_second.mid:,.0f}",
            f"{made.hours.mid:.3g}",
            f"{made.cost_usd.mid:,.2f}",
            f"{made.usd_per_million_tokens.mid:.3g}",
        ]
    return [
        f"{candidate.replicas}",
        _split(candidate),
        "as they are" if candidate.quantization == "none" else candidate.quantization,
        "yes" if candidate.fit.fits else f"{candidate.fit.shortfall / GIB:,.1f} GiB short",
        f"{candidate.fit.kv_cache_tokens:,}" if candidate.fit.fits else "",
        *figures,
        candidate.verdict,
    ]


def _split(candidate: Candidate) -> str:
    """The GPUs of a replica, and how the model is cut over them."""
    ways = (("TP", candidate.tensor_parallel), ("PP", candidate.pipeline_parallel))
    cuts = [f"{name} {size}" for name, size in ways if size > 1] + (["EP"] if candidate.expert_parallel else [])
    return f"{candidate.num_gpus}" + (f" ({', '.join(cuts)})" if cuts else "")


def _legend(plan: Plan) -> list[str]:
    """What the short names of the table mean, as far as the table has them."""
    shown = plan.candidates[:_SHOWN]
    names = (
        (any(one.tensor_parallel > 1 for one in shown), "TP: each layer cut over so many GPUs"),
        (any(one.pipeline_parallel > 1 for one in shown), "PP: the layers in so many stages"),
        (any(one.expert_parallel for one in shown), "EP: the experts spread over the GPUs"),
        (True, "KV tokens: tokens that the rows running at a time may have together"),
    )
    return ["; ".join(text for there, text in names if there)]


def _range(value: Interval, form: str) -> str:
    if f"{value.low:{form}}" == f"{value.high:{form}}":
        return f"{value.mid:{form}}"
    return f"{value.mid:{form}} ({value.low:{form}} to {value.high:{form}})"


def _counts(value: Interval) -> str:
    return f"{in_words(value.mid)} ({in_words(value.low)} to {in_words(value.high)})"


def _hours(value: Interval) -> str:
    unit, factor = ("hours", 1) if value.mid >= 1 else ("minutes", 60)
    return f"{_range(value.scaled(factor), '.3g')} {unit}"


def _money(value: Interval) -> str:
    return f"{money(value.mid)} ({money(value.low)} to {money(value.high)})"

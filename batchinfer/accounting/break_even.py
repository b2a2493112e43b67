"""What an API would ask for the same tokens, and from which volume a month own GPUs are cheaper. Pure, but for the
prices, which come with the package."""

from __future__ import annotations

from collections.abc import Sequence

from batchinfer.accounting.money import in_words
from batchinfer.accounting.part import Part
from batchinfer.accounting.report import Report
from batchinfer.catalog.api_prices import ApiPrice, api_prices, prices_source
from batchinfer.planner import Plan

HOURS_OF_A_MONTH = 730
"""Hours that a device which is rented all month is paid for: a twelfth of 8,760."""


class BreakEven(Part):
    """From when a replica that is rented all month is cheaper than an API."""

    tokens_per_month: float
    """Tokens a month, in and out, that cost as much at the API as the replica."""
    utilization: float
    """Those tokens over what the replica can do in a month. Above 1, an API is cheaper at any volume."""


class ApiCost(Part):
    """One API beside the job."""

    price: ApiPrice
    """Its prices."""
    cost_usd: float
    """Dollars for the job's tokens, at the list price."""
    batch_cost_usd: float | None
    """The same at the batch price. null: none is known."""
    usd_per_million_tokens: float
    """Dollars for a million tokens of the job's mixture of prompts and answers."""
    break_even: BreakEven | None
    """Against the list price. null: the replica's speed is not known, or it costs nothing."""
    batch_break_even: BreakEven | None
    """Against the batch price."""


class ApiComparison(Part):
    """The same tokens at APIs."""

    own_cost_usd: float | None
    """Dollars for the job on its own devices, which are paid for while it runs."""
    own_usd_per_month: float
    """Dollars for one replica's devices all month."""
    own_tokens_per_month: float | None
    """Tokens that one replica can do in a month, always busy."""
    source: str
    """Where the prices are from."""
    apis: tuple[ApiCost, ...]
    """The job's own model at its hosts first, then others'."""


def break_even(usd_per_month: float, tokens_per_month: float | None, usd_per_million: float | None) -> BreakEven | None:
    """From how many tokens a month a replica is cheaper than an API at `usd_per_million` tokens.

    The volume is the month's rent over the price of a token, the utilization that volume over the replica's capacity.
    None without a price, a rent or a capacity.
    """
    if not usd_per_million or not tokens_per_month or not usd_per_month:
        return None
    volume = usd_per_month / usd_per_million * 1e6
    return BreakEven(tokens_per_month=volume, utilization=volume / tokens_per_month)


def volume(made: BreakEven | None) -> str:
    """From how many tokens a month own devices win, and how busy they are then, for a person."""
    if made is None:
        return ""
    if made.utilization > 1:
        return "never: it is cheaper"
    return f"{in_words(made.tokens_per_month)}/month ({made.utilization:.1%} busy)"


def compared(
    prices: Sequence[ApiPrice],
    input_tokens: float,
    output_tokens: float,
    own_cost_usd: float | None,
    usd_per_month: float,
    tokens_per_second: float | None,
    source: str = "",
) -> ApiComparison | None:
    """The tokens of a job at these prices; None for a job without tokens. `tokens_per_second`: of one replica."""
    tokens = input_tokens + output_tokens
    if not tokens:
        return None
    capacity = None if tokens_per_second is None else tokens_per_second * 3600 * HOURS_OF_A_MONTH
    made = []
    for price in prices:
        usd, batch = price.usd(input_tokens, output_tokens), price.batch_usd(input_tokens, output_tokens)
        batch_million = None if batch is None else batch / tokens * 1e6
        made.append(
            ApiCost(
                price=price,
                cost_usd=usd,
                batch_cost_usd=batch,
                usd_per_million_tokens=usd / tokens * 1e6,
                break_even=break_even(usd_per_month, capacity, usd / tokens * 1e6),
                batch_break_even=break_even(usd_per_month, capacity, batch_million),
            )
        )
    return ApiComparison(
        own_cost_usd=own_cost_usd,
        own_usd_per_month=usd_per_month,
        own_tokens_per_month=capacity,
        source=source,
        apis=tuple(made),
    )


def apis_beside_plan(plan: Plan) -> ApiComparison | None:
    """The planned tokens at APIs; None for a plan without rows."""
    work, made = plan.workload, plan.estimate
    if work is None:
        return None
    return compared(
        api_prices(plan.model),
        work.rows * work.input_tokens,
        work.rows * work.output_tokens.mid,
        made.cost_usd.mid if made is not None else None,
        plan.devices * plan.price_per_gpu_hour * HOURS_OF_A_MONTH,
        made.tokens_per_second.mid / max(1, plan.max_replicas) if made is not None else None,
        prices_source(),
    )


def apis_beside_report(report: Report) -> ApiComparison | None:
    """The tokens of a run at APIs, and the break-even at its measured speed; None for one that wrote no text."""
    if report.task != "generate":
        return None
    tokens = report.input_tokens + report.output_tokens
    devices = 1 if report.accelerator == "cpu" else report.tensor_parallel * report.pipeline_parallel
    work = report.seconds.work / devices
    return compared(
        api_prices(report.model),
        report.input_tokens,
        report.output_tokens,
        report.cost_usd,
        devices * report.price_per_gpu_hour * HOURS_OF_A_MONTH,
        tokens / work if work else None,
        prices_source(),
    )

"""What a run's own ledger says about the next one: why it cost other than planned, and what would be cheaper. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from batchinfer.accounting.money import money
from batchinfer.accounting.report import Report
from batchinfer.catalog.accelerators import accelerators, device_cost
from batchinfer.planner import Plan

WORTH_SAYING = 0.03
"""Share of the run's cost, below which a saving is not named: below it another run of the same job differs as much."""

KINDS = ("load", "work", "idle", "waste", "in_flight")


@dataclass(frozen=True, slots=True)
class Factor:
    """One reason for which a run cost other than planned: what was assumed, what was, and their ratio."""

    name: str
    planned: float
    actual: float

    @property
    def ratio(self) -> float:
        return self.actual / self.planned if self.planned else float("inf")


@dataclass(frozen=True, slots=True)
class Saving:
    """What would have made the run cheaper, and by how many dollars at most."""

    what: str
    usd: float
    because: str


def spent_by_kind(report: Report) -> dict[str, float]:
    """Dollars for loading, work, idling and waste. They add up to `cost_usd`: each session counts at its own price."""
    return {
        kind: sum(device_cost(getattr(one.seconds, kind), one.price_per_gpu_hour) for one in report.sessions)
        for kind in KINDS
    }


def reasons(report: Report, plan: Plan) -> list[Factor]:
    """Why the cost differs from that of `plan`, the run's first: the ratios multiply to actual over planned cost.

    Empty without an estimate to compare with, and for a run that costs nothing.
    """
    estimate, work = plan.estimate, plan.workload
    tokens = report.input_tokens + report.output_tokens
    if estimate is None or work is None or not tokens or not report.cost_usd or not plan.price_per_gpu_hour:
        return []
    of_a_row = work.input_tokens + work.output_tokens.mid
    planned_seconds = estimate.cost_usd.mid / plan.price_per_gpu_hour * 3600
    return [
        Factor("rows that the engine ran", work.rows, report.rows_ran),
        Factor("tokens of a row, in and out", of_a_row, tokens / report.rows_ran),
        Factor(
            "device-seconds of 1,000 tokens, with loading, idling and waste",
            planned_seconds / (work.rows * of_a_row) * 1000,
            report.seconds.paid / tokens * 1000,
        ),
        Factor("dollars of a device-hour", plan.price_per_gpu_hour, report.price_per_gpu_hour),
    ]


def savings(report: Report, plan: Plan | None) -> list[Saving]:
    """What would have made the run cheaper, the largest first; each is computed from the run's ledger by itself."""
    found = [*_of_load(report), *_of_idle(report), *_of_waste(report), *_of_failures(report), *_of_price(report)]
    if plan is not None:
        found += _of_bits(report, plan)
    least = WORTH_SAYING * report.cost_usd
    return sorted((one for one in found if one.usd > least), key=lambda one: -one.usd)


def _of_load(report: Report) -> Iterable[Saving]:
    """Each replica pays for its own loading, so half of them pay half."""
    most = max((one for one in report.sessions if one.replicas > 1), key=lambda one: one.replicas, default=None)
    if most is not None:
        load = device_cost(most.seconds.load, most.price_per_gpu_hour)
        kept = most.replicas // 2
        yield Saving(
            f"{kept} replica{'s' if kept > 1 else ''} instead of {most.replicas}",
            load * (1 - kept / most.replicas),
            f"loading the model cost {money(load)}, the same for each replica; the run would take about "
            f"{most.replicas / kept:.2g} times as long",
        )
    sessions = [one for one in report.sessions if one.replicas]
    if len(sessions) > 1:
        later = sum(device_cost(one.seconds.load, one.price_per_gpu_hour) for one in sessions[1:])
        yield Saving("one command to the end", later, f"{len(sessions) - 1} more commands loaded the model again")


def _of_idle(report: Report) -> Iterable[Saving]:
    idle = spent_by_kind(report)["idle"]
    yield Saving(
        "smaller shards at the end, or fewer replicas",
        idle,
        f"replicas without a row cost {money(idle)}: they waited for the last shards, or for rows to be read "
        "(shards.rows, resources.replicas)",
    )


def _of_waste(report: Report) -> Iterable[Saving]:
    waste = spent_by_kind(report)["waste"]
    yield Saving(
        "smaller shards",
        waste / 2,
        f"attempts that were lost cost {money(waste)}; {report.replicas_killed} of {report.replicas} replicas were "
        "lost, and half as many rows in a shard lose half as much (shards.rows)",
    )


def _of_failures(report: Report) -> Iterable[Saving]:
    """Rows that fail before the engine runs them cost nothing; the others cost as much as an answer."""
    if report.rows_ran:
        failed = max(0, report.rows_ran - (report.rows - report.rows_failed))
        work = spent_by_kind(report)["work"]
        yield Saving(
            "rows that do not fail",
            work * failed / report.rows_ran,
            f"{failed:,} of the {report.rows_ran:,} rows that ran have no answer in the output, or were run again",
        )


def _of_price(report: Report) -> Iterable[Saving]:
    """The same device from the cheapest provider of the catalog."""
    known = accelerators().get(report.accelerator)
    if known is None or report.accelerator == "cpu" or not known.prices or not report.price_per_gpu_hour:
        return
    cheapest = min(known.prices, key=lambda price: price.usd_per_hour)
    share = 1 - cheapest.usd_per_hour / report.price_per_gpu_hour
    yield Saving(
        f"{report.accelerator} from {cheapest.provider}",
        report.cost_usd * share,
        f"{cheapest}, where this run paid ${report.price_per_gpu_hour:.4g}",
    )


def _of_bits(report: Report, plan: Plan) -> Iterable[Saving]:
    """Weights of fewer bits, by the plan's own estimate for them: it fits, and is cheaper by the same estimator."""
    if plan.estimate is None or not plan.estimate.cost_usd.mid:
        return
    others = [
        one
        for one in plan.candidates
        if one.estimate is not None and one.fit.fits and one.quantization != plan.quantization
    ]
    best = min(others, key=lambda one: one.estimate.cost_usd.mid if one.estimate else 0.0, default=None)
    if best is not None and best.estimate is not None:
        ratio = best.estimate.cost_usd.mid / plan.estimate.cost_usd.mid
        yield Saving(
            f"{best.quantization} weights",
            report.cost_usd * (1 - ratio),
            f"the plan expects {ratio:.0%} of the cost on {best.replicas} x {best.num_gpus} GPUs; whether the answers "
            "are as good is to be tried (batchinfer try --set model.quantization=...)",
        )

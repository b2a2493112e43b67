"""The costs of many runs as a table for a terminal, as JSON, CSV and Parquet."""

from __future__ import annotations

import csv
import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Group, RenderableType
from rich.table import Table

from batchinfer.accounting.costs import CostTable, Sums
from batchinfer.accounting.money import money
from batchinfer.execution.costs import Costs

_SHOWN = 40
"""Groups that a terminal shows; `--json`, `--csv` and `--parquet` have all."""


def render_costs(made: Costs) -> RenderableType:
    """The groups, their sum, the budgets, and what could not be read."""
    table = Table(box=None, pad_edge=False, header_style="bold", show_footer=True)
    for number, name in enumerate(made.table.by):
        table.add_column(name, footer="all" if number == 0 else "", overflow="fold")
    figures = _figures(made.total)
    for name in figures:
        table.add_column(name, justify="right", footer=figures[name], no_wrap=True)
    rows = made.table.rows()
    for key, sums in rows[:_SHOWN]:
        table.add_row(*key, *_figures(sums).values())
    parts: list[RenderableType] = [table]
    if len(rows) > _SHOWN:
        parts.append(f"and {len(rows) - _SHOWN:,} more: see --json, --csv or --parquet")
    window = made.table.window
    since, until = window.since or "the first run", window.until or "now"
    parts.append(f"{made.total.runs:,} runs, from {since} to {until}, days in {window.zone.key}")
    for budget in made.budgets:
        state = "passed" if budget.passed else "kept"
        parts.append(f"budget {budget.key}={budget.value}: {money(budget.spent)} of {money(budget.usd)}, {state}")
    for run in made.unreadable:
        parts.append(f"not counted: {run.root}: {run.problem}")
    return Group(*parts)


def _figures(sums: Sums) -> dict[str, str]:
    return {
        "cost": money(sums.usd),
        "work": money(sums.work_usd),
        "load": money(sums.load_usd),
        "idle": money(sums.idle_usd),
        "waste": money(sums.waste_usd),
        "device-hours": f"{sums.device_hours:,.2f}",
        "rows": f"{sums.rows:,.0f}",
        "tokens": f"{sums.input_tokens + sums.output_tokens:,.0f}",
        "runs": f"{sums.runs:,}",
    }


def costs_document(made: Costs) -> dict[str, Any]:
    """What `batchinfer costs --json` prints. Dollars are numbers."""
    window = made.table.window
    return {
        "by": list(made.table.by),
        "since": None if window.since is None else window.since.isoformat(),
        "until": None if window.until is None else window.until.isoformat(),
        "timezone": window.zone.key,
        "groups": list(made.table.documents()),
        "total": made.total.values(),
        "runs": made.total.runs,
        "budgets": [
            {"key": b.key, "value": b.value, "usd": b.usd, "spent_usd": b.spent, "passed": b.passed}
            for b in made.budgets
        ],
        "unreadable": [{"run": run.root, "problem": run.problem} for run in made.unreadable],
    }


def costs_csv(table: CostTable) -> bytes:
    """The groups as CSV, one line each, with a header."""
    sink = io.StringIO()
    writer = csv.DictWriter(sink, [*table.by, *Sums().values()], lineterminator="\n")
    writer.writeheader()
    writer.writerows(table.documents())
    return sink.getvalue().encode()


def costs_parquet(table: CostTable) -> bytes:
    """The groups as a Parquet file, one row each."""
    kinds = [(name, pa.string()) for name in table.by]
    kinds += [(name, pa.int64() if name == "runs" else pa.float64()) for name in Sums().values()]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(table.documents()), schema=pa.schema(kinds)), sink)
    made: bytes = sink.getvalue().to_pybytes()
    return made

"""A trial for a terminal: its rows, and what the whole job would take."""

from __future__ import annotations

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from batchinfer.accounting.money import money
from batchinfer.execution.trial import Trial, TriedRow
from batchinfer.jobspec.printed import printed
from batchinfer.planner import Interval

NARROW = 100
"""Columns of a terminal below which each row is a block of lines: five columns of a table would be too thin to read."""

SHOWN = 600
"""Characters of a prompt or an answer on a terminal; `--json` has them whole."""


def render_trial(trial: Trial) -> RenderableType:
    """The rows that were tried, and what all rows would take."""
    return Group(_Rows(trial.rows), "", *(Text(line) for line in summary_lines(trial)))


class _Rows:
    """The rows as a table, or as blocks where the terminal is narrow."""

    def __init__(self, rows: tuple[TriedRow, ...]) -> None:
        self._rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if options.max_width < NARROW:
            for row in self._rows:
                yield from _block(row)
            return
        yield rows_table(self._rows)


def rows_table(rows: tuple[TriedRow, ...]) -> Table:
    """The rows with their prompts and answers."""
    table = Table(show_lines=True, header_style="bold", expand=True)
    table.add_column("row", ratio=2, overflow="fold")
    table.add_column("prompt", ratio=10, overflow="fold")
    table.add_column("answer", ratio=6, overflow="fold")
    table.add_column("tokens", no_wrap=True, justify="right")
    table.add_column("seconds", no_wrap=True, justify="right")
    for row in rows:
        table.add_row(_text(row.id), _text(row.prompt), _answer(row), _tokens(row), f"{row.seconds:.2f}")
    return table


def _block(row: TriedRow) -> list[RenderableType]:
    head = Text.assemble((f"row {row.id}", "bold"), f"  {_tokens(row)} tokens, {row.seconds:.2f} s")
    prompt = Text("prompt: ", "dim").append_text(_text(row.prompt))
    return [head, prompt, Text("answer: ", "dim").append_text(_answer(row)), ""]


def _tokens(row: TriedRow) -> str:
    cut = f" (cut by {row.truncated_tokens:,})" if row.truncated_tokens else ""
    return f"{row.input_tokens:,} in{cut}, {row.output_tokens:,} out"


def _answer(row: TriedRow) -> Text:
    text = Text() if row.answer is None else _text(row.answer)
    if row.finish_reason == "length":
        text.append(" (cut at max_tokens)", "yellow")
    if row.error_code is not None:
        text.append(("\n" if text.plain else "") + f"{row.error_code}: {row.error_message}", "red")
    return text


def _text(value: object) -> Text:
    """A value, shortened in its middle."""
    text = "(none)" if value is None else printed(value)
    if len(text) > SHOWN:
        left = len(text) - SHOWN
        text = f"{text[: SHOWN * 2 // 3]} [... {left:,} characters ...] {text[-SHOWN // 3 :]}"
    # Control characters of a row would move the terminal's cursor.
    return Text("".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text))


def summary_lines(trial: Trial) -> list[str]:
    """What was tried, and the time, the dollars and the tokens of all rows by it."""
    report, plan = trial.report, trial.plan
    failed = f"{report.rows_failed:,} failed" if report.rows_failed else "none failed"
    lines = [
        f"tried {len(trial.rows):,} of {trial.rows_in_input:,} rows, {trial.chosen}: {failed}; "
        f"{money(report.cost_usd)}, kept in {trial.output}"
    ]
    if plan.workload is not None:
        work, rows = plan.workload, plan.workload.rows
        tokens = f"{work.input_tokens * rows:,.0f} in, {_range(work.output_tokens.scaled(rows), ',.0f')} out"
        unlike = "" if rows == work.answered else f", {rows:,} of them with a request of their own"
        failing = trial.rows_in_input - work.answered
        without = f" without about {failing:,} that will fail" if failing > 0 else ""
        lines.append(f"all {trial.rows_in_input:,} rows{without}{unlike}: {tokens} tokens")
    if plan.estimate is None:
        lines.append("time, cost: not known, as no row ran in the engine")
        return lines
    hours = plan.estimate.hours
    unit, factor = ("hours", 1) if hours.mid >= 1 else ("minutes", 60) if hours.mid >= 1 / 60 else ("seconds", 3600)
    cost = plan.estimate.cost_usd
    lines.append(
        f"  time {_range(hours.scaled(factor), '.3g')} {unit}, "
        f"cost {money(cost.mid)} ({money(cost.low)} to {money(cost.high)}), on {plan.max_replicas} x {plan.accelerator}"
    )
    return lines


def _range(value: Interval, form: str) -> str:
    low, mid, high = (f"{figure:{form}}" for figure in (value.low, value.mid, value.high))
    return mid if low == high else f"{mid} ({low} to {high})"

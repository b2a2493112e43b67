"""Reports, plans and trials for a notebook: the tables of the terminal as HTML, and a picture of the device time."""

from __future__ import annotations

import html
import io

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from batchinfer.accounting.money import money
from batchinfer.accounting.report import Report, Seconds
from batchinfer.execution.progress import Progress
from batchinfer.execution.trial import Trial
from batchinfer.jobspec import LimitsSpec
from batchinfer.planner import Plan
from batchinfer.reporting.planned import render_plan
from batchinfer.reporting.terminal import render
from batchinfer.reporting.tried import rows_table, summary_lines

_COLOURS = {"work": "#2f855a", "load": "#3182ce", "idle": "#a0aec0", "waste": "#c53030", "in flight": "#805ad5"}
"""The kinds of device time, in the order in which the bar shows them."""

_WIDTH, _HEIGHT = 600, 14
_CELL = "vertical-align: top; white-space: pre-wrap"


def text_of(shown: RenderableType) -> str:
    """What a terminal of 160 columns would show."""
    console = Console(file=io.StringIO(), width=160, highlight=False)
    with console.capture() as captured:
        console.print(shown)
    return captured.get()


def report_html(report: Report) -> str:
    """The report: its table and its device time."""
    return html_of(render(report)) + seconds_svg(report.seconds)


def plan_html(plan: Plan, limits: LimitsSpec) -> str:
    """The plan: its estimate and its candidates."""
    return html_of(render_plan(plan, limits))


def trial_html(trial: Trial) -> str:
    """The rows that were tried, and what all rows would take."""
    return html_of(Group(rows_table(trial.rows), *summary_lines(trial)))


def html_of(shown: RenderableType) -> str:
    """Groups, tables and lines as HTML; anything else as the text that a terminal would show."""
    if isinstance(shown, Group):
        return "".join(map(html_of, shown.renderables))
    if isinstance(shown, Table):
        return _table(shown)
    text = _plain(shown).strip()
    return f'<div style="white-space: pre-wrap">{html.escape(text)}</div>' if text else ""


def _table(table: Table) -> str:
    head = ""
    if table.show_header:
        names = "".join(
            f'<th style="text-align: {c.justify}">{html.escape(_plain(c.header))}</th>' for c in table.columns
        )
        head = f"<thead><tr>{names}</tr></thead>"
    rows = zip(*(list(column.cells) for column in table.columns), strict=True)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td style="text-align: {column.justify}; {_CELL}">{_cell(column.style, cell)}</td>'
            for column, cell in zip(table.columns, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table>{head}<tbody>{body}</tbody></table>"


def _cell(style: object, cell: RenderableType) -> str:
    text = html.escape(_plain(cell))
    return f"<b>{text}</b>" if style == "bold" else text


def _plain(shown: RenderableType) -> str:
    if isinstance(shown, str):
        return shown
    return shown.plain if isinstance(shown, Text) else text_of(shown)


def seconds_svg(seconds: Seconds) -> str:
    """A bar of the device time by what it was spent on; empty before there is any."""
    parts = {name: getattr(seconds, name.replace(" ", "_")) for name in _COLOURS}
    total = sum(parts.values())
    if not total:
        return ""
    at, bars, names = 0.0, [], []
    for name, value in parts.items():
        width = _WIDTH * value / total
        title = f"{name} {value:,.1f} s ({value / total:.0%})"
        if value:
            bars.append(
                f'<rect x="{at:.1f}" width="{width:.1f}" height="{_HEIGHT}" fill="{_COLOURS[name]}">'
                f"<title>{title}</title></rect>"
            )
            names.append(f'<span style="color: {_COLOURS[name]}">&#9632;</span> {title}')
        at += width
    bar = f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="device time">{"".join(bars)}</svg>'
    return f"<div>{bar}<br><small>{' &nbsp; '.join(names)}</small></div>"


def progress_html(progress: Progress) -> str:
    """A bar of the rows that are done, with speed, cost and time left."""
    return (
        f'<progress value="{progress.rows_done}" max="{max(1, progress.rows_total)}" style="width: 20em"></progress> '
        + html.escape(progress_line(progress))
    )


def progress_line(progress: Progress) -> str:
    """The same as one line of text."""
    left = progress.seconds_left
    parts = [
        f"{progress.rows_done:,} of {progress.rows_total:,} rows",
        f"{progress.tokens_per_second:,.0f} tokens/s",
        money(progress.cost_usd),
    ]
    if progress.rows_failed:
        parts.insert(1, f"{progress.rows_failed:,} failed")
    if left is not None and progress.rows_done < progress.rows_total:
        parts.append(f"{int(left) // 60}:{int(left) % 60:02d} left")
    return ", ".join(parts)

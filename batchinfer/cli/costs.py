"""The command that adds up what many runs cost."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import typer

from batchinfer.cli.app import AsJson, Html, app, console, print_json
from batchinfer.errors import UserError

Places = Annotated[list[str], typer.Argument(metavar="URI...", help="Folders or buckets that hold runs, at any depth.")]
By = Annotated[
    list[str] | None,
    typer.Option(
        "--by", metavar="KEY", help="Group by job, model, accelerator, day, month, or a label's name. Repeatable."
    ),
]
Since = Annotated[str | None, typer.Option("--since", metavar="DAY", help="First day to include, such as 2026-11-01.")]
Until = Annotated[str | None, typer.Option("--until", metavar="DAY", help="Last day to include.")]
Month = Annotated[
    str | None,
    typer.Option("--month", metavar="MONTH", help="One month, such as 2026-11, instead of --since and --until."),
]
Zone = Annotated[str, typer.Option("--timezone", metavar="ZONE", help="Time zone of the days, such as Europe/Berlin.")]
Budgets = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        metavar="KEY=VALUE:USD",
        help="Exit with 3 if these runs cost more than USD. Example: team=search:500.",
    ),
]
Csv = Annotated[str | None, typer.Option("--csv", metavar="FILE", help="Write the groups as CSV.")]
Parquet = Annotated[str | None, typer.Option("--parquet", metavar="FILE", help="Write the groups as Parquet.")]
Focus = Annotated[
    str | None,
    typer.Option("--focus", metavar="FILE", help="Write FOCUS 1.2 rows for FinOps tools: FILE.csv or FILE.parquet."),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Read every run again and cache nothing on this machine.")]


@app.command()
def costs(
    places: Places,
    by: By = None,
    since: Since = None,
    until: Until = None,
    month: Month = None,
    timezone: Zone = "UTC",
    budget: Budgets = None,
    as_json: AsJson = False,
    csv: Csv = None,
    parquet: Parquet = None,
    html: Html = None,
    focus: Focus = None,
    no_cache: NoCache = False,
) -> None:
    """Add up what runs cost: all that lie at or below some places, by label, job, model, device, day or month."""
    from batchinfer.accounting.costs import Budget, Window
    from batchinfer.execution.costs import costs as costs_of
    from batchinfer.execution.costs import costs_story
    from batchinfer.pages import costs_page
    from batchinfer.reporting.costs import costs_csv, costs_document, costs_parquet, render_costs
    from batchinfer.reporting.focus import FocusRows
    from batchinfer.rundir.find_runs import default_cache
    from batchinfer.storage import normal_uri, storage_for

    first, last = _days(since, until, month)
    window = Window(first, last, _zone(timezone))
    budgets = [Budget.parse(text) for text in budget or []]
    keys = by or ["job"]
    cache = None if no_cache else default_cache()
    if focus is not None and not focus.endswith((".csv", ".parquet")):
        raise UserError(f"--focus {focus}: that names no format", "end it in .csv or .parquet")
    rows = FocusRows(window)
    each = rows.add if focus is not None else None
    pages: list[tuple[str, bytes]] = []
    if html is not None:
        made, story = costs_story(places, keys, window, budgets, cache=cache, each=each)
        pages.append((html, costs_page(story)))
    else:
        made = costs_of(places, keys, window, budgets, cache=cache, each=each)
    if focus is not None:
        pages.append((focus, rows.csv() if focus.endswith(".csv") else rows.parquet()))
    if csv is not None:
        pages.append((csv, costs_csv(made.table)))
    if parquet is not None:
        pages.append((parquet, costs_parquet(made.table)))
    for file, data in pages:
        storage_for(file, {}).put(normal_uri(file), data)
    if as_json:
        print_json(costs_document(made))
    else:
        console().print(render_costs(made))
        for file, _ in pages:
            print(f"wrote {file}")
    made.require_budgets()


def _days(since: str | None, until: str | None, month: str | None) -> tuple[date | None, date | None]:
    if month is None:
        return _day("--since", since), _day("--until", until)
    if since is not None or until is not None:
        raise UserError("--month does not go with --since and --until", "give one or the other")
    begin = _day("--month", f"{month}-01")
    assert begin is not None
    return begin, (begin + timedelta(days=31)).replace(day=1) - timedelta(days=1)


def _day(option: str, text: str | None) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise UserError(f"{option}: {text!r} is not a day", "write it as 2026-11-20") from None


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise UserError(f"--timezone: {name!r} is not a time zone", "write it as Europe/Berlin, or UTC") from None

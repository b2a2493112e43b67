"""`batchinfer try`: a few rows first."""

from __future__ import annotations

from typing import Annotated

import typer

from batchinfer.cli.app import Address, AsJson, Overrides, SpecPath, app, console, listened, print_json
from batchinfer.cli.schedule import At, Date, run_times

Number = Annotated[int, typer.Option("-n", "--number", min=1, help="Number of rows, spread over the input.")]
Ids = Annotated[
    str | None, typer.Option("--rows", metavar="ID,ID", help="Run the rows with these ids or row numbers instead.")
]


@app.command("try")
def try_(
    spec: SpecPath,
    number: Number = 20,
    rows: Ids = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    address: Address = None,
    date: Date = None,
    at: At = None,
) -> None:
    """Run a few rows through the whole job, show their answers, and say what all rows would take."""
    from batchinfer.execution import reports, runner
    from batchinfer.jobspec import load
    from batchinfer.reporting.tried import render_trial

    loaded = load(spec, overrides or [])
    times = run_times(loaded, date, at, None, None)
    ids = [one.strip() for one in rows.split(",") if one.strip()] if rows is not None else []
    one = times[0] if times else None
    made = listened(lambda listener: runner.try_rows(loaded, listener, number, ids, address, one), loaded.storage)
    if as_json:
        print_json(made.document())
    else:
        console().print(render_trial(made))
    if not ids:
        # Rows that were named are looked at, whatever became of them.
        reports.require_limits(made.report, trial=True)

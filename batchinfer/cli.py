"""The command line: parse, call one use case, print, exit."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from batchinfer import __version__
from batchinfer.cli_schedule import At, Date, From, To, run_times, schedule_app
from batchinfer.errors import BatchinferError

if TYPE_CHECKING:
    from batchinfer.progress import Listener
    from batchinfer.report import Report
    from batchinfer.storage import Stores

# Both report usage to their makers unless told not to; set before either is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

app = typer.Typer(
    help="Run a model over every row of a corpus, each row exactly once, and account for every cent.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(schedule_app, name="schedule")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"batchinfer {__version__}")
        raise typer.Exit


SpecPath = Annotated[str, typer.Argument(metavar="SPEC", help="The job spec, a YAML file.")]
RunUri = Annotated[str, typer.Argument(metavar="RUN_URI", help="The output.uri of a job that was run.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, as sampling.max_tokens=32. Repeatable."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Throw this run's earlier results away and begin anew.")]
Version = Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")]
Address = Annotated[
    str | None,
    typer.Option("--address", envvar="RAY_ADDRESS", help="A running Ray cluster; without it one is started here."),
]


@app.command()
def validate(spec: SpecPath, overrides: Overrides = None, date: Date = None, at: At = None) -> None:
    """Check the spec, the model, the input and the output, and start nothing."""
    from batchinfer import runner

    loaded = runner.load_spec(spec, overrides or [])
    times = run_times(loaded, date, at, None, None)
    checked = runner.validate(loaded, times[0] if times else None)
    manifest = checked.manifest
    done = f", {len(checked.committed)} of them done already" if checked.resumed else ""
    print(f"{spec} is valid: {manifest.rows:,} rows in {len(manifest.shards):,} shards{done}")


@app.command()
def plan(
    spec: SpecPath,
    overrides: Overrides = None,
    as_json: AsJson = False,
    address: Address = None,
    date: Date = None,
    at: At = None,
) -> None:
    """Say how the job would be laid out, how long it would take and what it would cost; start nothing."""
    from batchinfer import runner
    from batchinfer.console import attending
    from batchinfer.report import render_plan

    loaded = runner.load_spec(spec, overrides or [])
    times = run_times(loaded, date, at, None, None)
    with attending(loaded.storage) as listener:
        made = runner.plan(loaded, listener, address, times[0] if times else None)
    if as_json:
        _print_json(made.document())
    else:
        _console().print(render_plan(made))


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the models of the catalog."""
    from batchinfer import catalog, report

    known = catalog.models().values()
    if as_json:
        _print_json(report.models_document(known))
    else:
        _console().print(report.models_table(known))


@app.command()
def gpus(as_json: AsJson = False) -> None:
    """List the accelerators of the catalog, with their list prices."""
    from batchinfer import catalog, report

    if as_json:
        _print_json(report.accelerators_document(catalog.accelerators()))
    else:
        _console().print(report.accelerators_table(catalog.accelerators()))


@app.command()
def run(
    spec: SpecPath,
    overrides: Overrides = None,
    fresh: Fresh = False,
    as_json: AsJson = False,
    address: Address = None,
    date: Date = None,
    at: At = None,
    first: From = None,
    last: To = None,
) -> None:
    """Run the job, or go on where an earlier run of it stopped, and print the report."""
    from batchinfer import runner, ticker

    loaded = runner.load_spec(spec, overrides or [])
    times = run_times(loaded, date, at, first, last)
    if len(times) > 1:
        _attended(lambda listener: ticker.backfill(loaded, times, listener, address, fresh), as_json, loaded.storage)
    else:
        one = times[0] if times else None
        _attended(lambda listener: ticker.run(loaded, listener, address, fresh, one), as_json, loaded.storage)


@app.command()
def retry(uri: RunUri, as_json: AsJson = False, address: Address = None) -> None:
    """Run the failed rows of a run again, and put what they give into their places."""
    from batchinfer import runner

    _attended(lambda listener: runner.retry(uri, listener, address), as_json, {})


@app.command()
def report(uri: RunUri, as_json: AsJson = False) -> None:
    """Print the report of a run, from its accounting."""
    from batchinfer import runner

    _print(runner.report(uri), as_json)


@app.callback()
def _options(
    version: Version = False,
) -> None:
    pass


def _attended(command: Callable[[Listener], Report | list[Report]], as_json: bool, stores: Stores) -> None:
    """Run a command, print its report or reports, and let its failed rows decide the exit code."""
    from batchinfer import runner
    from batchinfer.console import attending

    with attending(stores) as listener:
        made = command(listener)
    _print(made, as_json)
    for report in made if isinstance(made, list) else [made]:
        runner.require_error_rate(report)


def _print(made: Report | list[Report], as_json: bool) -> None:
    from batchinfer.report import render

    if as_json and isinstance(made, list):
        print(json.dumps([report.model_dump(mode="json") for report in made], indent=2))
    elif as_json and not isinstance(made, list):
        print(made.model_dump_json(indent=2))
    else:
        for report in made if isinstance(made, list) else [made]:
            _console().print(render(report))


def _print_json(document: object) -> None:
    print(json.dumps(document, indent=2, ensure_ascii=False))


def _console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def main() -> None:
    """Run the command; every BatchinferError becomes one message and its exit code."""
    try:
        app()
    except BatchinferError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.remedy:
            print(f"  -> {error.remedy}", file=sys.stderr)
        sys.exit(error.exit_code)

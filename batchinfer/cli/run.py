"""Running jobs here, and looking at what is known and what was run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from batchinfer.cli.app import Address, AsJson, Fresh, Overrides, RunUri, SpecPath, app, console, listened, print_json

if TYPE_CHECKING:
    from batchinfer.progress import Listener
    from batchinfer.report import Report
    from batchinfer.storage import Stores


@app.command()
def validate(spec: SpecPath, overrides: Overrides = None) -> None:
    """Check the spec, the model, the input and the output, and start nothing."""
    from batchinfer import runner

    checked = runner.validate(runner.load_spec(spec, overrides or []))
    manifest = checked.manifest
    done = f", {len(checked.committed)} of them done already" if checked.resumed else ""
    print(f"{spec} is valid: {manifest.rows:,} rows in {len(manifest.shards):,} shards{done}")


@app.command()
def plan(spec: SpecPath, overrides: Overrides = None, as_json: AsJson = False, address: Address = None) -> None:
    """Say how the job would be laid out, how long it would take and what it would cost; start nothing."""
    from batchinfer import runner
    from batchinfer.report import render_plan

    loaded = runner.load_spec(spec, overrides or [])
    made = listened(lambda listener: runner.plan(loaded, listener, address), loaded.storage)
    if as_json:
        print_json(made.document())
    else:
        console().print(render_plan(made))


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the models of the catalog."""
    from batchinfer import catalog, report

    known = catalog.models().values()
    if as_json:
        print_json(report.models_document(known))
    else:
        console().print(report.models_table(known))


@app.command()
def gpus(as_json: AsJson = False) -> None:
    """List the accelerators of the catalog, with their list prices."""
    from batchinfer import catalog, report

    if as_json:
        print_json(report.accelerators_document(catalog.accelerators()))
    else:
        console().print(report.accelerators_table(catalog.accelerators()))


@app.command()
def run(
    spec: SpecPath,
    overrides: Overrides = None,
    fresh: Fresh = False,
    as_json: AsJson = False,
    address: Address = None,
) -> None:
    """Run the job, or go on where an earlier run of it stopped, and print the report."""
    from batchinfer import runner

    loaded = runner.load_spec(spec, overrides or [])
    _attended(lambda listener: runner.run(loaded, listener, address, fresh), as_json, loaded.storage)


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


def _attended(command: Callable[[Listener], Report], as_json: bool, stores: Stores) -> None:
    """Run a command, print its report, and let its failed rows decide the exit code."""
    from batchinfer import runner

    made = listened(command, stores)
    _print(made, as_json)
    runner.require_error_rate(made)


def _print(made: Report, as_json: bool) -> None:
    from batchinfer.report import render

    if as_json:
        print(made.model_dump_json(indent=2))
    else:
        console().print(render(made))

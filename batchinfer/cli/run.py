"""The commands for jobs on this machine, for the catalog, and for the reports of runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchinfer.cli.app import Address, AsJson, Fresh, Html, Overrides, RunUri, SpecPath, Yes, app, console, print_json
from batchinfer.cli.schedule import At, Date, From, To, run_times
from batchinfer.errors import UserError

if TYPE_CHECKING:
    from datetime import datetime

    from batchinfer.accounting.report import Report
    from batchinfer.execution.progress import Listener
    from batchinfer.input.manifest import Manifest
    from batchinfer.storage import Stores


Evaluate = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Compare the answers again. Example: evaluate.expected=COLUMN."),
]
WithTexts = Annotated[
    bool, typer.Option("--with-texts", help="With --html: include messages and answers of failed rows.")
]
Expected = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="Column with the expected answers. Default: evaluate.expected.")
]
By = Annotated[str | None, typer.Option(metavar="COLUMN", help="Also report each value of this column separately.")]
Gpus = Annotated[
    int | None,
    typer.Option("--gpus", min=1, help="Assume this many GPUs of the kind that resources.accelerator names."),
]
Rows = Annotated[
    float | None,
    typer.Option(
        "--rows", min=1, help="Assume this many rows, such as 1e6, without reading the input. Needs --in and --out."
    ),
]
TokensIn = Annotated[float | None, typer.Option("--in", min=1, help="Assume prompts of this many tokens.")]
TokensOut = Annotated[float | None, typer.Option("--out", min=0, help="Assume answers of this many tokens.")]


@app.command()
def validate(spec: SpecPath, overrides: Overrides = None, date: Date = None, at: At = None) -> None:
    """Check the spec, the model, the input and the output, and start nothing."""
    from batchinfer.execution import preview
    from batchinfer.jobspec import load
    from batchinfer.jobspec.constraints import advice
    from batchinfer.model.thinking import thinking_line
    from batchinfer.prompting.typed import type_lines
    from batchinfer.reporting import sample_lines

    loaded = load(spec, overrides or [])
    times = run_times(loaded, date, at, None, None)
    checked = preview.validate(loaded, times[0] if times else None)
    manifest = checked.manifest
    done = f", {len(checked.committed)} of them done already" if checked.resumed else ""
    shards = len(manifest.shards)
    print(f"{spec} is valid: {manifest.rows_of_all} in {shards:,} shard{'' if shards == 1 else 's'}{done}")
    print(_read_by(manifest))
    for uri, reason in manifest.skipped:
        print(f"skips {uri}: {reason}")
    if manifest.hint is not None:
        print(manifest.hint)
    told = advice(loaded.output, loaded.sampling)
    if told is not None:
        print(told)
    for line in type_lines(loaded.output):
        print(line)
    published = preview.publish_line(checked)
    if published is not None:
        print(published)
    thinking = thinking_line(checked.spec, checked.facts.folder)
    if thinking is not None:
        print(thinking)
    for line in sample_lines(preview.forecast(checked), checked.spec.limits.max_error_rate):
        print(line)
    print("not checked here: whether the cluster has the devices and the memory; `batchinfer plan` says")


_NAMED = 5
"""Files that are left out and shown by name; further ones are only counted."""


def _read_by(manifest: Manifest) -> str:
    """The number of files that the run reads, and the files beside them that it does not."""
    sizes = [entry.size for entry in manifest.entries]
    files = len(sizes) + len(manifest.empty_files)
    text = f"it reads {files:,} file{'s' if files != 1 else ''} of {sum(sizes):,} bytes"
    if manifest.fingerprint.table_version is not None:
        text += f", of the table's version {manifest.fingerprint.table_version or 'without rows'}"
    if manifest.left_out:
        more = ", ..." if len(manifest.left_out) > _NAMED else ""
        text += f", and leaves out {len(manifest.left_out):,}: {', '.join(manifest.left_out[:_NAMED])}{more}"
    return text


@app.command()
def plan(
    spec: SpecPath,
    overrides: Overrides = None,
    as_json: AsJson = False,
    address: Address = None,
    date: Date = None,
    at: At = None,
    gpus: Gpus = None,
    rows: Rows = None,
    tokens_in: TokensIn = None,
    tokens_out: TokensOut = None,
) -> None:
    """Print the layout, time and cost that the job would have; start nothing."""
    from batchinfer.accounting.break_even import apis_beside_plan
    from batchinfer.execution import preview
    from batchinfer.jobspec import load
    from batchinfer.reporting import render_plan
    from batchinfer.reporting.apis import render_apis
    from batchinfer.reporting.console import attending

    loaded = load(spec, overrides or [])
    times = run_times(loaded, date, at, None, None)
    supposed = preview.Supposed(gpus, None if rows is None else int(rows), tokens_in, tokens_out)
    with attending(loaded.storage) as listener:
        if supposed != preview.Supposed():
            made = preview.suppose(loaded, supposed, listener)
        else:
            made = preview.plan(loaded, listener, address, times[0] if times else None)
    apis = apis_beside_plan(made) if loaded.generates else None
    if as_json:
        print_json(made.document() | {"apis": None if apis is None else apis.model_dump(mode="json")})
    else:
        console().print(render_plan(made, loaded.limits))
        if apis is not None:
            console().print("", render_apis(apis), sep="\n")


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the models of the catalog."""
    from batchinfer import catalog, reporting

    known = catalog.models().values()
    if as_json:
        print_json(reporting.models_document(known))
    else:
        console().print(reporting.models_table(known))


@app.command()
def gpus(as_json: AsJson = False) -> None:
    """List the accelerators of the catalog, with their list prices."""
    from batchinfer import catalog, reporting

    if as_json:
        print_json(reporting.accelerators_document(catalog.accelerators()))
    else:
        console().print(reporting.accelerators_table(catalog.accelerators()))


@app.command()
def run(
    spec: SpecPath,
    overrides: Overrides = None,
    fresh: Fresh = False,
    yes: Yes = False,
    as_json: AsJson = False,
    address: Address = None,
    date: Date = None,
    at: At = None,
    first: From = None,
    last: To = None,
) -> None:
    """Run the job, or resume an earlier run of it, and print the report."""
    from batchinfer.execution import runner
    from batchinfer.jobspec import load
    from batchinfer.scheduling import recurring

    loaded = load(spec, overrides or [])
    times = run_times(loaded, date, at, first, last)
    one = times[0] if times else None
    if fresh and not yes:
        whens: list[datetime | None] = [*times] or [None]
        require_consent([line for when in whens for line in runner.given_up_by_fresh(loaded, when)])
    if len(times) > 1:
        _attended(lambda listener: recurring.backfill(loaded, times, listener, address, fresh), as_json, loaded.storage)
    else:
        _attended(lambda listener: recurring.run(loaded, listener, address, fresh, one), as_json, loaded.storage)


def require_consent(lines: list[str]) -> None:
    """Ask before --fresh deletes results of another spec. Raises UserError unless a person agrees."""
    if not lines:
        return
    shown = "\n  ".join(lines)
    if not sys.stdin.isatty():
        raise UserError(f"--fresh would delete them: {shown}", "say --yes to delete them, or choose another output.uri")
    if not typer.confirm(f"{shown}\nDelete them and start over?", err=True):
        raise UserError("nothing was deleted", "choose another output.uri to keep both")


@app.command()
def retry(uri: RunUri, overrides: Overrides = None, as_json: AsJson = False, address: Address = None) -> None:
    """Run the failed rows of a run again, and replace them by their new results."""
    from batchinfer.execution import runner

    _attended(lambda listener: runner.retry(uri, listener, address, overrides or []), as_json, {})


@app.command()
def publish(uri: RunUri, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Write the results of a finished run into the table of output.publish, unless the table has them."""
    from batchinfer.execution import runner
    from batchinfer.reporting.console import attending

    with attending({}):
        made = runner.publish(uri, overrides or [])
    _print(made, as_json)


@app.command()
def report(
    uri: RunUri,
    as_json: AsJson = False,
    overrides: Evaluate = None,
    html: Html = None,
    with_texts: WithTexts = False,
) -> None:
    """Print the report of a run, from its accounting, or write it for a browser."""
    from batchinfer.accounting.break_even import apis_beside_report
    from batchinfer.execution import reports
    from batchinfer.reporting.apis import render_apis

    if html is not None:
        reports.write_page(uri, html, with_texts, overrides or [])
        if not as_json:
            print(f"wrote {html}")
            return
    made = reports.report(uri, overrides or [])
    _print(made, as_json)
    apis = apis_beside_report(made)
    if apis is not None and not as_json:
        console().print("", render_apis(apis), sep="\n")


@app.command()
def evaluate(uri: RunUri, expected: Expected = None, by: By = None, as_json: AsJson = False) -> None:
    """Compare the answers of a run with a column: accuracy, each label, confidence and abstention."""
    from batchinfer.execution import reports
    from batchinfer.reporting import render_evaluation

    given = {"evaluate.expected": expected, "evaluate.by": by}
    # In quotes, because a column's name may read as another type in YAML.
    found = reports.evaluate(uri, [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None])
    if as_json:
        print_json({name: one.model_dump(mode="json") for name, one in found.items()})
    else:
        for name, one in found.items():
            console().print(render_evaluation(name, one))


def _attended(command: Callable[[Listener], Report | list[Report]], as_json: bool, stores: Stores) -> None:
    """Run a command and print its reports. Raises TooManyFailedRows or Stopped, by the limits of each report."""
    from batchinfer.execution import reports
    from batchinfer.reporting.console import attending

    with attending(stores) as listener:
        made = command(listener)
    _print(made, as_json)
    for report in made if isinstance(made, list) else [made]:
        reports.require_limits(report)


def _print(made: Report | list[Report], as_json: bool) -> None:
    from batchinfer.reporting import render

    if as_json:
        print_json([_document(report) for report in made] if isinstance(made, list) else _document(made))
    else:
        for report in made if isinstance(made, list) else [made]:
            console().print(render(report))


def _document(report: Report) -> dict[str, Any]:
    """The report, with what APIs would ask for the same tokens."""
    from batchinfer.accounting.break_even import apis_beside_report

    apis = apis_beside_report(report)
    return report.model_dump(mode="json") | {"apis": None if apis is None else apis.model_dump(mode="json")}

"""Shared by all commands: the app, common options, event listeners, output, and errors as exit codes."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console

from batchinfer import __version__, signals
from batchinfer.errors import BatchinferError
from batchinfer.outlet import open_standard_streams

if TYPE_CHECKING:
    from batchinfer.execution.progress import Listener
    from batchinfer.storage import Stores

# Ray and vLLM report usage to their makers by default. Set before either is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

Result = TypeVar("Result")

app = typer.Typer(
    help="Run a model over every row of a corpus, each row exactly once, and account for every cent.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


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
Html = Annotated[str | None, typer.Option("--html", metavar="FILE", help="Write one self-contained HTML file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Delete this run's earlier results and start over.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="With --fresh: do not ask before results are deleted.")]
Version = Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")]
Address = Annotated[
    str | None,
    typer.Option(
        "--address", envvar="RAY_ADDRESS", help="Address of a running Ray cluster. Default: start one on this machine."
    ),
]


@app.callback()
def _options(
    version: Version = False,
) -> None:
    pass


def listened(command: Callable[[Listener], Result], stores: Stores) -> Result:
    """Run a command with a listener, and name the log if it fails."""
    from batchinfer.reporting.console import attending

    with attending(stores) as listener:
        return command(listener)


def print_json(document: object) -> None:
    """One JSON document on stdout."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


def console() -> Console:
    """The console for tables: as wide as the terminal, 160 columns for a file or pipe."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def main() -> None:
    """Run the command. A BatchinferError becomes one message and its exit code."""
    signals.take()
    open_standard_streams()
    code: str | int | None
    try:
        code = _exit_code()
    except (SystemExit, KeyboardInterrupt) as ending:
        if signals.pending() and not signals.is_ending():
            # Ray's own handler of SIGTERM may have raised this; the thread of `signals` is about to end the process.
            time.sleep(signals.CLEAN_SECONDS)
        code = ending.code if isinstance(ending, SystemExit) else signals.STOPPED
    signals.let_leave()
    signals.ignore()
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def _exit_code() -> int:
    try:
        app()
    except BatchinferError as error:
        signals.let_leave()
        print(f"error: {error.message}", file=sys.stderr)
        if error.remedy:
            print(f"  -> {error.remedy}", file=sys.stderr)
        return error.exit_code
    return 0

"""`batchinfer run-batch`: vLLM's command for batch files, as a run that can be resumed."""

from __future__ import annotations

import sys

import typer

from batchinfer.cli.app import Address, AsJson, Fresh, Overrides, Yes, app, console, listened
from batchinfer.cli.run import require_consent

_ANY = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command("run-batch", context_settings=_ANY)
def run_batch(
    context: typer.Context,
    overrides: Overrides = None,
    fresh: Fresh = False,
    yes: Yes = False,
    as_json: AsJson = False,
    address: Address = None,
) -> None:
    """Answer the requests of a batch file: the arguments are those of `vllm run-batch`.

    -i FILE -o FILE --model MODEL, and any of vLLM's engine arguments. The responses are in the order of the requests.
    The run is kept in the folder FILE.run beside the output: the same command resumes it.
    """
    from batchinfer.execution import reports, runner
    from batchinfer.execution.batch_command import job_of
    from batchinfer.jobspec.vllm_command import read_command
    from batchinfer.reporting import render

    command = read_command(context.args)
    for name in command.ignored:
        print(f"--{name.replace('_', '-')} has no effect in batchinfer", file=sys.stderr)
    spec = job_of(command, overrides or [])
    if fresh and not yes:
        require_consent(runner.given_up_by_fresh(spec))
    made = listened(lambda listener: runner.run(spec, listener, address, fresh), spec.storage)
    reports.write_responses(spec.output.uri, command.output_file)
    if as_json:
        print(made.model_dump_json(indent=2))
    else:
        console().print(render(made))
        print(f"responses       {command.output_file}")
    reports.require_limits(made)

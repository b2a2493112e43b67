"""`batchinfer compare`: variants of a job beside each other."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from batchinfer.cli.app import Address, AsJson, Html, Overrides, SpecPath, app, console, listened, print_json
from batchinfer.cli.schedule import At, Date, run_times
from batchinfer.errors import UserError

Vary = Annotated[
    list[str] | None,
    typer.Option("--vary", metavar="KEY=V1,V2", help="Values of a key to compare. Repeatable: every combination runs."),
]
Models = Annotated[str | None, typer.Option(metavar="A,B", help="As --vary model.source=A,B.")]
Quantizations = Annotated[str | None, typer.Option(metavar="X,Y", help="As --vary model.quantization=X,Y.")]
Catalog = Annotated[
    str | None,
    typer.Option(
        metavar="FILTER", help='Models of the catalog, as "context>=32768 and licence=commercial and size<=30e9".'
    ),
]
Prompts = Annotated[
    list[str] | None,
    typer.Option("--prompt-file", metavar="FILE", help="A template, or keys of prompt in a .yaml file. Repeatable."),
]
Sample = Annotated[int, typer.Option("--sample", min=1, help="Rows that each variant runs, chosen at random.")]
Seed = Annotated[int, typer.Option(min=0, help="Another seed chooses other rows.")]
Margin = Annotated[
    float, typer.Option(min=0, max=1, help="How much less accurate than the best the chosen one may be, as 0.02.")
]
Judge = Annotated[
    str | None,
    typer.Option(metavar="MODEL|FILE", help="A model that scores the answers, or a .yaml file with its keys."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only plan the variants: fit, time, dollars, licence, context.")
]
Anew = Annotated[bool, typer.Option("--fresh", help="Run samples again that are there already.")]


@app.command()
def compare(
    spec: SpecPath,
    vary: Vary = None,
    models: Models = None,
    quantizations: Quantizations = None,
    catalog: Catalog = None,
    prompt_files: Prompts = None,
    sample: Sample = 500,
    seed: Seed = 0,
    margin: Margin = 0.02,
    judge: Judge = None,
    dry_run: DryRun = False,
    overrides: Overrides = None,
    html: Html = None,
    fresh: Anew = False,
    as_json: AsJson = False,
    address: Address = None,
    date: Date = None,
    at: At = None,
) -> None:
    """Run a sample through variants of the job: which is right how often, at what price, and which to take."""
    from batchinfer.execution.compare import compare as compared
    from batchinfer.jobspec import load
    from batchinfer.jobspec.judge_keys import judge_of
    from batchinfer.jobspec.variants import variants
    from batchinfer.pages import compare_page
    from batchinfer.reporting.compare import render_comparison
    from batchinfer.storage import normal_uri, storage_for

    loaded = load(spec, overrides or [])
    times = run_times(loaded, date, at, None, None)
    found = variants(_axes(vary or [], models, quantizations, catalog, loaded.task), prompt_files or [])
    made = listened(
        lambda listener: compared(
            loaded,
            found,
            listener,
            rows=sample,
            seed=seed,
            margin=margin,
            dry_run=dry_run,
            cluster=address,
            at=times[0] if times else None,
            fresh=fresh,
            judge=None if judge is None else judge_of(judge),
        ),
        loaded.storage,
    )
    if html is not None:
        storage_for(html, loaded.storage).put(normal_uri(html), compare_page(made))
    if as_json:
        print_json(made.model_dump(mode="json"))
    else:
        console().print(render_comparison(made))
        if html is not None:
            print(f"wrote {html}")


def _axes(
    vary: list[str], models: str | None, quantizations: str | None, catalog: str | None, task: str
) -> dict[str, list[Any]]:
    """The values of each key. `task`: the job's. Raises UserError."""
    from batchinfer.catalog.choose import chosen_models
    from batchinfer.jobspec import key_values
    from batchinfer.jobspec.variants import values_of

    axes: dict[str, list[Any]] = {}
    named = [("model.source", models), ("model.quantization", quantizations)]
    for key, text in [
        *((key, text) for key, text in named if text is not None),
        *key_values("--vary", vary, "model.source=a,b"),
    ]:
        axes[key] = [*axes.get(key, ()), *values_of(text)]
    if catalog is not None:
        names = [model.name for model in chosen_models(catalog, task)]
        if not names:
            raise UserError(
                f"no model of the catalog for task {task} meets {catalog!r}", "`batchinfer models` lists them"
            )
        axes["model.source"] = [*axes.get("model.source", ()), *names]
    return axes

"""`batchinfer explain`: the meaning of a spec's keys, from the pydantic models that check the spec."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from batchinfer.cli.app import app, console, print_json

if TYPE_CHECKING:
    from rich.console import Console

    from batchinfer.jobspec.explain import Key

KeyPath = Annotated[str, typer.Argument(metavar="[KEY]", help="A key with its parents, such as output.choices.")]
AsSchema = Annotated[bool, typer.Option("--json", help="Print the JSON Schema of the key, or of the whole spec.")]


@app.command()
def explain(key: KeyPath = "", as_json: AsSchema = False) -> None:
    """Print the meaning of a key of the spec; without KEY, list all keys and print a spec to start from."""
    from batchinfer.jobspec.explain import EXAMPLE, json_schema
    from batchinfer.jobspec.explain import explain as explained

    found = explained(key)
    if as_json:
        print_json(json_schema(found))
        return
    out = console()
    if found.path:
        _show(found, out)
    else:
        out.print(_tree(found))
        out.print(Text(f"\n`batchinfer explain KEY` says all about one of them. A spec to start from:\n\n{EXAMPLE}"))


def _show(key: Key, out: Console) -> None:
    facts = Table(box=None, pad_edge=False, show_header=False)
    rows = {"key": key.path, "type": key.type, "default": key.default, "limits": key.limits}
    for name, value in (rows | {"values": ", ".join(key.values)}).items():
        if value:
            facts.add_row(name, Text(value))
    out.print(facts)
    for paragraph in key.description.split("\n\n"):
        out.print(Text(f"\n{paragraph}"))
    if key.keys:
        out.print()
        out.print(_tree(key))


def _tree(root: Key) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("key", "type", "default", ""):
        table.add_column(name)

    def add(keys: tuple[Key, ...], indent: str) -> None:
        for key in keys:
            table.add_row(*map(Text, (indent + key.name, key.type, key.default, key.summary)))
            add(key.keys, indent + "  ")

    add(root.keys, "")
    return table

"""Write the reference pages from the code: `python docs/generate.py`; `--check` fails when a page is stale, and
`--execute` first runs the notebook, whose page shows what its cells gave.

Names, types, defaults and limits come from the code. words.yaml holds what the code does not say of a column, an event
or a file. A name without words, and words for a name that is gone, are errors: a page can be neither short nor stale.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
import tempfile
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import typer
import yaml

import batchinfer
from batchinfer import errors
from batchinfer.accounting.ledger import REPLICAS_SCHEMA
from batchinfer.accounting.records import ACCOUNTING_SCHEMA
from batchinfer.accounting.report import Report
from batchinfer.cli import app
from batchinfer.events import EVENTS
from batchinfer.execution import metrics
from batchinfer.jobspec import JobSpec
from batchinfer.jobspec.output_keys import RESULT_COLUMNS

DOCS = Path(__file__).parent
PACKAGE = Path(batchinfer.__file__).parent
NOTEBOOK = DOCS / "how-to" / "notebook.ipynb"
HOME = "/home/you/tickets"
"""Where the pages say that the folder of the reader is."""
WORDS: dict[str, Any] = yaml.safe_load((DOCS / "words.yaml").read_text(encoding="utf-8"))

GENERATED = "<!-- Written by docs/generate.py from the code. Change the code or docs/words.yaml and run it. -->\n"


SECONDS = 300
"""The longest cell of the notebook starts a Ray cluster, which takes 10 s on a quiet machine."""


class WordsMissing(Exception):
    """words.yaml and the code do not name the same things."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check every page; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a page is stale")
    parser.add_argument("--execute", action="store_true", help="run the notebook and keep what its cells give")
    given = parser.parse_args(arguments)
    check = given.check
    if given.execute:
        with tempfile.TemporaryDirectory() as folder:
            NOTEBOOK.write_text(executed_notebook(Path(folder)), encoding="utf-8")
    try:
        made = pages()
    except WordsMissing as error:
        print(f"error: {error}\n  -> edit docs/words.yaml", file=sys.stderr)
        return 1
    stale = [name for name, text in made.items() if _read(DOCS / name) != text]
    if check:
        for name in stale:
            print(f"error: docs/{name} is stale\n  -> run python docs/generate.py", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        (DOCS / name).parent.mkdir(parents=True, exist_ok=True)
        (DOCS / name).write_text(made[name], encoding="utf-8")
        print(f"wrote docs/{name}")
    return 0


def pages() -> dict[str, str]:
    """Every generated page by its path below docs/."""
    made = {
        "reference/spec.md": spec_page(),
        "reference/commands.md": commands_page(),
        "reference/files.md": files_page(),
        "reference/report.md": report_page(),
        "reference/events.md": events_page(),
        "reference/errors.md": errors_page(),
        "reference/metrics.md": metrics_page(),
        "reference/python.md": python_page(),
        "how-to/notebook.md": notebook_page(),
    }
    return {name: f"{GENERATED}\n{text.rstrip()}\n" for name, text in made.items()}


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def require_words(what: str, named: Iterable[str], words: Mapping[str, Any]) -> None:
    """Raise WordsMissing unless `words` has an entry for each of `named`, and no other."""
    names = set(named)
    missing, gone = sorted(names - words.keys()), sorted(words.keys() - names)
    if missing:
        raise WordsMissing(f"words.yaml says nothing of {what}: {', '.join(missing)}")
    if gone:
        raise WordsMissing(f"words.yaml describes {what} that the code does not have: {', '.join(gone)}")


# Markdown


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; columns that are empty in every row are left out."""
    filled = [list(row) for row in rows]
    kept = [i for i in range(len(header)) if any(row[i] for row in filled)]
    lines = [[header[i] for i in kept], ["---"] * len(kept)]
    lines += [[cell(row[i]) for i in kept] for row in filled]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cell(text: str) -> str:
    """Text as it may stand in a table."""
    return " ".join(text.split()).replace("|", "\\|")


def code(value: Any) -> str:
    """A value as a spec would say it."""
    return f"`{json.dumps(value, ensure_ascii=False)}`" if not isinstance(value, str) else f"`{value}`"


def paragraphs(docstring: str | None) -> str:
    """A docstring as paragraphs."""
    return inspect.cleandoc(docstring or "").strip()


# The Python API


def python_page() -> str:
    """The public names of the package, with the docstrings that `help` shows."""
    out = [
        "# The Python API\n",
        "`import batchinfer` names what follows, and takes milliseconds: Ray is imported when a job needs it. Other "
        "names of the package may change. [Jobs in Python](../how-to/python.md) shows them at work.\n",
        "The sections of the spec are models too: "
        + ", ".join(f"`{name}`" for name in batchinfer.__all__ if name.endswith("Spec") or name == "ReplicaRange")
        + ". Their keys are those of [The spec](spec.md). `batchinfer.errors` is the [tree of errors](errors.md).\n",
        f"## `batchinfer.open{_signature(batchinfer.open)}`\n",
        paragraphs(batchinfer.open.__doc__) + "\n",
        f"## `batchinfer.compare{_signature(batchinfer.compare)}`\n",
        paragraphs(batchinfer.compare.__doc__) + "\n",
    ]
    for made in (batchinfer.Job, batchinfer.Run, batchinfer.JobPlan, batchinfer.JobTry, batchinfer.JobComparison):
        out += [f"## `batchinfer.{made.__name__}`\n", paragraphs(made.__doc__) + "\n"]
        if made is batchinfer.Job:
            keywords = list(inspect.signature(made).parameters)
            out.append(f"Keywords: {', '.join(f'`{name}`' for name in keywords)}.\n")
        for name, member in vars(made).items():
            if name.startswith("_"):
                continue
            if isinstance(member, property):
                out += [f"### `{name}`\n", paragraphs(member.__doc__) + "\n"]
            else:
                called = getattr(made, name)
                waits = "await " if inspect.iscoroutinefunction(called) else ""
                out += [f"### `{waits}{name}{_signature(called)}`\n", paragraphs(called.__doc__) + "\n"]
    return "\n".join(out)


def _signature(called: Any) -> str:
    """The parameters without their types, which an editor shows."""
    parameters = [
        p.replace(annotation=p.empty) for p in inspect.signature(called).parameters.values() if p.name != "self"
    ]
    return str(inspect.Signature(parameters))


# The notebook


def executed_notebook(folder: Path) -> str:
    """The notebook with what its cells give, run in `folder`. Raises nbclient's CellExecutionError."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        # The bar of a run that has ended, and warnings.
        kept = [one for one in cell.get("outputs", ()) if one.output_type == "execute_result"]
        if cell.cell_type == "code":
            cell.outputs = kept
    notebook.metadata.language_info = {"name": "python"}
    text: str = nbformat.writes(notebook)
    return text.replace(str(folder.resolve()), HOME) + "\n"


def notebook_page() -> str:
    """The notebook as a page: its code, and what each cell gave when it was last run."""
    out = []
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            out.append(f"{source}\n")
            continue
        out.append(f'```python title="In [{cell["execution_count"]}]"\n{source}\n```\n')
        for output in cell["outputs"]:
            data = {kind: "".join(text) for kind, text in output["data"].items()}
            if "text/html" in data:
                # Blank lines would end the block of HTML.
                shown = re.sub(r"\n\s*\n", "\n", re.sub(r"<style.*?</style>", "", data["text/html"], flags=re.S))
                out.append(f"<div>{shown}</div>\n")
            else:
                out.append(f"```text\n{data['text/plain']}\n```\n")
    return "\n".join(out) + "\nThe notebook itself is [notebook.ipynb](notebook.ipynb).\n"


# The spec


def spec_page() -> str:
    """Every key of the spec, a section a heading."""
    schema = JobSpec.model_json_schema()
    definitions: dict[str, Any] = schema["$defs"]
    out = ["# The spec\n", WORDS["spec"]["intro"]]
    notes: dict[str, list[str]] = WORDS["spec"]["notes"]
    sections = list(_sections(schema, definitions))
    unknown = notes.keys() - {path or "top level" for path, _ in sections}
    if unknown:
        raise WordsMissing(f"words.yaml has notes on sections that are gone: {', '.join(sorted(unknown))}")
    for path, section in sections:
        title = f"`{path}`" if path else "Top level"
        out.append(f"## {title}\n")
        out.append(paragraphs(section.get("description")) + "\n")
        out.append(_keys_table(path, section, definitions))
        out += [f"- {note}" for note in _details(path, section)]
        out += [f"- {note}" for note in notes.get(path or "top level", [])]
        out.append("")
    return "\n".join(out)


def _sections(schema: Mapping[str, Any], definitions: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """The schema's objects with their dotted paths, parents first."""
    yield path, schema
    for name, value in schema["properties"].items():
        inner = f"{path}.{name}" if path else name
        for at, found in _objects(value, definitions, inner):
            yield from _sections(found, definitions, at)


def _objects(value: Mapping[str, Any], definitions: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    if "$ref" in value:
        found = definitions[value["$ref"].rsplit("/", 1)[-1]]
        if "properties" in found:
            yield path, found
    for one in value.get("anyOf", []):
        yield from _objects(one, definitions, path)
    if isinstance(value.get("additionalProperties"), dict):
        yield from _objects(value["additionalProperties"], definitions, f"{path}.<key>")
    if isinstance(value.get("items"), dict):
        yield from _objects(value["items"], definitions, f"{path}[]")


def _keys_table(path: str, section: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    required = section.get("required", [])
    rows = []
    for name, value in section["properties"].items():
        default = "required" if name in required else _default(value)
        key = f"{path}.{name}" if path else name
        rows.append((f"`{key}`", _type(value, definitions), default, _limits(value), _described(value)[0]))
    return table(("key", "type", "default", "limits", "what it says"), rows)


def _described(value: Mapping[str, Any]) -> tuple[str, str]:
    """The first paragraph of a field's description, which says what it is, and the others."""
    first, _, rest = paragraphs(value.get("description")).partition("\n\n")
    return first, " ".join(rest.split())


def _details(path: str, section: Mapping[str, Any]) -> list[str]:
    """What descriptions say beyond their first paragraph, under the table: a cell is too narrow for it."""
    rests = {name: _described(value)[1] for name, value in section["properties"].items()}
    return [f"`{path}.{name}`: {rest}" if path else f"`{name}`: {rest}" for name, rest in rests.items() if rest]


def _default(value: Mapping[str, Any]) -> str:
    default = value.get("default")
    if isinstance(default, dict):
        return "see its section"
    return "" if "default" not in value else code(default)


def _type(value: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "$ref" in value:
        return _type(definitions[value["$ref"].rsplit("/", 1)[-1]], definitions)
    if "const" in value:
        return code(value["const"])
    if "enum" in value:
        return ", ".join(code(one) for one in value["enum"])
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(_type(one, definitions) for one in value["anyOf"]))
    kind: str = value.get("type", "anything")
    if kind == "array":
        return f"list of {_type(value.get('items', {}), definitions)}"
    if kind == "object":
        inner = value.get("additionalProperties")
        return f"keys to {_type(inner, definitions)}" if isinstance(inner, dict) else "mapping"
    return {"string": "text", "integer": "integer", "number": "number", "boolean": "true or false"}.get(kind, kind)


_LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "minItems": "at least {} of them",
    "maxItems": "at most {} of them",
    "maxLength": "at most {} characters",
    "pattern": "`{}`",
}


def _limits(value: Mapping[str, Any]) -> str:
    found = [words.format(value[name]) for name, words in _LIMITS.items() if name in value]
    if value.get("minLength", 0) > 0:
        found.append("not empty")
    for one in value.get("anyOf", []):
        found += [limit for limit in [_limits(one)] if limit]
    return ", ".join(dict.fromkeys(found))


# The commands


def commands_page() -> str:
    """Every command with its arguments and options."""
    root = typer.main.get_command(app)
    out = ["# The commands\n", WORDS["commands"]["intro"]]
    for name, command in _commands(root, "batchinfer"):
        out.append(f"## `{name}`\n")
        out.append(paragraphs(command.help) + "\n")
        rows = [_parameter(parameter) for parameter in command.params]
        if rows:
            out.append(table(("argument or option", "default", "what it does"), rows))
    return "\n".join(out)


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    inner: Mapping[str, Any] = getattr(command, "commands", {})
    if not inner and not command.hidden:
        yield name, command
    for one in sorted(inner):
        yield from _commands(inner[one], f"{name} {one}")


def _parameter(parameter: Any) -> tuple[str, str, str]:
    if parameter.param_type_name == "argument":
        name = f"`{parameter.metavar or parameter.name.upper()}`"
    else:
        name = ", ".join(f"`{option}`" for option in [*parameter.opts, *parameter.secondary_opts])
        if parameter.metavar:
            name = name.removesuffix("`") + f" {parameter.metavar}`"
        choices = typing.get_args(parameter.type_descriptor.annotation)
        if typing.get_origin(parameter.type_descriptor.annotation) is typing.Literal:
            name = name.removesuffix("`") + f" {'|'.join(choices)}`"
    default = "required" if parameter.required else ""
    if not default and parameter.default not in (None, False, "", []) and not callable(parameter.default):
        default = code(parameter.default) if parameter.default is not True else "on"
    words = parameter.help or ""
    variables = [parameter.envvar] if isinstance(parameter.envvar, str) else parameter.envvar or []
    if variables:
        words += f" Also from the environment: {', '.join(f'`{v}`' for v in variables)}."
    return name, default, words


# Files and columns


def files_page() -> str:
    """The files of a run and the columns of its tables."""
    words = WORDS["files"]
    out = ["# Files and columns\n", words["intro"], "## Files of a run\n"]
    out.append(table(("file", "what it is"), ((f"`{name}`", text) for name, text in words["paths"].items())))
    data = words["data"]
    names = (
        "<id>",
        "<input.columns>",
        "<output.column>",
        *RESULT_COLUMNS,
        "logprobs",
        "chunks",
        "levels",
        "truncated_tokens",
        "reasoning_tokens",
        "<reasoning.column>",
        "reused",
        "response",
    )
    require_words("columns of data/", names, data)
    out += ["## Columns of `data/`\n", words["data_intro"]]
    rows = ((f"`{name}`", data[name]["type"], data[name]["what"]) for name in names)
    out.append(table(("column", "type", "what it holds"), rows))
    for title, key, schema in (
        ("Columns of `accounting/`", "accounting", ACCOUNTING_SCHEMA),
        ("Columns of `_run/replicas.parquet`", "replicas", REPLICAS_SCHEMA),
    ):
        out += [f"## {title}\n", words[f"{key}_intro"], _columns(key, schema, words[key])]
    return "\n".join(out)


def _columns(what: str, schema: pa.Schema, words: Mapping[str, str]) -> str:
    described = {field.name: field.metadata[b"what"].decode() for field in schema if field.metadata}
    require_words(f"columns of {what}", schema.names, {**words, **described})
    words = {**words, **described}
    return table(("column", "type", "what it holds"), ((f"`{f.name}`", f"{f.type}", words[f.name]) for f in schema))


def report_page() -> str:
    """The fields of report.json."""
    words = WORDS["report"]
    out = ["# The report\n", words["intro"]]
    schema = Report.model_json_schema()
    rows = [
        (f"`{name}`", _field_type(name, value, schema["$defs"]), value.get("description", ""))
        for name, value in schema["properties"].items()
    ]
    out.append(table(("field", "type", "what it says"), rows))
    return "\n".join(out)


def _field_type(name: str, value: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "$ref" in value:
        inner = definitions[value["$ref"].rsplit("/", 1)[-1]]["properties"]
        return ", ".join(f"`{name}.{key}`" for key in inner)
    return _type(value, definitions)


# Events


def events_page() -> str:
    """What a run says: a line each on a terminal, a JSON line each elsewhere."""
    out = ["# Events\n", WORDS["events"]["intro"]]
    rows = [
        (f"`{name}`", event.level, ", ".join(f"`{value}`" for value in event.values), event.when)
        for name, event in EVENTS.items()
    ]
    out.append(table(("event", "level", "values", "when"), rows))
    return "\n".join(out)


# Errors


def errors_page() -> str:
    """Exit codes, the classes behind them, and the error codes of rows."""
    words = WORDS["errors"]
    out = ["# Exit codes and error codes\n", "## Exit codes\n"]
    codes = sorted({kind.exit_code for kind in _error_classes(errors.BatchinferError)} | {0})
    require_words("exit codes", map(str, codes), words["exit_codes"])
    out.append(table(("code", "what it says"), ((str(c), words["exit_codes"][str(c)]) for c in codes)))
    out += ["## Classes of errors\n", words["classes_intro"]]
    classes = [
        (f"`{kind.__name__}`", str(kind.exit_code), f"`{kind.__mro__[1].__name__}`", paragraphs(kind.__doc__))
        for kind in _error_classes(errors.BatchinferError)
    ]
    out.append(table(("class", "exit code", "a kind of", "what happened"), classes))
    require_words("error codes of rows", errors.ROW_ERROR_CODES, words["rows"])
    out += ["## Error codes of rows\n", words["rows_intro"]]
    codes_of_rows = [(f"`{name}`", text, words["rows"][name]) for name, text in errors.ROW_ERROR_CODES.items()]
    out.append(table(("`error_code`", "what happened", "what to do"), codes_of_rows))
    return "\n".join(out)


def _is_ours(kind: type) -> bool:
    """Is the class of the package? Tests make subclasses of their own."""
    return kind.__module__.split(".")[0] == "batchinfer"


def _error_classes(kind: type[errors.BatchinferError]) -> list[type[errors.BatchinferError]]:
    return [kind, *(found for inner in kind.__subclasses__() if _is_ours(inner) for found in _error_classes(inner))]


# Metrics


def metrics_page() -> str:
    """What Prometheus can scrape."""
    out = ["# Metrics\n", WORDS["metrics"]["intro"]]
    out.append("Every metric has the labels " + ", ".join(f"`{label}`" for label in metrics.LABELS) + ".\n")
    for title, found in (("Counters", metrics.COUNTERS), ("Gauges", metrics.GAUGES)):
        out.append(f"## {title}\n")
        rows = [(f"`ray_{n}`", ", ".join(f"`{label}`" for label in more), text) for n, (text, more) in found.items()]
        out.append(table(("metric", "further labels", "what it counts"), rows))
    return "\n".join(out)


if __name__ == "__main__":
    sys.exit(main())

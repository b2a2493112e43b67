"""The template language of prompts: Jinja2 in the sandbox of `jobspec.sandbox`, over the columns of a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple, TypeGuard

import jinja2
from jinja2 import meta, nodes

from batchinfer.jobspec.sandbox import MAX_WORK, Environment, count_in


class Template:
    """A compiled template, safe to use from several threads. `columns`: the columns that it reads."""

    def __init__(self, source: str) -> None:
        self._environment = Environment()
        tree = self._environment.parse(source)
        self._aliases = _name_columns_of_row(tree)
        names = meta.find_undeclared_variables(tree) - self._aliases.keys()
        self.columns = sorted(names | set(self._aliases.values()))
        self._pieces = _pieces(tree, {**{name: name for name in names}, **self._aliases})
        count_in(tree)
        self._template = self._environment.from_string(tree)

    def fill(self, columns: Mapping[str, Sequence[Any]], rows: int) -> list[str | None]:
        """The rendered rows of a template that consists of text and columns only, without Jinja2.

        Most templates do, and this takes a tenth of the time. None marks a row for `renderer`: every row of another
        template, and rows whose values are not all texts or are too long.
        """
        if not self._pieces:
            return [None] * rows
        pieces = [
            columns[piece.column] if isinstance(piece, _Printed) else repeat(piece, rows) for piece in self._pieces
        ]
        made: list[str | None] = []
        for row in zip(*pieces, strict=True):
            try:
                text = "".join(row)
            except TypeError:
                made.append(None)
            else:
                made.append(text if len(text) <= MAX_WORK else None)
        return made

    def renderer(self) -> Callable[[Mapping[str, Any]], str]:
        """A function that renders one row; it raises whatever the template raises. Not for several threads.

        `jinja2.Template.render` makes a context and copies the globals for each row, which takes ten times as long as
        the rendering. This function uses one context for all rows of a shard.
        """
        shared = dict(self._template.globals)
        context = self._template.new_context(shared, shared=True)
        aliases = list(self._aliases.items())

        def render(row: Mapping[str, Any]) -> str:
            self._environment.begin_row()
            given = row if None not in row.values() else {name: v for name, v in row.items() if v is not None}
            context.parent = {**shared, **given}
            for alias, column in aliases:
                if column in given:
                    context.parent[alias] = given[column]
            # Variables that the template set for the previous row.
            context.vars.clear()
            context.exported_vars.clear()
            return self._environment.concat(self._template.root_render_func(context))

        return render


class _Printed(NamedTuple):
    """A column that a template of texts and columns prints."""

    column: str


def _name_columns_of_row(tree: nodes.Template) -> dict[str, str]:
    """Replace `row["any name"]` by a variable; returns the columns by these variables.

    Nothing is replaced if the template sets `row` itself. Any other use of `row` means the column `row`.
    """
    uses = [node for node in tree.find_all(nodes.Name) if node.name == "row"]
    if any(node.ctx != "load" for node in uses):
        return {}
    aliases: dict[str, str] = {}

    def replaced(node: Any) -> Any:
        if not (isinstance(node, nodes.Getitem) and isinstance(node.node, nodes.Name) and node.node.name == "row"):
            return node
        if not (isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str)):
            return node
        alias = f"row_column_{len(aliases)}_"
        aliases[alias] = node.arg.value
        return nodes.Name(alias, "load", lineno=node.lineno)

    for parent in tree.find_all(nodes.Node):
        for field, value in parent.iter_fields():
            if isinstance(value, list):
                value[:] = [replaced(item) for item in value]
            else:
                setattr(parent, field, replaced(value))
    return aliases


def _pieces(tree: nodes.Template, columns: Mapping[str, str]) -> list[str | _Printed] | None:
    """The texts and columns that the template prints, in order; None if the template has anything else.

    `columns` maps the template's variables to columns.
    """
    found: list[str | _Printed] = []
    for statement in tree.body:
        if not isinstance(statement, nodes.Output):
            return None
        for piece in statement.nodes:
            if isinstance(piece, nodes.TemplateData):
                found.append(piece.data)
            elif isinstance(piece, nodes.Name) and piece.name in columns:
                found.append(_Printed(columns[piece.name]))
            else:
                return None
    return found


def compile_template(source: str) -> Template:
    """The compiled template. Raises ValueError, with a message for a person, for an invalid template."""
    try:
        return Template(source)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"is not a valid Jinja2 template: {error.message} (its line {error.lineno})") from None
    except (RecursionError, SyntaxError, MemoryError):
        # Python compiles the code that Jinja2 generates, and limits how deeply it may be nested.
        raise ValueError("is nested too deeply for a Jinja2 template") from None


def is_template(text: str | None) -> TypeGuard[str]:
    """Whether a text that need not be a template is one."""
    return text is not None and ("{{" in text or "{%" in text)

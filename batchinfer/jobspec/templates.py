"""The template language of prompts: Jinja2 in its sandbox, strict about nulls, with a bound for each row.

The sandbox keeps a template from Python. What is added here keeps a row from its worker: a value of
the data that is used as a width, a count or the end of a loop must not take the memory or the hours of all
rows. A row that goes beyond `MAX_WORK` is a row with an error.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from itertools import repeat
from typing import Any, NamedTuple
from uuid import UUID

import jinja2
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_WORK = 2**26
"""What one row may take: a character that an operator, a filter or the whole makes counts 1, a turn of
a loop 64, a call 1024. That is 64 Mi characters, about a million turns, or 65,536 calls."""

_TURN = 64
_CALL = 1024
_TAKES_NULL = {"default", "d", "tojson", "pprint", "safe", "list", "first", "last", "map", "select", "reject"}
_NUMBERS_ARE_SIZES = {"center", "indent", "batch", "slice", "wordwrap", "truncate"}
_HUGE_FIELD = re.compile(r"[%{][^a-zA-Z%}]*(\*|\d{8,})")


class Missing(jinja2.Undefined):
    """A null of the row: false in a test, filled by `default`, an error when it is used as a value."""

    def __str__(self) -> str:
        self._fail_with_undefined_error()

    __iter__ = __len__ = jinja2.Undefined._fail_with_undefined_error


def _null() -> Missing:
    return Missing("a value inside the row is null")


class Map(list[tuple[Any, Any]]):
    """A map of the data: a list of its pairs whose values are also found by their keys, and printed as an object."""

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return super().__getitem__(key)
        return dict(self)[key]

    def items(self) -> list[tuple[Any, Any]]:
        """The pairs, as of an object."""
        return list(self)


def printed(value: Any) -> str:
    """The text of a value of the data: never Python's picture of it, which reads `True`, `None` and `['a']`."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, timedelta):
        return _duration(value)
    if isinstance(value, dict | list | tuple):
        try:
            return json.dumps(_as_json(value), ensure_ascii=False)
        except TypeError:
            return str(value)
    return str(value)


def _as_json(value: Any) -> Any:
    """The value as `json` takes it; raises TypeError for what is no data."""
    if isinstance(value, Map):
        return {printed(key): _as_json(inner) for key, inner in value}
    if isinstance(value, dict):
        return {printed(key): _as_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(inner) for inner in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Decimal | date | time | timedelta | UUID):
        return printed(value)
    raise TypeError(type(value).__name__)


def _duration(value: timedelta) -> str:
    """Hours, minutes and seconds, as in 26:03:04.5."""
    micros = abs(value) // timedelta(microseconds=1)
    hours, rest = divmod(micros, 3_600_000_000)
    minutes, rest = divmod(rest, 60_000_000)
    seconds = f"{rest // 1_000_000:02}" + (f".{rest % 1_000_000:06}".rstrip("0") if rest % 1_000_000 else "")
    return f"{'-' if value < timedelta(0) else ''}{hours:02}:{minutes:02}:{seconds}"


def _require_data(value: Any) -> Any:
    """What is printed: never a null, which would read `None`, nor a function of the language."""
    if isinstance(value, str | int) and not isinstance(value, bool):
        return value
    if value is None:
        raise jinja2.UndefinedError("a value inside the row is null")
    if isinstance(value, jinja2.Undefined):
        return value
    if callable(value):
        raise jinja2.UndefinedError(f"{getattr(value, '__name__', 'a function')!r} is a word of the template language")
    return printed(value)


class Environment(ImmutableSandboxedEnvironment):
    """Compiles templates. Use through `compile_template`; one serves any number of threads."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(self) -> None:
        super().__init__(undefined=Missing, finalize=_require_data, autoescape=False, keep_trailing_newline=True)
        # It gives other text each time, and as much of it as it is told.
        del self.globals["lipsum"]
        self._spent = threading.local()
        for name, function in self.filters.items():
            self.filters[name] = self._guarded(name, function)
        self.filters["counted turns"] = self._turns
        self.filters["joined texts"] = self._joined_texts
        self.concat = self._joined  # type: ignore[method-assign] # where compiled templates look for it

    def begin_row(self) -> None:
        """Give this thread's next row its whole allowance."""
        self._spent.work = 0

    def spend(self, work: int) -> None:
        """Count what the row takes; raises SecurityError beyond MAX_WORK."""
        self._spent.work = getattr(self._spent, "work", 0) + work
        if self._spent.work > MAX_WORK:
            raise SecurityError(f"it makes more than {MAX_WORK:,} characters, or too many turns and calls, for one row")

    def _joined(self, pieces: Iterable[str]) -> str:
        found = list(pieces)
        self.spend(sum(map(len, found)))
        return "".join(found)

    def _joined_texts(self, values: list[Any]) -> str:
        return self._joined([str(_null()) if value is None else printed(value) for value in values])

    def _turns(self, values: Any) -> Any:
        """What a loop goes over, paid for in advance: there is no way to leave a loop early."""
        if not hasattr(values, "__len__") or isinstance(values, jinja2.Undefined):
            values = list(values)
        self.spend(_TURN * len(values))
        if isinstance(values, list | tuple) and None in values:
            return [_null() if value is None else value for value in values]
        return values

    def getattr(self, obj: Any, attribute: str) -> Any:
        value = super().getattr(obj, attribute)
        return _null() if value is None else value

    def getitem(self, obj: Any, argument: Any) -> Any:
        value = super().getitem(obj, argument)
        return _null() if value is None else value

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 # as Jinja2 has it
        __self.spend(_CALL)
        text = getattr(__obj, "__self__", None)
        if isinstance(text, str):
            _require_sizes([*args, *kwargs.values()])
            if __obj.__name__ == "replace" and len(args) > 1 and all(isinstance(arg, str) for arg in args[:2]):
                __self.spend(text.count(args[0]) * len(args[1]))
        value = super().call(__context, __obj, *args, **kwargs)
        if isinstance(value, str):
            __self.spend(len(value))
        return value

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        for one, other in ((left, right), (right, left)):
            if operator == "*" and isinstance(one, str | list | tuple | bytes) and isinstance(other, int):
                self.spend(len(one) * max(0, other))
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            self.spend(left.bit_length() * max(0, right))
        if operator == "*" and isinstance(left, int) and isinstance(right, int):
            self.spend((left.bit_length() + right.bit_length()) // 64)
        if operator == "%" and isinstance(left, str):
            _require_sizes_in(left)
        value = super().call_binop(context, operator, left, right)
        if operator in "+%" and isinstance(value, str | list | tuple):
            self.spend(len(value))
        return value

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _require_sizes_in(str(value.__self__))
        return wrapped

    def _guarded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The filter, refusing a null value and a huge width, and counting what it makes."""
        first = 1 if hasattr(function, "jinja_pass_arg") else 0

        # Jinja2's own marks (which argument a filter wants passed, that it has an asynchronous twin) go along.
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            value, rest = args[first], args[first + 1 :]
            if value is None and name not in _TAKES_NULL:
                raise jinja2.UndefinedError("a value inside the row is null")
            if name in _NUMBERS_ARE_SIZES:
                _require_sizes([*rest, *kwargs.values()])
            elif name == "format":
                _require_sizes_in(str(value))
            elif name == "replace" and len(rest) > 1:
                self.spend(str(value).count(str(rest[0])) * len(str(rest[1])))
            elif name == "join" and isinstance(value, list | tuple) and None in value:
                raise jinja2.UndefinedError("a value inside the row is null")
            elif name == "join" and hasattr(value, "__len__"):
                self.spend(len(value) * len(str(rest[0] if rest else kwargs.get("d", ""))))
            made = function(*args[:first], _with_text(name, value), *rest, **kwargs)
            if isinstance(made, str):
                self.spend(len(made))
            return made

        return guarded


def _with_text(name: str, value: Any) -> Any:
    """The value as a filter takes it that makes text of it."""
    if isinstance(value, str | jinja2.Undefined):
        return value
    if name == "string":
        return printed(value)
    if name == "tojson" and isinstance(value, Map | list | dict):
        with contextlib.suppress(TypeError):
            return _as_json(value)
    if name == "join" and isinstance(value, list | tuple):
        return [one if isinstance(one, jinja2.Undefined) else printed(one) for one in value]
    return value


def _require_sizes(numbers: Iterable[Any]) -> None:
    if any(isinstance(number, int) and abs(number) > MAX_WORK for number in numbers):
        raise SecurityError(f"it asks for a width or a count above {MAX_WORK:,}")


def _require_sizes_in(text: str) -> None:
    if _HUGE_FIELD.search(text):
        raise SecurityError("it formats with a field of huge or computed width")


class Template:
    """A compiled template; the same one may be used by several threads at a time."""

    def __init__(self, source: str) -> None:
        self._environment = Environment()
        tree = self._environment.parse(source)
        self._aliases = _name_columns_of_row(tree)
        names = meta.find_undeclared_variables(tree) - self._aliases.keys()
        self.columns = sorted(names | set(self._aliases.values()))
        self._pieces = _pieces(tree, {**{name: name for name in names}, **self._aliases})
        _count_in(tree)
        self._template = self._environment.from_string(tree)

    def fill(self, columns: Mapping[str, Sequence[Any]], rows: int) -> list[str | None]:
        """The rows of a template that is nothing but text and names of columns, without the language's machinery.

        That is most templates, and a tenth of the time. None is a row for `renderer`: each one of any other
        template, and those whose values are not all texts or are too long.
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
        """Renders rows, one after the other; raises whatever the template raises on a row.

        `jinja2.Template.render` makes a context and copies the globals for every row, which takes ten
        times as long as filling in the template: here one context serves all rows of a shard.
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
            # What the template set for the row before.
            context.vars.clear()
            context.exported_vars.clear()
            return self._environment._joined(self._template.root_render_func(context))

        return render


class _Printed(NamedTuple):
    """The place of a column in a template of nothing but texts and columns."""

    column: str


def _name_columns_of_row(tree: nodes.Template) -> dict[str, str]:
    """Have `row["any name"]` mean the column of that name; gives the variables put there, and their columns.

    `row` is a variable like any other where the template sets it, and a column where it is used in another way.
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
    """The texts and columns that the template prints in turn; None if there is more to it. `columns` maps the
    template's variables to columns."""
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


def _count_in(tree: nodes.Node) -> None:
    """Have the loops and the `~` of the template go through the environment, as all else does."""
    for loop in tree.find_all(nodes.For):
        loop.iter = nodes.Filter(loop.iter, "counted turns", [], [], None, None, lineno=loop.lineno)
    for parent in tree.find_all(nodes.Node):
        for field, value in parent.iter_fields():
            if isinstance(value, list):
                value[:] = [_joined(item) for item in value]
            else:
                setattr(parent, field, _joined(value))


def _joined(node: Any) -> Any:
    if not isinstance(node, nodes.Concat):
        return node
    texts = nodes.List(node.nodes, lineno=node.lineno)
    return nodes.Filter(texts, "joined texts", [], [], None, None, lineno=node.lineno)


def compile_template(source: str) -> Template:
    """Raises ValueError, in words, for what is no template."""
    try:
        return Template(source)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"is not a valid Jinja2 template: {error.message} (its line {error.lineno})") from None
    except (RecursionError, SyntaxError, MemoryError):
        # Python compiles what Jinja2 makes of it, and has bounds of its own.
        raise ValueError("is nested too deeply for a Jinja2 template") from None

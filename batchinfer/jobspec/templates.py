"""The template language of prompts: Jinja2 in its sandbox, strict about nulls, with a limit on the work of each row.

The sandbox protects Python from a template. The limit protects the worker from a row: a value of the data may be a
width, a count or the end of a loop, and must not use up memory or time. A row beyond `MAX_WORK` fails.
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
"""The work of one row, in characters: 1 for each character that an operator, a filter or the template makes, 64 for a
turn of a loop, 1024 for a call. So 64 Mi characters, a million turns, or 65,536 calls. Lower fails large rows; higher
lets a row block its worker longer."""

_TURN = 64
_CALL = 1024
_TAKES_NULL = {"default", "d", "tojson", "pprint", "safe", "list", "first", "last", "map", "select", "reject"}
_OF_LISTS = {
    "attr", "batch", "count", "d", "default", "dictsort", "first", "groupby", "items", "join", "last", "length",
    "list", "map", "max", "min", "random", "reject", "rejectattr", "reverse", "select", "selectattr", "slice", "sort",
    "sum", "unique",
}  # fmt: skip
"""Filters that read a list as a list. Any other filter makes a text of it, which may be many times as long."""

_COPY_LISTS = {"batch", "dictsort", "groupby", "list", "reverse", "slice", "sort", "unique"}
_ITEM = 8
"""The work of one item of a list, which needs some 50 bytes. Lower would let lists use up memory."""

_NUMBERS_ARE_SIZES = {"center", "batch", "slice", "truncate"}
_SIZES_OF_METHODS = {"center", "ljust", "rjust", "zfill"}
_HUGE_FIELD = re.compile(r"[%{][^a-zA-Z%}]*(\*|\d{8,})")


class Missing(jinja2.Undefined):
    """A null of the row: false in a test, replaced by `default`, an error if used as a value."""

    def __str__(self) -> str:
        self._fail_with_undefined_error()

    __iter__ = __len__ = jinja2.Undefined._fail_with_undefined_error


def _null() -> Missing:
    return Missing("a value inside the row is null")


class Allowance:
    """Counts the work of the row that each thread renders. Raises SecurityError beyond MAX_WORK."""

    def __init__(self) -> None:
        self._spent = threading.local()

    def begin_row(self) -> None:
        """Reset the count for this thread's next row."""
        self._spent.work = 0

    def spend(self, work: int) -> None:
        """Count work before it is done."""
        self._spent.work = getattr(self._spent, "work", 0) + work
        if self._spent.work > MAX_WORK:
            raise SecurityError(f"it makes more than {MAX_WORK:,} characters, or too many turns and calls, for one row")


class Map(list[tuple[Any, Any]]):
    """A map of the data: a list of pairs that can also be indexed by key, and that prints as a JSON object."""

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return super().__getitem__(key)
        return dict(self)[key]

    def items(self) -> list[tuple[Any, Any]]:
        """The pairs, as of a dict."""
        return list(self)


def printed(value: Any) -> str:
    """The text of a value of the data: JSON for lists and objects, never Python's `True`, `None` or `['a']`."""
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
    """The value converted for `json.dumps`; raises TypeError for a type that is no data."""
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


class Environment(ImmutableSandboxedEnvironment):
    """Compiles templates; use `compile_template` instead. Safe to use from several threads."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(self) -> None:
        super().__init__(undefined=Missing, finalize=self._data, autoescape=False, keep_trailing_newline=True)
        # `lipsum` makes random text, so a repeated run would have other prompts, and the text has no limit.
        del self.globals["lipsum"]
        self._allowance = Allowance()
        self.begin_row, self.spend = self._allowance.begin_row, self._allowance.spend
        for name, function in self.filters.items():
            self.filters[name] = self._guarded(name, function)
        self.filters["counted turns"] = self._turns
        self.filters["joined texts"] = self._joined_texts
        self.concat = self._joined  # type: ignore[method-assign] # where compiled templates look for it

    def _data(self, value: Any) -> Any:
        """The printed text of a value, after its work is counted. Refuses nulls, which would print as `None`, and
        functions of the language."""
        if value is None:
            raise jinja2.UndefinedError("a value inside the row is null")
        if isinstance(value, str | jinja2.Undefined):
            return value
        if not isinstance(value, int | float):
            self.spend(_length(value))
        return printed(value)

    def _joined(self, pieces: Iterable[str]) -> str:
        found = list(pieces)
        self.spend(sum(map(len, found)))
        return "".join(found)

    def _joined_texts(self, values: list[Any]) -> str:
        return self._joined([str(_null() if value is None else self._data(value)) for value in values])

    def _turns(self, values: Any) -> Any:
        """The values of a loop. All turns are counted in advance, because a template cannot leave a loop early."""
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
        if isinstance(argument, slice) and hasattr(obj, "__len__"):
            self.spend(len(obj))
        value = super().getitem(obj, argument)
        return _null() if value is None else value

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 # as Jinja2 has it
        __self.spend(_CALL)
        text = getattr(__obj, "__self__", None)
        if isinstance(text, str):
            args = __self._pay_for_method(text, getattr(__obj, "__name__", ""), args, kwargs)
        value = super().call(__context, __obj, *args, **kwargs)
        if isinstance(value, str):
            __self.spend(len(value))
        return value

    def _pay_for_method(self, text: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Count the work of a text's method before the call. Returns its arguments, with iterators as lists."""
        given = [*args, *kwargs.values()]
        if name == "join":
            args = tuple(list(arg) if not isinstance(arg, str | list | tuple) else arg for arg in args)
            self.spend(
                sum(len(text) * len(arg) + sum(len(item) for item in arg if isinstance(item, str)) for arg in args)
            )
        elif name == "translate":
            for arg in given:
                values = arg.values() if isinstance(arg, dict) else arg
                self.spend(len(text) * max((len(v) for v in values if isinstance(v, str)), default=1))
        elif name == "replace":
            texts = [arg for arg in given if isinstance(arg, str)]
            if len(texts) > 1:
                self.spend(text.count(texts[0]) * len(texts[1]))
        elif name in _SIZES_OF_METHODS:
            self._pay_for_sizes(given)
        elif name == "expandtabs":
            self._pay_for_sizes(given, text.count("\t"))
        elif name in ("split", "rsplit", "splitlines"):
            self.spend(2 * len(text))
        elif name in ("format", "format_map"):
            self.spend(text.count("{") * max((_length(_known(arg)) for arg in given), default=0))
        return args

    def _pay_for_sizes(self, numbers: Iterable[Any], times: int = 1) -> None:
        self.spend(times * sum(max(0, number) for number in numbers if isinstance(number, int)))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        for one, other in ((left, right), (right, left)):
            if operator == "*" and isinstance(one, str | list | tuple | bytes) and isinstance(other, int):
                self.spend(len(one) * max(0, other) * (_ITEM if isinstance(one, list | tuple) else 1))
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            self.spend(left.bit_length() * max(0, right))
        if operator == "*" and isinstance(left, int) and isinstance(right, int):
            self.spend((left.bit_length() + right.bit_length()) // 64)
        if operator == "%" and isinstance(left, str):
            _require_sizes_in(left)
            self.spend(left.count("%") * _length(_known(right)))
        value = super().call_binop(context, operator, left, right)
        if operator in "+%" and isinstance(value, str | list | tuple):
            self.spend(len(value) * (1 if isinstance(value, str) else _ITEM))
        return value

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        text = str(value.__self__)
        _require_sizes_in(text)

        def counted(*args: Any, **kwargs: Any) -> str:
            self._pay_for_method(text, "format", args, kwargs)
            return wrapped(*args, **kwargs)

        return counted

    def _guarded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The filter, which refuses nulls and huge widths, and counts its work before the call."""
        first = 1 if hasattr(function, "jinja_pass_arg") else 0

        # `wraps` copies Jinja2's attributes: the argument that a filter wants passed, and its asynchronous variant.
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            value, rest = args[first], args[first + 1 :]
            if value is None and name not in _TAKES_NULL:
                raise jinja2.UndefinedError("a value inside the row is null")
            if name not in _OF_LISTS and not isinstance(value, str | int | float | jinja2.Undefined):
                self.spend(_length(_known(value)))
            value = self._pay_for_filter(name, value, rest, kwargs)
            made = function(*args[:first], _with_text(name, value), *rest, **kwargs)
            if isinstance(made, str):
                self.spend(len(made))
            return made

        return guarded

    def _pay_for_filter(self, name: str, value: Any, rest: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Count the work of a filter before the call. Returns its value, as a list if an iterator must be counted."""
        given = {**dict(zip(_PARAMETERS.get(name, ()), rest, strict=False)), **kwargs}
        if name in _COPY_LISTS:
            value = _listed(value)
            self.spend(_ITEM * len(value) if hasattr(value, "__len__") else 0)
        if name in _NUMBERS_ARE_SIZES:
            self._pay_for_sizes([*rest, *kwargs.values()], _ITEM if name in ("batch", "slice") else 1)
        elif name == "format":
            _require_sizes_in(str(value))
            self.spend(str(value).count("%") * max((_length(_known(arg)) for arg in given.values()), default=0))
            self.spend(str(value).count("%") * max((_length(_known(arg)) for arg in rest), default=0))
        elif name == "replace":
            self.spend(str(value).count(str(given.get("old", ""))) * len(str(given.get("new", ""))))
        elif name == "indent":
            width = given.get("width", 4)
            each = width if isinstance(width, int) else len(str(width))
            self.spend((str(value).count("\n") + 1) * max(0, each))
        elif name == "wordwrap":
            width = given.get("width", 79)
            lines = len(str(value)) // max(1, width if isinstance(width, int) else 1) + str(value).count("\n") + 1
            self.spend(lines * len(str(given.get("wrapstring") or "")))
        elif name == "urlize":
            self.spend((str(value).count(".") + str(value).count("@")) * sum(len(str(arg)) for arg in given.values()))
        elif name == "tojson":
            self.spend(_length(_known(value)) * max(0, int(given.get("indent") or 0)))
        elif name == "join":
            value = _listed(value)
            if hasattr(value, "__len__") and not isinstance(value, str | jinja2.Undefined):
                if None in value:
                    raise jinja2.UndefinedError("a value inside the row is null")
                self.spend(len(value) * len(str(given.get("d", ""))))
                if "attribute" not in given:
                    self.spend(_length(value if isinstance(value, list | tuple) else list(value)))
        elif name == "xmlattr":
            self.spend(_length(_known(value)))
        return value


_PARAMETERS = {
    "indent": ("width",), "join": ("d", "attribute"), "replace": ("old", "new"), "tojson": ("indent",),
    "urlize": ("trim_url_limit", "nofollow", "target", "rel"), "wordwrap": ("width", "", "wrapstring"),
}  # fmt: skip
"""The parameters of filters by position."""


def _listed(value: Any) -> Any:
    """An iterator as a list, whose items can be counted; any other value unchanged."""
    return list(value) if hasattr(value, "__next__") else value


def _known(value: Any) -> Any:
    """The value, or an empty text for a null: a null makes no text, and is refused later."""
    return "" if value is None or isinstance(value, jinja2.Undefined) else value


def _length(value: Any) -> int:
    """The length of a value's text, estimated without making the text.

    Raises UndefinedError for a value that is no data, also inside lists.
    """
    known: dict[int, int] = {}

    def length(value: Any) -> int:
        if isinstance(value, str):
            return len(value)
        if isinstance(value, dict | list | tuple | set | frozenset):
            # A list that occurs many times in others needs little memory, but its text may not fit in memory.
            if id(value) not in known:
                items = [*value, *value.values()] if isinstance(value, dict) else value
                known[id(value)] = 2 + sum(4 + length(item) for item in items)
            return known[id(value)]
        if isinstance(value, jinja2.Undefined):
            raise jinja2.UndefinedError("a value within a list is missing")
        if hasattr(value, "__next__") and type(value).__module__ != "jinja2.utils":
            raise jinja2.UndefinedError("it prints what a filter goes through, not a list: add `| list` or `| join`")
        if callable(value) or type(value).__module__ == "jinja2.utils":
            name = getattr(value, "__name__", type(value).__name__)
            raise jinja2.UndefinedError(f"{name!r} is a word of the template language")
        return value.bit_length() // 3 if isinstance(value, int) else 32

    return length(value)


def _with_text(name: str, value: Any) -> Any:
    """The value for the filters that make a text of it: `string`, `tojson` and `join`."""
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


def _require_sizes_in(text: str) -> None:
    if _HUGE_FIELD.search(text):
        raise SecurityError("it formats with a field of huge or computed width")


class Template:
    """A compiled template, safe to use from several threads. `columns`: the columns that it reads."""

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
            return self._environment._joined(self._template.root_render_func(context))

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


def _count_in(tree: nodes.Node) -> None:
    """Route the template's loops and its `~` through filters that count their work."""
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
    """The compiled template. Raises ValueError, with a message for a person, for an invalid template."""
    try:
        return Template(source)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"is not a valid Jinja2 template: {error.message} (its line {error.lineno})") from None
    except (RecursionError, SyntaxError, MemoryError):
        # Python compiles the code that Jinja2 generates, and limits how deeply it may be nested.
        raise ValueError("is nested too deeply for a Jinja2 template") from None


def bounded_template(environment: jinja2.Environment, source: str) -> jinja2.Template:
    """A model's chat template `source`, compiled by `environment`, with the limit `MAX_WORK` on each rendering.

    Changes `environment`, which no other template may use. A rendering beyond the limit raises SecurityError.
    """
    allowance = Allowance()

    def turns(values: Any) -> Any:
        if not hasattr(values, "__len__"):
            values = list(values)
        allowance.spend(_TURN * len(values))
        return values

    call = environment.call  # type: ignore[attr-defined] # of a sandbox

    def counted_call(*args: Any, **kwargs: Any) -> Any:
        allowance.spend(_CALL)
        return call(*args, **kwargs)

    def counted_operation(_: Context, operator: str, left: Any, right: Any) -> Any:
        for one, other in ((left, right), (right, left)):
            if isinstance(one, str | list | tuple) and isinstance(other, int):
                allowance.spend(len(one) * max(0, other))
        return environment.binop_table[operator](left, right)  # type: ignore[attr-defined] # of a sandbox

    def joined(pieces: Iterable[str]) -> str:
        found = list(pieces)
        allowance.spend(sum(map(len, found)))
        return "".join(found)

    environment.filters["counted turns"] = turns
    environment.call = counted_call  # type: ignore[attr-defined]
    environment.intercepted_binops = frozenset({"*"})  # type: ignore[attr-defined]
    environment.call_binop = counted_operation  # type: ignore[attr-defined]
    environment.concat = joined  # type: ignore[method-assign]
    tree = environment.parse(source)
    for loop in tree.find_all(nodes.For):
        loop.iter = nodes.Filter(loop.iter, "counted turns", [], [], None, None, lineno=loop.lineno)
    template = environment.from_string(tree)
    render = template.render

    def rendered(*args: Any, **kwargs: Any) -> str:
        allowance.begin_row()
        return render(*args, **kwargs)

    template.render = rendered  # type: ignore[method-assign]
    return template

"""The sandbox of templates: Jinja2 in its sandbox, strict about nulls, with a bound for each row.

The sandbox keeps a template from Python. What is added here keeps a row from its worker: a value of
the data that is used as a width, a count or the end of a loop must not take the memory or the hours of all
rows. A row that goes beyond `MAX_WORK` is a row with an error.
"""

from __future__ import annotations

import contextlib
import functools
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from batchinfer.jobspec.printed import Map, as_json, printed

MAX_WORK = 2**26
"""What one row may take: a character that an operator, a filter or the whole makes counts 1, a turn of
a loop 64, a call 1024. That is 64 Mi characters, about a million turns, or 65,536 calls."""

_TURN = 64
_CALL = 1024
_TAKES_NULL = {"default", "d", "tojson", "pprint", "safe", "list", "first", "last", "map", "select", "reject"}
_OF_LISTS = {
    "attr", "batch", "count", "d", "default", "dictsort", "first", "groupby", "items", "join", "last", "length",
    "list", "map", "max", "min", "random", "reject", "rejectattr", "reverse", "select", "selectattr", "slice", "sort",
    "sum", "unique",
}  # fmt: skip
"""Filters that take a list as it is. To any other a list is its text, which may be many times as long."""

_COPY_LISTS = {"batch", "dictsort", "groupby", "list", "reverse", "slice", "sort", "unique"}
_ITEM = 8
"""What an item of a list counts: it takes some 50 bytes, a text of one character among them."""

_NUMBERS_ARE_SIZES = {"center", "batch", "slice", "truncate"}
_SIZES_OF_METHODS = {"center", "ljust", "rjust", "zfill"}
_HUGE_FIELD = re.compile(r"[%{][^a-zA-Z%}]*(\*|\d{8,})")


class Missing(jinja2.Undefined):
    """A null of the row: false in a test, filled by `default`, an error when it is used as a value."""

    def __str__(self) -> str:
        self._fail_with_undefined_error()

    __iter__ = __len__ = jinja2.Undefined._fail_with_undefined_error


def _null() -> Missing:
    return Missing("a value inside the row is null")


class Allowance:
    """What one thread's row may still take. Raises SecurityError beyond MAX_WORK."""

    def __init__(self) -> None:
        self._spent = threading.local()

    def begin_row(self) -> None:
        """Give this thread's next row its whole allowance."""
        self._spent.work = 0

    def spend(self, work: int) -> None:
        """Count what the row is about to take."""
        self._spent.work = getattr(self._spent, "work", 0) + work
        if self._spent.work > MAX_WORK:
            raise SecurityError(f"it makes more than {MAX_WORK:,} characters, or too many turns and calls, for one row")


class Environment(ImmutableSandboxedEnvironment):
    """Compiles templates. Use through `compile_template`; one serves any number of threads."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(self) -> None:
        super().__init__(undefined=Missing, finalize=self._data, autoescape=False, keep_trailing_newline=True)
        # It gives other text each time, and as much of it as it is told.
        del self.globals["lipsum"]
        self._allowance = Allowance()
        self.begin_row, self.spend = self._allowance.begin_row, self._allowance.spend
        for name, function in self.filters.items():
            self.filters[name] = self._guarded(name, function)
        self.filters["counted turns"] = self._turns
        self.filters["joined texts"] = self._joined_texts
        self.concat = self._joined  # type: ignore[method-assign] # where compiled templates look for it

    def _data(self, value: Any) -> Any:
        """What is printed: data, paid for. Never a null, which would read `None`, nor a function of the language."""
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
        """Pay for what a method of a text will make; its arguments, of which an iterator is a list now."""
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
        """The filter, refusing a null value and a huge width, and paying for what it makes before it is made."""
        first = 1 if hasattr(function, "jinja_pass_arg") else 0

        # Jinja2's own marks (which argument a filter wants passed, that it has an asynchronous twin) go along.
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
        """Pay for what a filter will make; its value, of which an iterator is a list where it must be counted."""
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
"""The names of filters' parameters, in their order."""


def _listed(value: Any) -> Any:
    """An iterator as a list, which can be counted; whatever else as it is."""
    return list(value) if hasattr(value, "__next__") else value


def _known(value: Any) -> Any:
    """The value, of which a null counts nothing: it is an error where it is used."""
    return "" if value is None or isinstance(value, jinja2.Undefined) else value


def _length(value: Any) -> int:
    """How long its text is, without making it. Raises UndefinedError for what is no data, also within lists."""
    known: dict[int, int] = {}

    def length(value: Any) -> int:
        if isinstance(value, str):
            return len(value)
        if isinstance(value, dict | list | tuple | set | frozenset):
            # Lists of lists of one list take little memory, but their text takes all there is.
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
    """The value as a filter takes it that makes text of it."""
    if isinstance(value, str | jinja2.Undefined):
        return value
    if name == "string":
        return printed(value)
    if name == "tojson" and isinstance(value, Map | list | dict):
        with contextlib.suppress(TypeError):
            return as_json(value)
    if name == "join" and isinstance(value, list | tuple):
        return [one if isinstance(one, jinja2.Undefined) else printed(one) for one in value]
    return value


def _require_sizes_in(text: str) -> None:
    if _HUGE_FIELD.search(text):
        raise SecurityError("it formats with a field of huge or computed width")


def count_in(tree: nodes.Node) -> None:
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


def bounded_template(environment: jinja2.Environment, source: str) -> jinja2.Template:
    """The template `source` of a model, compiled by `environment`, with the bound of `MAX_WORK` on each rendering.

    Changes the environment, which must be this template's own. A rendering beyond the bound raises SecurityError.
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

"""Parses YAML into a `JobSpec`, and reports every mistake in one message with file, line and key."""

from __future__ import annotations

import contextlib
import difflib
import functools
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from batchinfer.errors import SpecError
from batchinfer.jobspec.base import keys_of
from batchinfer.jobspec.job_keys import JobSpec

_MISTAKES = 20
"""The most mistakes in one message. More would scroll the first ones off the screen."""

_SHOWN = 200
"""Characters of one value of the user's that a message repeats. More would hide the rest of the message."""

_MAX_VALUES = 100_000
"""Keys and values of a spec, with every alias expanded. More would take minutes to check."""

_MAX_BYTES = 2**20
"""Bytes of a spec or of one --set value, which are read in seconds. More would take longer; large specs list
thousands of choices in 300 KiB."""

_MAX_WRITTEN_VALUES = 50_000
"""Keys and values of a spec as written, without expanding aliases. These are read in a second or two; more take
longer."""

_COUNTING_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The parser in C if PyYAML has it, five times as fast. It differs in details, so it only counts values."""

_TAKES = {
    ("resources", "replicas"): "should be auto, a number from 1, or {min: N, max: N}",
    ("resources", "tensor_parallel"): "should be auto or a number from 1",
    ("resources", "pipeline_parallel"): "should be auto or a number from 1",
    ("shards", "rows"): "should be auto or a number from 1",
}
"""Messages for keys of several types, because pydantic's message names only the first type of a union."""


def load(path: str | Path, overrides: Sequence[str] = (), otherwise: Mapping[str, str] | None = None) -> JobSpec:
    """The spec at `path`, with `KEY.KEY=VALUE` overrides applied. `otherwise`: see `parse`. Raises SpecError."""
    try:
        with Path(path).open("rb") as file:
            # Read one byte more than the limit: the path may be a device that never ends.
            text = file.read(_MAX_BYTES + 1).decode()
    except FileNotFoundError:
        near = difflib.get_close_matches(str(path), [str(p) for p in Path(path).parent.glob("*.y*ml")], n=1, cutoff=0.5)
        raise SpecError(
            f"there is no spec at {path}", f"did you mean {near[0]}?" if near else "check the path"
        ) from None
    except UnicodeDecodeError as error:
        if len(error.object) > _MAX_BYTES:
            raise _too_long(str(path)) from None
        raise SpecError(f"{path} is not UTF-8 text", "a spec is a YAML file") from None
    except OSError as error:
        raise SpecError(
            f"cannot read {path!s:.200}: {error.strerror}", "a spec is a YAML file that you may read"
        ) from None
    except ValueError:
        raise SpecError(f"{str(path)!r:.200} is not a path: it contains a NUL", "check the path") from None
    return parse(text, str(path), overrides, otherwise)


def parse(
    text: str, name: str = "spec", overrides: Sequence[str] = (), otherwise: Mapping[str, str] | None = None
) -> JobSpec:
    """The spec in `text`; messages call it `name`. `otherwise`: values of keys that the text need not have, as
    `input.uri`. Raises SpecError."""
    try:
        _require_short(text, name)
        loader = yaml.SafeLoader(text)
        tree = loader.get_single_node()
        _require_small(tree, name)
        _require_distinct_keys(tree, name)
        raw = loader.construct_document(tree) if tree is not None else None
    except SpecError:
        raise
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise SpecError(
            f"{where}: not valid YAML: {problem:.{_SHOWN}}", "check indentation, colons and quotes near there"
        ) from None
    except Exception as error:
        # PyYAML passes on any exception of its constructors, from IndexError to AttributeError. They fail on values
        # that YAML resolves but Python cannot represent, such as the date 2026-13-45.
        raise SpecError(f"{name}: not usable YAML: {error!s:.{_SHOWN}}", "put the value in quotes") from None
    if not isinstance(raw, dict):
        raise SpecError(
            f"{name}: a spec is a mapping of keys, not {_kind(raw)}", "`batchinfer explain` shows one to start from"
        )
    for key, value in (otherwise or {}).items():
        section, _, inner = key.partition(".")
        if isinstance(raw.setdefault(section, {}), dict):
            raw[section].setdefault(inner, value)
    given = key_values("--set", overrides, "sampling.max_tokens=32")
    for key, value in given:
        _apply(raw, key, value)
    return _validated(raw, name, tree, [key for key, _ in given])


def from_keys(keys: Mapping[str, Any], name: str = "job") -> JobSpec:
    """The spec of these keys, whose values may be models of its sections; messages call it `name`. Raises SpecError."""
    return _validated(dict(keys), name, None, ())


def _validated(raw: dict[Any, Any], name: str, tree: yaml.Node | None, overrides: Sequence[str]) -> JobSpec:
    """The spec of the values. `tree` is the text that they come from, `overrides` the keys that were set beside it."""
    try:
        return JobSpec.model_validate(raw)
    except RecursionError:
        raise SpecError(f"{name}: values are nested too deeply", "make it flatter") from None
    except ValidationError as error:
        # Explain the first mistakes only: each explanation takes time.
        wrong = _without_union_noise(error.errors()[: _MISTAKES * 10])
        lines = [_explain(e, name, tree, overrides) for e in wrong[:_MISTAKES]]
        lines = [line if len(line) <= _SHOWN * 2 else line[: _SHOWN * 2] + " ..." for line in lines]
        number = f"{len(wrong)}" if error.error_count() < _MISTAKES * 10 else f"{error.error_count():,}"
        more = ["  ..."] if len(wrong) > _MISTAKES else []
        message = lines[0]
        if len(lines) > 1:
            message = "\n".join([f"{number} mistakes:", *(f"  {line}" for line in lines), *more])
        known = _known(_place(wrong[0]["loc"])) if len(wrong) == 1 else "KEY"
        raise SpecError(message, f"`{f'batchinfer explain {known}'.strip()}` says what belongs there") from None


def key_values(option: str, texts: Iterable[str], example: str) -> list[tuple[str, str]]:
    """The KEY=VALUE texts of an option of the command line as pairs, in order. Raises SpecError with `example`."""
    found = []
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise SpecError(f"{option} {text!r:.{_SHOWN}} is not KEY=VALUE", f"write for example {option} {example}")
        # Python reads bytes of an argument that are not UTF-8 as halves of surrogate pairs, which no file can store.
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise SpecError(f"{option} {text!r:.{_SHOWN}} is not UTF-8 text", "check the encoding of your terminal")
        found.append((key, value))
    return found


def to_yaml(spec: JobSpec) -> str:
    """The spec as YAML without unset keys; `parse` reads it back to an equal value."""
    return yaml.safe_dump(spec.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True)


def _too_long(name: str) -> SpecError:
    return SpecError(
        f"{name:.{_SHOWN}}: is longer than {_MAX_BYTES:,} bytes",
        "a spec is a page or two: put data into the input, not into the spec",
    )


def _require_short(text: str, name: str) -> None:
    """Raise SpecError for a text that would take long to parse, before it is parsed."""
    if len(text) > _MAX_BYTES or (not text.isascii() and len(text.encode(errors="surrogatepass")) > _MAX_BYTES):
        raise _too_long(name)
    # A value takes at least two characters, so a short text cannot have too many values.
    if len(text) <= 2 * _MAX_WRITTEN_VALUES:
        return
    values = 0
    # The parser that reads the text reports invalid YAML.
    with contextlib.suppress(yaml.YAMLError):
        for event in yaml.parse(text, Loader=_COUNTING_LOADER):
            values += isinstance(event, yaml.NodeEvent)
            if values > _MAX_WRITTEN_VALUES:
                break
    if values > _MAX_WRITTEN_VALUES:
        raise SpecError(
            f"{name:.{_SHOWN}}: holds more than {_MAX_WRITTEN_VALUES:,} keys and values",
            "a spec is a page or two: put data into the input, not into the spec",
        )


def _require_small(tree: yaml.Node | None, name: str) -> None:
    """Raise SpecError for more than `_MAX_VALUES` values, with every alias expanded.

    A few lines of nested aliases can expand to more values than fit in memory. Also refuses half of a surrogate pair,
    which no file can store.
    """
    sizes: dict[int, int] = {}
    waiting: list[tuple[yaml.Node, bool]] = [(tree, False)] if tree is not None else []
    while waiting:
        node, ready = waiting.pop()
        if isinstance(node, yaml.ScalarNode):
            if not node.value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in node.value):
                line = node.start_mark.line + 1
                raise SpecError(
                    f"{name}:{line}: half of a surrogate pair is not a character", "write the whole character"
                )
            sizes[id(node)] = 1
            continue
        inner = [v for pair in node.value for v in pair] if isinstance(node, yaml.MappingNode) else list(node.value)
        if ready:
            # An alias to an anchor around it has no size yet, and counts as one.
            sizes[id(node)] = 1 + sum(sizes.get(id(value), 1) for value in inner)
            if sizes[id(node)] > _MAX_VALUES:
                raise SpecError(f"{name}: stands for more than {_MAX_VALUES:,} values", "a spec is a page or two")
        elif id(node) not in sizes:
            sizes[id(node)] = 1
            waiting.append((node, True))
            waiting.extend((value, False) for value in inner)


def _require_distinct_keys(tree: yaml.Node | None, name: str) -> None:
    """Raise SpecError for two equal keys: PyYAML would silently keep the last one."""
    waiting, visited = [tree], set()
    while waiting:
        node = waiting.pop()
        if id(node) in visited:
            # An alias may point to an anchor around it, which is a cycle.
            continue
        visited.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting.extend(node.value)
        elif isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if key.value in seen and isinstance(key, yaml.ScalarNode):
                    line = key.start_mark.line + 1
                    raise SpecError(
                        f"{name}:{line}: the key {key.value!r:.{_SHOWN}} is there twice", "keep one of them"
                    )
                if isinstance(key, yaml.ScalarNode):
                    seen.add(key.value)
                waiting.append(value)


def _apply(raw: dict[Any, Any], key: str, value: str) -> None:
    try:
        _require_short(value, f"--set {key:.{_SHOWN}}")
        _require_small(yaml.compose(value, Loader=yaml.SafeLoader), f"--set {key:.{_SHOWN}}")
        parsed = yaml.safe_load(value)
    except SpecError:
        raise
    except Exception:
        # See `parse`: PyYAML passes on any exception of its constructors.
        if "{{" not in value and "{%" not in value:
            raise SpecError(
                f"--set {key:.{_SHOWN}}: {value!r:.{_SHOWN}} is not a YAML value",
                f"for a text, quote it for YAML and for your shell: --set '{key:.{_SHOWN}}=\"TEXT\"'",
            ) from None
        # A template is a text, and rarely valid YAML too.
        parsed = value
    at = raw
    *parents, last = key.split(".")
    for part in parents:
        if at.get(part) is None:
            at[part] = {}
        at = at[part]
        if not isinstance(at, dict):
            raise SpecError(
                f"--set {key:.{_SHOWN}}: {part!r:.{_SHOWN}} is not a mapping in this spec",
                "give the whole value of that key",
            )
    at[last] = parsed


def _without_union_noise(errors: Iterable[Any]) -> list[Any]:
    """One error for each place, and none for a value whose parts have errors of their own.

    Pydantic reports an error for each member of a union, and calls a list without its wrong items too short. Errors of
    this package's validators replace errors of types.
    """
    kept: dict[tuple[Any, ...], Any] = {}
    for error in errors:
        place = _place(error["loc"])
        if place not in kept or error["type"] == "value_error":
            kept[place] = error
    return [e for place, e in kept.items() if not any(p != place and p[: len(place)] == place for p in kept)]


def _place(loc: tuple[Any, ...]) -> tuple[Any, ...]:
    """`loc` without the names of union members, which pydantic inserts between the keys."""
    at: Any = JobSpec
    place: list[Any] = []
    for part in loc:
        model = _model_in(at)
        if model is not None and str(part) in keys_of(model):
            at = keys_of(model)[str(part)].annotation
        elif part == "[key]":
            # Pydantic's mark for an error of the key itself.
            break
        elif typing.get_origin(at) is dict:
            at = typing.get_args(at)[1]
        elif isinstance(part, int):
            at = _item_of(at)
        elif _is_real_union(at):
            at = model
            continue
        elif model is None and not isinstance(part, int):
            break
        place.append(part)
    return tuple(place)


def _item_of(annotation: Any) -> Any:
    """The type of the items of a list, also of one that may be null."""
    for inner in typing.get_args(annotation):
        if typing.get_origin(inner) in (tuple, list):
            return typing.get_args(inner)[0]
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) in (tuple, list) else annotation


def _is_real_union(annotation: Any) -> bool:
    members = typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else ()
    return sum(member is not types.NoneType for member in members) > 1


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next((m for m in map(_model_in, typing.get_args(annotation)) if m), None)
    return None


def _explain(error: Any, name: str, tree: yaml.Node | None, overrides: Sequence[str] = ()) -> str:
    place = _place(error["loc"])
    key = ".".join(f"{part!s:.{_SHOWN}}" for part in place)
    line = _line(tree, place)
    where = f"{name}:{line}: {key}" if line else f"{name}: {key}"
    where = where.removesuffix(": ")
    override = next((o for o in reversed(overrides) if _comes_from(place, o, tree)), None)
    if override is not None:
        where = f"--set {override:.{_SHOWN}}" + ("" if override == key else f": {key}")
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key{_nearest(place)}"
    if error["type"] == "missing":
        return f"{where}: this key is missing"
    message = str(error["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    value = error.get("input")
    if error["type"] == "value_error":
        return f"{where}: {message}"
    if error["type"] == "literal_error" and isinstance(value, str) and place not in _TAKES:
        return f"{where}: there is no {value!r:.80}{_near_choices(value, error['ctx']['expected'])}"
    shown = "" if isinstance(value, dict | list | tuple) else f", not {_shown(value):.80}"
    return f"{where}: {_TAKES.get(place, message)}{shown}"


def _comes_from(place: tuple[Any, ...], override: str, tree: yaml.Node | None) -> bool:
    """Did the override set the value at `place`, rather than the file?"""
    path = tuple(override.split("."))
    named = tuple(map(str, place))
    if named[: len(path)] == path:
        return True
    # The override created the parents of its key if the file has no such key.
    return bool(named) and path[: len(named)] == named and not _holds(tree, named)


def _holds(tree: yaml.Node | None, names: Sequence[str]) -> bool:
    for name in names:
        found = [v for k, v in tree.value if k.value == name] if isinstance(tree, yaml.MappingNode) else []
        if not found:
            return False
        tree = found[0]
    return True


def _near_choices(value: str, expected: str) -> str:
    """The words that are similar to `value`, or all if none is. `expected`: pydantic's text "'a', 'b' or 'c'"."""
    words = re.findall(r"'([^']*)'", expected)
    folded = {word.lower(): word for word in words}
    # Words that begin with `value` come first: for "A100" difflib prefers "A10" to "A100-80GB".
    near = [word for word in words if value and word.lower().startswith(value.lower())]
    near += [folded[word] for word in difflib.get_close_matches(value.lower(), folded, n=3, cutoff=0.5)]
    near = list(dict.fromkeys(near))
    return f": did you mean {' or '.join(near[:3])}?" if near else f": it takes {', '.join(words)}"


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:
        # By default Python refuses to print an integer of more than 4300 digits.
        return "a number of thousands of digits"


def _inside(annotation: Any, part: Any) -> Any:
    """The type of the key or item `part` of a section, a mapping or a list of this type; None if it has none."""
    if typing.get_origin(annotation) is dict:
        return typing.get_args(annotation)[1]
    if isinstance(part, int):
        return _item_of(annotation)
    model = _model_in(annotation)
    field = keys_of(model).get(str(part)) if model else None
    return field.annotation if field else None


def _nearest(place: tuple[Any, ...]) -> str:
    model = _model_in(functools.reduce(_inside, place[:-1], JobSpec))
    if model is None:
        return ""
    names = list(keys_of(model))
    near = difflib.get_close_matches(str(place[-1]), names, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; the keys here are {', '.join(names)}"


def _known(place: tuple[Any, ...]) -> str:
    """The longest beginning of `place` that `batchinfer explain` knows; empty if the first key is unknown."""
    at: Any = JobSpec
    known: list[str] = []
    for part in place:
        model = _model_in(at)
        if model is None or str(part) not in keys_of(model):
            break
        known.append(str(part))
        at = _inside(at, part)
    return ".".join(known)


def _line(tree: yaml.Node | None, place: tuple[Any, ...]) -> int | None:
    """The line (from 1) of the deepest part of `place` that the file holds; None if it holds none."""
    line = None
    for part in place:
        if isinstance(tree, yaml.MappingNode):
            found = next(((k, v) for k, v in tree.value if k.value == str(part)), None)
            if found is None:
                return line
            line, tree = found[0].start_mark.line + 1, found[1]
        elif isinstance(tree, yaml.SequenceNode) and isinstance(part, int) and part < len(tree.value):
            tree = tree.value[part]
            line = tree.start_mark.line + 1
        else:
            return line
    return line


def _kind(value: Any) -> str:
    return "empty" if value is None else f"a {type(value).__name__}"

"""YAML text to `JobSpec`, and every mistake to one readable message with file, line and key."""

from __future__ import annotations

import contextlib
import difflib
import re
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from batchinfer.errors import SpecError
from batchinfer.jobspec.base import keys_of
from batchinfer.jobspec.job_keys import JobSpec

_MISTAKES = 20
"""How many mistakes a message tells."""

_SHOWN = 200
"""How much of one word of the user's it repeats."""

_MAX_VALUES = 100_000
"""Keys and values of a spec, with every alias written out: more would take minutes to check."""

_MAX_BYTES = 2**20
"""Bytes of a spec or of one --set value, read in seconds. The largest specs list thousands of choices in 300 KiB."""

_MAX_WRITTEN_VALUES = 50_000
"""Keys and values that a spec may hold as it is written: to read them takes a second or two."""

_COUNTING_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The parser in C, five times as fast, where PyYAML was built with it. It differs in details: it only counts."""

_TAKES = {
    ("resources", "replicas"): "should be auto, a number from 1, or {min: N, max: N}",
    ("resources", "tensor_parallel"): "should be auto or a number from 1",
    ("resources", "pipeline_parallel"): "should be auto or a number from 1",
    ("shards", "rows"): "should be auto or a number from 1",
}
"""What keys of several types take: pydantic's word for a union's first member hides the others."""


def load(path: str | Path, overrides: Sequence[str] = ()) -> JobSpec:
    """The spec at `path`, with `KEY.KEY=VALUE` overrides applied; raises SpecError."""
    try:
        with Path(path).open("rb") as file:
            # No more than it takes to see that it is too long: the path may be that of a device.
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
        raise SpecError(f"{str(path)!r:.200} is no path: it has a NUL in it", "check the path") from None
    return parse(text, str(path), overrides)


def parse(text: str, name: str = "spec", overrides: Sequence[str] = ()) -> JobSpec:
    """The spec in `text`; `name` stands in messages for the file."""
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
        # A value that YAML resolves but Python cannot hold, such as the date 2026-13-45: PyYAML lets
        # through whatever its constructors raise, from IndexError to AttributeError.
        raise SpecError(f"{name}: not usable YAML: {error!s:.{_SHOWN}}", "put the value in quotes") from None
    if not isinstance(raw, dict):
        raise SpecError(
            f"{name}: a spec is a mapping of keys, not {_kind(raw)}", "`batchinfer explain` shows one to start from"
        )
    given = key_values("--set", overrides, "sampling.max_tokens=32")
    for key, value in given:
        _apply(raw, key, value)
    try:
        return JobSpec.model_validate(raw)
    except RecursionError:
        raise SpecError(f"{name}: values are nested too deeply", "make it flatter") from None
    except ValidationError as error:
        # The first few say what is wrong; to explain a mistake takes time for each.
        wrong = _without_union_noise(error.errors()[: _MISTAKES * 10])
        keys = [key for key, _ in given]
        lines = [_explain(e, name, tree, keys) for e in wrong[:_MISTAKES]]
        lines = [line if len(line) <= _SHOWN * 2 else line[: _SHOWN * 2] + " ..." for line in lines]
        number = f"{len(wrong)}" if error.error_count() < _MISTAKES * 10 else f"{error.error_count():,}"
        more = ["  ..."] if len(wrong) > _MISTAKES else []
        message = lines[0]
        if len(lines) > 1:
            message = "\n".join([f"{number} mistakes:", *(f"  {line}" for line in lines), *more])
        known = _known(_place(wrong[0]["loc"])) if len(wrong) == 1 else "KEY"
        raise SpecError(message, f"`{f'batchinfer explain {known}'.strip()}` says what belongs there") from None


def key_values(option: str, texts: Iterable[str], example: str) -> list[tuple[str, str]]:
    """The KEY=VALUE texts of an option of the command line, in order; raises SpecError, with the example."""
    found = []
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise SpecError(f"{option} {text!r:.{_SHOWN}} is not KEY=VALUE", f"write for example {option} {example}")
        # A shell hands over bytes that are no UTF-8 as halves of surrogate pairs, which no file could hold.
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise SpecError(f"{option} {text!r:.{_SHOWN}} is not UTF-8 text", "check the encoding of your terminal")
        found.append((key, value))
    return found


def to_yaml(spec: JobSpec) -> str:
    """The spec as YAML that `parse` reads back to an equal value; unset keys are left out."""
    return yaml.safe_dump(spec.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True)


def _too_long(name: str) -> SpecError:
    return SpecError(
        f"{name:.{_SHOWN}}: is longer than {_MAX_BYTES:,} bytes",
        "a spec is a page or two: put data into the input, not into the spec",
    )


def _require_short(text: str, name: str) -> None:
    """Refuse a text that would take long to read, before it is read."""
    if len(text) > _MAX_BYTES or (not text.isascii() and len(text.encode(errors="surrogatepass")) > _MAX_BYTES):
        raise _too_long(name)
    # A value takes two characters and more: the next few are counted only where there may be too many.
    if len(text) <= 2 * _MAX_WRITTEN_VALUES:
        return
    values = 0
    # What is no YAML is told by the parser that reads it.
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
    """A few lines of aliases of aliases can stand for more values than any memory holds.

    Counts the values as they would be with every alias written out; also refuses a text with half a
    surrogate pair, which no file could hold.
    """
    sizes: dict[int, int] = {}
    waiting: list[tuple[yaml.Node, bool]] = [(tree, False)] if tree is not None else []
    while waiting:
        node, ready = waiting.pop()
        if isinstance(node, yaml.ScalarNode):
            if not node.value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in node.value):
                line = node.start_mark.line + 1
                raise SpecError(f"{name}:{line}: half of a surrogate pair is no character", "write the whole character")
            sizes[id(node)] = 1
            continue
        inner = [v for pair in node.value for v in pair] if isinstance(node, yaml.MappingNode) else list(node.value)
        if ready:
            # An alias that leads back to its own anchor is not there yet, and counts as one.
            sizes[id(node)] = 1 + sum(sizes.get(id(value), 1) for value in inner)
            if sizes[id(node)] > _MAX_VALUES:
                raise SpecError(f"{name}: stands for more than {_MAX_VALUES:,} values", "a spec is a page or two")
        elif id(node) not in sizes:
            sizes[id(node)] = 1
            waiting.append((node, True))
            waiting.extend((value, False) for value in inner)


def _require_distinct_keys(tree: yaml.Node | None, name: str) -> None:
    """YAML would silently let the last of two equal keys win."""
    waiting, visited = [tree], set()
    while waiting:
        node = waiting.pop()
        if id(node) in visited:
            # An alias may lead back to where its anchor is.
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
        # See parse: PyYAML lets through whatever its constructors raise.
        if "{{" not in value and "{%" not in value:
            raise SpecError(
                f"--set {key:.{_SHOWN}}: {value!r:.{_SHOWN}} is not a YAML value",
                f"for a text, quote it for YAML and for your shell: --set '{key:.{_SHOWN}}=\"TEXT\"'",
            ) from None
        # A template is a text, and hardly ever also YAML.
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
    """One entry for each place, and none for what only holds a wrong part.

    A union reports one error for each of its members, and a list that lost its wrong items is called
    too short as well. What a validator of ours says is said before what a type says.
    """
    kept: dict[tuple[Any, ...], Any] = {}
    for error in errors:
        place = _place(error["loc"])
        if place not in kept or error["type"] == "value_error":
            kept[place] = error
    return [e for place, e in kept.items() if not any(p != place and p[: len(place)] == place for p in kept)]


def _place(loc: tuple[Any, ...]) -> tuple[Any, ...]:
    """`loc` without the names of union members that pydantic puts between the keys."""
    at: Any = JobSpec
    place: list[Any] = []
    for part in loc:
        model = _model_in(at)
        if model is not None and str(part) in keys_of(model):
            at = keys_of(model)[str(part)].annotation
        elif part == "[key]":
            # Pydantic's word for: the key itself is wrong.
            break
        elif typing.get_origin(at) is dict:
            at = typing.get_args(at)[1]
        elif _is_real_union(at):
            at = model
            continue
        elif model is None and not isinstance(part, int):
            break
        place.append(part)
    return tuple(place)


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
    """Was the value at `place` set by the override, rather than written in the file?"""
    path = tuple(override.split("."))
    named = tuple(map(str, place))
    if named[: len(path)] == path:
        return True
    # The override made a key on the way to its own: the file has none of it.
    return bool(named) and path[: len(named)] == named and not _holds(tree, named)


def _holds(tree: yaml.Node | None, names: Sequence[str]) -> bool:
    for name in names:
        found = [v for k, v in tree.value if k.value == name] if isinstance(tree, yaml.MappingNode) else []
        if not found:
            return False
        tree = found[0]
    return True


def _near_choices(value: str, expected: str) -> str:
    """Which of a key's words was meant; all of them where none is near. `expected`: pydantic's 'a', 'b' or 'c'."""
    words = re.findall(r"'([^']*)'", expected)
    folded = {word.lower(): word for word in words}
    # "A100" is nearest to "A100-80GB", which it begins, whatever their lengths.
    near = [word for word in words if value and word.lower().startswith(value.lower())]
    near += [folded[word] for word in difflib.get_close_matches(value.lower(), folded, n=3, cutoff=0.5)]
    near = list(dict.fromkeys(near))
    return f": did you mean {' or '.join(near[:3])}?" if near else f": it takes {', '.join(words)}"


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:
        # Python prints no integer of more than 4300 digits.
        return "a number of thousands of digits"


def _nearest(place: tuple[Any, ...]) -> str:
    at: Any = JobSpec
    for part in place[:-1]:
        if typing.get_origin(at) is dict:
            at = typing.get_args(at)[1]
            continue
        model = _model_in(at)
        field = keys_of(model).get(str(part)) if model else None
        at = field.annotation if field else None
    model = _model_in(at)
    if model is None:
        return ""
    names = list(keys_of(model))
    near = difflib.get_close_matches(str(place[-1]), names, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; the keys here are {', '.join(names)}"


def _known(place: tuple[Any, ...]) -> str:
    """The longest beginning of the place that `batchinfer explain` knows; empty if the first key is wrong."""
    at: Any = JobSpec
    known: list[str] = []
    for part in map(str, place):
        model = _model_in(at)
        if model is None or part not in keys_of(model):
            break
        known.append(part)
        at = keys_of(model)[part].annotation
    return ".".join(known)


def _line(tree: yaml.Node | None, place: tuple[Any, ...]) -> int | None:
    """The 1-based line of the deepest part of `place` that the file itself holds."""
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

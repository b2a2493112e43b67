"""Refuses shapes of answers that no engine can produce, and sampling that contradicts them, before an engine runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Protocol

from batchinfer.jobspec.regex import compile_regex

MAX_SCHEMA_DEPTH = 64
"""Nested objects and arrays in a JSON Schema. vLLM 0.32 refuses every row of a deeper schema."""

_DATA = ("const", "default", "enum", "examples")
"""Keys of a JSON Schema whose values are data, not schemas."""


class Shape(Protocol):
    """The keys of `output` that fix the shape of an answer."""

    @property
    def choices(self) -> Collection[str] | None: ...
    @property
    def multi_label(self) -> bool: ...
    @property
    def json_schema(self) -> dict[str, Any] | None: ...
    @property
    def regex(self) -> str | None: ...


class Sampling(Protocol):
    """The keys of `sampling` that end an answer or forbid parts of it."""

    @property
    def max_tokens(self) -> int: ...
    @property
    def stop(self) -> str | tuple[str, ...] | None: ...
    @property
    def include_stop_str_in_output(self) -> bool: ...
    @property
    def ignore_eos(self) -> bool: ...
    @property
    def bad_words(self) -> tuple[str, ...] | None: ...


def require_usable_patterns(schema: Mapping[str, Any]) -> None:
    """Raise ValueError if the engine cannot use a pattern of the schema, or if the schema is nested too deeply."""
    for pattern in schema_patterns(schema):
        try:
            compile_regex(pattern, answer=False)
        except ValueError as error:
            raise ValueError(f"its pattern {pattern!r:.60} {error}") from None


def schema_patterns(schema: Mapping[str, Any]) -> Iterator[str]:
    """The regular expressions of a JSON Schema; raises ValueError beyond MAX_SCHEMA_DEPTH."""
    waiting: list[tuple[Any, int]] = [(schema, 1)]
    while waiting:
        at, depth = waiting.pop()
        if depth > MAX_SCHEMA_DEPTH:
            raise ValueError(f"is nested too deeply: an engine takes {MAX_SCHEMA_DEPTH} levels of objects and arrays")
        if isinstance(at, dict):
            if isinstance(at.get("pattern"), str):
                yield at["pattern"]
            if isinstance(at.get("patternProperties"), dict):
                yield from at["patternProperties"]
                if "unevaluatedProperties" in at:
                    raise ValueError("has unevaluatedProperties beside patternProperties: use additionalProperties")
            waiting += [(value, depth + 1) for key, value in at.items() if key not in _DATA]
        elif isinstance(at, list):
            waiting += [(value, depth + 1) for value in at]


def require_reachable(output: Shape, sampling: Sampling) -> None:
    """Raise ValueError for sampling under which no answer has the shape that `output` asks for."""
    kind = constraint(output)
    if kind is None:
        return
    if sampling.ignore_eos:
        raise ValueError(f"sampling.ignore_eos does not go with output.{kind}: the answer could not end where it fits")
    for stop in [sampling.stop] if isinstance(sampling.stop, str) else sampling.stop or ():
        where = _cut_by(stop, output, sampling.include_stop_str_in_output)
        if where is not None:
            raise ValueError(
                f"sampling.stop {stop!r:.60} would cut {where}: leave it out, the answer ends where output.{kind} ends"
            )
    for word in sampling.bad_words or ():
        where = _forbidden_by(word, output)
        if where is not None:
            raise ValueError(f"sampling.bad_words {word!r:.60} forbids {where}: leave one of the two out")


def constraint(output: Shape) -> str | None:
    """The key of `output` that fixes the shape of the answer; None if none does."""
    return next((key for key in ("choices", "json_schema", "regex") if getattr(output, key) is not None), None)


def _cut_by(stop: str, output: Shape, kept: bool) -> str | None:
    """The valid answer that a stop text would cut, None if there is none. `kept`: the stop text stays in the answer."""
    if output.choices is not None and output.multi_label:
        return "a list of the choices" if stop in json.dumps(list(output.choices), ensure_ascii=False) else None
    if output.choices is not None:
        return _first(output.choices, lambda choice: _before(choice, stop, kept) != choice, "the choice")
    if output.regex is not None:
        return "an answer that matches output.regex" if compile_regex(output.regex).may_contain(stop, kept) else None
    # Any text without control characters may be part of a string or a key of JSON.
    return None if any(letter < " " for letter in stop) else "an answer in JSON"


def _before(text: str, stop: str, kept: bool) -> str:
    at = text.find(stop)
    return text if at < 0 else text[: at + len(stop) * kept]


def _forbidden_by(word: str, output: Shape) -> str | None:
    word = word.strip()
    if not word:
        return None
    if output.choices is not None:
        return _first(output.choices, lambda choice: word in choice, "the choice")
    if output.regex is not None:
        return "every answer that matches output.regex" if compile_regex(output.regex).must_contain(word) else None
    return "every answer in JSON" if output.json_schema and word in _brackets(output.json_schema) else None


def _brackets(schema: Mapping[str, Any]) -> tuple[str, ...]:
    return {"object": ("{", "}"), "array": ("[", "]"), "string": ('"',)}.get(str(schema.get("type")), ())


def _first(choices: Collection[str], wrong: Callable[[str], bool], name: str) -> str | None:
    return next((f"{name} {choice!r:.60}" for choice in choices if wrong(choice)), None)


def advice(output: Shape, sampling: Sampling) -> str | None:
    """A warning that answers may run to `max_tokens`, None if they have an upper length."""
    if output.regex is None or compile_regex(output.regex).longest is not None:
        return None
    return (
        f"output.regex {output.regex!r:.60} has no upper length: an answer may run to sampling.max_tokens "
        f"({sampling.max_tokens}), where it is cut and may not match; write a count such as {{1,40}} for * and +"
    )

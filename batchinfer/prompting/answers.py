"""Checks an answer against the shape that the job asks for, and says why an answer does not fit."""

from __future__ import annotations

import functools
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from jsonschema import validators
from jsonschema.exceptions import ValidationError, best_match
from referencing.exceptions import Unresolvable

from batchinfer.errors import SpecError
from batchinfer.jobspec import JobSpec, OutputSpec
from batchinfer.jobspec.regex import TooManySteps, compile_regex
from batchinfer.prompting.typed import Untypable, converter

MAX_STEPS = 100_000
"""Keywords of a JSON Schema that are evaluated for one answer, about half a second. Nested branches (`anyOf` within
`anyOf`) multiply, and rows behind a slow answer wait. Lower fails answers of large schemas."""

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_CONTROL = re.compile("[\x00-\x1f]")


SHOWN_ANSWER = 200
"""Characters of an answer that its error repeats where no column of text keeps it."""


class Answer(NamedTuple):
    """An answer as it is stored, and what is wrong with it, None if it fits. `value`: of a typed answer that fits."""

    text: str
    problem: str | None
    value: Any = None


def require_whole_choices(spec: JobSpec, tokens: Callable[[str], int]) -> None:
    """Raise SpecError for a choice that `sampling.max_tokens` cuts. `tokens` counts the tokens of a text."""
    most = spec.sampling.max_tokens
    # A token has at least one byte, so a choice of at most `most` bytes needs no count.
    answers = spec.output.choice_texts or ()
    name = "the longest of output.choices"
    if spec.output.multi_label:
        answers, name = (label_list(answers),), "the list of all output.choices"
    counted = [(tokens(answer), answer) for answer in answers if len(answer.encode()) > most]
    count, longest = max(counted, default=(0, ""))
    if count > most:
        raise SpecError(
            f"sampling.max_tokens {most} cuts {name}, {longest!r:.60}: it has {count} tokens",
            f"set sampling.max_tokens to {count + 1} or more",
        )


def label_list(labels: Iterable[str]) -> str:
    """The JSON text of a list of labels, as `label_grammar` has it."""
    return json.dumps(list(labels), ensure_ascii=False)


def label_grammar(labels: Sequence[str]) -> str:
    """The grammar (EBNF of the engine) of a JSON list of labels: each at most once, in this order."""
    rules = ['root ::= "[" any0 "]"']
    for i, label in enumerate(labels):
        text = json.dumps(json.dumps(label, ensure_ascii=False), ensure_ascii=False)
        rules.append(f"any{i} ::= {text} more{i + 1} | any{i + 1}")
        rules.append(f'more{i} ::= ", " {text} more{i + 1} | more{i + 1}')
    end = len(labels)
    return "\n".join([*rules, f'any{end} ::= ""', f'more{end} ::= ""'])


class _GivenUp(Exception):
    """The check needs more than MAX_STEPS."""


class OutputCheck:
    """Checks that answers have the shape that the job asks for.

    Decoding is constrained to that shape, but an answer that `max_tokens` or a stop text cuts does not fit. Safe to
    use from several threads.
    """

    def __init__(self, output: OutputSpec, max_tokens: int | None = None) -> None:
        self._choices = set(output.choices) if output.choices is not None else None
        self._many = output.multi_label
        self._regex = compile_regex(output.regex) if output.regex is not None else None
        self._schema = None if output.json_schema is None else _SchemaCheck(output.json_schema)
        self._typed = None if output.kind is None else converter(output.kind)
        self._limit = "sampling.max_tokens" + (f" ({max_tokens})" if max_tokens is not None else "")
        self.trivial = not (self._choices or self._regex or self._schema)

    def check(self, text: str, finish_reason: str = "stop") -> Answer:
        """The answer as it is stored: JSON with the control characters in its strings escaped."""
        value = None
        if self._schema is not None:
            text, problem, value = self._schema.check(text)
        else:
            problem = self.problem(text)
        if problem is None and self._typed is not None:
            try:
                value = self._typed(value)
            except Untypable as error:
                problem = str(error)
        if problem is None:
            return Answer(text, None, value if self._typed is not None else None)
        if self._typed is not None:
            problem = f"{problem[:250]}; the answer begins {text[:SHOWN_ANSWER]!r}"
        # A key of the answer may hold half of a surrogate pair, which no column of texts does.
        told = f"{self._ending(finish_reason)}{problem}".encode(errors="backslashreplace").decode()
        return Answer(text, told[:500])

    def problem(self, text: str) -> str | None:
        """Why `text` does not fit; None if it fits."""
        if self._choices is not None:
            if self._many:
                return None if self._lists_choices(text) else f"{text!r:.100} is no list of the choices"
            return None if text in self._choices else f"{text!r:.100} is none of the choices"
        if self._regex is not None:
            try:
                fits = self._regex.fullmatch(text)
            except TooManySteps:
                return "output.regex takes too long to check on this answer: make it simpler"
            return None if fits else f"{text!r:.100} does not match the regular expression"
        return None if self._schema is None else self._schema.check(text)[1]

    def _lists_choices(self, text: str) -> bool:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return False
        names = isinstance(found, list) and all(isinstance(label, str) for label in found)
        return names and len(set(found)) == len(found) and set(found) <= (self._choices or set())

    def _ending(self, finish_reason: str) -> str:
        """The beginning of the message, if the finish reason explains the problem; otherwise empty."""
        if finish_reason == "error":
            return "the engine found no token that was allowed next (output.*, sampling.allowed_token_ids, bad_words): "
        if finish_reason == "repetition":
            return "the answer was ended since it repeated itself (sampling.repetition_detection): "
        if finish_reason != "length":
            return ""
        return f"the answer was cut at {self._limit}, which may be too few: "


class _SchemaCheck:
    """Validates answers against a JSON Schema, with at most MAX_STEPS for each answer."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self._spent = threading.local()
        base = validators.validator_for(schema)
        keywords = dict(base.VALIDATORS)
        keywords |= {
            name: check for name, check in {"pattern": _pattern, "patternProperties": _pattern_properties,
            "additionalProperties": _additional_properties}.items() if name in keywords
        }  # fmt: skip
        counted = {name: self._counted(check) for name, check in keywords.items()}
        # `jsonschema` has no types for the validators that it makes.
        self._validator = validators.extend(base, counted)(schema)  # type: ignore[no-untyped-call]

    def check(self, text: str) -> tuple[str, str | None, Any]:
        """The text with the control characters in its strings escaped, what is wrong with it, and its value."""
        if not text.strip():
            return text, "not JSON: white space only" if text else "not JSON: the answer is empty", None
        try:
            # The engine's grammar allows a raw line feed or tab in a string; JSON requires an escape.
            value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_distinct, strict=False)
        except (ValueError, RecursionError) as error:
            return text, f"not JSON: {error}"[:500], None
        if _CONTROL.search(text):
            text = _STRING.sub(_escaped, text)
        self._spent.steps = 0
        try:
            misfit = best_match(self._validator.iter_errors(value))
        except (_GivenUp, TooManySteps):
            return text, "the JSON schema takes too long to check on this answer: give it fewer branches", None
        except (Unresolvable, RecursionError) as error:
            return text, f"the JSON schema cannot be applied: {type(error).__name__}: {error}"[:500], None
        if misfit is None:
            return text, None, value
        return text, f"does not fit the JSON schema at {misfit.json_path}: {misfit.message}"[:500], None

    def _counted(self, check: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(check)
        def counted(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
            self._spent.steps += 1
            if self._spent.steps > MAX_STEPS:
                raise _GivenUp
            return check(validator, value, instance, schema)

        return counted


def _no_constant(name: str) -> None:
    """Refuse NaN and Infinity, which Python reads but JSON does not have."""
    raise ValueError(f"{name} is no JSON")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse an object with two equal keys: Python would silently keep the last one."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in found if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r:.100} is there twice")
    return found


def _escaped(string: re.Match[str]) -> str:
    return _CONTROL.sub(lambda control: json.dumps(control[0])[1:-1], string[0])


# Keywords of JSON Schema with regular expressions, as in `jsonschema` but without `re`, which backtracks.


def _matches(pattern: str, text: str) -> bool:
    return compile_regex(pattern, answer=False).search(text)


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if validator.is_type(instance, "string") and not _matches(pattern, instance):
        yield ValidationError(f"{instance!r:.200} does not match {pattern!r:.200}")


def _pattern_properties(validator: Any, patterns: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "object"):
        return
    for pattern, subschema in patterns.items():
        for key, value in instance.items():
            if _matches(pattern, key):
                yield from validator.descend(value, subschema, path=key, schema_path=pattern)


def _additional_properties(validator: Any, allowed: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "object"):
        return
    patterns = schema.get("patternProperties", {})
    known = schema.get("properties", {})
    extras = [key for key in instance if key not in known and not any(_matches(p, key) for p in patterns)]
    if validator.is_type(allowed, "object"):
        for extra in extras:
            yield from validator.descend(instance[extra], allowed, path=extra)
    elif not allowed and extras:
        names = ", ".join(f"{extra!r:.100}" for extra in extras[:3])
        yield ValidationError(f"Additional properties are not allowed ({names} unexpected)")

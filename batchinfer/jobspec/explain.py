"""The keys of a spec for a person: turns the JSON Schema of `JobSpec` into a tree of keys. Pure."""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from batchinfer.errors import UserError
from batchinfer.jobspec.job_keys import JobSpec

EXAMPLE = """\
name: tickets
model: {source: qwen2.5-7b}
input: {uri: data/tickets, id_column: ticket_id, columns: [customer]}
prompt: {system: "You sort support tickets.", template: "Subject: {{ subject }}\\n\\n{{ body }}"}
sampling: {max_tokens: 8}
output: {uri: runs/tickets, column: queue, choices: [billing, outage, other]}
"""
"""A complete spec with the keys that most jobs need."""

_SHOWN_VALUES = 4
"""The most values that a type lists. More would fill a line of the tree."""

_SHOWN_NAME = 80
"""Characters of an unknown name that a message repeats. More would hide the rest of the message."""

_LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "minLength": "at least {} character(s)",
    "minItems": "at least {} item(s)",
    "minProperties": "at least {} key(s)",
    "pattern": "matches {}",
}
"""By JSON Schema's keywords for limits: the text for a person."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the spec."""

    path: str
    """The key with its parents, as `output.choices`; empty for the spec itself."""
    name: str
    """The last part of the path."""
    type: str
    """In words: `integer`, `list of string`, `auto | integer | section`."""
    default: str
    """As YAML; `required` if there is none; empty for a section, whose own keys have defaults."""
    limits: str
    """The limits of the value, empty if there are none."""
    values: tuple[str, ...]
    """The only values, if they can be listed."""
    description: str
    """Paragraphs with an empty line between them."""
    keys: tuple[Key, ...]
    """The keys inside, in the order of the model."""
    schema: Mapping[str, Any]
    """The part of the JSON Schema; its references point into `$defs` of the whole."""
    free: bool = False
    """Whether users choose the names inside. If the values are sections, `keys` has one example for all of them."""

    @property
    def summary(self) -> str:
        """The first sentence of the description."""
        first = self.description.partition("\n\n")[0]
        return re.split(r"(?<=\.)\s", first, maxsplit=1)[0]

    def walk(self) -> Iterator[Key]:
        """Every key inside, a parent before its own keys."""
        for key in self.keys:
            yield key
            yield from key.walk()


@functools.cache
def whole_spec() -> Key:
    """The spec as one key, whose keys are the sections."""
    return replace(_reader().key((), JobSpec.model_json_schema(), required=True), default="")


def explain(path: str) -> Key:
    """The key at `path`. Raises UserError with the nearest existing key."""
    at = whole_spec()
    rest = path
    while rest:
        if at.free:
            return _inside_free(at, rest, path)
        name, _, rest = rest.partition(".")
        found = next((key for key in at.keys if key.name == name), None)
        if found is None:
            raise _unknown(at, name, at.path)
        at = found
    return at


def json_schema(key: Key) -> dict[str, Any]:
    """The JSON Schema of the key, with the definitions that it refers to."""
    whole: dict[str, Any] = dict(whole_spec().schema)
    if not key.path:
        return whole
    needed: dict[str, Any] = {}
    waiting: list[Any] = [key.schema]
    while waiting:
        at = waiting.pop()
        waiting.extend(at.values() if isinstance(at, Mapping) else at if isinstance(at, list) else ())
        name = str(at.get("$ref", "")).rpartition("/")[2] if isinstance(at, Mapping) else ""
        if name and name not in needed:
            needed[name] = whole["$defs"][name]
            waiting.append(needed[name])
    return {**key.schema, **({"$defs": needed} if needed else {})}


def _inside_free(at: Key, rest: str, path: str) -> Key:
    """A key that the user named, or a key of its value. The user's name may have dots, as a bucket's name has."""
    beginning = _placeholder(at.schema).removesuffix("...")
    if not rest.startswith(beginning):
        raise UserError(
            f"{at.path} has no key {rest!r:.{_SHOWN_NAME}}",
            f"its keys begin with {beginning}, as in {at.path}.{_placeholder(at.schema)}",
        )
    value = replace(_reader().key((at.path, rest), _value_schema(at.schema), required=True), default="")
    if not value.keys:
        return replace(value, description=at.description)
    parent, dot, last = rest.rpartition(".")
    found = next((key for key in value.keys if key.name == last), None)
    if found is not None:
        return replace(found, path=path)
    if dot and difflib.get_close_matches(last, [key.name for key in value.keys], n=1):
        raise _unknown(value, last, f"{at.path}.{parent}")
    return value


def _value_schema(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of a mapping's values; empty if any value is allowed."""
    found = (member.get("additionalProperties") for member in _members(schema))
    return next((values for values in found if isinstance(values, Mapping)), {})


def _placeholder(schema: Mapping[str, Any]) -> str:
    """An example of a key that the user names, such as `s3://...`."""
    return str(schema.get("propertyNames", {}).get("examples", ["..."])[0])


def _unknown(at: Key, name: str, parent: str) -> UserError:
    """The error for a missing key `name` of `at`. `parent` is the path of `at` as the user wrote it."""
    message = f"{parent or 'a spec'} has no key {name!r:.{_SHOWN_NAME}}"
    everywhere: dict[str, list[str]] = {}
    for key in whole_spec().walk():
        if key.path.startswith("combine.sampling."):
            # The same keys as those of `sampling`, which is what is meant.
            continue
        everywhere.setdefault(key.name, []).append(key.path)
    siblings = {key.name: [f"{parent}.{key.name}" if parent else key.name] for key in at.keys}
    # A similar name in the same section is a likelier typo than the same name in another section.
    for names, cutoff in ((siblings, 0.75), (everywhere, 1.0), (siblings, 0.5), (everywhere, 0.75)):
        near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=cutoff)
        if near:
            return UserError(message, f"did you mean {' or '.join(names[near[0]])}?")
    if not at.keys:
        return UserError(message, f"it has no keys of its own: see `batchinfer explain {parent}`")
    return UserError(message, f"its keys are {', '.join(siblings)}")


def _members(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The schemas of the types that a value may have, without null."""
    return [member for member in schema.get("anyOf", [schema]) if member.get("type") != "null"]


@functools.cache
def _reader() -> _FieldReader:
    return _FieldReader(JobSpec.model_json_schema()["$defs"])


class _FieldReader:
    """Turns parts of a JSON Schema into keys."""

    def __init__(self, definitions: Mapping[str, Any]) -> None:
        self._definitions = definitions

    def key(self, parts: tuple[str, ...], schema: Mapping[str, Any], required: bool) -> Key:
        """The key whose path has these parts, with all keys inside."""
        members = _members(schema)
        sections = [section for member in members if (section := self._section(member)) is not None]
        described = [schema.get("description", ""), *(section["description"] for section in sections)]
        # A section's schema lists its keys in `properties`; a mapping's schema does not.
        free = any("additionalProperties" in member and "properties" not in member for member in members)
        inside = [
            self.key((*parts, name), inner, name in section.get("required", ()))
            for section in sections
            for name, inner in section["properties"].items()
        ]
        values = _value_schema(schema) if free else {}
        if self._section(values) is not None:
            inside.append(replace(self.key((*parts, _placeholder(schema)), values, required=True), default=""))
        return Key(
            path=".".join(parts),
            name=parts[-1] if parts else "",
            type=" | ".join(self._type(member) for member in members),
            default=_default(schema, required),
            limits="; ".join(limit for member in members if (limit := _limits(member))),
            values=tuple(str(v) for m in members for v in m.get("enum", [m.get("const")]) if v is not None),
            description="\n\n".join(_paragraphs(dict.fromkeys(text for text in described if text))),
            keys=tuple(inside),
            schema=schema,
            free=free,
        )

    def _section(self, schema: Mapping[str, Any]) -> Mapping[str, Any] | None:
        if "$ref" in schema:
            section: Mapping[str, Any] = self._definitions[schema["$ref"].rpartition("/")[2]]
            return section
        return schema if "properties" in schema else None

    def _type(self, schema: Mapping[str, Any]) -> str:
        if "const" in schema:
            return str(schema["const"])
        if len(schema.get("enum", ())) > _SHOWN_VALUES:
            return f"one of {len(schema['enum'])}"
        if "enum" in schema:
            return " | ".join(schema["enum"])
        if self._section(schema) is not None:
            return "section"
        if schema.get("type") == "array":
            return f"list of {self._type(schema['items'])}"
        if schema.get("type") == "object":
            values = _value_schema(schema)
            return f"mapping to {self._type(values)}" if values else "mapping"
        return str(schema.get("type", "anything"))


def _default(schema: Mapping[str, Any], required: bool) -> str:
    if required:
        return "required"
    # Pydantic does not write the default of a factory into the schema; all factories here make an empty mapping.
    value = schema.get("default", {})
    if isinstance(value, Mapping) and value:
        # The default of a section is left out, because its keys show their own defaults.
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _limits(schema: Mapping[str, Any]) -> str:
    return ", ".join(words.format(schema[word]) for word, words in _LIMITS.items() if word in schema)


def _paragraphs(texts: Iterable[str]) -> list[str]:
    """Each paragraph as one line; the caller wraps it."""
    return [" ".join(paragraph.split()) for text in texts for paragraph in text.split("\n\n")]

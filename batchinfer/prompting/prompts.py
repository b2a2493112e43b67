"""Makes prompts of rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pyarrow as pa
from jinja2.exceptions import SecurityError

from batchinfer.errors import RowError, SpecError
from batchinfer.input.bad_rows import BAD_ROW
from batchinfer.input.column_types import PARSED
from batchinfer.jobspec import JobSpec, PromptSpec
from batchinfer.jobspec.templates import Map, compile_template, printed
from batchinfer.prompting.choices import described

Message = dict[str, Any]
"""A message of a chat: the texts `role` and `content`, and the other keys that chat templates read (`MESSAGE_KEYS`)."""

MESSAGE_KEYS = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content")
"""The keys of a message that the chat template receives. Others are the user's notes."""

ROLES = ("system", "developer", "user", "assistant", "tool")
"""The roles of a conversation. Another role is refused: a chat template writes it unchecked beside control tokens."""


class Prompt(NamedTuple):
    """The prompt of one row: the user's `text` with an optional `system` message, or whole `messages`.

    Only the engine knows whether the model has a chat template, so the engine makes the tokens.
    """

    text: str = ""
    system: str | None = None
    messages: tuple[Message, ...] | None = None
    query: str | None = None
    """What `text` is scored against, for `task: score`."""

    def as_messages(self) -> list[Message]:
        """The prompt as a chat."""
        if self.messages is not None:
            return list(self.messages)
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.text}]

    def as_text(self) -> str:
        """The prompt for a model without a chat template."""
        return f"{self.system}\n\n{self.text}" if self.system else self.text


def needed_columns(spec: JobSpec) -> dict[str, str]:
    """The columns that the job reads, each with the spec key that names it."""
    needed: dict[str, str] = {}
    if spec.input.id_column is not None:
        needed[spec.input.id_column] = "input.id_column"
    for name in spec.input.columns:
        needed.setdefault(name, "input.columns")
    for name, key in _prompt_columns(described(spec)):
        needed.setdefault(name, key)
    for name in compile_template(spec.prompt.query or "").columns:
        needed.setdefault(name, "prompt.query")
    if spec.input.group_by is not None:
        needed.setdefault(spec.input.group_by, "input.group_by")
    if spec.evaluate is not None:
        needed.setdefault(spec.evaluate.expected, "evaluate.expected")
        if spec.evaluate.by is not None:
            needed.setdefault(spec.evaluate.by, "evaluate.by")
    return needed


def _prompt_columns(prompt: PromptSpec) -> list[tuple[str, str]]:
    if prompt.column is not None:
        return [(prompt.column, "prompt.column")]
    if prompt.messages_column is not None:
        return [(prompt.messages_column, "prompt.messages_column")]
    names = compile_template(prompt.template or "").columns
    if not names:
        raise SpecError("prompt.template names no column of the input", "write a column in it, as {{ text }}")
    return [(name, "prompt.template") for name in names]


class PromptMaker:
    """Makes the prompts of the rows of a shard."""

    def __init__(self, prompt: PromptSpec, instruction: str = "") -> None:
        """`instruction`: a text before each prompt that is no conversation."""
        self._instruction = instruction
        self._system = prompt.system
        self._columns = [name for name, _ in _prompt_columns(prompt)]
        self._chat = prompt.messages_column is not None
        self._template = None if prompt.template is None else compile_template(prompt.template)

    def prompts(self, rows: pa.Table) -> list[Prompt | RowError]:
        """One prompt, or the reason why there is none, for each of the rows."""
        made = self._made(rows)
        if BAD_ROW in rows.column_names:
            for place, problem in enumerate(rows.column(BAD_ROW).to_pylist()):
                if problem is not None:
                    made[place] = RowError("input_invalid", _told(problem))
        return made

    def _made(self, rows: pa.Table) -> list[Prompt | RowError]:
        if self._template is None:
            one = self._from_messages if self._chat else self._from_text
            values = column_values(rows, self._columns[0])
            return [value if isinstance(value, RowError) else one(value) for value in values]
        columns = {name: column_values(rows, name) for name in self._columns}
        filled = self._template.fill(columns, rows.num_rows)
        render = self._template.renderer()
        made: list[Prompt | RowError] = []
        for text, *row in zip(filled, *columns.values(), strict=True):
            if text is not None:
                made.append(self._from_text(text))
                continue
            bad = next((value for value in row if isinstance(value, RowError)), None)
            made.append(bad or self._from_template(render, dict(zip(self._columns, row, strict=True))))
        return made

    def _from_template(self, render: Callable[[Mapping[str, Any]], str], row: dict[str, Any]) -> Prompt | RowError:
        try:
            text = render(row)
        except jinja2.UndefinedError as error:
            nulls = [name for name, value in row.items() if value is None]
            why = f"null in this row: {', '.join(nulls)}" if nulls else str(error)
            return RowError("template_error", _told(f"the template met a missing value: {why}"))
        except SecurityError as error:
            return RowError("template_error", _told(f"the template did what the sandbox forbids: {error}"))
        except Exception as error:
            # A template is the user's program and may raise anything: the error belongs to this row.
            return RowError("template_error", _told(f"{type(error).__name__}: {error}"))
        return self._from_text(text)

    def _from_text(self, value: Any) -> Prompt | RowError:
        text = value if isinstance(value, str) else "" if value is None else printed(value)
        if not text.strip():
            return RowError("prompt_empty", "the prompt is null" if value is None else "the prompt has no text")
        if not (text.isascii() or _is_unicode(text)):
            return RowError("prompt_invalid", "the prompt holds half of a surrogate pair, which is no character")
        return Prompt(self._instruction + text, self._system)

    def _from_messages(self, value: Any) -> Prompt | RowError:
        if value is None or value == []:
            return RowError("prompt_empty", "the messages are null or empty")
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                return RowError("prompt_invalid", _told(f"the messages are not JSON: {error}"))
        if isinstance(value, list):
            value = [dict(m) if isinstance(m, Map) else m for m in value]
        if not isinstance(value, list) or not all(_is_message(m) for m in value):
            return RowError("prompt_invalid", "the messages are not a list of {role, content} with texts")
        odd = next((m["role"] for m in value if m["role"] not in ROLES), None)
        if odd is not None:
            return RowError(
                "prompt_invalid", _told(f"a message has the role {odd!r:.100}; roles are {', '.join(ROLES)}")
            )
        if not any(m["content"].strip() for m in value):
            return RowError("prompt_empty", "the messages have no text")
        if not all(_is_unicode(printed(m)) for m in value):
            return RowError("prompt_invalid", "the messages hold half of a surrogate pair, which is no character")
        system = [{"role": "system", "content": self._system}] if self._system and value[0]["role"] != "system" else []
        # Every message in a column of structs has all keys of the struct; a null key was not written.
        kept = ({k: m[k] for k in MESSAGE_KEYS if m.get(k) is not None} for m in value)
        return Prompt(messages=(*system, *kept))


def column_values(rows: pa.Table, name: str) -> list[Any]:
    """The values of a column as prompts print them, and a RowError for each value that has no text.

    Bytes are read as UTF-8. Floats of 16 and 32 bits print with their shortest digits, such as 0.1. Bytes that are not
    UTF-8 and dates after the year 9999 have no text.
    """
    column = rows.column(name)
    convert = _converter(column.type)
    if PARSED.items() <= (rows.schema.field(name).metadata or {}).items():
        convert = json.loads
    try:
        values: list[Any] = column.to_pylist()
    except Exception:
        # Arrow's exceptions depend on the column's type, from OverflowError to UnicodeDecodeError.
        values = [_python_value(value) for value in column]
    if convert is None:
        return values
    return [value if value is None or isinstance(value, RowError) else _converted(convert, value) for value in values]


def _python_value(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return _NOT_UTF8
    except Exception as error:
        # Arrow's exceptions depend on the column's type; the error belongs to this row.
        return RowError("prompt_invalid", _told(f"the row holds a value that cannot be read: {error}"))


_NOT_UTF8 = RowError("prompt_invalid", "the row holds text that is not UTF-8")


def _converted(convert: Callable[[Any], Any], value: Any) -> Any:
    try:
        return convert(value)
    except UnicodeDecodeError:
        return _NOT_UTF8


def _converter(kind: pa.DataType) -> Callable[[Any], Any] | None:
    """Converts a Python value that is not null to the value of a prompt; None if no conversion is needed."""
    kinds = pa.types
    if kinds.is_dictionary(kind):
        return _converter(kind.value_type)
    if kinds.is_binary(kind) or kinds.is_large_binary(kind) or kinds.is_fixed_size_binary(kind):
        return bytes.decode
    if kinds.is_float32(kind) or kinds.is_float16(kind):
        narrow = np.float32 if kinds.is_float32(kind) else np.float16
        return lambda value: float(str(narrow(value)))
    if kinds.is_struct(kind):
        fields = {field.name: convert for field in kind if (convert := _converter(field.type)) is not None}
        return (lambda value: {k: _inner(fields.get(k), v) for k, v in value.items()}) if fields else None
    if kinds.is_map(kind):
        key, item = _converter(kind.key_type), _converter(kind.item_type)
        return lambda value: Map((_inner(key, k), _inner(item, v)) for k, v in value)
    if kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind):
        each = _converter(kind.value_type)
        return (lambda value: [_inner(each, v) for v in value]) if each is not None else None
    return None


def _inner(convert: Callable[[Any], Any] | None, value: Any) -> Any:
    return value if convert is None or value is None else convert(value)


def _is_unicode(text: str) -> bool:
    """Whether the text can be encoded: a Python text may hold half of a surrogate pair, which UTF-8 cannot."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _told(message: str) -> str:
    """The message with surrogates escaped and at most 500 characters, for a column of texts."""
    return message.encode(errors="backslashreplace").decode()[:500]


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)
